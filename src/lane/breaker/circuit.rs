//! The state machine of the breaker: pure, with the time as an argument.
//!
//! - **An outage is a row of failures, not a failure rate.** The rate since the last good answer would be the same, and
//!   a row has no window length to choose. Twenty in a row: where six calls in ten fail by chance, such a row begins
//!   once in 70,000 calls, and a row of five once in 32. While calls fail in a row fewer are let out (`Slots`), in the
//!   end none before a probe has decided. With a concurrency below fifteen the row is shorter, concurrency + 5.
//! - **Evidence is counted per instance, and an instance known as failing is none.** It is known from when its failure
//!   is charged to its job until it is answered: twenty machines that fail for hours, at the end of a morning with
//!   nothing else left to call, are no outage while a probe is answered.
//! - **Starts that fail alone, while probes are answered, are an outage too**, as long as instances fail that did not
//!   before. Once a trial meets only instances that failed a trial of this pause, the pause is over, and counts as time
//!   in which they failed.
//! - **A trial is five calls.** One call, where six in ten fail by chance, would fail most trials; five all fail in one
//!   of thirteen. For a lost permission one is enough: denials are not random. There, five denied instances and no
//!   other answer keep the lane paused as long as it takes: only a start shows that the permission is back. Each trial
//!   begins with another queue, since failing jobs are due, and due jobs go before new ones.
//! - **A call that failed on trial is not charged if the next one is answered**: the API may have recovered in between.
//! - **Where no start succeeds, jobs are retried slowly.** Seven machines that always fail look like an API whose
//!   starts all fail, for seven machines. The jobs have to end, but not by an outage of some minutes: so their attempts
//!   are spread over ten minutes, and one good answer removes the doubt.
//! - **After twelve failed probes one start is tried** (`FAILED_PROBES`), a quarter of a minute into an outage: a probe is a
//!   list, and if only lists fail nothing else would end the pause. It costs one call per twelve probes, which is
//!   charged to no job.
//! - **A probe that was sent before the lane was paused ends no pause**: jobs are still in hand then.
//! - **A poll is neither evidence for starts nor a trial**: permission to list does not show permission to start. A
//!   poll that fails or meets a lane fault pauses the lane as any call does.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use super::cause::{Cause, CauseKind, Signal};
use super::pauses::Pauses;
use crate::bce::InstanceId;

/// Instances without an answer in a row, none of them known as failing, that are an outage. Where six calls in ten fail
/// by chance, such a row begins once in 70,000 calls; one of ten, once in 400.
const OUTAGE: usize = 20;
/// Denied instances in a row that show a lost permission. Denials are not random.
const DENIED: usize = 5;
/// Polls without an answer in a row that are an outage: where nothing is started, only polls notice it.
const POLLS: usize = 5;
/// Calls beyond the lane's concurrency that detecting an outage may cost.
pub const BEYOND: usize = 5;
/// Calls of a trial. Where six calls in ten fail by chance, all of them fail in one trial of thirteen.
const TRIAL: usize = 5;
/// Failed probes, for a quarter of a minute, after which one start is tried: it may be that only lists fail.
const FAILED_PROBES: u32 = 12;
/// Instances that failed since the last good answer, which make it doubtful whether any start works.
const DOUBT: usize = 5;
/// Failing instances remembered, of some 50 bytes each. Beyond that, some count as new again.
const KNOWN: usize = 50_000;

/// Whether the lane may call, and the evidence for it.
#[derive(Debug)]
pub struct Circuit {
    /// Calls in flight, at most.
    concurrency: usize,
    state: State,
    /// Instances whose last call failed, or was denied, by their own fault: failing again is no evidence.
    failing: BTreeSet<InstanceId>,
    /// Instances without an answer since the last good one, [`DOUBT`] at most.
    doubts: BTreeSet<InstanceId>,
    /// Number of answers that show that the API is up: what fails beside them fails by its own fault.
    answers: u64,
    /// How often the lane was paused, or stayed paused after a trial.
    openings: u64,
    /// Past pauses that had a reason.
    pauses: Pauses,
}

/// The state of the circuit.
#[derive(Debug)]
enum State {
    /// Calls are made.
    Closed(Row),
    /// No calls are made, only probes.
    Open(Pause),
    /// A few jobs are called, to learn whether all can be.
    HalfOpen(Pause, Trial),
}

/// Failures since the last answer.
#[derive(Debug, Default)]
struct Row {
    /// Calls without an answer, for any instance.
    calls: usize,
    /// Instances without an answer that were not failing before.
    unanswered: BTreeSet<InstanceId>,
    /// Instances denied that were not failing before.
    denied: BTreeSet<InstanceId>,
    /// Polls without an answer.
    polls: usize,
}

impl Row {
    /// The API has answered.
    fn is_answered(&mut self) {
        self.calls = 0;
        self.unanswered.clear();
    }
}

#[derive(Debug)]
struct Pause {
    cause: Cause,
    since: Timestamp,
    /// Probes made so far.
    probes: u32,
    /// Instances that failed on one of its trials.
    tried: BTreeSet<InstanceId>,
    /// A failure was seen that is not of single instances.
    is_certain: bool,
}

#[derive(Debug, Default)]
struct Trial {
    failed: usize,
    /// An instance failed that was not known as failing, and failed no trial of this pause before.
    has_news: bool,
    /// The trial began without an answered probe.
    is_unprobed: bool,
}

impl Trial {
    /// Calls that decide the trial: one for a denial, which is not random, and one if no probe is answered, since a
    /// call is not likely to be either.
    fn size(&self, cause: &Cause) -> usize {
        if self.is_unprobed || cause.kind == CauseKind::AccessDenied { 1 } else { TRIAL }
    }
}

/// What is needed to attribute a recorded call.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    kind: Kind,
    /// The call was part of a trial.
    on_trial: bool,
    was_open: bool,
    /// As before it was recorded.
    answers: u64,
    openings: u64,
}

impl Evidence {
    /// Whether the call was one of a trial.
    pub fn is_on_trial(&self) -> bool {
        self.on_trial
    }
}

/// How a call ended, as far as the lane is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fault,
    NoAnswer,
    Denied,
    NotFailed,
}

/// Whose fault a failed call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution {
    /// The lane's: it was paused for it.
    Lane,
    /// The job's: the API answers others.
    Job,
    /// It did not fail.
    NotFailed,
}

/// State change caused by one call.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// Paused now, after it worked.
    Paused(Cause),
    /// Works again, after a pause of this length.
    Works(Duration),
}

impl Circuit {
    /// A closed circuit, for at most `concurrency` calls in flight.
    pub fn new(concurrency: usize) -> Self {
        Self {
            concurrency,
            state: State::Closed(Row::default()),
            failing: BTreeSet::new(),
            doubts: BTreeSet::new(),
            answers: 0,
            openings: 0,
            pauses: Pauses::default(),
        }
    }

    /// How many instances in a row without an answer are an outage.
    pub fn outage_after(&self) -> usize {
        OUTAGE.min(self.concurrency + BEYOND)
    }

    /// Why the lane is paused, if it is.
    pub fn paused(&self) -> Option<&Cause> {
        if let State::Open(pause) = &self.state { Some(&pause.cause) } else { None }
    }

    /// Whether hardly any start seems to work, even if the API answers.
    pub fn is_doubtful(&self) -> bool {
        self.doubts.len() >= DOUBT
    }

    /// Whether only a few jobs are to be called.
    pub fn is_half_open(&self) -> bool {
        matches!(self.state, State::HalfOpen(..))
    }

    /// Probes made since the lane last worked.
    pub fn probes(&self) -> u32 {
        match &self.state {
            State::Closed(_) => 0,
            State::Open(pause) | State::HalfOpen(pause, _) => pause.probes,
        }
    }

    /// Number of answers so far that show that the API is up.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// What is needed to attribute the call that is about to be recorded.
    pub fn evidence(&self, signal: &Signal) -> Evidence {
        let kind = match signal {
            Signal::Fault(_) => Kind::Fault,
            Signal::NoAnswer(_) => Kind::NoAnswer,
            Signal::Denied(_) => Kind::Denied,
            Signal::Alive | Signal::Good | Signal::Inconclusive(_) => Kind::NotFailed,
        };
        let on_trial = self.is_half_open();
        Evidence { kind, on_trial, was_open: self.paused().is_some(), answers: self.answers, openings: self.openings }
    }

    /// Whose fault a failed call is, once known. During a trial other answers are no evidence: the API may have
    /// recovered in between.
    pub fn attribution(&self, call: &Evidence) -> Option<Attribution> {
        match call.kind {
            Kind::NotFailed => Some(Attribution::NotFailed),
            Kind::Fault => Some(Attribution::Lane),
            _ if call.was_open || self.openings != call.openings => Some(Attribution::Lane),
            Kind::Denied => Some(Attribution::Job),
            Kind::NoAnswer if call.on_trial => (!self.is_half_open()).then_some(Attribution::Lane),
            Kind::NoAnswer => (self.answers != call.answers).then_some(Attribution::Job),
        }
    }

    /// How many of the lane's slots are withheld now: all of them if the API has to be probed first.
    pub fn withheld(&self) -> usize {
        let allowed = match &self.state {
            State::Closed(row) => (self.concurrency + BEYOND).saturating_sub(row.calls),
            State::HalfOpen(pause, trial) => trial.size(&pause.cause).saturating_sub(trial.failed),
            // A call that is let through finds the lane paused.
            State::Open(_) => self.concurrency,
        };
        self.concurrency.saturating_sub(allowed)
    }

    /// From when to when the lane was paused with reason, as far as known, one after the other; the present pause until
    /// `now`.
    pub fn pauses(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        self.pauses.until(now, self.pause().map(|pause| pause.since))
    }

    /// Why the lane does not work as it should: it is paused, or on trial.
    pub fn trouble(&self) -> Option<&Cause> {
        self.pause().map(|pause| &pause.cause)
    }

    fn pause(&self) -> Option<&Pause> {
        match &self.state {
            State::Closed(_) => None,
            State::Open(pause) | State::HalfOpen(pause, _) => Some(pause),
        }
    }

    /// Records the result of a start call for `instance`.
    pub fn record(&mut self, instance: &InstanceId, signal: &Signal, now: Timestamp) -> Option<Change> {
        // A denial may be what all calls would meet.
        if matches!(signal, Signal::Alive | Signal::Good) {
            self.answers = self.answers.wrapping_add(1);
        }
        if let Signal::Fault(cause) = signal {
            return self.open(cause, true, now);
        }
        match signal {
            Signal::NoAnswer(_) if !self.is_doubtful() => _ = self.doubts.insert(instance.clone()),
            Signal::Good => self.doubts.clear(),
            _ => {}
        }
        let enough = self.outage_after();
        let is_failure = matches!(signal, Signal::NoAnswer(_) | Signal::Denied(_));
        let news = (is_failure && !self.failing.contains(instance)).then(|| instance.clone());
        match (&mut self.state, signal) {
            (State::Closed(row), Signal::NoAnswer(cause)) => {
                row.calls += 1;
                row.unanswered.extend(news);
                if row.unanswered.len() >= enough { self.open(cause, false, now) } else { None }
            }
            (State::Closed(row), Signal::Denied(cause)) => {
                row.is_answered();
                row.denied.extend(news);
                if row.denied.len() >= DENIED { self.open(cause, false, now) } else { None }
            }
            (State::Closed(row), Signal::Alive) => {
                row.is_answered();
                None
            }
            (State::Closed(row), Signal::Good) => {
                *row = Row::default();
                self.failing.remove(instance);
                None
            }
            (State::HalfOpen(..), Signal::NoAnswer(cause) | Signal::Denied(cause)) => self.tried(instance, cause, now),
            (State::HalfOpen(..), Signal::Good) => {
                self.failing.remove(instance);
                self.close(true, now)
            }
            _ => None,
        }
    }

    /// Records the result of listing states. A success shows nothing of starts: where the API fails only those, polls
    /// in between must not make each failure look like its own job's.
    pub fn record_poll(&mut self, signal: &Signal, now: Timestamp) -> Option<Change> {
        match (&mut self.state, signal) {
            (_, Signal::Fault(cause)) => self.open(cause, true, now),
            (State::Closed(row), Signal::NoAnswer(cause)) => {
                row.polls += 1;
                if row.polls >= POLLS { self.open(cause, true, now) } else { None }
            }
            (State::Closed(row), Signal::Denied(_) | Signal::Alive | Signal::Good) => {
                row.polls = 0;
                None
            }
            _ => None,
        }
    }

    /// Records the result of a probe that decides whose fault failures are: an answer shows that the API is up, and no
    /// answer that it is not. It may have been sent before the lane was paused, so it ends no pause.
    pub fn record_check(&mut self, signal: &Signal, now: Timestamp) -> Option<Change> {
        if self.paused().is_some() {
            return None;
        }
        self.record_probe(signal, now)
    }

    /// Records the result of a probe of a paused lane: an answer makes it half open.
    pub fn record_probe(&mut self, signal: &Signal, now: Timestamp) -> Option<Change> {
        if matches!(signal, Signal::Denied(_) | Signal::Alive | Signal::Good) {
            self.answers = self.answers.wrapping_add(1);
        }
        match (&mut self.state, signal) {
            (State::Open(pause), Signal::Fault(cause) | Signal::NoAnswer(cause) | Signal::Inconclusive(cause)) => {
                pause.cause = cause.clone();
                pause.probes = pause.probes.saturating_add(1);
                pause.is_certain = true;
                if pause.cause.kind == CauseKind::Outage && pause.probes.is_multiple_of(FAILED_PROBES) {
                    self.half_open(true);
                }
                None
            }
            (_, Signal::Fault(cause) | Signal::NoAnswer(cause)) => self.open(cause, true, now),
            // Else a lane whose calls fail would wait for ever for a conclusive probe.
            (State::Closed(row), Signal::Inconclusive(cause)) if row.calls > 0 => self.open(cause, true, now),
            (State::HalfOpen(_, trial), Signal::Inconclusive(cause)) if trial.failed > 0 => self.open(cause, true, now),
            (_, Signal::Inconclusive(_)) => None,
            (State::Closed(row), _) => {
                row.calls = 0;
                None
            }
            // Whether jobs are still denied, only their calls show.
            (State::Open(pause), _) => {
                pause.probes = pause.probes.saturating_add(1);
                self.half_open(false);
                None
            }
            (State::HalfOpen(..), _) => None,
        }
    }

    fn half_open(&mut self, is_unprobed: bool) {
        if let State::Open(pause) = &mut self.state {
            let pause = Pause { tried: std::mem::take(&mut pause.tried), cause: pause.cause.clone(), ..*pause };
            self.state = State::HalfOpen(pause, Trial { is_unprobed, ..Trial::default() });
        }
    }

    /// Interrupts a trial: the next one begins with a probe. Jobs that failed on it are not charged.
    pub fn interrupt(&mut self) {
        if let State::HalfOpen(pause, _) = &self.state {
            let cause = pause.cause.clone();
            let is_certain = pause.is_certain;
            self.open(&cause, is_certain, pause.since);
        }
    }

    /// Ends a trial, if there is one, because no job is left to try.
    pub fn end_trial(&mut self, now: Timestamp) -> Option<Change> {
        let State::HalfOpen(pause, trial) = &self.state else { return None };
        if trial.is_unprobed {
            self.interrupt();
            return None;
        }
        let had_reason = pause.is_certain || trial.failed == 0;
        self.close(had_reason, now)
    }

    /// Remembers that an instance fails by its own fault.
    pub fn remember_failing(&mut self, instance: &InstanceId) {
        know(&mut self.failing, instance);
    }

    /// Records a failure on trial. Once all calls of the trial failed, the lane stays paused; or it works, if all of
    /// them failed a trial before, since other instances may not.
    fn tried(&mut self, instance: &InstanceId, cause: &Cause, now: Timestamp) -> Option<Change> {
        let State::HalfOpen(pause, trial) = &mut self.state else { return None };
        trial.failed += 1;
        let is_tried = !know(&mut pause.tried, instance);
        // Instances denied before the pause may have been the first to meet the lost permission.
        let is_known = cause.kind != CauseKind::AccessDenied && self.failing.contains(instance);
        trial.has_news |= !is_tried && !is_known;
        if trial.failed < trial.size(&pause.cause) {
            return None;
        }
        // One job after the other is denied, and none is not: that is not the jobs' own fault.
        let all_are_denied = cause.kind == CauseKind::AccessDenied && pause.tried.len() >= DENIED;
        if trial.has_news || trial.is_unprobed || all_are_denied {
            return self.open(cause, false, now);
        }
        let (had_reason, alone) = (pause.is_certain, std::mem::take(&mut pause.tried));
        alone.iter().for_each(|instance| self.remember_failing(instance));
        self.close(had_reason, now)
    }

    fn open(&mut self, cause: &Cause, is_certain: bool, now: Timestamp) -> Option<Change> {
        self.openings = self.openings.wrapping_add(1);
        let (pause, change) = match std::mem::replace(&mut self.state, State::Closed(Row::default())) {
            State::Open(pause) => (pause, None),
            State::HalfOpen(pause, _) => {
                let is_certain = pause.is_certain || is_certain;
                (Pause { cause: cause.clone(), is_certain, ..pause }, None)
            }
            State::Closed(_) => {
                let cause = cause.clone();
                let change = Change::Paused(cause.clone());
                (Pause { cause, since: now, probes: 0, tried: BTreeSet::new(), is_certain }, Some(change))
            }
        };
        self.state = State::Open(pause);
        change
    }

    /// Ends a trial. If only some instances were seen to fail, over and over, the pause had no reason, and does not
    /// extend their jobs' time.
    fn close(&mut self, had_reason: bool, now: Timestamp) -> Option<Change> {
        let State::HalfOpen(pause, _) = std::mem::replace(&mut self.state, State::Closed(Row::default())) else {
            return None;
        };
        if had_reason {
            self.pauses.add(pause.since, now);
        }
        // If the clock was set back meanwhile, the pause may have been long.
        Some(Change::Works(Duration::try_from(now.duration_since(pause.since)).unwrap_or(Duration::MAX)))
    }
}

/// Adds an instance. Returns whether it was new.
fn know(known: &mut BTreeSet<InstanceId>, instance: &InstanceId) -> bool {
    if known.len() >= KNOWN {
        known.pop_first();
    }
    known.insert(instance.clone())
}
