//! What a lane knows of its jobs' past: which it lately had in hand, which of their events are published, and what the
//! previous replica published ([`replay`]).

mod replay;
mod seal;
mod seen;

pub(super) use self::replay::replay;
pub(super) use self::seal::{Mark, Order, Seals};
pub(super) use self::seen::{End, Key, Seen};

/// See the module.
#[derive(Debug)]
pub(super) struct History {
    /// The jobs that were lately in hand.
    pub(super) jobs: Seen,
    /// Proves that a copy of a job, or an event, was written by the daemon.
    pub(super) seals: Seals,
}

impl History {
    /// For a lane that has had no job yet.
    pub(super) fn new(lane: &str, secret_access_key: &str) -> Self {
        Self { jobs: Seen::new(), seals: Seals::new(lane, secret_access_key) }
    }
}
