//! The signals that end a command which runs for a while.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// SIGINT and SIGTERM. They end the command, and not the jobs.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Listens to them from now on, in place of ending the process.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn open() -> Result<Self, Failure> {
        let open = || Ok::<_, std::io::Error>((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
        let (interrupt, terminate) = open().map_err(|error| anyhow::anyhow!("cannot listen to signals: {error}"))?;
        Ok(Self { interrupt, terminate })
    }

    /// Waits for one. Returns the exit code that a shell shows for a process ended by it. Cancel-safe.
    pub(super) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}
