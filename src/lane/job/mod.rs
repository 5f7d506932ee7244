//! The way of a job, from delivery to ack.
//!
//! ```text
//! delivery ─ admit ─┬─ call ─ verdict ─┬─ conclude ─ (dead letter and) outcome event confirmed ─┬─ ack
//!                   │                  ├─ go on ─── `started` event confirmed ─┐               │
//!                   └─ poll ─ judge ───┴─ park ─────┴─ copy in the delay ladder confirmed ──────┘
//! ```
//!
//! A job that is done only when its instance runs goes round twice: it is started, and then polled (`confirming`).
//!
//! What decides is pure and takes the time and randomness as arguments; what acts stands around it. If anything here
//! is interrupted before the ack, the broker hands the message out again.
//!
//! `give_up_after` runs from the first failed attempt, not from the first delivery: waiting for a schedule, for throttling
//! or for a key to be mended does not use it up.

mod admit;
mod capacity;
mod confirm;
mod confirming;
mod decide;
mod held;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tracing::debug;

use self::confirm::LAG;
use self::decide::{Conclusion, NOT_THE_APIS, Next, Past, alone_next_time, confirming, decide};
use self::held::Held;
use super::breaker::Attribution;
use super::calls::{Called, Entry, NotCalled, Origin};
use super::history::{End, Key};
use super::parts::{Lane, Running};
use super::quota::Slot;
use super::verdict::{self, Circumstances, Verdict};
use crate::bce::{Answer, NoAnswer};
use crate::events::Outcome;
use crate::job::{self, Confirm, Confirming, Conflict, Progress, is_past};
use crate::telemetry::ParkCause;

/// Later than a copy of the job that is in hand just now.
const AFTER_ITS_COPY: Duration = Duration::from_secs(1);
/// Into the queue of due jobs, from which nothing is taken while the lane is paused.
const INTO_THE_QUEUE: Duration = Duration::from_secs(1);

/// Jobs that run, each in a task of its own. One can end in nothing but a broken connection: whatever else goes wrong
/// becomes its outcome.
pub(super) type Jobs = JoinSet<Result<(), lapin::Error>>;

/// A delivery that was read.
#[derive(Debug)]
pub(super) enum Admitted {
    /// Its message could not be, or was not to be, read.
    Unread(Unread),
    /// It is a job.
    Job(Job),
}

/// A delivery without a job, and how it ends.
#[derive(Debug)]
pub(super) struct Unread {
    held: Held,
    outcome: Outcome,
    explanation: String,
}

/// A job in hand, and what is to be done with it first.
#[derive(Debug)]
pub(super) struct Job {
    held: Held,
    job: job::Job,
    /// What it is known by in the lane's history.
    key: Key,
    /// No copy of a job that was in our hands before, as far as the message tells.
    is_new: bool,
    first: First,
    /// The right to a call of one whose machine was not to be had.
    #[expect(dead_code, reason = "held until the job is acked")]
    spare: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, PartialEq, Eq)]
enum First {
    Call,
    Poll(Confirming),
    Wait(Duration),
    /// Its machine was not to be had the last time, and others want to be called.
    GiveWay(Duration),
    /// Put back as a copy, since it came back too often for no fault of its own.
    Anew,
}

impl Admitted {
    /// Whether it is a job that may be called together with others.
    pub(super) fn can_share_a_call(&self) -> bool {
        matches!(self, Self::Job(job) if job.can_share_a_call())
    }

    /// Waits for the permit to its call, if there is one to make.
    pub(super) async fn enter(&self, lane: &Lane, slot: Slot) -> Entry {
        match self {
            Self::Job(job) if job.is_start() && !job.is_late() => match lane.gate.enter(slot).await {
                Ok(permit) => Entry::Permit(permit),
                Err(_paused) => Entry::None,
            },
            Self::Job(_) | Self::Unread(_) => Entry::Slot(slot),
        }
    }

    /// Has it run, in a task of its own, which ends with an error where the connection broke.
    pub(super) fn spawn(self, running: &Arc<Running>, entry: Entry, jobs: &mut Jobs) {
        let running = running.clone();
        jobs.spawn(async move {
            let _in_flight = running.lane.metrics.in_flight();
            match self {
                Self::Unread(unread) => {
                    drop(entry);
                    unread.run(&running).await
                }
                Self::Job(job) => job.run(&running, entry).await,
            }
        });
    }
}

impl Unread {
    async fn run(self, running: &Running) -> Result<(), lapin::Error> {
        let held = self.held;
        // The replica that had it before may have called for it.
        let conclusion = held.conclusion(self.outcome, held.progress.touched, &self.explanation);
        let (proof, reply) = held.conclude(running, &conclusion, None).await?;
        held.done(running, proof, reply).await
    }
}

impl Job {
    /// Whether it may be called together with others. One whose call failed before, or was denied, goes alone: so it fails
    /// no other job over and over, nor is failed by one.
    fn can_share_a_call(&self) -> bool {
        let failed_before = self.held.progress.failing_since.is_some() || self.held.progress.denied;
        self.is_start() && !self.is_late() && !failed_before
    }

    /// Whether there is a call to make, unless it is too late.
    fn is_start(&self) -> bool {
        matches!(self.first, First::Call)
    }

    /// Calls, judges, and acks once the broker has confirmed what came of it. `entry` is given back before the confirms, which
    /// take longer than a call.
    async fn run(self, running: &Running, entry: Entry) -> Result<(), lapin::Error> {
        let lane = &running.lane;
        let turn = lane.history.jobs.turn(self.key);
        let next = if turn.is_some() {
            self.next(lane, entry).await
        } else {
            drop(entry);
            self.later(false, AFTER_ITS_COPY, ParkCause::Copy)
        };
        let (proof, reply) = match next {
            Next::Conclude(conclusion) => {
                let conclusion = self.end_as_first(lane, conclusion);
                let concluded = self.held.conclude(running, &conclusion, Some(&self.job)).await?;
                lane.history.jobs.published(self.key);
                concluded
            }
            Next::GoOn { started, attempts, confirming } => {
                (self.go_on(running, started, attempts, confirming).await?, None)
            }
            Next::Park { progress, delay, cause } => (self.held.park(running, &progress, delay, cause).await?, None),
        };
        self.held.done(running, proof, reply).await
    }

    async fn next(&self, lane: &Lane, entry: Entry) -> Next {
        match &self.first {
            _ if let Some(end) = self.ended_before(lane) => Next::Conclude(self.again(end)),
            First::Poll(confirming) => self.poll(lane, confirming, entry).await,
            First::Call if let Some(started) = self.started_before(lane) => started,
            // As it came, or since, while it waited for its turn.
            First::Call if self.is_late() => self.expire(lane, entry.into_slot()).await,
            First::Call => self.call(lane, entry).await,
            First::Wait(delay) => self.later(false, *delay, ParkCause::NotBefore),
            First::GiveWay(delay) => self.give_way(*delay),
            First::Anew => self.later(false, INTO_THE_QUEUE, ParkCause::PutBack),
        }
    }

    /// Back for later with nothing charged to it. `touched`: a call was made.
    fn later(&self, touched: bool, delay: Duration, cause: ParkCause) -> Next {
        let progress = Progress { touched: self.held.progress.touched || touched, ..self.held.progress.clone() };
        Next::Park { progress, delay, cause }
    }

    /// Back because the lane is paused.
    fn unharmed(&self, touched: bool) -> Next {
        self.later(touched, INTO_THE_QUEUE, ParkCause::Paused)
    }

    /// Back because the lane is paused, or it is not the job's turn after all.
    fn not_called(&self, lane: &Lane, touched: bool) -> Next {
        self.later(
            touched,
            INTO_THE_QUEUE,
            if lane.gate.breaker().is_open() { ParkCause::Paused } else { ParkCause::PutBack },
        )
    }

    /// How a copy of this job ended here.
    fn ended_before(&self, lane: &Lane) -> Option<End> {
        if self.is_new {
            lane.history.jobs.forget_end(self.key);
        }
        lane.history.jobs.end(self.key)
    }

    /// Has the job end as the first of its copies did.
    fn end_as_first(&self, lane: &Lane, conclusion: Conclusion) -> Conclusion {
        let ours = End { outcome: conclusion.outcome, ambiguous: conclusion.ambiguous };
        let first = lane.history.jobs.end_as_first(self.key, ours);
        if first == ours { conclusion } else { self.again(first) }
    }

    fn again(&self, End { outcome, ambiguous }: End) -> Conclusion {
        self.held.conclusion(outcome, ambiguous, "a copy of this job ended so before")
    }

    fn is_late(&self) -> bool {
        self.is_late_by(Duration::ZERO)
    }

    fn is_late_by(&self, time: Duration) -> bool {
        let then = Timestamp::now().saturating_sub(time).unwrap_or(Timestamp::MIN);
        is_past(self.job.deadline, then)
    }

    /// Ends a job whose deadline has passed. No start call is made any more; but where one was made before, it may have
    /// succeeded unseen, and then the machine is up and not `expired`.
    async fn expire(&self, lane: &Lane, slot: Option<Slot>) -> Next {
        const LATE: &str = "its deadline has passed";
        if !self.held.progress.touched && !lane.history.jobs.is_known(self.key) {
            return Next::Conclude(self.held.conclusion(Outcome::Expired, false, LATE));
        }
        let instance = &self.job.instance_id;
        let Some((described, slot)) = lane.calls.describe(instance, slot).await else { return self.unharmed(true) };
        let circumstances = Circumstances { policy: Conflict::Verify, first_touch: false };
        let verdict = verdict::of_describe(&described, circumstances);
        let is_told = matches!(&described, Ok((answer, Some(_))) if answer.is_success() && !answer.foreign);
        let result = described.map(|(answer, _)| answer);
        let evidence = lane.gate.record_poll(&verdict, &result);
        drop(slot);
        let (outcome, ambiguous) = match verdict {
            Verdict::Started { .. } if self.confirm(lane) == Confirm::Running => {
                return Next::GoOn {
                    started: Some(self.held.conclusion(Outcome::Started, true, LATE)),
                    attempts: self.held.progress.attempts,
                    confirming: confirming(Timestamp::now(), true),
                };
            }
            Verdict::Started { .. } => (Outcome::Started, true),
            // Any start of ours was before the deadline, but a read may not show it yet.
            Verdict::Transient if is_told => (Outcome::Expired, !self.is_late_by(LAG)),
            _ if is_told => (Outcome::Expired, false),
            Verdict::Failed(_) => (Outcome::Expired, true),
            _ if lane.calls.is_lane_outage(instance, evidence).await => return self.unharmed(true),
            // Not told this time. It is asked again, as often as a start would be tried.
            _ => match self.decide(lane, verdict, result) {
                Next::Park { progress, delay, cause } => return Next::Park { progress, delay, cause },
                Next::Conclude(_) | Next::GoOn { .. } => (Outcome::Expired, true),
            },
        };
        Next::Conclude(self.held.conclusion(outcome, ambiguous, LATE))
    }

    /// Calls the API, a second time where a 409 is to be verified, and decides.
    async fn call(&self, lane: &Lane, entry: Entry) -> Next {
        if lane.gate.breaker().is_open() || matches!(entry, Entry::None) {
            return self.not_called(lane, false);
        }
        let job::Job { instance_id: instance, deadline, conflict, .. } = &self.job;
        let policy = conflict.unwrap_or(lane.settings.lane.conflict);
        let touched = lane.history.jobs.call(self.key) || self.held.progress.touched;

        let called = match lane.calls.start_for_job(entry, instance, *deadline).await {
            Ok(called) => called,
            Err(NotCalled { touched: by_shared_call }) => {
                if !touched && !by_shared_call {
                    lane.history.jobs.not_called(self.key);
                }
                return self.not_called(lane, by_shared_call);
            }
        };
        let Called { mut result, origin, touched: by_call_before } = called;
        let circumstances = Circumstances { policy, first_touch: !(touched || by_call_before) };
        let mut verdict = verdict::of_start(&result, circumstances);
        let (mut slot, shared) = match origin {
            Origin::Own(slot) => (Some(slot), None),
            Origin::Shared(evidence) => (None, Some(evidence)),
        };
        if verdict == Verdict::Verify {
            let Some((described, same)) = lane.calls.describe(instance, slot).await else { return self.unharmed(true) };
            slot = Some(same);
            verdict = verdict::of_describe(&described, circumstances);
            // The 409 tells more than a 200 that only named a state.
            if !matches!(&described, Ok((answer, _)) if answer.status < 300 && !answer.foreign) {
                result = described.map(|(answer, _)| answer);
            }
        }
        let evidence = shared.unwrap_or_else(|| lane.gate.record(instance, &verdict, &result));
        debug!(lane = %lane.name(), job = self.held.progress.job_id, %instance, ?verdict, "called");
        // Others make calls while this one waits to learn whether it failed as they do.
        drop(slot);
        if shared.is_some() && verdict == Verdict::Transient {
            // Not charged anyway: one call that failed is not followed by a probe for each of its jobs.
            return match lane.gate.breaker().attribute(evidence).await {
                Some(Attribution::Lane) => self.unharmed(true),
                _ => alone_next_time(&self.held.progress, lane.settings.retry, Timestamp::now(), rand::random()),
            };
        }
        if lane.calls.is_lane_outage(instance, evidence).await {
            return self.unharmed(true);
        }
        self.decide(lane, verdict, result)
    }

    /// See [`decide`]. The time for which the lane was paused is no time for which its jobs failed.
    fn decide(&self, lane: &Lane, verdict: Verdict, result: Result<Answer, NoAnswer>) -> Next {
        let now = Timestamp::now();
        let past = Past {
            progress: &self.held.progress,
            failing_for: failing_for(&self.held.progress, lane, now),
            is_doubtful: lane.gate.breaker().is_doubtful(),
        };
        match decide(verdict, result, past, self.confirm(lane), lane.settings.retry, now, rand::random()) {
            Next::Park { progress, delay, cause: ParkCause::NoCapacity } => Next::Park {
                progress,
                delay: delay.min(capacity::left(self.job.deadline, now)),
                cause: ParkCause::NoCapacity,
            },
            next => next,
        }
    }

    /// When the job is done.
    fn confirm(&self, lane: &Lane) -> Confirm {
        self.job.confirm.unwrap_or(lane.settings.lane.confirm)
    }
}

/// For how long a job has failed, without the time for which its lane was paused.
fn failing_for(progress: &Progress, lane: &Lane, now: Timestamp) -> Duration {
    let since = progress.failing_since.unwrap_or(now);
    elapsed(since, now).saturating_sub(lane.gate.breaker().paused_between(since, now))
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}
