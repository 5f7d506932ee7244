//! What is published of a job: its events, and the dead letter.
//!
//! A dead letter's headers say phase `start`, whatever it was given up in: whoever puts it back wants the machine started.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::{Conclusion, Job, LANE};
use crate::broker::{Confirmed, Outgoing};
use crate::headers::Headers;
use crate::job::{self, Progress};
use crate::lane::parts::{Lane, Running};
use crate::outcome::{self, Data};

impl Job {
    /// What is published of `conclusion`, be it the job's last word or not.
    pub(super) fn event(&self, lane: &Lane, conclusion: &Conclusion, is_final: bool, at: Timestamp) -> Outgoing {
        let phase = conclusion.outcome.phase(self.progress.confirming.is_some());
        let data = Data { is_final, ..self.data(lane, conclusion, at) };
        let headers = Headers(self.message.properties.headers().as_ref());
        let traceparent = headers.text("traceparent").filter(|text| outcome::is_traceparent(text));
        let event = data.into_event(phase, self.progress.put_back, traceparent);
        let body = event.to_bytes();
        let mut properties = BasicProperties::default().with_content_type(outcome::CONTENT_TYPE.into());
        if self.job.is_some() {
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

    /// Says what an event of the job's says.
    pub(super) async fn tell(&self, running: &Running, event: Outgoing) -> Result<Confirmed, lapin::Error> {
        let told = running.outbox.event(event).await?;
        if let Some(key) = self.key {
            running.lane.history.jobs.published(key);
        }
        Ok(told)
    }

    fn data<'a>(&'a self, lane: &'a Lane, conclusion: &'a Conclusion, finished_at: Timestamp) -> Data<'a> {
        let job = self.job.as_ref();
        let reason = conclusion.outcome.reason();
        let data = Data {
            job_id: &self.progress.job_id,
            lane: lane.name(),
            instance_id: job.map(|job| job.instance_id.as_str()),
            batch_id: job.and_then(|job| job.batch_id.as_deref()),
            labels: job.map(|job| &job.labels),
            outcome: conclusion.outcome.as_str(),
            reason: (!reason.is_empty()).then_some(reason),
            is_final: true,
            attempts: conclusion.attempts,
            http_status: None,
            error_code: None,
            error_message: conclusion.explanation.as_deref(),
            bce_request_id: None,
            ambiguous: conclusion.ambiguous,
            received_at: self.progress.received_at,
            finished_at,
            duration_ms: i64::try_from(finished_at.duration_since(self.progress.received_at).as_millis())
                .unwrap_or(i64::MAX)
                .max(0),
        };
        match &conclusion.answer {
            Some(answer) => data.with_answer(answer),
            None => data,
        }
    }

    /// Keeps the message among the dead letters, whole, with what became of it in headers.
    pub(super) async fn keep(
        &self,
        running: &Running,
        conclusion: &Conclusion,
        now: Timestamp,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &running.lane;
        let mut headers = FieldTable::default();
        // Put back into the queue, it is to be started, and not looked for where it was given up. It is another order then,
        // and whoever reads the letter learns the name of none.
        Progress { confirming: None, order: None, ..self.progress.clone() }.write(&mut headers);
        let mut set = |name: &str, value: AMQPValue| {
            headers.insert(name.into(), value);
        };
        let text = |text: &str| AMQPValue::LongString(text.into());
        set(job::OUTCOME, text(conclusion.outcome.as_str()));
        set("x-reveille-reason", text(conclusion.outcome.reason()));
        set(LANE, text(lane.name()));
        set(job::DEAD_AT, text(&now.to_string()));
        set("x-reveille-attempts", AMQPValue::LongLongInt(conclusion.attempts.into()));
        if let Some(explanation) = &conclusion.explanation {
            set("x-reveille-error-message", text(explanation));
        }
        if let Some(answer) = &conclusion.answer {
            set("x-reveille-http-status", AMQPValue::LongLongInt(answer.status.into()));
            let texts = [
                ("x-reveille-error-code", &answer.code),
                ("x-reveille-error-message", &answer.message),
                ("x-reveille-bce-request-id", &answer.request_id),
            ];
            for (name, value) in texts {
                if let Some(value) = value {
                    set(name, text(value));
                }
            }
        }
        running.outbox.copy(&self.message, headers, String::new(), lane.settings.names.dead()).await
    }
}
