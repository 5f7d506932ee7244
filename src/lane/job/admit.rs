//! Admission: reads a delivery, and decides what to do with it first.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use tracing::{Span, debug, error_span, info, warn};

use super::held::Held;
use super::{Admitted, First, Task, Unread, capacity, failing_for, wave};
use crate::broker::{Delivery, Message, REPLAY_OF};
use crate::control::WaveAhead;
use crate::dead_letter::DeadLetter;
use crate::events::{Outcome, Reason, is_traceparent};
use crate::headers::Headers;
use crate::job::{self, ParkCause, Progress, is_past};
use crate::lane::history::Order;
use crate::lane::parts::Lane;
use crate::lane::quarantine::POISONED_AT;

impl Admitted {
    /// Reads a delivery and decides what comes first.
    pub(in crate::lane) fn read(delivery: Delivery, lane: &Lane) -> Self {
        let now = Timestamp::now();
        let suspicion = lane.quarantine.suspicion(&delivery);
        let Delivery { message, redelivered, returns, unreadable, is_movable, unacked } = delivery;
        let in_hand = lane.quarantine.track(&message);
        // A message that would crash RabbitMQ's dead-lettering is copied instead, as far as it could be read.
        let is_put_aside = unreadable.is_some() && is_movable;
        let headers = || job::Envelope::in_headers(&message.properties);
        let (read, envelope) = match unreadable {
            Some(problem) => (Err((Outcome::Rejected, problem)), headers()),
            // The body may be what ends each process that reads it.
            None if suspicion >= POISONED_AT => {
                let explanation = format!("delivered {returns} times, never acked");
                (Err((Outcome::Failed(Reason::Poisoned), explanation)), headers())
            }
            None => {
                let job::Reading { job, envelope } = job::read(&message.properties, &message.body);
                let rejected =
                    |unreadable: job::Unreadable| (Outcome::Rejected, unreadable.in_message(&message.properties));
                (job.map_err(rejected), envelope)
            }
        };
        let mut progress = Progress::read(&message.properties, envelope.job_id.as_deref(), now);
        let is_copy = Progress::is_in(&message.properties);
        let order = order(lane, &message, &progress, is_copy);
        progress.order = Some(order.as_str().to_owned());
        let span = span(lane, &progress, read.as_ref().ok());
        let _entered = span.clone().entered();
        if let Some(letter) = DeadLetter::read(&message.properties) {
            tell_put_back(lane.name(), &letter);
        }
        let mark = order.mark();
        let stamped = stamped(&message.properties);
        let submitted = submitted(stamped, &progress, is_copy);
        let is_replay = Headers(message.properties.headers().as_ref()).has(REPLAY_OF);
        let traceparent = traceparent(&message).or(envelope.traceparent);
        let held = |progress, mark| Held { message, unacked, in_hand, progress, traceparent, mark, is_put_aside, span };
        let job = match read {
            Ok(job) => job,
            Err((outcome, explanation)) => {
                // The replica that had the delivery before may have made a call.
                progress.touched |= redelivered;
                debug!(outcome = outcome.as_str(), explanation, "delivery");
                return Self::Unread(Unread { held: held(progress, mark), outcome, explanation });
            }
        };
        // RabbitMQ counts all returns, and puts aside a message that has too many: a fresh copy has none.
        let mut first = if returns >= POISONED_AT { First::Anew } else { first(&job, &progress, now) };
        if let First::Call | First::Anew = first
            && !is_replay
            && let Some(ahead) = waves_ahead(lane, &job, &progress, stamped, now)
        {
            first = wave::first(ahead, &job, progress.received_at, now);
        }
        let mut spare = None;
        if let First::Call = first
            && progress.no_capacity
            && let Some(delay) = capacity::wait(
                &progress,
                job.deadline,
                lane.settings.retry,
                failing_for(&progress, lane, now),
                now,
                rand::random(),
            )
        {
            spare = lane.gate.spare();
            if spare.is_none() {
                first = First::GiveWay(delay);
            }
        }
        // The replica that had it before may have made a call, unless it is too early for one even now.
        progress.touched |= redelivered && !matches!(first, First::Wait(..) | First::GiveUp);
        debug!(first = first.as_str(), "delivery");
        let is_once = progress.once;
        let key = lane.history.seen.key(&progress.job_id, &job.instance_id, &mark);
        let job = Arc::new(job);
        Self::Task(Task {
            held: held(progress, mark),
            job,
            submitted,
            key,
            is_new: !redelivered && !is_copy && !is_once,
            first,
            spare,
        })
    }
}

/// The span in which the job runs, which names it in each of its lines in the log. Its level is that of errors, so that it is there
/// for lines of every level. It has no parent, since it names the lane itself.
fn span(lane: &Lane, progress: &Progress, job: Option<&job::Job>) -> Span {
    error_span!(
        parent: None,
        "job",
        lane = lane.name(),
        job = progress.job_id,
        instance = job.map(|job| job.instance_id.as_str()),
        batch = job.and_then(|job| job.batch_id.as_deref()),
        // In the confirm phase no further start is attempted.
        attempt = progress.attempts.saturating_add(u32::from(progress.boot.is_none())),
    )
}

fn tell_put_back(lane: &str, letter: &DeadLetter) {
    info!("a dead letter was put back: a new order, with fresh attempts");
    if let Some(before) = letter.lane.as_deref().filter(|name| *name != lane) {
        warn!(before, "it was another lane's, and is called with the account of this one");
    }
}

/// The trace that a message's own header names.
fn traceparent(message: &Message) -> Option<String> {
    let headers = Headers(message.properties.headers().as_ref());
    headers.text("traceparent").filter(|text| is_traceparent(text)).map(str::to_owned)
}

/// The order that a message gives, or of which it is a copy.
fn order(lane: &Lane, message: &Message, progress: &Progress, is_copy: bool) -> Order {
    let named = progress.order.as_deref().filter(|_| is_copy).and_then(Order::read);
    named.unwrap_or_else(|| {
        let which = match progress.put_back {
            Some(dead_at) => dead_at.to_string(),
            // A producer wrote the header: the message is a copy of nothing.
            None if is_copy => "nameless".to_owned(),
            None => String::new(),
        };
        let (order, before) = lane.history.seals.orders(&progress.job_id, &message.body, &which);
        // The order may have ended just before the lane's keys were replaced.
        before.filter(|before| lane.history.seen.knows(&before.mark())).unwrap_or(order)
    })
}

/// The time that a message has by its producer.
fn stamped(properties: &BasicProperties) -> Option<Timestamp> {
    properties.timestamp().and_then(|seconds| Timestamp::from_second(seconds.try_into().ok()?).ok())
}

/// Why a job has to wait for its wave. `None`: it may start, or its deadline has passed. A job that had its turn before goes on: it
/// may have been called, or it was put back from among the dead letters.
fn waves_ahead(
    lane: &Lane,
    job: &job::Job,
    progress: &Progress,
    stamped: Option<Timestamp>,
    now: Timestamp,
) -> Option<WaveAhead> {
    let ahead = lane.control.wave_ahead(lane.name(), job, stamped)?;
    let had_its_turn = progress.touched || progress.put_back.is_some();
    (!had_its_turn && !is_past(job.deadline, now)).then_some(ahead)
}

/// When a job was submitted: as its producer says, and before the daemon first parked it. A letter that was put back has
/// the timestamp of when it was first submitted, or a newer one.
fn submitted(stamped: Option<Timestamp>, progress: &Progress, is_copy: bool) -> Option<Timestamp> {
    let is_older = |stamped: Timestamp| progress.put_back.is_some_and(|dead_at| stamped < dead_at);
    let stamped = stamped.filter(|stamped| !is_older(*stamped));
    stamped.into_iter().chain(is_copy.then_some(progress.received_at)).min()
}

/// What comes first for a job that could be read.
pub(super) fn first(job: &job::Job, progress: &Progress, now: Timestamp) -> First {
    if let Some(boot) = &progress.boot {
        return First::Poll(boot.clone());
    }
    match job.not_before.and_then(|not_before| Duration::try_from(not_before.duration_since(now)).ok()) {
        Some(wait) if !wait.is_zero() && !is_past(job.deadline, now) => First::Wait(wait, ParkCause::NotBefore),
        _ => First::Call,
    }
}
