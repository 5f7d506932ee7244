//! The signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// SIGINT and SIGTERM, which end the command and not the daemon's work.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn open() -> Result<Self, Failure> {
        let open = |kind| signal(kind).map_err(|error| anyhow::anyhow!("cannot listen to signals: {error}"));
        Ok(Self { interrupt: open(SignalKind::interrupt())?, terminate: open(SignalKind::terminate())? })
    }

    /// The exit code that a shell shows for a process ended by it. Cancel-safe.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
