//! The channels that a connection publishes over, and how the allowed ones are divided.
//!
//! A lane has two permanent channels: its baton's and its intake's. All others are lent while messages are in flight,
//! and kept for the next ones. Batons, outcomes, jobs and republished messages have shares of their own: queues that
//! confirm nothing can use up only the share of their kind, and the one for republishing.
//!
//! Fourteen channels for each lane, most of them idle, were too many for 200 lanes. A channel is lent for one group of
//! messages, or for one queue check. The replica count has a permanent channel on each connection. Below eight channels
//! there are no shares: four are enough for a lane, and then one stuck queue holds up everything. The scheduler's baton
//! has a channel where there is one beyond those.
//!
//! If there is room, four channels of each kind are opened per lane before one is lent again (`WARM`): the first
//! publish of a channel to a queue without a leader keeps a pausing node of RabbitMQ 4.0 from dropping its clients for
//! five seconds, in which two replicas called for the lane.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::ConfirmSelectOptions;
use lapin::{Channel, Connection, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::debug;

/// Permanent channels of a lane: its baton's and its intake's.
const OF_A_LANE: usize = 2;
/// Permanent channels of a connection: the replica count's.
const OF_A_CONNECTION: usize = 1;
/// Channels of a connection that may be lost without harm, at most.
const MOST_LOST: usize = 16;
/// Below this there are no shares: everything is published over the same channels.
const FEWEST_SHARED: usize = 8;
/// Channels of each lane and kind of traffic that are opened before an idle one is reused. The first message from a
/// channel to a queue without a leader blocks the channel's process in RabbitMQ 4.0 for five seconds; a node that lost
/// the others waits for all such processes before it drops its clients, which go on calling. So no channel should be
/// new at that time.
const WARM: usize = 4;
/// Age from which a channel is closed after a rejection. Over a channel that first met a queue without a leader,
/// RabbitMQ 3.10 rejects messages to it until its last leader's node is back. A younger channel is kept: a full queue
/// rejects over any channel, and a new one for each message slowed all other lanes (`benches/lanes`). If the channel
/// was the cause, it costs one more rejected group, of whichever lane it is lent to after this time.
const REJECTING: Duration = Duration::from_secs(1);
/// Most channels of a publisher for republishing: each may be one more copy in a queue that confirms nothing.
const MOST_AGAIN: usize = 64;

/// How many lanes fit on a connection with so many channels. Each lane needs one more to publish over.
pub fn lanes_for(channels: usize) -> usize {
    channels.saturating_sub(OF_A_CONNECTION) / (OF_A_LANE + 1)
}

/// How many channels so many lanes need, with one to check and declare queues.
pub(super) fn needed_by(lanes: usize) -> usize {
    OF_A_CONNECTION + (OF_A_LANE + 1) * lanes + 1
}

/// How many of the channels that the broker allows are counted on. Some channel numbers are lost ([`open_channel`]):
/// one at a first start, which checks for a queue that does not exist yet.
pub(super) fn usable(channels: usize) -> usize {
    channels.saturating_sub((channels / 10).clamp(1, MOST_LOST))
}

/// Whether a connection with so many channels has one to spare for the scheduler's baton, beside those that its lanes
/// need and use in shares.
pub(super) fn has_spare(channels: usize, lanes: usize) -> bool {
    left_by(lanes, channels) > FEWEST_SHARED
}

/// How many of `channels` are left to be lent by so many lanes.
fn left_by(lanes: usize, channels: usize) -> usize {
    channels.saturating_sub(OF_A_CONNECTION + lanes * OF_A_LANE)
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

/// The channels to publish over, divided into shares.
#[derive(Debug, Clone)]
pub(super) struct Shares {
    batons: Arc<Channels>,
    outcomes: Arc<Channels>,
    jobs: Arc<Channels>,
    /// To check queues, and to declare deleted ones.
    pub(super) looks: Arc<Channels>,
    /// For republished messages.
    pub(super) again: Arc<Channels>,
    /// Channels of `again` for each publisher, at most.
    pub(super) again_each: usize,
}

impl Shares {
    /// One share for everything, of `channels` channels, one or more. Up to `kept` of them are kept while idle.
    pub(super) fn undivided(connection: &Arc<Connection>, channels: usize, kept: usize) -> Self {
        let all = Arc::new(Channels::new(connection, channels.max(1), kept, 0));
        let again_each = (channels / FEWEST_SHARED).max(1);
        let [batons, outcomes, jobs, looks, again] = std::array::from_fn(|_| all.clone());
        Self { batons, outcomes, jobs, looks, again, again_each }
    }

    /// Divides the `channels` that so many lanes leave over.
    pub(super) fn divide(connection: &Arc<Connection>, channels: usize, lanes: usize) -> Self {
        let left = left_by(lanes, channels);
        if left < FEWEST_SHARED {
            return Self::undivided(connection, left, left);
        }
        // A baton is in flight for a moment, twice per heartbeat, and a stuck one must not hold up another lane's.
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

/// Opens a channel. lapin never forgets the error with which the broker closed a channel: it refuses a later one of the
/// same number with that error, so the number is lost (lapin 4.12, `channels_poison`). So the next number is tried; and
/// a connection that has none left is closed, since its lanes could only wait.
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

/// Channels in confirm mode, opened on demand, and lent to one user at a time.
#[derive(Debug)]
pub(super) struct Channels {
    connection: Arc<Connection>,
    permits: Arc<Semaphore>,
    /// How many idle channels are kept.
    kept: usize,
    /// How many are opened before an idle one is lent again.
    warm: usize,
    opened: Mutex<Opened>,
}

impl Channels {
    fn new(connection: &Arc<Connection>, most: usize, kept: usize, warm: usize) -> Self {
        let permits = Arc::new(Semaphore::new(most));
        Self { connection: connection.clone(), permits, kept, warm, opened: Mutex::default() }
    }

    /// Waits for a channel and lends it.
    pub(super) async fn lend(self: &Arc<Self>) -> Result<Lent, lapin::Error> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.lend_with(permit).await
    }

    /// Lends another channel, if one is available at once.
    pub(super) async fn lend_more(self: &Arc<Self>) -> Option<Result<Lent, lapin::Error>> {
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        Some(self.lend_with(permit).await)
    }

    async fn lend_with(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Result<Lent, lapin::Error> {
        let idle = self.opened().take_or_count(self.warm);
        let channel = match idle {
            Some(channel) => channel,
            None => self.open().await.inspect_err(|_| self.opened().count -= 1)?,
        };
        Ok(Lent { of: self.clone(), lent: Some((channel, permit)) })
    }

    async fn open(&self) -> Result<Aged, lapin::Error> {
        let channel = open_channel(&self.connection).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Aged { channel, since: Instant::now() })
    }

    fn opened(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel in confirm mode, and since when it is open.
#[derive(Debug)]
struct Aged {
    channel: Channel,
    since: Instant,
}

/// The open channels.
#[derive(Debug, Default)]
struct Opened {
    /// Lent ones included.
    count: usize,
    /// The one that has been idle for longest is first.
    idle: VecDeque<Aged>,
}

impl Opened {
    /// An idle channel; `None` if a new one is to be opened, which is counted already.
    fn take_or_count(&mut self, warm: usize) -> Option<Aged> {
        let idle = if self.count < warm { None } else { self.idle.pop_front() };
        self.count += usize::from(idle.is_none());
        idle
    }
}

/// A lent channel. Dropped, it is closed, and only then another may be opened in its place.
#[derive(Debug)]
pub struct Lent {
    of: Arc<Channels>,
    lent: Option<(Aged, OwnedSemaphorePermit)>,
}

impl Lent {
    /// The channel.
    pub fn channel(&self) -> &Channel {
        &self.lent.as_ref().expect("it is taken out at the end alone").0.channel
    }

    /// Returns the channel for reuse after a rejection, unless the channel itself may be the cause.
    pub(super) fn keep_if_new(self) {
        if self.lent.as_ref().is_some_and(|(opened, _)| opened.since.elapsed() < REJECTING) {
            self.keep();
        }
    }

    pub(super) fn connection(&self) -> Arc<Connection> {
        self.of.connection.clone()
    }

    /// Returns the channel for reuse: nothing is in flight over it, and it met no error.
    pub fn keep(mut self) {
        let of = self.of.clone();
        let mut opened = of.opened();
        if opened.idle.len() < of.kept
            && let Some((channel, permit)) = self.lent.take()
        {
            opened.idle.push_back(channel);
            drop(permit);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some((opened, permit)) = self.lent.take() {
            self.of.opened().count -= 1;
            tokio::spawn(async move {
                // If it cannot be closed it is gone already.
                let _ = opened.channel.close(200, "done".into()).await;
                drop(permit);
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

    #[test]
    fn the_scheduler_gets_a_channel_only_where_lanes_keep_their_shares() {
        assert_eq!([FEWEST, 11, 12].map(|channels| has_spare(channels, 1)), [false, false, true]);
        assert_eq!([2031, 13].map(|channels| has_spare(channels, 676)), [true, false]);
    }
}
