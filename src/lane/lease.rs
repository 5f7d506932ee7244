//! How long the lane is surely ours: for a heartbeat from when a baton was asked for that has come.
//!
//! A broker that has heard nothing from us for two heartbeats gives the baton to another replica, and so does the rest of
//! a cluster that has lost sight of our node. Who stood still meanwhile, or is cut off, does not learn of it: it has
//! deliveries in hand, a burst saved up, and a connection that seems sound. So the holder asks for another baton again
//! and again (`baton.rs`), and where the last one that came was asked for long ago, calls wait for the next. If the lane
//! is another's, that never comes.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

/// The right to make calls.
#[derive(Debug)]
pub struct Lease {
    /// By the wall clock, since a monotonic one leaves out the time that a machine is suspended. Where somebody sets
    /// it, calls wait for the next baton.
    valid: watch::Sender<Range<SystemTime>>,
}

impl Lease {
    /// One that is not valid yet.
    pub fn new() -> Self {
        Self { valid: watch::Sender::new(SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH) }
    }

    /// A baton that was asked for at `asked` has come: that is good for `length`.
    pub fn renew(&self, asked: SystemTime, length: Duration) {
        self.valid.send_replace(asked..asked + length);
    }

    /// What was valid is so no longer.
    pub fn end(&self) {
        self.valid.send_replace(SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH);
    }

    pub fn is_valid(&self) -> bool {
        self.valid.borrow().contains(&SystemTime::now())
    }

    /// Waits until it is valid.
    pub async fn valid(&self) {
        let is_valid = |valid: &Range<SystemTime>| valid.contains(&SystemTime::now());
        self.valid.subscribe().wait_for(is_valid).await.expect("the sender is ours");
    }
}
