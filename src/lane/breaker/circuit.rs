//! The state machine of the breaker: pure, and told the time.
//!
//! - **An outage is a row of failures, not a share of them.** The share of a window that began at the last good answer is
//!   the same thing, and has no length to choose. Twenty in a row: where six calls in ten fail by chance, such a row
//!   begins once in 70,000 calls, and one of five, as it was, once in 32. While calls fail in a row, fewer are let out
//!   (`Slots`), none of them in the end until a probe has told. With a concurrency below fifteen that is also how long the
//!   row is.
//! - **Evidence is counted by instance, and an instance that failed before is none.** It is remembered from the moment on
//!   at which its failure is charged to its job, until it is answered: twenty machines that fail for hours, at the end of
//!   a morning when nothing else is left to be called, are no outage while a probe is answered.
//! - **Starts that fail alone, while probes are answered, are an outage too**, as long as instances fail that did not
//!   before. Once a trial meets none but those that failed a trial of this pause, the pause is over, and it counts as time
//!   for which they failed.
//! - **A trial is five calls.** One call, where six in ten fail by chance, would fail most trials; five all fail one of
//!   thirteen. Where a permission is gone one is enough: a denial is no chance. There five denied instances that nothing
//!   contradicts keep the lane paused for as long as it takes: nothing but a start shows whether the permission is back.
//!   Each trial begins with another queue: those that fail are due, and due jobs go before new ones.
//! - **A call that failed on trial is not charged where the next one is answered**: the API may have come back in between.
//! - **Where no start succeeds, jobs are tried again slowly.** Seven machines that always fail, and an API of which only
//!   starts fail for seven machines, look the same. The jobs have to end, and an outage of some minutes is not to end
//!   them: so their attempts are spread over ten minutes, and one good answer takes the doubt away.
//! - **After twelve probes in vain one start is tried** (`IN_VAIN`), a quarter of a minute into an outage: a probe is a
//!   list, and where lists alone fail nothing else would end the pause. It costs an outage one call for twelve probes,
//!   which is charged to no job.
//! - **A probe that was made before the lane was paused ends no pause**: jobs are still in hand then.
//! - **A poll is neither evidence for starts nor a trial.** That listing is allowed does not show that starting is. Where
//!   a poll fails or meets a lane fault it pauses the lane as any call does.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;

use super::cause::{Cause, CauseKind, Signal};
use crate::bce::InstanceId;

/// So many instances in a row without an answer, none of which was failing before, are an outage. Where six calls in ten
/// fail by chance, such a row begins once in 70,000 calls; with ten, once in 400.
const OUTAGE: usize = 20;
/// So many instances in a row that are denied are no matter of those instances. A denial is no chance.
const DENIED: usize = 5;
/// So many polls in a row without an answer are an outage: where nothing is started, they alone notice it.
const POLLS: usize = 5;
/// Calls beyond the lane's concurrency that finding out about an outage may cost.
pub const BEYOND: usize = 5;
/// Calls of a trial. Where six calls in ten fail by chance, all of them fail in one trial of thirteen.
const TRIAL: usize = 5;
/// After so many probes in vain, a quarter of a minute, one start is tried all the same: it may be that only lists fail.
const IN_VAIN: u32 = 12;
/// So many instances that failed since the last good answer leave a doubt whether any start works.
const DOUBT: usize = 5;
/// Failing instances that are known at a time, of some 50 bytes each. Of more, some are taken for new again.
const KNOWN: usize = 50_000;
/// Pauses that are remembered. Of more, the oldest count as time for which jobs failed.
const REMEMBERED: usize = 256;

/// Whether a lane calls, and what its last calls say about that.
#[derive(Debug)]
pub struct Circuit {
    /// Calls in flight, at most.
    concurrency: usize,
    state: State,
    /// Instances whose last call failed, or was denied, by their own fault. That they fail again is no news.
    failing: BTreeSet<InstanceId>,
    /// Instances without an answer since the last good one, as many as leave a doubt.
    doubts: BTreeSet<InstanceId>,
    /// Answers that show that the API is there, and what fails beside them fails by itself.
    answers: u64,
    /// How often the lane was paused, or paused on after a trial.
    openings: u64,
    /// When the lane was paused, and had reason to be.
    pauses: VecDeque<(Timestamp, Timestamp)>,
}

/// What a lane does.
#[derive(Debug)]
enum State {
    /// It calls.
    Closed(Row),
    /// It does not call, but probes.
    Open(Pause),
    /// It calls for a few jobs, to learn whether all can be called.
    HalfOpen(Pause, Trial),
}

/// Failures since the last answer that shows otherwise.
#[derive(Debug, Default)]
struct Row {
    /// Calls without an answer, for whatever instance.
    calls: usize,
    /// Instances without an answer that were not failing before.
    unanswered: BTreeSet<InstanceId>,
    /// Instances denied that were not failing before.
    denied: BTreeSet<InstanceId>,
    /// Polls without an answer.
    polls: usize,
}

impl Row {
    /// The API is there.
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
    /// Something other than single instances was seen to fail.
    is_certain: bool,
}

#[derive(Debug, Default)]
struct Trial {
    failed: usize,
    /// One of them was not failing before, and failed on trial for the first time in this pause.
    has_news: bool,
    /// No probe was answered before.
    is_unprobed: bool,
}

impl Trial {
    /// How many calls tell whether the pause is over. A denial is no chance, so one is enough; and where no probe is answered,
    /// most likely neither is a call.
    fn size(&self, cause: &Cause) -> usize {
        if self.is_unprobed || cause.kind == CauseKind::AccessDenied { 1 } else { TRIAL }
    }
}

/// What a call that was recorded has to be judged by.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    kind: Kind,
    /// It was one of a trial.
    on_trial: bool,
    was_open: bool,
    /// As of before it was recorded.
    answers: u64,
    openings: u64,
}

impl Evidence {
    /// Whether the call was one of a trial.
    pub fn is_on_trial(&self) -> bool {
        self.on_trial
    }
}

/// How a call ended, as far as the lane goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Fault,
    NoAnswer,
    Denied,
    NotFailed,
}

/// Whose fault it is that a call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribution {
    /// The lane is paused for it.
    Lane,
    /// The API answers others.
    Job,
    /// It did not fail.
    NotFailed,
}

/// What became of a lane.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It is paused now, where it worked before.
    Paused(Cause),
    /// It works again, after being paused for so long.
    Works(Duration),
}

impl Circuit {
    /// A lane that calls, `concurrency` calls at a time at most.
    pub fn new(concurrency: usize) -> Self {
        Self {
            concurrency,
            state: State::Closed(Row::default()),
            failing: BTreeSet::new(),
            doubts: BTreeSet::new(),
            answers: 0,
            openings: 0,
            pauses: VecDeque::new(),
        }
    }

    /// How many instances in a row without an answer are an outage.
    pub fn outage_after(&self) -> usize {
        OUTAGE.min(self.concurrency + BEYOND)
    }

    /// Why no calls are to be made, if so.
    pub fn paused(&self) -> Option<&Cause> {
        if let State::Open(pause) = &self.state { Some(&pause.cause) } else { None }
    }

    /// Whether hardly any start seems to work, be the API there or not.
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

    /// Counts the answers that show that the API is there.
    pub fn answers(&self) -> u64 {
        self.answers
    }

    /// What a call that is about to be recorded has to be judged by.
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

    /// Whose fault it is that a call failed, once that is known. On trial others' answers are no evidence: the API may have come
    /// back in between.
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

    /// How many of the calls that may be in flight are not to be just now: all where the API has to be probed first.
    pub fn withheld(&self) -> usize {
        let allowed = match &self.state {
            State::Closed(row) => (self.concurrency + BEYOND).saturating_sub(row.calls),
            State::HalfOpen(pause, trial) => trial.size(&pause.cause).saturating_sub(trial.failed),
            // A call that is let through finds the lane paused.
            State::Open(_) => self.concurrency,
        };
        self.concurrency.saturating_sub(allowed)
    }

    /// For how long the lane was paused between two moments, and had reason to be, as far as is known by then.
    pub fn paused_between(&self, from: Timestamp, to: Timestamp) -> Duration {
        let going_on = match &self.state {
            State::Closed(_) => None,
            State::Open(pause) | State::HalfOpen(pause, _) => Some((pause.since, to)),
        };
        let overlap = |(began, ended): (Timestamp, Timestamp)| {
            Duration::try_from(ended.min(to).duration_since(began.max(from))).unwrap_or_default()
        };
        self.pauses.iter().copied().chain(going_on).map(overlap).sum()
    }

    /// Records what came of a call for `instance`.
    pub fn record(&mut self, instance: &InstanceId, signal: &Signal, now: Timestamp) -> Option<Change> {
        // A denial may be what all would meet.
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

    /// Records what came of asking for states. That it works says nothing of whether starts do: where the API fails those
    /// alone, polls between them must not make each failure look like its own job's.
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

    /// Records what came of a probe that is to tell whose fault failures are: where it is answered the API is there, and else
    /// it is not. It may have been made before the lane was paused, so it ends no pause.
    pub fn record_look(&mut self, signal: &Signal, now: Timestamp) -> Option<Change> {
        if self.paused().is_some() {
            return None;
        }
        self.record_probe(signal, now)
    }

    /// Records what came of a probe of a paused lane: an answer puts it on trial.
    pub fn record_probe(&mut self, signal: &Signal, now: Timestamp) -> Option<Change> {
        if matches!(signal, Signal::Denied(_) | Signal::Alive | Signal::Good) {
            self.answers = self.answers.wrapping_add(1);
        }
        match (&mut self.state, signal) {
            (State::Open(pause), Signal::Fault(cause) | Signal::NoAnswer(cause) | Signal::Inconclusive(cause)) => {
                pause.cause = cause.clone();
                pause.probes = pause.probes.saturating_add(1);
                pause.is_certain = true;
                if pause.cause.kind == CauseKind::Outage && pause.probes.is_multiple_of(IN_VAIN) {
                    self.half_open(true);
                }
                None
            }
            (_, Signal::Fault(cause) | Signal::NoAnswer(cause)) => self.open(cause, true, now),
            // Else a lane whose calls fail would wait for ever for a probe that tells.
            (State::Closed(row), Signal::Inconclusive(cause)) if row.calls > 0 => self.open(cause, true, now),
            (State::HalfOpen(_, trial), Signal::Inconclusive(cause)) if trial.failed > 0 => self.open(cause, true, now),
            (_, Signal::Inconclusive(_)) => None,
            (State::Closed(row), _) => {
                row.calls = 0;
                None
            }
            // Whether jobs are denied too, only jobs can tell.
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

    /// Breaks a trial off: the next one begins with a probe. Jobs that failed on it are spared.
    pub fn interrupt(&mut self) {
        if let State::HalfOpen(pause, _) = &self.state {
            let cause = pause.cause.clone();
            let is_certain = pause.is_certain;
            self.open(&cause, is_certain, pause.since);
        }
    }

    /// Ends a trial, where there is one and no job is left to be tried.
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

    /// Records a failure on trial. Once as many failed as belong to a trial, the lane is paused on; or it works, since all
    /// of them failed on trial before, and others may not.
    fn tried(&mut self, instance: &InstanceId, cause: &Cause, now: Timestamp) -> Option<Change> {
        let State::HalfOpen(pause, trial) = &mut self.state else { return None };
        trial.failed += 1;
        let is_tried = !know(&mut pause.tried, instance);
        // Those that were denied before the pause may have been among the first that all are denied.
        let is_known = cause.kind != CauseKind::AccessDenied && self.failing.contains(instance);
        trial.has_news |= !is_tried && !is_known;
        if trial.failed < trial.size(&pause.cause) {
            return None;
        }
        // One job after the other that is denied, and none that is not: that is no matter of theirs.
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

    /// Ends a trial. Where nothing was seen to fail but some instances, over and over, the pause had no reason, and their
    /// jobs are not given more time for it.
    fn close(&mut self, had_reason: bool, now: Timestamp) -> Option<Change> {
        let State::HalfOpen(pause, _) = std::mem::replace(&mut self.state, State::Closed(Row::default())) else {
            return None;
        };
        if had_reason {
            if self.pauses.len() >= REMEMBERED {
                self.pauses.pop_front();
            }
            self.pauses.push_back((pause.since, now));
        }
        // Where the clock was set back meanwhile, it may have been long.
        Some(Change::Works(Duration::try_from(now.duration_since(pause.since)).unwrap_or(Duration::MAX)))
    }
}

/// Adds an instance to those that are known. Returns whether it was none of them.
fn know(known: &mut BTreeSet<InstanceId>, instance: &InstanceId) -> bool {
    if known.len() >= KNOWN {
        known.pop_first();
    }
    known.insert(instance.clone())
}
