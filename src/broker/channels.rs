//! The channels that a connection publishes over, and how those that the broker allows are divided.
//!
//! A lane has two channels for good: its baton's and its intake's. All others are lent out for as long as messages are on
//! their way, and kept for the next ones. Batons, outcomes, jobs and what is published once more have shares of their own,
//! so that a queue which confirms nothing can use up one share and no other.

use std::sync::{Arc, Mutex, PoisonError};

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Channels of a lane for good: its baton's and its intake's.
const OF_A_LANE: usize = 2;
/// Channels of a connection for good: the roll call's.
const OF_A_CONNECTION: usize = 1;
/// Below so many there are no shares: everything is published over the same ones.
const FEWEST_SHARED: usize = 8;
/// For batons at most: each is on its way for a moment, twice in a heartbeat.
const MOST_FOR_BATONS: usize = 16;
/// Most channels of one publisher for what is published once more: each may be one more copy in a queue that confirms nothing.
const MOST_AGAIN: usize = 64;

/// How many lanes fit on a connection of so many channels: each is to find one more to publish over.
pub fn lanes_for(channels: usize) -> usize {
    channels.saturating_sub(OF_A_CONNECTION) / (OF_A_LANE + 1)
}

/// The fewest channels that a connection with a lane needs.
pub const FEWEST: usize = OF_A_CONNECTION + OF_A_LANE + 1;

/// What is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// The batons of lanes.
    Batons,
    /// Outcome events.
    Outcomes,
    /// Jobs and dead letters.
    Jobs,
}

/// The channels to publish over, divided.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    batons: Arc<Channels>,
    outcomes: Arc<Channels>,
    jobs: Arc<Channels>,
    /// For what is published once more, for declarations and for looks at queues.
    pub(super) again: Arc<Channels>,
    /// Of those, for one publisher.
    pub(super) again_each: usize,
}

impl Shares {
    /// All traffic over the same channels, of which there are so many, one or more.
    pub(super) fn undivided(connection: &Arc<Connection>, channels: usize) -> Self {
        let all = Arc::new(Channels::new(connection, channels.max(1)));
        let again_each = (channels / FEWEST_SHARED).max(1);
        Self { batons: all.clone(), outcomes: all.clone(), jobs: all.clone(), again: all, again_each }
    }

    /// Divides what so many lanes leave of so many channels.
    pub(super) fn divide(connection: &Arc<Connection>, channels: usize, lanes: usize) -> Self {
        let left = channels.saturating_sub(OF_A_CONNECTION + lanes * OF_A_LANE);
        if left < FEWEST_SHARED {
            return Self::undivided(connection, left);
        }
        let batons = (left / FEWEST_SHARED).min(MOST_FOR_BATONS);
        let third = (left - batons) / 3;
        let share = |channels| Arc::new(Channels::new(connection, channels));
        Self {
            batons: share(batons),
            outcomes: share(third),
            jobs: share(third),
            again: share(third),
            // A lane has one publisher of outcomes and one of jobs.
            again_each: (third / (2 * lanes.max(1))).clamp(1, MOST_AGAIN),
        }
    }

    pub(super) fn of(&self, traffic: Traffic) -> &Arc<Channels> {
        match traffic {
            Traffic::Batons => &self.batons,
            Traffic::Outcomes => &self.outcomes,
            Traffic::Jobs => &self.jobs,
        }
    }
}

/// Channels in confirm mode, each opened when there is none to be had, and lent to one at a time.
#[derive(Debug)]
pub(super) struct Channels {
    connection: Arc<Connection>,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Channel>>,
}

impl Channels {
    fn new(connection: &Arc<Connection>, most: usize) -> Self {
        Self { connection: connection.clone(), turns: Arc::new(Semaphore::new(most)), idle: Mutex::default() }
    }

    /// Lends a channel, once there is one.
    pub(super) async fn lend(self: &Arc<Self>) -> Result<Lent, lapin::Error> {
        let turn = self.turns.clone().acquire_owned().await.expect("nobody closes the semaphore");
        self.lend_in_turn(turn).await
    }

    /// Lends another channel, where there is one at once.
    pub(super) async fn lend_more(self: &Arc<Self>) -> Option<Result<Lent, lapin::Error>> {
        let turn = self.turns.clone().try_acquire_owned().ok()?;
        Some(self.lend_in_turn(turn).await)
    }

    async fn lend_in_turn(self: &Arc<Self>, turn: OwnedSemaphorePermit) -> Result<Lent, lapin::Error> {
        let idle = self.idle().pop();
        let channel = match idle {
            Some(channel) => channel,
            None => {
                let channel = self.connection.create_channel().await?;
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                channel
            }
        };
        Ok(Lent { of: self.clone(), lent: Some((channel, turn)) })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel that is lent. Dropped, it is closed, and only then another may be opened in its place.
#[derive(Debug)]
pub struct Lent {
    of: Arc<Channels>,
    lent: Option<(Channel, OwnedSemaphorePermit)>,
}

impl Lent {
    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.lent.as_ref().expect("it is taken out at the end alone").0
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        self.of.connection.clone()
    }

    /// Gives it back, to be lent again: nothing is on its way over it, and nothing went wrong with it.
    pub fn keep(mut self) {
        if let Some((channel, turn)) = self.lent.take() {
            self.of.idle().push(channel);
            drop(turn);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((channel, turn)) = self.lent.take() {
            tokio::spawn(async move {
                // If it cannot be closed it is gone already.
                let _ = channel.close(200, "done".into()).await;
                drop(turn);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_as_many_lanes_as_find_a_channel_to_publish_over() {
        assert_eq!([FEWEST - 1, FEWEST, 6, 7, 20, 2047].map(lanes_for), [0, 1, 1, 2, 6, 682]);
    }
}
