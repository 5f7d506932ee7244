//! The way of a job, from delivery to ack.
//!
//! ```text
//! delivery ─ admit ─┬─ call ─ verdict ─┬─ conclude ─ (dead letter and) outcome event confirmed ─┬─ ack
//!                   │                  ├─ go on ─── `started` event confirmed ─┐               │
//!                   └─ poll ─ judge ───┴─ park ─────┴─ copy in the delay ladder confirmed ──────┘
//! ```
//!
//! A job that is done only when its instance runs goes round at least twice: started, then polled (`poll`, `boot`).
//!
//! Decisions are pure and take time and randomness as arguments; the I/O stands around them. If anything here is
//! interrupted before the ack, the broker redelivers the message.
//!
//! `give_up_after` runs from the first failed attempt, not from the first delivery: waiting for a schedule, for throttling
//! or for a key to be mended does not use it up.

mod admit;
mod boot;
mod capacity;
mod decide;
mod held;
mod poll;
#[cfg(test)]
mod tests;
mod wave;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tracing::{Instrument, Span, debug};

use self::boot::LAG;
use self::decide::{Conclusion, NOT_THE_APIS, Next, Past, decide, retry_singly};
use self::held::Held;
use super::breaker::Attribution;
use super::calls::{Called, Entry, NotCalled, Origin, Wanted};
use super::history::{End, Key};
use super::parts::{Lane, Session};
use super::quota::Slot;
use super::verdict::{self, Circumstances, Verdict};
use crate::bce::{Answer, NoAnswer};
use crate::control::{Cancellation, Control};
use crate::events::{Outcome, Reason};
use crate::job::{self, Boot, Confirm, Conflict, ParkCause, Progress, elapsed, is_past};

/// Delay of a job whose copy is in hand.
const BEHIND_COPY: Duration = Duration::from_secs(1);
/// Shortest delay: the due queue is not consumed while the lane is paused.
const SHORTEST_DELAY: Duration = Duration::from_secs(1);

/// Jobs in progress, one task each. A task fails only if the connection breaks: any other failure becomes its job's
/// outcome.
pub(super) type Tasks = JoinSet<Result<(), lapin::Error>>;

/// A delivery that was read.
#[derive(Debug)]
pub(super) enum Admitted {
    /// The message could not be read, or is poisoned.
    Unread(Unread),
    /// It is a job.
    Task(Task),
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
pub(super) struct Task {
    held: Held,
    job: Arc<job::Job>,
    /// When it was submitted, if that is known.
    submitted: Option<Timestamp>,
    /// Its key in the lane's history.
    key: Key,
    /// The message is an order of its own: neither redelivered, nor a parked copy, nor [once](Progress::once) for all.
    is_new: bool,
    first: First,
    /// Permit to call for an instance that had no capacity.
    #[expect(dead_code, reason = "held until the job is acked")]
    spare: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, PartialEq, Eq)]
enum First {
    Call,
    Poll(Boot),
    /// Too early for a call, for this reason.
    Wait(Duration, ParkCause),
    /// It has waited for its wave for too long.
    GiveUp,
    /// Its instance had no capacity the last time, and others want to be called.
    GiveWay(Duration),
    /// Parked as a fresh copy: it was returned too often, by no fault of its own.
    Anew,
}

impl First {
    /// The name in the log.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Poll(_) => "poll",
            Self::Wait(..) => "wait",
            Self::GiveUp => "give_up",
            Self::GiveWay(_) => "give_way",
            Self::Anew => "put_back",
        }
    }
}

impl Admitted {
    /// Whether it is a job that may share a call.
    pub(super) fn can_share_a_call(&self, lane: &Lane) -> bool {
        matches!(self, Self::Task(task) if task.can_share_a_call(lane))
    }

    /// Waits for a slot, and for the permit to its call if it has one to make, and spawns it. Only a job waits for a slot:
    /// held idle, it would be missing to the jobs of a refused batch.
    pub(super) async fn enter_and_spawn(self, session: &Arc<Session>, tasks: &mut Tasks) {
        let slot = session.lane.calls.api.slot().await;
        let entry = self.enter(&session.lane, slot).await;
        self.spawn(session, entry, tasks);
    }

    async fn enter(&self, lane: &Lane, slot: Slot) -> Entry {
        match self {
            Self::Task(task) if task.is_wanted(lane) => match lane.gate.enter(slot).await {
                Ok(permit) => Entry::Permit(permit),
                Err(_paused) => Entry::None,
            },
            Self::Task(_) | Self::Unread(_) => Entry::Slot(slot),
        }
    }

    /// Spawns it as a task, in a span of its own. The task fails if the connection breaks.
    pub(super) fn spawn(self, session: &Arc<Session>, entry: Entry, tasks: &mut Tasks) {
        let (span, session) = (self.span().clone(), session.clone());
        let run = async move {
            let _in_flight = session.lane.metrics.in_flight();
            match self {
                Self::Unread(unread) => {
                    drop(entry);
                    unread.complete(&session).await
                }
                Self::Task(task) => task.complete(&session, entry).await,
            }
        };
        tasks.spawn(run.instrument(span));
    }

    fn span(&self) -> &Span {
        match self {
            Self::Unread(unread) => &unread.held.span,
            Self::Task(task) => &task.held.span,
        }
    }
}

impl Unread {
    async fn complete(self, session: &Session) -> Result<(), lapin::Error> {
        let held = self.held;
        // The replica that had the delivery before may have made a call.
        let conclusion = held.conclusion(self.outcome, held.progress.touched, &self.explanation);
        let (proof, reply) = held.conclude(session, &conclusion, None, false).await?;
        held.done(session, proof, reply).await
    }
}

impl Task {
    /// Whether it may share a call. A job whose call failed or was denied before is called singly, so that it does not
    /// fail others over and over, nor they it.
    fn can_share_a_call(&self, lane: &Lane) -> bool {
        let failed_before = self.held.progress.failing_since.is_some() || self.held.progress.denied;
        self.is_wanted(lane) && !failed_before
    }

    /// Whether it is to make a start call, as far as deadline and commands allow one now.
    fn is_wanted(&self, lane: &Lane) -> bool {
        matches!(self.first, First::Call) && !self.is_late() && self.cancellation(lane).is_none()
    }

    /// Why the job ends without a call, if a command says so. Once its instance was started the job goes on: it makes no
    /// further call to start it, and tells whether it runs.
    fn cancellation(&self, lane: &Lane) -> Option<Cancellation> {
        let control = &lane.control;
        match self.first {
            First::Poll(_) => None,
            // A snooze may be over by then.
            First::Wait(..) => control.cancellation(lane.name(), &self.job, self.submitted),
            First::Call | First::GiveUp | First::GiveWay(_) | First::Anew => {
                cancellation(control, lane.name(), &self.job, self.submitted)
            }
        }
    }

    /// Calls, judges, and acks once the broker has confirmed what came of it. `entry` is given back before the confirms, which
    /// take longer than a call.
    async fn complete(self, session: &Session, entry: Entry) -> Result<(), lapin::Error> {
        let lane = &session.lane;
        let claim = lane.history.seen.claim(self.key);
        let next = if claim.is_some() {
            self.next(lane, entry).await
        } else {
            drop(entry);
            self.later(false, BEHIND_COPY, ParkCause::Copy)
        };
        let (proof, reply) = match next {
            Next::Conclude(conclusion) => {
                // The letter of an order's first message is confirmed before its end is published.
                let has_letter = self.held.progress.once && lane.history.seen.is_end_published(self.key);
                let conclusion = self.end_as_first(lane, conclusion);
                let concluded = self.held.conclude(session, &conclusion, Some(&self.job), has_letter).await?;
                lane.history.seen.record_published(self.key);
                concluded
            }
            Next::GoOn { started, attempts, boot } => (self.go_on(session, started, attempts, boot).await?, None),
            Next::Park { progress, delay, cause } => (self.held.park(session, &progress, delay, cause).await?, None),
        };
        self.held.done(session, proof, reply).await
    }

    async fn next(&self, lane: &Lane, entry: Entry) -> Next {
        match &self.first {
            _ if let Some(end) = self.ended_before(lane) => Next::Conclude(self.same_end(end)),
            First::Poll(boot) => self.poll(lane, boot, entry).await,
            First::Call if let Some(started) = self.started_before(lane) => started,
            // These two on arrival, or by now, after waiting for the permit.
            _ if let Some(cancellation) = self.cancellation(lane) => self.cancelled(lane, cancellation),
            First::Call if self.is_late() => self.expire(lane, entry.into_slot()).await,
            First::Call => self.call(lane, entry).await,
            First::Wait(delay, cause) => self.later(false, *delay, *cause),
            First::GiveUp => Next::Conclude(self.held.conclusion(
                Outcome::Failed(Reason::WaveNotStarted),
                false,
                "its wave was not started within 30 days: replay it to start it now",
            )),
            First::GiveWay(delay) => self.give_way(*delay),
            First::Anew => self.later(false, SHORTEST_DELAY, ParkCause::PutBack),
        }
    }

    /// Ends a job by a command. An earlier call may have started its instance.
    fn cancelled(&self, lane: &Lane, Cancellation { reason, text }: Cancellation) -> Next {
        let ambiguous = self.held.progress.touched || lane.history.seen.is_known(self.key);
        Next::Conclude(self.held.conclusion(Outcome::Cancelled(reason), ambiguous, &text))
    }

    /// Parked with nothing charged. `touched`: a call was made.
    fn later(&self, touched: bool, delay: Duration, cause: ParkCause) -> Next {
        let progress = Progress { touched: self.held.progress.touched || touched, ..self.held.progress.clone() };
        Next::Park { progress, delay, cause }
    }

    /// Parked because others go first. The delay grows: where thousands wait, RabbitMQ should not move them all the
    /// time.
    fn give_way(&self, delay: Duration) -> Next {
        let progress =
            Progress { reschedules: self.held.progress.reschedules.saturating_add(1), ..self.held.progress.clone() };
        Next::Park { progress, delay, cause: ParkCause::GaveWay }
    }

    /// Parked because the lane is paused.
    fn park_paused(&self, touched: bool) -> Next {
        self.later(touched, SHORTEST_DELAY, ParkCause::Paused)
    }

    /// Parked because the lane is paused, or the job was left out of its call.
    fn not_called(&self, lane: &Lane, touched: bool) -> Next {
        self.later(
            touched,
            SHORTEST_DELAY,
            if lane.gate.breaker().is_open() { ParkCause::Paused } else { ParkCause::PutBack },
        )
    }

    /// How a copy of this job ended here.
    fn ended_before(&self, lane: &Lane) -> Option<End> {
        if self.is_new {
            lane.history.seen.forget_end(self.key);
        }
        lane.history.seen.end(self.key)
    }

    /// Has the job end as the first of its copies did.
    fn end_as_first(&self, lane: &Lane, conclusion: Conclusion) -> Conclusion {
        let ours = End { outcome: conclusion.outcome, ambiguous: conclusion.ambiguous };
        let first = lane.history.seen.record_end(self.key, ours);
        if first == ours { conclusion } else { self.same_end(first) }
    }

    fn same_end(&self, End { outcome, ambiguous }: End) -> Conclusion {
        self.held.conclusion(outcome, ambiguous, "a copy of this job ended so before")
    }

    fn is_late(&self) -> bool {
        self.is_late_by(Duration::ZERO)
    }

    fn is_late_by(&self, time: Duration) -> bool {
        let then = Timestamp::now().saturating_sub(time).unwrap_or(Timestamp::MIN);
        is_past(self.job.deadline, then)
    }

    /// Ends a job whose deadline has passed. No start call is made any more, but an earlier one may have succeeded
    /// without an answer: then the machine is up, and the job not `expired`.
    async fn expire(&self, lane: &Lane, slot: Option<Slot>) -> Next {
        const LATE: &str = "its deadline has passed";
        if !self.held.progress.touched && !lane.history.seen.is_known(self.key) {
            return Next::Conclude(self.held.conclusion(Outcome::Expired, false, LATE));
        }
        let instance = &self.job.instance_id;
        let Some((described, slot)) = lane.calls.api.describe(instance, slot).await else {
            return self.park_paused(true);
        };
        let circumstances = Circumstances { policy: Conflict::Verify, first_touch: false };
        let verdict = verdict::of_describe(&described, circumstances);
        let is_told = matches!(&described, Ok((answer, Some(_))) if answer.is_success() && !answer.from_proxy);
        let result = described.map(|(answer, _)| answer);
        let evidence = lane.gate.record_poll(&verdict, &result);
        drop(slot);
        let (outcome, ambiguous) = match verdict {
            Verdict::Started { .. } if self.confirm(lane) == Confirm::Running => {
                return Next::GoOn {
                    started: Some(self.held.conclusion(Outcome::Started, true, LATE)),
                    attempts: self.held.progress.attempts,
                    boot: Boot::begun(Timestamp::now(), true),
                };
            }
            Verdict::Started { .. } => (Outcome::Started, true),
            // Any start of ours was before the deadline, but a read may not show it yet.
            Verdict::Transient if is_told => (Outcome::Expired, !self.is_late_by(LAG)),
            _ if is_told => (Outcome::Expired, false),
            Verdict::Failed(_) => (Outcome::Expired, true),
            _ if lane.calls.api.is_lane_outage(instance, evidence).await => return self.park_paused(true),
            // The state is unknown: described again, as often as a start would be retried.
            _ => match self.decide(lane, verdict, result) {
                Next::Park { progress, delay, cause } => return Next::Park { progress, delay, cause },
                Next::Conclude(_) | Next::GoOn { .. } => (Outcome::Expired, true),
            },
        };
        Next::Conclude(self.held.conclusion(outcome, ambiguous, LATE))
    }

    /// Calls the API, describes the instance if a 409 has to be verified, and decides.
    async fn call(&self, lane: &Lane, entry: Entry) -> Next {
        if lane.gate.breaker().is_open() || matches!(entry, Entry::None) {
            return self.not_called(lane, false);
        }
        let job::Job { instance_id: instance, conflict, .. } = &*self.job;
        let policy = conflict.unwrap_or(lane.settings.lane.conflict);
        let touched = lane.history.seen.record_call(self.key) || self.held.progress.touched;

        let called = match lane.calls.starts.start(entry, instance, &self.wanted(lane)).await {
            Ok(called) => called,
            Err(NotCalled { touched: by_shared_call }) => {
                if !touched && !by_shared_call {
                    lane.history.seen.undo_call(self.key);
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
            let Some((described, same)) = lane.calls.api.describe(instance, slot).await else {
                return self.park_paused(true);
            };
            slot = Some(same);
            verdict = verdict::of_describe(&described, circumstances);
            // The 409 tells more than a 200 that only named a state.
            if !matches!(&described, Ok((answer, _)) if answer.status < 300 && !answer.from_proxy) {
                result = described.map(|(answer, _)| answer);
            }
        }
        let evidence = shared.unwrap_or_else(|| lane.gate.record(instance, &verdict, &result));
        debug!(%verdict, "called");
        // Other calls use the slot while this job waits for its attribution.
        drop(slot);
        if shared.is_some() && verdict == Verdict::Transient {
            // Charged to no job either way, so one failed call is not followed by a probe for each of its jobs.
            return match lane.gate.breaker().attribute(evidence).await {
                Some(Attribution::Lane) => self.park_paused(true),
                _ => retry_singly(&self.held.progress, lane.settings.retry, Timestamp::now(), rand::random()),
            };
        }
        if lane.calls.api.is_lane_outage(instance, evidence).await {
            return self.park_paused(true);
        }
        self.decide(lane, verdict, result)
    }

    /// Whether the call is still wanted once it can be made.
    fn wanted(&self, lane: &Lane) -> Wanted {
        let (control, job, submitted) = (lane.control.clone(), self.job.clone(), self.submitted);
        let name = lane.name().to_owned();
        Wanted::while_so(move || {
            !is_past(job.deadline, Timestamp::now()) && cancellation(&control, &name, &job, submitted).is_none()
        })
    }

    /// See [`decide`]. Time during which the lane was paused is not time of failing.
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

/// Why a job is not to be called now, if a command says so.
fn cancellation(control: &Control, lane: &str, job: &job::Job, submitted: Option<Timestamp>) -> Option<Cancellation> {
    control.cancellation(lane, job, submitted).or_else(|| control.snooze(&job.instance_id))
}

/// How long a job has been failing, without the time for which its lane was paused.
fn failing_for(progress: &Progress, lane: &Lane, now: Timestamp) -> Duration {
    let since = progress.failing_since.unwrap_or(now);
    elapsed(since, now).saturating_sub(lane.gate.breaker().paused_between(since, now))
}
