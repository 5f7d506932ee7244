//! The channels that a connection publishes over, and how those that the broker allows are divided.
//!
//! A lane has two channels for good: its baton's and its intake's. All others are lent out for as long as messages are on
//! their way, and kept for the next ones. Batons, outcomes, jobs and what is published once more have shares of their own: queues
//! which confirm nothing can use up the share of their own kind, and the last one.
//!
//! A lane had up to fourteen channels for itself, most of which idled: 200 lanes were refused for want of them. The
//! lending ends with a group of messages, or with a look at a queue. The replica count has a channel for good as well, one
//! for each connection. Of fewer than eight channels there are no shares: four are enough for a lane, and with them one
//! stuck queue holds up all.
//!
//! Where there is room, four channels of each kind are opened for each lane before one is lent again (`WARM`): a channel
//! that is new to a queue without a leader keeps a node of RabbitMQ 4.0 that pauses from dropping its clients for five
//! seconds, and the lane was called for by two replicas meanwhile.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::debug;

/// Channels of a lane for good: its baton's and its intake's.
const OF_A_LANE: usize = 2;
/// Channels of a connection for good: the replica count's.
const OF_A_CONNECTION: usize = 1;
/// Channels of a connection that may be lost without harm, at most.
const MOST_LOST: usize = 16;
/// Below so many there are no shares: everything is published over the same ones.
const FEWEST_SHARED: usize = 8;
/// Channels of each lane to publish one kind of traffic over that are opened although another one idles. The first message that
/// a channel brings to a queue without a leader holds up the channel's process in RabbitMQ 4.0 for five seconds; and a node that
/// lost sight of the others waits for all of them before it drops its clients, which call on meanwhile. So no channel is to be
/// new just then.
const WARM: usize = 4;
/// How long a channel is of use over which RabbitMQ rejects messages. Over one that first met a queue while that had no leader,
/// RabbitMQ 3.10 rejects what is for it until the node of the last one is back; so it is closed then. But not sooner: a queue that
/// is full rejects over any channel, and a new one for each message slowed all other lanes (`benches/lanes`).
const REJECTING: Duration = Duration::from_secs(1);
/// Most channels of one publisher for what is published once more: each may be one more copy in a queue that confirms nothing.
const MOST_AGAIN: usize = 64;

/// How many lanes fit on a connection of so many channels: each is to find one more to publish over.
pub fn lanes_for(channels: usize) -> usize {
    channels.saturating_sub(OF_A_CONNECTION) / (OF_A_LANE + 1)
}

/// How many channels so many lanes need, with one to look at queues and to declare them.
pub(super) fn needed_by(lanes: usize) -> usize {
    OF_A_CONNECTION + (OF_A_LANE + 1) * lanes + 1
}

/// How many channels are counted on, of those that the broker lets a connection have. The numbers of some are lost
/// ([`open_channel`]): one at a first start, which looks for a queue that is not there yet.
pub(super) fn usable(channels: usize) -> usize {
    channels.saturating_sub((channels / 10).clamp(1, MOST_LOST))
}

/// The fewest channels that a lane needs, with the connection's own.
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
    /// For looks at queues, and to declare what was deleted.
    pub(super) looks: Arc<Channels>,
    /// For what is published once more.
    pub(super) again: Arc<Channels>,
    /// Of those, for one publisher.
    pub(super) again_each: usize,
}

impl Shares {
    /// All over the same channels, of which there are so many, one or more. Up to `kept` of them are kept while they idle.
    pub(super) fn undivided(connection: &Arc<Connection>, channels: usize, kept: usize) -> Self {
        let all = Arc::new(Channels::new(connection, channels.max(1), kept, 0));
        let again_each = (channels / FEWEST_SHARED).max(1);
        let [batons, outcomes, jobs, looks, again] = std::array::from_fn(|_| all.clone());
        Self { batons, outcomes, jobs, looks, again, again_each }
    }

    /// Divides what so many lanes leave of so many channels.
    pub(super) fn divide(connection: &Arc<Connection>, channels: usize, lanes: usize) -> Self {
        let left = channels.saturating_sub(OF_A_CONNECTION + lanes * OF_A_LANE);
        if left < FEWEST_SHARED {
            return Self::undivided(connection, left, left);
        }
        // A baton is on its way for a moment, twice in a heartbeat, and a stuck one is not to hold up another lane's.
        let (looks, batons) = (1, (left / FEWEST_SHARED).min(lanes));
        let third = (left - looks - batons) / 3;
        let share = |channels, warm| Arc::new(Channels::new(connection, channels, channels, warm));
        let warm = third.min(WARM * lanes);
        Self {
            batons: share(batons, batons),
            outcomes: share(third, warm),
            jobs: share(third, warm),
            looks: share(looks, 0),
            again: share(third, 0),
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

/// Opens a channel. lapin never forgets the error that the broker closed a channel with: a later one of the same number is refused with
/// it, and the number is lost (lapin 4.12, `channels_poison`). So the next number is tried; and a connection that has none left is
/// closed, since its lanes could do nothing but wait.
pub(super) async fn open_channel(connection: &Connection) -> Result<Channel, lapin::Error> {
    loop {
        match connection.create_channel().await {
            Err(error) if error.is_amqp_soft_error() => {}
            Err(error) if matches!(error.kind(), ErrorKind::ChannelsLimitReached) => {
                debug!("no channel is left of a connection to RabbitMQ: it is closed");
                let _ = connection.close(200, "out of channels".into()).await;
                return Err(error);
            }
            opened => return opened,
        }
    }
}

/// Channels in confirm mode, each opened when there is none to be had, and lent to one at a time.
#[derive(Debug)]
pub(super) struct Channels {
    connection: Arc<Connection>,
    turns: Arc<Semaphore>,
    /// How many are kept while they idle.
    kept: usize,
    /// How many are opened before one is lent again.
    warm: usize,
    opened: Mutex<Opened>,
}

impl Channels {
    fn new(connection: &Arc<Connection>, most: usize, kept: usize, warm: usize) -> Self {
        let turns = Arc::new(Semaphore::new(most));
        Self { connection: connection.clone(), turns, kept, warm, opened: Mutex::default() }
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
        let idle = self.opened().take_or_count(self.warm);
        let channel = match idle {
            Some(channel) => channel,
            None => self.open().await.inspect_err(|_| self.opened().count -= 1)?,
        };
        Ok(Lent { of: self.clone(), lent: Some((channel, turn)) })
    }

    async fn open(&self) -> Result<Confirming, lapin::Error> {
        let channel = open_channel(&self.connection).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Confirming { channel, since: Instant::now() })
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel in confirm mode.
#[derive(Debug)]
struct Confirming {
    channel: Channel,
    since: Instant,
}

/// The channels there are.
#[derive(Debug, Default)]
struct Opened {
    /// Lent ones included.
    count: usize,
    /// The one that has idled for longest is first.
    idle: VecDeque<Confirming>,
}

impl Opened {
    /// One that idles; `None`, and counted, where another one is to be opened.
    fn take_or_count(&mut self, warm: usize) -> Option<Confirming> {
        let idle = if self.count < warm { None } else { self.idle.pop_front() };
        self.count += usize::from(idle.is_none());
        idle
    }
}

/// A channel that is lent. Dropped, it is closed, and only then another may be opened in its place.
#[derive(Debug)]
pub struct Lent {
    of: Arc<Channels>,
    lent: Option<(Confirming, OwnedSemaphorePermit)>,
}

impl Lent {
    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.lent.as_ref().expect("it is taken out at the end alone").0.channel
    }

    /// Gives it back after RabbitMQ rejected messages over it, unless that may be for the channel's sake.
    pub(super) fn keep_if_new(self) {
        if self.lent.as_ref().is_some_and(|(opened, _)| opened.since.elapsed() < REJECTING) {
            self.keep();
        }
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        self.of.connection.clone()
    }

    /// Gives it back, to be lent again: nothing is on its way over it, and nothing went wrong with it.
    pub fn keep(mut self) {
        let of = self.of.clone();
        let mut opened = of.opened();
        if opened.idle.len() < of.kept
            && let Some((channel, turn)) = self.lent.take()
        {
            opened.idle.push_back(channel);
            drop(turn);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((opened, turn)) = self.lent.take() {
            self.of.opened().count -= 1;
            tokio::spawn(async move {
                // If it cannot be closed it is gone already.
                let _ = opened.channel.close(200, "done".into()).await;
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
        assert_eq!([FEWEST - 1, FEWEST, 6, 7, 18, 2031].map(lanes_for), [0, 1, 1, 2, 5, 676]);
        assert_eq!([1, 2, 10].map(needed_by), [5, 8, 32]);
        assert_eq!([0, 4, 5, 20, 2047].map(usable), [0, 3, 4, 18, 2031]);
    }
}
