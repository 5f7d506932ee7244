//! An unacked delivery, and what is published about it: events, the dead letter, a parked copy. The broker's confirms
//! of those allow the ack.

use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{FieldTable, ShortString};
use tracing::{Span, debug, info, warn};

use super::decide::Conclusion;
use crate::bce::Answer;
use crate::broker::{Confirmed, Message, Outgoing, REPLAY_OF, Reply, Unacked, delay};
use crate::dead_letter::DeadLetter;
use crate::events::{CONTENT_TYPE, Event, JobEvent, Outcome};
use crate::headers::Headers;
use crate::job::{self, ParkCause, Progress};
use crate::lane::history::Mark;
use crate::lane::parts::{Lane, Session};
use crate::lane::quarantine::Tracked;

/// See the module.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) message: Message,
    pub(super) unacked: Unacked,
    pub(super) in_hand: Tracked,
    pub(super) progress: Progress,
    /// The trace that the job belongs to, by its message or by the event around it.
    pub(super) traceparent: Option<String>,
    /// Identifies the order in its events.
    pub(super) mark: Mark,
    /// Only the broker has the whole message, and dead-letters it.
    pub(super) is_put_aside: bool,
    /// Names the job in each of its lines in the log.
    pub(super) span: Span,
}

impl Held {
    /// A conclusion without a deciding answer.
    pub(super) fn conclusion(&self, outcome: Outcome, ambiguous: bool, explanation: &str) -> Conclusion {
        let explanation = Some(explanation.to_owned());
        Conclusion { outcome, ambiguous, attempts: self.progress.attempts, answer: None, explanation }
    }

    /// Publishes the job's outcome, and the dead letter of a failure unless the order `has_letter` already. Returns the
    /// reply that the producer asked for, still to be sent.
    pub(super) async fn conclude(
        &self,
        session: &Session,
        conclusion: &Conclusion,
        job: Option<&job::Job>,
        has_letter: bool,
    ) -> Result<(Confirmed, Option<Reply>), lapin::Error> {
        let lane = &session.lane;
        let finished_at = Timestamp::now();
        let event = self.event(lane, conclusion, job, true, finished_at);
        let reply = self.message.properties.reply_to().as_ref().map(|asker| {
            let (properties, body) = (event.properties.clone(), event.body.clone());
            Reply { to: asker.to_string(), properties, body }
        });
        // Published last: until the dead letter is confirmed the job can be redelivered, which must not happen once its
        // end is published.
        let dead_letter = if conclusion.outcome.is_dead_letter() && !self.is_put_aside && !has_letter {
            Some(self.publish_dead_letter(session, conclusion, finished_at).await?)
        } else {
            None
        };
        let published = session.outbox.event(event).await?;
        let duration = finished_at.duration_since(self.progress.received_at);
        let is_listed = lane.metrics.job_ended(conclusion.outcome, duration);
        log_end(conclusion, is_listed);
        Ok((published.with(dead_letter), reply))
    }

    /// Puts a copy of the message into the delay ladder.
    pub(super) async fn park(
        &self,
        session: &Session,
        progress: &Progress,
        delay: Duration,
        cause: ParkCause,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &session.lane;
        let mut headers = FieldTable::default();
        progress.write(&mut headers);
        let (exchange, key) = delay::route(&lane.settings.names, delay, &lane.settings.lane.name);
        let proof = session.outbox.copy(&self.message, headers, exchange, key).await?;
        lane.metrics.parked(cause);
        debug!(delay_ms = delay.as_millis(), cause = cause.as_str(), "parked");
        Ok(proof)
    }

    /// Acks the delivery, then has the reply sent, if one was asked for: in the background, since nothing should wait
    /// for a producer that is gone.
    pub(super) async fn done(
        self,
        session: &Session,
        proof: Confirmed,
        reply: Option<Reply>,
    ) -> Result<(), lapin::Error> {
        if self.is_put_aside {
            self.unacked.put_aside(proof).await?;
        } else {
            self.unacked.ack(proof).await?;
        }
        self.in_hand.done();
        if let Some(reply) = reply {
            let (span, to) = (self.span, reply.to.clone());
            session.lane.replies.send(reply, move |error| {
                span.in_scope(|| warn!(reply_to = to, error = error.to_string(), "no reply given"));
            });
        }
        Ok(())
    }

    /// The event about `conclusion`, final or not. `job`: the body, if it could be read.
    pub(super) fn event(
        &self,
        lane: &Lane,
        conclusion: &Conclusion,
        job: Option<&job::Job>,
        is_final: bool,
        at: Timestamp,
    ) -> Outgoing {
        let phase = conclusion.outcome.phase(self.progress.boot.is_some());
        let of_job = JobEvent { is_final, ..self.job_event(lane, conclusion, job, at) };
        let event = Event::of_job(of_job, phase, self.progress.put_back, self.traceparent.as_deref());
        let body = event.to_bytes();
        let mut properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        if job.is_some() {
            properties = properties.with_headers(lane.history.seals.sealed(&self.mark, &body));
        }
        if let Ok(id) = ShortString::try_new(event.id) {
            properties = properties.with_message_id(id);
        }
        if let Some(correlation_id) = self.message.properties.correlation_id() {
            properties = properties.with_correlation_id(correlation_id.clone());
        }
        let key = format!("{}.{}", lane.name(), conclusion.outcome);
        Outgoing { exchange: lane.settings.names.outcomes(), key, properties, body }
    }

    fn job_event(
        &self,
        lane: &Lane,
        conclusion: &Conclusion,
        job: Option<&job::Job>,
        finished_at: Timestamp,
    ) -> JobEvent {
        let reason = conclusion.outcome.reason();
        let event = JobEvent {
            job_id: self.progress.job_id.clone(),
            correlation_id: self.message.properties.correlation_id().as_ref().map(ToString::to_string),
            lane: lane.name().to_owned(),
            instance_id: job.map(|job| job.instance_id.clone()),
            batch_id: job.and_then(|job| job.batch_id.clone()),
            wave: job.and_then(|job| job.wave),
            replay_of: self.replay_of().map(str::to_owned),
            labels: job.map(|job| job.labels.clone()),
            outcome: conclusion.outcome.as_str().to_owned(),
            reason: (!reason.is_empty()).then(|| reason.to_owned()),
            is_final: true,
            attempts: conclusion.attempts,
            http_status: None,
            error_code: None,
            error_message: conclusion.explanation.clone(),
            bce_request_id: None,
            ambiguous: conclusion.ambiguous,
            received_at: self.progress.received_at,
            finished_at,
            duration_ms: i64::try_from(finished_at.duration_since(self.progress.received_at).as_millis())
                .unwrap_or(i64::MAX)
                .max(0),
        };
        match &conclusion.answer {
            Some(answer) => event.with_answer(answer),
            None => event,
        }
    }

    /// The job of which this one is a replay.
    fn replay_of(&self) -> Option<&str> {
        Headers(self.message.properties.headers().as_ref()).text(REPLAY_OF).filter(|id| id.len() <= job::ID_LIMIT)
    }

    /// Publishes the whole message as a dead letter, with its outcome in headers.
    async fn publish_dead_letter(
        &self,
        session: &Session,
        conclusion: &Conclusion,
        now: Timestamp,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &session.lane;
        let mut headers = FieldTable::default();
        // Put back, the job is to be started, not polled where it was given up. It is another order then, and the
        // letter must not reveal an order's name.
        Progress { boot: None, order: None, once: false, ..self.progress.clone() }.write(&mut headers);
        DeadLetter::new(conclusion.outcome, lane.name(), now, conclusion.attempts)
            .explained(conclusion.explanation.as_deref(), conclusion.answer.as_ref())
            .write(&mut headers);
        session.outbox.copy(&self.message, headers, String::new(), lane.settings.names.dead()).await
    }
}

/// Logs how the job ended, in the words of its event: at `info` where it `is_listed`.
fn log_end(Conclusion { outcome, answer, explanation, .. }: &Conclusion, is_listed: bool) {
    let reason = Some(outcome.reason()).filter(|reason| !reason.is_empty());
    let http_status = answer.as_ref().map(|answer| answer.status);
    let text = |part: fn(&Answer) -> &Option<String>| answer.as_ref().and_then(|answer| part(answer).as_deref());
    let error_code = text(|answer| &answer.code);
    let error_message = text(|answer| &answer.message).or(explanation.as_deref());
    let bce_request_id = text(|answer| &answer.request_id);
    if is_listed {
        info!(reason, http_status, error_code, error_message, bce_request_id, "job {outcome}");
    } else {
        debug!(reason, http_status, error_code, error_message, bce_request_id, "job {outcome}");
    }
}
