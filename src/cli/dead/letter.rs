//! A dead letter, as far as it can be read.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::broker::{Found, Message, REPLAY_OF, Taking};
use crate::dead_letter::DeadLetter;
use crate::headers::Headers;
use crate::job::{self, Job};
use crate::text::Shown;

/// What a letter says of itself, as a line of JSON.
#[derive(Debug, Default, Serialize)]
pub(super) struct Facts {
    /// Absent where neither its producer nor the daemon gave it one.
    pub(super) job_id: Option<String>,
    /// The job of which it was a replay.
    pub(super) replay_of: Option<String>,
    /// The lane in which it failed, or to which it was sent.
    pub(super) lane: Option<String>,
    /// `failed` or `rejected`; absent where RabbitMQ put it here by itself.
    pub(super) outcome: Option<String>,
    pub(super) reason: String,
    pub(super) dead_at: Option<Timestamp>,
    pub(super) attempts: u32,
    pub(super) http_status: Option<u16>,
    pub(super) error_code: Option<String>,
    pub(super) error_message: Option<String>,
    pub(super) bce_request_id: Option<String>,
    /// Of the body, also where that is no job otherwise.
    pub(super) instance_id: Option<String>,
    /// The same.
    pub(super) batch_id: Option<String>,
    pub(super) deadline: Option<Timestamp>,
}

/// A dead letter.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) facts: Facts,
    pub(super) message: Message,
    /// What its body says, or why that is no job.
    pub(super) job: Result<Job, String>,
    /// The right to take it out of the queue.
    pub(super) taking: Taking,
}

impl Letter {
    pub(super) fn read(found: Found) -> Self {
        let Found { key, message, unreadable, taking } = found;
        let properties = &message.properties;
        let written = DeadLetter::read(properties);
        let outcome = written.as_ref().map(|letter| letter.outcome.clone());
        let letter = written.unwrap_or_else(|| DeadLetter::by_rabbitmq(properties, &key));
        let (job, event_id) = match unreadable {
            Some(problem) => (Err(problem), None),
            None => {
                let job::Reading { job, envelope } = job::read(properties, &message.body);
                (job.map_err(|unreadable| unreadable.in_message(properties)), envelope.job_id)
            }
        };
        let loose = if job.is_err() { serde_json::from_slice(&message.body).unwrap_or_default() } else { Value::Null };
        let named = |field: &str| loose.get(field).and_then(Value::as_str).map(str::to_owned);
        let (instance_id, batch_id, deadline) = match &job {
            Ok(job) => (Some(job.instance_id.to_string()), job.batch_id.clone(), job.deadline),
            Err(_) => (named("instance_id"), named("batch_id"), None),
        };
        let facts = Facts {
            job_id: job::job_id(properties, event_id.as_deref()).map(str::to_owned),
            replay_of: Headers(properties.headers().as_ref()).text(REPLAY_OF).map(str::to_owned),
            lane: letter.lane,
            outcome,
            reason: letter.reason,
            dead_at: letter.dead_at,
            attempts: letter.attempts,
            http_status: letter.http_status,
            error_code: letter.error_code,
            error_message: letter.error_message,
            bce_request_id: letter.bce_request_id,
            instance_id,
            batch_id,
            deadline,
        };
        Self { facts, message, job, taking }
    }
}

/// Why it is dead: `not_found, HTTP 404 NoSuchObject: The specified object is not found.`
#[derive(Debug, Clone, Copy)]
pub(super) struct Why<'a>(pub(super) &'a Facts);

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { reason, http_status, error_code, error_message, .. } = self.0;
        write!(f, "{}", Shown(reason))?;
        if let Some(status) = http_status {
            write!(f, ", HTTP {status}")?;
        }
        if let Some(code) = error_code {
            write!(f, " {}", Shown(code))?;
        }
        if let Some(message) = error_message {
            write!(f, ": {}", Shown(message))?;
        }
        Ok(())
    }
}

/// What is not known.
const NONE: &str = "-";

/// Text of a letter, or `-`.
pub(super) fn shown(text: Option<&String>) -> String {
    text.map_or_else(|| NONE.to_owned(), |text| Shown(text).to_string())
}

/// To the second.
pub(super) fn time(instant: Option<Timestamp>) -> String {
    instant.map_or_else(|| NONE.to_owned(), |instant| format!("{instant:.0}"))
}

/// `1 dead letter`, `2 dead letters`
pub(super) fn count(letters: usize) -> String {
    if letters == 1 { "1 dead letter".to_owned() } else { format!("{letters} dead letters") }
}
