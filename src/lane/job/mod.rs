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

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::types::FieldTable;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use self::confirm::LAG;
use super::breaker::Attribution;
use super::calls::{Called, Entry, NotCalled, Origin};
use super::history::{End, Key, Mark, Order};
use super::parts::{Lane, Running};
use super::quarantine::{InHand, POISONED_AT};
use super::quota::Slot;
use super::verdict::{self, Circumstances, Verdict};
use crate::bce::{Answer, InstanceId, NoAnswer};
use crate::broker::{Confirmed, Delivery, Message, Reply, Unacked, delay};
use crate::config::Retry;
use crate::headers::Headers;
use crate::job::{self, Confirm, Confirming, Conflict, Progress, is_past};
use crate::outcome::{Outcome, Reason};
use crate::retry::{full_jitter, half_jitter};
use crate::telemetry::ParkCause;

/// What a `Retry-After` of less, or of a date gone by, is taken for.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);
/// No `Retry-After` is honoured beyond this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
/// Later than a copy of the job that is in hand just now.
const AFTER_ITS_COPY: Duration = Duration::from_secs(1);
/// The header of a dead letter that names its lane.
const LANE: &str = "x-reveille-lane";
/// Said of a job whose last answer tells nothing of it.
const NOT_THE_APIS: &str = "something else answered in the API's place, without x-bce-request-id";
/// Into the queue of due jobs, which nobody takes from while the lane is paused.
const INTO_THE_QUEUE: Duration = Duration::from_secs(1);

/// Jobs that run, each in a task of its own. One can end in nothing but a broken connection: whatever else goes wrong
/// becomes its outcome.
pub(super) type Jobs = JoinSet<Result<(), lapin::Error>>;

/// A delivery that was read, and what is to be done with it first.
#[derive(Debug)]
pub(super) struct Job {
    message: Message,
    unacked: Unacked,
    in_hand: InHand,
    /// `None` where the message could not be, or was not to be, read.
    job: Option<job::Job>,
    progress: Progress,
    /// By what the order is known in its events.
    mark: Mark,
    /// What the job is known by in the lane's memory, where it could be read.
    key: Option<Key>,
    /// Only the broker has the message whole, and puts it aside.
    is_put_aside: bool,
    /// No copy of a job that was in our hands before, as far as the message tells.
    is_new: bool,
    first: First,
    /// The right to a call of one whose machine was not to be had.
    #[expect(dead_code, reason = "held until the job is acked")]
    spare: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, PartialEq, Eq)]
enum First {
    Call(InstanceId),
    Poll(InstanceId, Confirming),
    Wait(Duration),
    /// Its machine was not to be had the last time, and others want to be called.
    GiveWay(Duration),
    /// Put back as a copy, since it came back too often for no fault of its own.
    Anew,
    End(Outcome, String),
}

/// What follows from a call, or from there being none.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Conclude(Conclusion),
    Park {
        progress: Progress,
        delay: Duration,
        cause: ParkCause,
    },
    /// Once the instance runs the job is done. `started` is to be said first, where it was our doing.
    GoOn {
        started: Option<Conclusion>,
        attempts: u32,
        confirming: Confirming,
    },
}

#[derive(Debug, PartialEq, Eq)]
struct Conclusion {
    outcome: Outcome,
    ambiguous: bool,
    attempts: u32,
    /// The answer that decided.
    answer: Option<Answer>,
    /// What is to be said where there was no answer.
    explanation: Option<String>,
}

impl Job {
    /// Reads a delivery and decides what comes first.
    pub(super) fn admit(delivery: Delivery, lane: &Lane) -> Self {
        let now = Timestamp::now();
        let suspicion = lane.quarantine.suspicion(&delivery);
        let Delivery { message, redelivered, returns, unreadable, is_movable, unacked } = delivery;
        let in_hand = lane.quarantine.take(&message);
        let mut progress = Progress::read(&message.properties, now);
        let is_copy = Progress::is_in(&message.properties);
        let order = order(lane, &message, &progress, is_copy);
        progress.order = Some(order.as_str().to_owned());
        if Progress::is_put_back(&message.properties) {
            let (lane, job) = (lane.name(), &progress.job_id);
            info!(lane, job, "a dead letter was put back: a new order, with fresh attempts");
            if let Some(before) = Headers(message.properties.headers().as_ref()).text(LANE).filter(|name| *name != lane)
            {
                warn!(lane, job, before, "it was another lane's, and is called with the account of this one");
            }
        }
        // Else what is left of it is kept: that is better than what it does to RabbitMQ.
        let is_put_aside = unreadable.is_some() && is_movable;
        let (job, mut first) = if let Some(problem) = unreadable {
            (None, First::End(Outcome::Rejected, problem))
        } else if suspicion >= POISONED_AT {
            let explanation = format!("delivered {returns} times, never acked");
            (None, First::End(Outcome::Failed(Reason::Poisoned), explanation))
        } else {
            match job::Job::parse(&message.body) {
                Ok(job) => {
                    // The broker counts all returns, and puts aside what has too many: a copy has none.
                    let first = if returns >= POISONED_AT { First::Anew } else { first(&job, &progress, now) };
                    (Some(job), first)
                }
                Err(unreadable) => (None, First::End(Outcome::Rejected, unreadable.in_message(&message.properties))),
            }
        };
        let mut spare = None;
        if let (First::Call(_), Some(job)) = (&first, &job)
            && let Some(delay) = capacity::wait(&progress, job.deadline, lane, now, rand::random())
        {
            spare = lane.gate.spare();
            if spare.is_none() {
                first = First::GiveWay(delay);
            }
        }
        // Who had it before may have called for it, unless it was too early for a call even now.
        progress.touched |= redelivered && !matches!(first, First::Wait(_));
        debug!(lane = lane.name(), job = progress.job_id, attempts = progress.attempts, ?first, "delivery");
        let is_new = !redelivered && !is_copy;
        let mark = order.mark();
        let key = job.as_ref().map(|job| lane.history.jobs.key(&progress.job_id, &job.instance_id, &mark));
        Self { message, unacked, in_hand, job, progress, mark, key, is_put_aside, is_new, first, spare }
    }

    /// Whether it may be called together with others. One whose call failed before, or was denied, goes alone: so it fails
    /// no other job over and over, nor is failed by one.
    pub(super) fn can_share_a_call(&self) -> bool {
        let failed_before = self.progress.failing_since.is_some() || self.progress.denied;
        self.is_start() && !self.is_late() && !failed_before
    }

    /// Whether there is a call to make, unless it is too late.
    pub(super) fn is_start(&self) -> bool {
        matches!(self.first, First::Call(_))
    }

    /// Waits for the permit to its call, if there is one to make.
    pub(super) async fn enter(&self, lane: &Lane, slot: Slot) -> Entry {
        if !self.is_start() || self.is_late() {
            return Entry::Slot(slot);
        }
        match lane.gate.enter(slot).await {
            Ok(permit) => Entry::Permit(permit),
            Err(_paused) => Entry::None,
        }
    }

    /// Has the job run, in a task of its own.
    pub(super) fn spawn(self, running: &Arc<Running>, entry: Entry, jobs: &mut Jobs) {
        let running = running.clone();
        jobs.spawn(async move {
            let _in_flight = running.lane.metrics.in_flight();
            self.run(&running, entry).await
        });
    }

    /// Calls, judges, and acks once the broker has confirmed what came of it. `entry` is given back before the confirms, which
    /// take longer than a call.
    ///
    /// # Errors
    /// The connection broke.
    async fn run(self, running: &Running, entry: Entry) -> Result<(), lapin::Error> {
        let lane = &running.lane;
        let turn = self.key.map(|key| lane.history.jobs.turn(key));
        let next = match turn {
            Some(None) => {
                drop(entry);
                self.later(false, AFTER_ITS_COPY, ParkCause::Copy)
            }
            _ => self.next(lane, entry).await,
        };
        let (proof, reply) = match next {
            Next::Conclude(conclusion) => self.conclude(running, &self.first_end(lane, conclusion)).await?,
            Next::GoOn { started, attempts, confirming } => {
                (self.go_on(running, started, attempts, confirming).await?, None)
            }
            Next::Park { progress, delay, cause } => (self.park(running, &progress, delay, cause).await?, None),
        };
        if self.is_put_aside {
            self.unacked.put_aside(proof).await?;
        } else {
            self.unacked.ack(proof).await?;
        }
        self.in_hand.done();
        // Last, and apart, since nothing is to wait for an asker that has gone.
        if let Some(reply) = reply {
            let (lane, job, to) = (lane.settings.lane.name.clone(), self.progress.job_id, reply.to.clone());
            running.lane.replies.send(reply, move |error| {
                warn!(%lane, job, reply_to = to, "no reply given: {error}");
            });
        }
        Ok(())
    }

    async fn next(&self, lane: &Lane, entry: Entry) -> Next {
        match &self.first {
            _ if let Some(end) = self.ended_before(lane) => Next::Conclude(self.again(end)),
            First::Poll(instance, confirming) => self.poll(lane, instance, confirming, entry).await,
            First::Call(_) if let Some(started) = self.started_before(lane) => started,
            // As it came, or since, while it waited for its turn.
            First::Call(instance) if self.is_late() => self.expire(lane, instance, entry.into_slot()).await,
            First::Call(instance) => self.call(lane, instance, entry).await,
            First::Wait(delay) => self.later(false, *delay, ParkCause::NotBefore),
            First::GiveWay(delay) => self.give_way(*delay),
            First::Anew => self.later(false, INTO_THE_QUEUE, ParkCause::PutBack),
            // Whoever had it before may have called for it.
            First::End(outcome, explanation) => {
                Next::Conclude(self.conclusion(*outcome, self.progress.touched, explanation))
            }
        }
    }

    /// Back for later with nothing charged to it. `touched`: a call was made.
    fn later(&self, touched: bool, delay: Duration, cause: ParkCause) -> Next {
        let progress = Progress { touched: self.progress.touched || touched, ..self.progress.clone() };
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
        let key = self.key?;
        if self.is_new {
            lane.history.jobs.forget_end(key);
        }
        lane.history.jobs.end(key)
    }

    /// Has the job end as the first of its copies did.
    fn first_end(&self, lane: &Lane, conclusion: Conclusion) -> Conclusion {
        let Some(key) = self.key else { return conclusion };
        let ours = End { outcome: conclusion.outcome, ambiguous: conclusion.ambiguous };
        let first = lane.history.jobs.first_end(key, ours);
        if first == ours { conclusion } else { self.again(first) }
    }

    fn again(&self, End { outcome, ambiguous }: End) -> Conclusion {
        self.conclusion(outcome, ambiguous, "a copy of this job ended so before")
    }

    /// An end without an answer that decided it.
    fn conclusion(&self, outcome: Outcome, ambiguous: bool, explanation: &str) -> Conclusion {
        let explanation = Some(explanation.to_owned());
        Conclusion { outcome, ambiguous, attempts: self.progress.attempts, answer: None, explanation }
    }

    fn is_late(&self) -> bool {
        self.is_late_by(Duration::ZERO)
    }

    fn is_late_by(&self, time: Duration) -> bool {
        let then = Timestamp::now().saturating_sub(time).unwrap_or(Timestamp::MIN);
        self.job.as_ref().is_some_and(|job| is_past(job.deadline, then))
    }

    /// Ends a job whose deadline has passed. No start call is made any more; but where one was made before, it may have
    /// succeeded unseen, and then the machine is up and not `expired`.
    async fn expire(&self, lane: &Lane, instance: &InstanceId, slot: Option<Slot>) -> Next {
        const LATE: &str = "its deadline has passed";
        if !self.progress.touched && !self.key.is_some_and(|key| lane.history.jobs.is_known(key)) {
            return Next::Conclude(self.conclusion(Outcome::Expired, false, LATE));
        }
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
                    started: Some(self.conclusion(Outcome::Started, true, LATE)),
                    attempts: self.progress.attempts,
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
        Next::Conclude(self.conclusion(outcome, ambiguous, LATE))
    }

    /// Calls the API, a second time where a 409 is to be verified, and decides.
    async fn call(&self, lane: &Lane, instance: &InstanceId, entry: Entry) -> Next {
        if lane.gate.breaker().is_open() || matches!(entry, Entry::None) {
            return self.not_called(lane, false);
        }
        let policy = self.job.as_ref().and_then(|job| job.conflict).unwrap_or(lane.settings.lane.conflict);
        let touched = self.key.is_some_and(|key| lane.history.jobs.call(key)) || self.progress.touched;
        let deadline = self.job.as_ref().and_then(|job| job.deadline);

        let called = match lane.calls.start_for_job(entry, instance, deadline).await {
            Ok(called) => called,
            Err(NotCalled { touched: by_shared_call }) => {
                if let Some(key) = self.key.filter(|_| !touched && !by_shared_call) {
                    lane.history.jobs.not_called(key);
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
        debug!(lane = lane.name(), job = self.progress.job_id, %instance, ?verdict, "called");
        // Others make calls while this one waits to learn whether it failed as they do.
        drop(slot);
        if shared.is_some() && verdict == Verdict::Transient {
            // Not charged anyway: one call that failed is not followed by a probe for each of its jobs.
            return match lane.gate.breaker().attribute(evidence).await {
                Some(Attribution::Lane) => self.unharmed(true),
                _ => alone_next_time(&self.progress, lane.settings.retry, Timestamp::now(), rand::random()),
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
            progress: &self.progress,
            failing_for: failing_for(&self.progress, lane, now),
            is_doubtful: lane.gate.breaker().is_doubtful(),
        };
        match decide(verdict, result, past, self.confirm(lane), lane.settings.retry, now, rand::random()) {
            Next::Park { progress, delay, cause: ParkCause::NoCapacity } => {
                let deadline = self.job.as_ref().and_then(|job| job.deadline);
                Next::Park { progress, delay: delay.min(capacity::left(deadline, now)), cause: ParkCause::NoCapacity }
            }
            next => next,
        }
    }

    /// When the job is done.
    fn confirm(&self, lane: &Lane) -> Confirm {
        self.job.as_ref().and_then(|job| job.confirm).unwrap_or(lane.settings.lane.confirm)
    }

    /// Publishes what became of the job, and for a failure the dead letter too. If the producer asked for a reply, that
    /// is what is left to do.
    async fn conclude(
        &self,
        running: &Running,
        conclusion: &Conclusion,
    ) -> Result<(Confirmed, Option<Reply>), lapin::Error> {
        let lane = &running.lane;
        let finished_at = Timestamp::now();
        let event = self.event(lane, conclusion, true, finished_at);
        let reply = self.message.properties.reply_to().as_ref().map(|asker| {
            let (properties, body) = (event.properties.clone(), event.body.clone());
            Reply { to: asker.to_string(), properties, body }
        });
        // Said last: as long as a dead letter is not taken its job can come again, and once it was said to have ended that
        // must not last.
        let kept = if conclusion.outcome.is_dead_letter() && !self.is_put_aside {
            Some(self.keep(running, conclusion, finished_at).await?)
        } else {
            None
        };
        let told = self.tell(running, event).await?;
        lane.metrics.job_ended(conclusion.outcome, finished_at.duration_since(self.progress.received_at));
        debug!(lane = lane.name(), job = self.progress.job_id, outcome = conclusion.outcome.as_str(), "ended");
        Ok((told.with(kept), reply))
    }

    /// Puts a copy of the message into the delay ladder.
    async fn park(
        &self,
        running: &Running,
        progress: &Progress,
        delay: Duration,
        cause: ParkCause,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &running.lane;
        let mut headers = FieldTable::default();
        progress.write(&mut headers);
        let (exchange, key) = delay::route(&lane.settings.names, delay, &lane.settings.lane.name);
        let proof = running.outbox.copy(&self.message, headers, exchange, key).await?;
        lane.metrics.parked(cause);
        debug!(lane = lane.name(), job = progress.job_id, ?delay, cause = cause.as_str(), "parked");
        Ok(proof)
    }
}

/// The order that a message gives, or is a copy of.
fn order(lane: &Lane, message: &Message, progress: &Progress, is_copy: bool) -> Order {
    let named = progress.order.as_deref().filter(|_| is_copy).and_then(Order::read);
    named.unwrap_or_else(|| {
        let which = match progress.put_back {
            Some(dead_at) => dead_at.to_string(),
            // Written by a producer, it is a copy of nothing.
            None if is_copy => "nameless".to_owned(),
            None => String::new(),
        };
        let (order, before) = lane.history.seals.orders(&progress.job_id, &message.body, &which);
        // It may have ended just before the lane's keys were replaced.
        before.filter(|before| lane.history.jobs.knows(&before.mark())).unwrap_or(order)
    })
}

/// For how long a job has failed, without the time for which its lane was paused.
fn failing_for(progress: &Progress, lane: &Lane, now: Timestamp) -> Duration {
    let since = progress.failing_since.unwrap_or(now);
    elapsed(since, now).saturating_sub(lane.gate.breaker().paused_between(since, now))
}

fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// What comes first for a job that could be read.
fn first(job: &job::Job, progress: &Progress, now: Timestamp) -> First {
    if let Some(confirming) = &progress.confirming {
        return First::Poll(job.instance_id.clone(), confirming.clone());
    }
    match job.not_before.and_then(|not_before| Duration::try_from(not_before.duration_since(now)).ok()) {
        Some(wait) if !wait.is_zero() && !is_past(job.deadline, now) => First::Wait(wait),
        _ => First::Call(job.instance_id.clone()),
    }
}

/// What follows where a call for several jobs failed: any of them may be why, so none is charged with an attempt. Each is
/// called by itself next.
fn alone_next_time(progress: &Progress, retry: Retry, now: Timestamp, random: f64) -> Next {
    let setbacks = progress.setbacks.saturating_add(1);
    let delay = full_jitter(retry.initial, retry.max, setbacks, random);
    let progress = Progress { setbacks, touched: true, failing_since: Some(now), ..progress.clone() };
    Next::Park { progress, delay, cause: ParkCause::Transient }
}

/// How far a job has come.
#[derive(Debug, Clone, Copy)]
struct Past<'a> {
    progress: &'a Progress,
    /// See [`failing_for`].
    failing_for: Duration,
    /// No start of the lane's succeeds just now.
    is_doubtful: bool,
}

/// What follows from a verdict, for a job with this past. `random` is from [0, 1).
fn decide(
    verdict: Verdict,
    result: Result<Answer, NoAnswer>,
    Past { progress, failing_for, is_doubtful }: Past<'_>,
    confirm: Confirm,
    retry: Retry,
    now: Timestamp,
    random: f64,
) -> Next {
    let attempts = progress.attempts.saturating_add(1);
    let setbacks = progress.setbacks.saturating_add(1);
    let park = |progress: Progress, delay, cause| Next::Park {
        progress: Progress { setbacks, touched: true, no_capacity: cause == ParkCause::NoCapacity, ..progress },
        delay,
        cause,
    };
    let uncounted = full_jitter(retry.initial, retry.max, setbacks, random);
    let (outcome, ambiguous) = match verdict {
        Verdict::Started { ambiguous } => (Outcome::Started, ambiguous),
        Verdict::AlreadyDone { runs: false } if confirm == Confirm::Running => {
            return Next::GoOn { started: None, attempts, confirming: confirming(now, false) };
        }
        Verdict::AlreadyDone { .. } => (Outcome::AlreadyDone, false),
        // Where a permission is gone all jobs are denied, and the lane pauses: one more look shows whether it is this one.
        Verdict::Failed(Reason::AccessDenied) if !progress.denied => {
            return park(Progress { denied: true, ..progress.clone() }, uncounted, ParkCause::AccessDenied);
        }
        Verdict::Failed(reason) => (Outcome::Failed(reason), false),
        Verdict::Throttled { retry_after } => {
            let delay = retry_after.map_or(uncounted, |asked| asked.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER));
            let failing_since = progress.failing_since.map(|since| since.checked_add(delay).unwrap_or(since));
            return park(Progress { failing_since, ..progress.clone() }, delay, ParkCause::Throttled);
        }
        Verdict::NoCapacity { reason } => {
            let failing_since = progress.failing_since.unwrap_or(now);
            let rest = retry.give_up_after.saturating_sub(failing_for);
            if !rest.is_zero() {
                let delay = capacity::backoff(setbacks, rest, random);
                return park(
                    Progress { failing_since: Some(failing_since), ..progress.clone() },
                    delay,
                    ParkCause::NoCapacity,
                );
            }
            // The API has said that it started nothing.
            (Outcome::Failed(reason), false)
        }
        // Spared: the lane is paused.
        Verdict::LaneFault | Verdict::ClockSkew { .. } => return park(progress.clone(), uncounted, ParkCause::Paused),
        Verdict::Transient | Verdict::Verify => {
            let failing_since = progress.failing_since.unwrap_or(now);
            if attempts < retry.max_attempts && failing_for < retry.give_up_after {
                let delay = if is_doubtful {
                    // Else an outage of starts alone would use up all attempts of a small fleet within a minute.
                    half_jitter(retry.max, retry.max, 1, random)
                } else {
                    full_jitter(retry.initial, retry.max, attempts, random)
                };
                let progress = Progress { attempts, failing_since: Some(failing_since), ..progress.clone() };
                return park(progress, delay, ParkCause::Transient);
            }
            // One of the calls may have succeeded unseen.
            (Outcome::Failed(Reason::Exhausted), true)
        }
    };
    let (answer, explanation) = match result {
        Ok(answer) => {
            let explanation = answer.foreign.then(|| NOT_THE_APIS.to_owned());
            (Some(answer), explanation)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    let conclusion = Conclusion { outcome, ambiguous, attempts, answer, explanation };
    if outcome == Outcome::Started && confirm == Confirm::Running {
        Next::GoOn { started: Some(conclusion), attempts, confirming: confirming(now, ambiguous) }
    } else {
        Next::Conclude(conclusion)
    }
}

/// The beginning of the confirm phase.
fn confirming(since: Timestamp, ambiguous: bool) -> Confirming {
    Confirming { since, ambiguous, seen_starting: false, polls: 0 }
}

mod capacity;
mod confirm;
mod confirming;
mod publish;
#[cfg(test)]
mod tests;
