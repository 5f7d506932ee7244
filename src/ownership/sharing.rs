//! Replicas share lanes evenly.
//!
//! A replica's *share* is the number of lanes divided by the number of replicas, rounded up. Two rules keep to it:
//!
//! 1. A replica that holds more than its share gives lanes back, one at a time, as a stop would: drained, then the
//!    baton to the next in line.
//! 2. A replica that is next in line, but has its share, passes the baton on at once, before it begins with the lane.
//!
//! So each lane given back ends at a replica with less than its share. There is one, as together they have room for all
//! lanes; and the baton reaches it, as a replica that passes it on, or gave it back, waits at the end of the line
//! again. No replica ever has more to give back than before, so there are as many moves as surplus lanes, and none
//! after that.
//!
//! No replica relies on the others to count alike, or to stand in line for the same lanes: a lane that comes back is
//! kept, and not given away again for an hour, or until the number of replicas changes.
//!
//! RabbitMQ gives a baton to the replica that has been in line longest, which may well have enough lanes. Taking the
//! lane over and giving it back would be a second move, each with a drain and a take-over; passing the baton on costs
//! some milliseconds, and after a death nothing has to be moved. Before a baton is passed on the replicas are counted
//! again: after a death, the share has grown.
//!
//! Replicas do not know which others have a lane configured, and two can count differently for a moment: if a lane that
//! comes back were not kept, batons could circulate for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::replicas::{self, ReplicaCount};
use super::{FIRST_RETRY, Interrupted, LONGEST_RETRY};
use crate::broker::{Connection, Connections, Names};
use crate::retry::full_jitter;
use crate::stop::Stop;
use crate::telemetry::Metrics;

/// Between two counts of the replicas.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Longest pause before a surplus is checked a second time. It is random, so that two replicas that see the same change
/// do not act on the first count, nor in step.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How long dead replicas may still be counted once their batons have moved on.
const DEAD_COUNTED: Duration = Duration::from_millis(50);
/// Longest wait of a lane for the number of replicas.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a lane that came back is kept.
const KEPT: Duration = Duration::from_secs(60 * 60);
/// Lanes subscribe in random order, one per this time on average, so that replicas that start together share from the
/// beginning; but all of them within [`LONGEST_START`].
const START_GAP: Duration = Duration::from_millis(20);
const LONGEST_START: Duration = Duration::from_secs(1);

/// How many lanes more than its share a replica has that holds `held` of `lanes`. An unknown number of replicas is 0,
/// and gives no surplus.
fn surplus(held: usize, lanes: usize, replicas: usize) -> usize {
    held.saturating_sub(lanes.div_ceil(replicas.max(1)))
}

/// This replica's knowledge of how lanes are shared.
#[derive(Debug)]
pub struct Sharing {
    queue: String,
    metrics: Metrics,
    shares: Mutex<Shares>,
}

/// The decisions.
#[derive(Debug, Default)]
struct Shares {
    /// How many lanes are configured here.
    lanes: usize,
    /// 0 if not known yet.
    replicas: usize,
    /// Lanes for whose baton this replica is in line, held ones included.
    in_line: BTreeSet<String>,
    /// Sending `true` asks for a lane back.
    held: BTreeMap<String, watch::Sender<bool>>,
    /// When each lane was given back or passed on.
    given: BTreeMap<String, Instant>,
}

impl Shares {
    fn saw(&mut self, replicas: usize) {
        if self.replicas != replicas {
            self.replicas = replicas;
            self.given.clear();
        }
    }

    /// Whether this replica may be counted: it can take every lane that the others give back.
    fn is_complete(&self) -> bool {
        self.in_line.len() == self.lanes
    }

    /// Accepts a lane whose baton has come, unless it is one too many.
    fn accept(&mut self, lane: &str, now: Instant) -> Option<watch::Receiver<bool>> {
        let too_many = surplus(self.held.len() + 1, self.lanes, self.replicas) > 0;
        if too_many && !self.came_back(lane, now) { None } else { Some(self.keep(lane)) }
    }

    fn keep(&mut self, lane: &str) -> watch::Receiver<bool> {
        let (ask, asked) = watch::channel(false);
        self.held.insert(lane.to_owned(), ask);
        asked
    }

    fn came_back(&self, lane: &str, now: Instant) -> bool {
        self.given.get(lane).is_some_and(|given| now.duration_since(*given) < KEPT)
    }

    fn pass_on(&mut self, lane: &str, now: Instant) {
        self.given.insert(lane.to_owned(), now);
    }

    fn surplus(&self) -> usize {
        surplus(self.held.len(), self.lanes, self.replicas)
    }

    /// Chooses a lane to give back by `dice`, if there are too many.
    fn give_back(&mut self, dice: usize, now: Instant) -> Option<(String, watch::Sender<bool>)> {
        if self.surplus() == 0 {
            return None;
        }
        let mut lanes: Vec<_> = self.held.iter().filter(|(lane, _)| !self.came_back(lane, now)).collect();
        let index = dice.checked_rem(lanes.len())?;
        let (lane, ask) = lanes.swap_remove(index);
        let (lane, ask) = (lane.clone(), ask.clone());
        self.pass_on(&lane, now);
        Some((lane, ask))
    }
}

impl Sharing {
    /// For a replica with this many lanes.
    pub fn new(names: &Names, lanes: usize, metrics: &Metrics) -> Arc<Self> {
        let shares = Mutex::new(Shares { lanes, ..Shares::default() });
        Arc::new(Self { queue: names.replicas(), metrics: metrics.clone(), shares })
    }

    /// For a role that is not shared, and not counted with the lanes: it is accepted whenever its baton comes, and never asked
    /// back.
    pub fn of_one(names: &Names, metrics: &Metrics) -> Arc<Self> {
        // As for a single lane while the number of replicas is unknown, which nothing counts here.
        Self::new(names, 1, metrics)
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a count, or `None` if counting failed: then lanes go by the last count, and the metric shows none.
    fn saw(&self, replicas: Option<usize>) {
        if let Some(replicas) = replicas {
            self.shares().saw(replicas);
        }
        self.metrics.replicas.set(i64::try_from(replicas.unwrap_or(0)).unwrap_or(i64::MAX));
    }

    /// Waits for a random time before a lane subscribes over a new connection.
    pub(super) async fn stagger(&self) {
        let others = u32::try_from(self.shares().lanes).unwrap_or(u32::MAX).saturating_sub(1);
        let longest = START_GAP.saturating_mul(others).min(LONGEST_START);
        sleep(longest.mul_f64(rand::random())).await;
    }

    /// Records that this replica is in line for a lane's baton, as long as the result lives.
    pub(super) fn in_line(self: &Arc<Self>, lane: &str) -> InLine {
        self.shares().in_line.insert(lane.to_owned());
        InLine { lane: lane.to_owned(), sharing: self.clone() }
    }

    /// Accepts a lane whose baton has come. `None`: this replica has its share; pass the baton on.
    pub(super) async fn accept(self: &Arc<Self>, lane: &str, connection: &Connection) -> Option<Hold> {
        let hold = |asked| Hold { lane: lane.to_owned(), asked, sharing: self.clone() };
        if let Some(asked) = self.shares().accept(lane, Instant::now()) {
            return Some(hold(asked));
        }
        // If the baton comes from a death, our share may change.
        for pause in [Duration::ZERO, DEAD_COUNTED] {
            sleep(pause).await;
            let Some(replicas) = self.count(connection).await else {
                return Some(hold(self.shares().keep(lane)));
            };
            self.saw(Some(replicas));
            if let Some(asked) = self.shares().accept(lane, Instant::now()) {
                return Some(hold(asked));
            }
        }
        debug!("passed on: another replica runs fewer lanes");
        self.shares().pass_on(lane, Instant::now());
        None
    }

    async fn count(&self, connection: &Connection) -> Option<usize> {
        let counting = async {
            let lent = connection.lend().await?;
            let counted = replicas::count(lent.channel(), &self.queue).await?;
            lent.keep();
            Ok::<_, Interrupted>(counted)
        };
        timeout(PATIENCE, counting).await.ok()?.ok()?
    }

    /// Counts this replica once it is in line for every lane, and gives lanes back while it has more than its share,
    /// until `stop` is requested. Never ends.
    pub async fn keep_even(&self, connections: &Connections, stop: &Stop) -> Infallible {
        let mut failures = 0;
        loop {
            let since = Instant::now();
            let counting = connections.over_any(async |connection| {
                let ended = self.count_and_give_back(connection).await;
                connection.something_is_missing();
                ended
            });
            tokio::select! {
                // A replica about to stop is not counted, so that the others' shares are right when its lanes come.
                () = stop.requested() => std::future::pending().await,
                ended = counting => match ended {
                    Some(Ok(never)) => match never {},
                    Some(Err(error)) => {
                        warn!("lanes are not shared evenly, for want of the number of replicas: {error}");
                    }
                    None => {}
                },
            }
            self.saw(None);
            failures = if since.elapsed() > LONGEST_RETRY { 1 } else { failures + 1 };
            sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
        }
    }

    async fn count_and_give_back(&self, connection: &Connection) -> Result<Infallible, Interrupted> {
        while !self.shares().is_complete() {
            sleep(LOOK_EVERY / 4).await;
        }
        let mut replica_count = ReplicaCount::answer(connection, &self.queue).await?;
        loop {
            let seen = replica_count.count().await?;
            self.saw(seen);
            if seen.is_none() || self.shares().surplus() == 0 {
                replica_count.rest(LOOK_EVERY).await?;
                continue;
            }
            replica_count.rest(LONGEST_PAUSE.mul_f64(rand::random())).await?;
            if replica_count.count().await? != seen {
                continue;
            }
            let given = self.shares().give_back(rand::random::<u16>().into(), Instant::now());
            if let Some((lane, ask)) = given {
                info!(lane, replicas = seen, "more lanes than our share: this one is given to another replica");
                ask.send_replace(true);
                ask.closed().await;
            } else {
                replica_count.rest(LOOK_EVERY).await?;
            }
        }
    }
}

/// This replica's place in the line for a lane's baton.
#[derive(Debug)]
pub(super) struct InLine {
    lane: String,
    sharing: Arc<Sharing>,
}

impl Drop for InLine {
    fn drop(&mut self) {
        self.sharing.shares().in_line.remove(&self.lane);
    }
}

/// A lane held by this replica, as long as this lives.
#[derive(Debug)]
pub(super) struct Hold {
    lane: String,
    asked: watch::Receiver<bool>,
    sharing: Arc<Sharing>,
}

impl Hold {
    /// `true` once the lane is to be given back.
    pub fn asked_back(&self) -> watch::Receiver<bool> {
        self.asked.clone()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.sharing.shares().held.remove(&self.lane);
    }
}

#[cfg(test)]
mod tests;
