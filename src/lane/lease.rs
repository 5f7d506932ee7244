//! How long the lane is surely ours: for a heartbeat from the broker's last word on the baton's channel.
//!
//! A broker that has heard nothing from us for two heartbeats gives the baton to another replica. Who stood still
//! meanwhile, or is cut off, does not learn of it: it has deliveries in hand, a burst saved up, and a connection that
//! seems sound. So the broker is asked for a word again and again, and where the last one is old, calls wait for the
//! next. If the baton is gone, that never comes.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use lapin::Channel;
use lapin::options::ChannelFlowOptions;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

/// The right to make calls.
#[derive(Debug)]
pub struct Lease {
    /// By the wall clock, since a monotonic one leaves out the time that a machine is suspended. Where somebody sets
    /// it, calls wait for the broker's next word.
    valid: watch::Sender<Range<SystemTime>>,
}

impl Lease {
    /// One that is not valid yet.
    pub fn new() -> Self {
        Self { valid: watch::Sender::new(SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH) }
    }

    /// Asks the broker for a word over `channel`, the baton's, as long as it gives one; each is good for `length`.
    /// What was valid before is so no longer.
    pub async fn renew(&self, channel: &Channel, length: Duration) -> Result<(), lapin::Error> {
        self.valid.send_replace(SystemTime::UNIX_EPOCH..SystemTime::UNIX_EPOCH);
        let mut renewal = interval(length / 4);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            renewal.tick().await;
            let asked = SystemTime::now();
            // Deliveries flow already: of all that is answered, this changes nothing.
            channel.channel_flow(ChannelFlowOptions { active: true }).await?;
            self.valid.send_replace(asked..asked + length);
        }
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
