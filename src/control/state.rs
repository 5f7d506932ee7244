//! What the commands so far amount to: pure, with the time as an argument.
//!
//! | command | for which jobs | for how long |
//! |---|---|---|
//! | pause | all of the lane: they wait | until it is resumed, until its own end, or for 30 days |
//! | cancel | those that were submitted before | 30 days |
//! | snooze | all of the instance that would be called | until its own end, or for 30 days |
//! | start a wave | those of the batch that were announced at its time, up to that wave | 30 days |
//! | pause a schedule | none are submitted for what is due meanwhile | as for a lane |
//! | run a schedule | they are submitted now | [`RUNS_FOR`]: a replica that begins later says that it was too late |
//!
//! Nothing lasts longer than the stream keeps the command ([`LASTS`]), so that a replica that starts anew agrees with one
//! that runs on.
//!
//! **Submitted before**: when a job was submitted is known from the message's `timestamp`, which the producer sets, or
//! from when the daemon first parked it. Clocks differ, so a job counts as earlier up to [`MARGIN`] after the command. A
//! new message without a timestamp may have waited in its queue for long: it counts as earlier for [`UNDATED`].
//!
//! **Announced at**: a name of a batch comes again, and the command that started its waves yesterday is still known. So a job of
//! a later wave goes by those commands alone that name the second in its message's `timestamp`, which is that of the
//! announcement. No other clock has a part in it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};

use crate::bce::InstanceId;
use crate::events::{Action, CancelReason, Command, Wave};
use crate::job::Job;
use crate::text::Shown;

/// How long a command has an effect at most: as long as the stream keeps it.
pub const LASTS: SignedDuration = SignedDuration::from_hours(30 * 24);
/// By how much the clocks of producers and of whoever gives commands may differ.
const MARGIN: SignedDuration = SignedDuration::from_secs(60);
/// How long a command to run a schedule is known: long enough that what came of it is said, once.
pub const RUNS_FOR: SignedDuration = SignedDuration::from_hours(1);
/// The most of them, and of schedules that are paused.
const MOST_RUNS: usize = 1_000;
const MOST_PAUSED: usize = 10_000;
/// Longest id of such a command, in bytes. Ours have 36.
const ID_LIMIT: usize = 128;
/// How long a cancellation is for jobs that do not say when they were submitted.
const UNDATED: SignedDuration = SignedDuration::from_hours(24);
/// Cancellations of batches, of instances, snoozes, and announcements with waves: so many of each are in force at a time. Together some
/// 150 MB, and over 300 MB where all names and reasons are as long as they may be. Beyond that, the earlier half of them ends.
const LIMIT: usize = 100_000;

/// A pause by hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    /// The person or program that ordered it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When it began.
    pub since: Timestamp,
    /// When it ends by itself.
    pub until: Timestamp,
}

/// Why a job is not to be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancellation {
    /// For its outcome.
    pub reason: CancelReason,
    /// For a person: by whom, and why.
    pub text: String,
}

/// A command to run a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The id of the command.
    pub id: String,
    /// The schedule.
    pub schedule: String,
    /// What the batch is named by.
    pub due: Timestamp,
    /// The person or program that ordered it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// A cancellation, or a snooze, as it was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Order {
    by: String,
    why: Option<String>,
    at: Timestamp,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    pauses: HashMap<String, Pause>,
    /// Cancelled ones by name, in one lane or in all, with the latest order for each.
    batches: HashMap<(String, Option<String>), Order>,
    /// The same.
    instances: HashMap<InstanceId, Order>,
    /// Snoozed ones, with the end of each.
    snoozes: HashMap<InstanceId, (Order, Timestamp)>,
    waves: HashMap<Announced, Started>,
    /// Paused schedules, and those that were paused last: what was due meanwhile may come up later.
    schedules: HashMap<String, Pause>,
    /// In the order of the stream.
    runs: Vec<Run>,
}

/// The jobs of a batch that were announced together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Announced {
    batch: String,
    lane: String,
    /// In seconds since 1970.
    at: i64,
}

/// How far a batch may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Started {
    wave: Wave,
    /// When that wave starts at the earliest.
    not_before: Option<Timestamp>,
    /// Jobs of later waves.
    waiting: usize,
    at: Timestamp,
}

/// Why a job of a later wave has to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaveAhead {
    /// Jobs of the waves before have not ended.
    Running {
        /// How many jobs of its batch wait with it, as far as that is known.
        waiting: usize,
    },
    /// Its wave starts then.
    Until(Timestamp),
}

impl State {
    /// Adds the command `id` that was given `at` that time, the next one in the order of the stream.
    pub fn apply(&mut self, id: &str, Command { action, by, reason }: Command, at: Timestamp, now: Timestamp) {
        // A clock that was wrong must not make a command last.
        let at = at.min(now);
        let latest = at.saturating_add(LASTS).unwrap_or(Timestamp::MAX);
        if latest <= now {
            return;
        }
        let order = Order { by: by.clone(), why: reason.clone(), at };
        match action {
            Action::PauseLane { lane, until } => {
                let until = until.unwrap_or(latest).min(latest);
                self.pauses.insert(lane, Pause { by, reason, since: at, until });
            }
            Action::ResumeLane { lane } => drop(self.pauses.remove(&lane)),
            Action::CancelBatch { batch_id, lane } => {
                insert(&mut self.batches, (batch_id, lane), order);
            }
            Action::StartWave { batch_id, lane, wave, announced_at, not_before, waiting } => {
                let announced = Announced { batch: batch_id, lane, at: announced_at.as_second() };
                // A copy of an early command can come after a later one.
                if self.waves.get(&announced).is_none_or(|present| present.wave <= wave) {
                    make_room(&mut self.waves, &announced, LIMIT, |started| started.at);
                    self.waves.insert(announced, Started { wave, not_before, waiting, at });
                }
            }
            Action::CancelInstance { instance_id } => {
                insert(&mut self.instances, instance_id, order);
            }
            Action::Snooze { instance_id, until } => {
                make_room(&mut self.snoozes, &instance_id, LIMIT, |(order, _)| order.at);
                self.snoozes.insert(instance_id, (order, until.min(latest)));
            }
            Action::PauseSchedule { schedule, until } => {
                let until = until.unwrap_or(latest).min(latest);
                make_room(&mut self.schedules, &schedule, MOST_PAUSED, |pause| pause.since);
                self.schedules.insert(schedule, Pause { by, reason, since: at, until });
            }
            Action::ResumeSchedule { schedule } => {
                if let Some(pause) = self.schedules.get_mut(&schedule) {
                    pause.until = pause.until.min(at);
                }
            }
            Action::RunSchedule { schedule, due } => {
                self.runs.retain(|run| now.duration_since(run.at) <= RUNS_FOR);
                let is_new = self.runs.iter().all(|run| run.id != id);
                if is_new && id.len() <= ID_LIMIT && now.duration_since(at) <= RUNS_FOR {
                    if self.runs.len() >= MOST_RUNS {
                        self.runs.remove(0);
                    }
                    self.runs.push(Run { id: id.to_owned(), schedule, due, by, at });
                }
            }
        }
    }

    /// The pause of a schedule at an instant, unless it was paused again since.
    pub fn schedule_pause(&self, schedule: &str, at: Timestamp) -> Option<&Pause> {
        self.schedules.get(schedule).filter(|pause| (pause.since..pause.until).contains(&at))
    }

    /// The commands to run a schedule that are known.
    pub fn runs(&self, now: Timestamp) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| now.duration_since(run.at) <= RUNS_FOR)
    }

    /// The pause of a lane, if it is in force.
    pub fn pause_of(&self, lane: &str, now: Timestamp) -> Option<&Pause> {
        self.pauses.get(lane).filter(|pause| now < pause.until)
    }

    /// When the next pause ends by itself, after `now`.
    pub fn next_end(&self, now: Timestamp) -> Option<Timestamp> {
        self.pauses.values().map(|pause| pause.until).filter(|until| *until > now).min()
    }

    /// Why a job of `lane` is not to be called at all. `submitted`: when, if that is known.
    pub fn cancellation(
        &self,
        lane: &str,
        job: &Job,
        submitted: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<Cancellation> {
        // The usual case, for each job.
        if self.batches.is_empty() && self.instances.is_empty() {
            return None;
        }
        let of_batch = |lane: Option<&str>| self.batches.get(&(job.batch_id.clone()?, lane.map(str::to_owned)));
        let order = of_batch(None).into_iter().chain(of_batch(Some(lane))).chain(self.instances.get(&job.instance_id));
        let order = order.filter(|order| order.is_for_one_submitted(submitted, now)).max_by_key(|order| order.at)?;
        Some(Cancellation { reason: CancelReason::ByCommand, text: format!("cancelled by {order}") })
    }

    /// Whether a job of `lane` has to wait for earlier waves of its batch. `stamped`: the time that its message has.
    pub fn wave_ahead(&self, lane: &str, job: &Job, stamped: Option<Timestamp>, now: Timestamp) -> Option<WaveAhead> {
        let wave = job.wave.filter(|wave| *wave > Wave::FIRST)?;
        let batch = job.batch_id.clone()?;
        let started = stamped.and_then(|stamped| {
            let announced = Announced { batch, lane: lane.to_owned(), at: stamped.as_second() };
            self.waves.get(&announced).filter(|started| now.duration_since(started.at) <= LASTS)
        });
        match started {
            Some(started) if wave < started.wave => None,
            Some(started) if wave == started.wave => {
                started.not_before.filter(|not_before| now < *not_before).map(WaveAhead::Until)
            }
            started => Some(WaveAhead::Running { waiting: started.map_or(0, |started| started.waiting) }),
        }
    }

    /// Why an instance is not to be called now.
    pub fn snooze(&self, instance: &InstanceId, now: Timestamp) -> Option<Cancellation> {
        let (order, until) = self.snoozes.get(instance).filter(|(_, until)| now < *until)?;
        Some(Cancellation { reason: CancelReason::Snoozed, text: format!("snoozed until {until} by {order}") })
    }
}

/// Inserts an order, unless a later one is there: a copy of an early command can come after it.
fn insert<K: Eq + Hash>(orders: &mut HashMap<K, Order>, key: K, order: Order) {
    if orders.get(&key).is_some_and(|present| present.at > order.at) {
        return;
    }
    make_room(orders, &key, LIMIT, |order| order.at);
    orders.insert(key, order);
}

/// Drops the earlier half where there are too many for a new key.
fn make_room<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: &K, limit: usize, at: impl Fn(&V) -> Timestamp) {
    if map.len() < limit || map.contains_key(key) {
        return;
    }
    let mut times: Vec<Timestamp> = map.values().map(&at).collect();
    let (_, median, _) = times.select_nth_unstable(limit / 2);
    let median = *median;
    let mut surplus = limit / 2 - times.iter().filter(|time| **time < median).count();
    map.retain(|_, value| match at(value).cmp(&median) {
        Ordering::Less => false,
        Ordering::Equal if surplus > 0 => {
            surplus -= 1;
            false
        }
        Ordering::Equal | Ordering::Greater => true,
    });
}

impl Order {
    fn is_for_one_submitted(&self, submitted: Option<Timestamp>, now: Timestamp) -> bool {
        let within = |time: Timestamp, length| time.duration_since(self.at) <= length;
        within(now, LASTS) && submitted.map_or_else(|| within(now, UNDATED), |submitted| within(submitted, MARGIN))
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.by)?;
        self.why.as_ref().map_or(Ok(()), |why| write!(f, ": {why}"))
    }
}

impl Pause {
    /// For a person: by whom, why, and what ends it beside the command `resume`.
    pub fn describe(&self, resume: impl fmt::Display) -> String {
        let why = self.reason.as_ref().map(|reason| format!(": {}", Shown(reason))).unwrap_or_default();
        let (by, until) = (Shown(&self.by), self.until.round(jiff::Unit::Second).unwrap_or(self.until));
        format!("by {by}{why}; until {until}, or `reveille {resume}`")
    }
}

#[cfg(test)]
mod tests;
