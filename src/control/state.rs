//! What the commands so far amount to: pure, with the time as an argument.
//!
//! | command | for which jobs | for how long |
//! |---|---|---|
//! | pause | all of the lane: they wait | until it is resumed, until its own end, or for 30 days |
//! | cancel | those that were submitted before | 30 days |
//! | snooze | all of the instance that would be called | until its own end, or for 30 days |
//! | start a wave | those of the batch that were announced at its time, up to that wave | 30 days |
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
    /// Adds a command that was given `at` that time, the next one in the order of the stream.
    pub fn apply(&mut self, Command { action, by, reason }: Command, at: Timestamp, now: Timestamp) {
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
                    make_room(&mut self.waves, &announced, |started| started.at);
                    self.waves.insert(announced, Started { wave, not_before, waiting, at });
                }
            }
            Action::CancelInstance { instance_id } => {
                insert(&mut self.instances, instance_id, order);
            }
            Action::Snooze { instance_id, until } => {
                make_room(&mut self.snoozes, &instance_id, |(order, _)| order.at);
                self.snoozes.insert(instance_id, (order, until.min(latest)));
            }
        }
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
    make_room(orders, &key, |order| order.at);
    orders.insert(key, order);
}

/// Drops the earlier half where there are too many for a new key.
fn make_room<K: Eq + Hash, V>(map: &mut HashMap<K, V>, key: &K, at: impl Fn(&V) -> Timestamp) {
    if map.len() < LIMIT || map.contains_key(key) {
        return;
    }
    let mut times: Vec<Timestamp> = map.values().map(&at).collect();
    let (_, median, _) = times.select_nth_unstable(LIMIT / 2);
    let median = *median;
    let mut surplus = LIMIT / 2 - times.iter().filter(|time| **time < median).count();
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
    /// For a person: by whom, why, and what ends it.
    pub fn describe(&self, lane: &str) -> String {
        let why = self.reason.as_ref().map(|reason| format!(": {}", Shown(reason))).unwrap_or_default();
        let (by, until) = (Shown(&self.by), self.until.round(jiff::Unit::Second).unwrap_or(self.until));
        format!("by {by}{why}; until {until}, or `reveille resume {lane}`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        format!("2026-11-25T{text}Z").parse().unwrap()
    }

    fn command(action: Action) -> Command {
        Command { action, by: "ops@desk".to_owned(), reason: Some("patching".to_owned()) }
    }

    fn instance(id: &str) -> InstanceId {
        InstanceId::parse(id).unwrap()
    }

    fn job(batch: Option<&str>) -> Job {
        Job { batch_id: batch.map(str::to_owned), ..Job::of(instance("i-0000")) }
    }

    fn paused(state: &State, now: &str) -> bool {
        state.pause_of("prod", at(now)).is_some()
    }

    #[test]
    fn a_pause_ends_by_a_command_or_at_its_time_and_is_one_lanes() {
        let mut state = State::default();
        let pause = |until| command(Action::PauseLane { lane: "prod".to_owned(), until });
        state.apply(pause(Some(at("08:00:00"))), at("07:00:00"), at("07:00:01"));
        assert!(paused(&state, "07:59:59") && !paused(&state, "08:00:00"));
        assert!(state.pause_of("other", at("07:30:00")).is_none());
        assert_eq!(state.next_end(at("07:30:00")), Some(at("08:00:00")));
        assert_eq!(state.next_end(at("08:00:00")), None);
        state.apply(pause(None), at("07:10:00"), at("07:10:00"));
        assert!(paused(&state, "08:00:00"), "the later one counts");
        assert_eq!(
            state.pause_of("prod", at("09:00:00")).unwrap().describe("prod"),
            "by ops@desk: patching; until 2026-12-25T07:10:00Z, or `reveille resume prod`"
        );
        state.apply(command(Action::ResumeLane { lane: "prod".to_owned() }), at("07:20:00"), at("07:20:00"));
        assert!(!paused(&state, "07:20:00"));
    }

    #[test]
    fn a_replica_that_starts_anew_agrees_with_one_that_runs_on() {
        let given = at("07:00:00");
        let later = given.saturating_add(LASTS).unwrap();
        let pause = command(Action::PauseLane { lane: "prod".to_owned(), until: Some(Timestamp::MAX) });
        let cancel = command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None });
        let snooze = command(Action::Snooze { instance_id: instance("i-0000"), until: Timestamp::MAX });
        let (mut first, mut second) = (State::default(), State::default());
        for each in [pause, cancel, snooze] {
            first.apply(each.clone(), given, given);
            second.apply(each, given, later);
        }
        assert_eq!(second, State::default());
        assert_eq!(first.pause_of("prod", later), None);
        assert_eq!(
            first.cancellation("prod", &job(Some("b")), Some(given), later + SignedDuration::from_secs(1)),
            None
        );
        assert_eq!(first.snooze(&instance("i-0000"), later), None);
    }

    #[test]
    fn a_command_from_a_clock_that_is_ahead_counts_as_given_now() {
        let mut state = State::default();
        let (now, ahead) = (at("07:00:00"), at("23:00:00"));
        state.apply(command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), ahead, now);
        assert!(state.cancellation("prod", &job(Some("b")), Some(now), now).is_some());
        assert!(state.cancellation("prod", &job(Some("b")), Some(at("08:00:00")), at("08:00:00")).is_none());
    }

    #[test]
    fn only_jobs_that_were_submitted_before_are_cancelled() {
        let mut state = State::default();
        let (given, now) = (at("07:00:00"), at("12:00:00"));
        state.apply(command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), given, given);
        let is_cancelled =
            |state: &State, batch, submitted| state.cancellation("prod", &job(batch), submitted, now).is_some();
        assert!(is_cancelled(&state, Some("b"), Some(at("06:00:00"))));
        assert!(is_cancelled(&state, Some("b"), Some(at("07:01:00"))), "clocks differ");
        assert!(!is_cancelled(&state, Some("b"), Some(at("07:01:01"))));
        assert!(is_cancelled(&state, Some("b"), None), "it may have waited since then");
        assert!(!is_cancelled(&state, Some("c"), None) && !is_cancelled(&state, None, None));
        let tomorrow = given + UNDATED + SignedDuration::from_secs(1);
        assert!(state.cancellation("prod", &job(Some("b")), None, tomorrow).is_none());
        assert!(state.cancellation("prod", &job(Some("b")), Some(given), tomorrow).is_some());
        let cancelled = state.cancellation("prod", &job(Some("b")), None, now).unwrap();
        assert_eq!(cancelled.text, "cancelled by ops@desk: patching");
        let one = Action::CancelBatch { batch_id: "c".to_owned(), lane: Some("prod".to_owned()) };
        state.apply(command(one), given, given);
        let is_in = |lane| state.cancellation(lane, &job(Some("c")), Some(given), now).is_some();
        assert!(is_in("prod") && !is_in("other"));
        state.apply(command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), at("06:00:00"), given);
        assert!(
            is_cancelled(&state, Some("b"), Some(given)),
            "a copy of an early command does not replace a later one"
        );
        state.apply(command(Action::CancelInstance { instance_id: instance("i-0000") }), given, given);
        assert!(state.cancellation("prod", &job(None), Some(given), now).is_some());
    }

    fn start_wave(batch: &str, wave: u32, announced_at: Timestamp) -> Command {
        let (batch_id, lane, wave) = (batch.to_owned(), "prod".to_owned(), Wave::new(wave).unwrap());
        command(Action::StartWave { batch_id, lane, wave, announced_at, not_before: None, waiting: 7 })
    }

    #[test]
    fn a_job_waits_until_its_wave_was_started_for_those_that_were_announced_with_it() {
        let (announced, now) = (at("07:00:00.75"), at("08:00:00"));
        let mut state = State::default();
        let of = |wave| Job { wave: Wave::new(wave), ..job(Some("b")) };
        // As the timestamp of a message has it.
        let stamped = Some(at("07:00:00"));
        let ahead = |state: &State, wave, stamped| state.wave_ahead("prod", &of(wave), stamped, now);
        assert_eq!(ahead(&state, 2, stamped), Some(WaveAhead::Running { waiting: 0 }), "nothing is known");
        assert_eq!((ahead(&state, 1, None), ahead(&state, 0, None)), (None, None), "the first waits for nothing");
        state.apply(start_wave("b", 3, announced), at("07:10:00"), now);
        state.apply(start_wave("b", 2, announced), at("07:05:00"), now);
        assert_eq!((ahead(&state, 2, stamped), ahead(&state, 3, stamped)), (None, None), "a copy takes nothing back");
        assert_eq!(ahead(&state, 4, stamped), Some(WaveAhead::Running { waiting: 7 }));
        let mut settling = start_wave("b", 4, announced);
        if let Action::StartWave { not_before, .. } = &mut settling.action {
            *not_before = Some(at("08:00:01"));
        }
        state.apply(settling, at("07:20:00"), now);
        assert_eq!(
            (ahead(&state, 3, stamped), ahead(&state, 4, stamped)),
            (None, Some(WaveAhead::Until(at("08:00:01"))))
        );
        assert!(state.wave_ahead("prod", &of(4), stamped, at("08:00:01")).is_none());
        for (other, stamp) in [("later", Some(at("07:00:01"))), ("earlier", Some(at("06:59:59"))), ("undated", None)] {
            assert!(ahead(&state, 2, stamp).is_some(), "{other}");
        }
        assert!(state.wave_ahead("test", &of(2), stamped, now).is_some(), "another lane");
        let other = Job { batch_id: Some("c".to_owned()), ..of(2) };
        assert!(state.wave_ahead("prod", &other, stamped, now).is_some(), "another batch");
        let later = at("07:20:00").saturating_add(LASTS).unwrap() + SignedDuration::from_secs(1);
        assert!(state.wave_ahead("prod", &of(2), stamped, later).is_some(), "as a replica that starts then has it");
    }

    #[test]
    fn a_snooze_ends_at_its_time_and_can_be_ended_before() {
        let mut state = State::default();
        let id = instance("i-0000");
        let snooze = |until| command(Action::Snooze { instance_id: id.clone(), until });
        state.apply(snooze(at("09:00:00")), at("07:00:00"), at("07:00:00"));
        let told = state.snooze(&id, at("08:00:00")).unwrap();
        assert_eq!(told.reason, CancelReason::Snoozed);
        assert_eq!(told.text, "snoozed until 2026-11-25T09:00:00Z by ops@desk: patching");
        assert!(
            state.snooze(&id, at("09:00:00")).is_none() && state.snooze(&instance("i-0001"), at("08:00:00")).is_none()
        );
        state.apply(snooze(at("07:30:00")), at("07:30:00"), at("07:30:00"));
        assert!(state.snooze(&id, at("07:30:00")).is_none());
    }

    #[test]
    fn however_many_commands_come_memory_is_bounded() {
        let mut state = State::default();
        let now = at("07:00:00");
        for number in 0..=LIMIT {
            let time = now + SignedDuration::from_millis(number.try_into().unwrap());
            state.apply(command(Action::CancelBatch { batch_id: format!("b-{number}"), lane: None }), time, time);
        }
        let has = |number: usize| state.batches.contains_key(&(format!("b-{number}"), None));
        assert!(!has(0) && !has(LIMIT / 2 - 1) && has(LIMIT / 2) && has(LIMIT));
        assert_eq!(state.batches.len(), LIMIT / 2 + 1);
        for number in 0..=LIMIT {
            let time = now + SignedDuration::from_millis(number.try_into().unwrap());
            state.apply(start_wave(&format!("b-{number}"), u32::MAX, Timestamp::MIN), time, time);
        }
        assert_eq!(state.waves.len(), LIMIT / 2 + 1);
    }

    #[test]
    fn a_command_that_replaces_another_makes_no_other_end() {
        let mut state = State::default();
        let now = at("07:00:00");
        for number in 0..LIMIT {
            let id = instance(&format!("i-{number:06}"));
            state.apply(command(Action::CancelInstance { instance_id: id.clone() }), now, now);
            state.apply(command(Action::Snooze { instance_id: id, until: at("09:00:00") }), now, now);
            state.apply(start_wave(&format!("b-{number}"), 1, now), now, now);
        }
        let id = instance("i-000007");
        state.apply(command(Action::CancelInstance { instance_id: id.clone() }), now, now);
        state.apply(command(Action::Snooze { instance_id: id, until: at("10:00:00") }), now, now);
        state.apply(start_wave("b-7", 2, now), now, now);
        assert_eq!([state.instances.len(), state.snoozes.len(), state.waves.len()], [LIMIT; 3]);
    }
}
