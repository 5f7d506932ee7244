//! A dead letter: the whole message of a job that failed or could not be read, with its outcome in headers, which are
//! written and read only here.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::bce::Answer;
use crate::events::Outcome;
use crate::headers::Headers;

/// A message with this header is a dead letter.
const OUTCOME: &str = "x-reveille-outcome";
const REASON: &str = "x-reveille-reason";
const LANE: &str = "x-reveille-lane";
const DEAD_AT: &str = "x-reveille-dead-at";
const ATTEMPTS: &str = "x-reveille-attempts";
const ERROR_MESSAGE: &str = "x-reveille-error-message";
const HTTP_STATUS: &str = "x-reveille-http-status";
const ERROR_CODE: &str = "x-reveille-error-code";
const REQUEST_ID: &str = "x-reveille-bce-request-id";

/// The outcome of a message. As read, missing and mistyped values are absent: any client may have written them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetter {
    /// `failed` or `rejected`.
    pub outcome: String,
    /// The reason; empty if it was `rejected`.
    pub reason: String,
    /// The lane in which it failed.
    pub lane: Option<String>,
    /// When it failed.
    pub dead_at: Option<Timestamp>,
    /// Start calls that counted.
    pub attempts: u32,
    /// What the last answer said, or what was wrong with the message.
    pub error_message: Option<String>,
    /// Of the last answer.
    pub http_status: Option<u16>,
    /// Of the last answer.
    pub error_code: Option<String>,
    /// Of the last answer. Baidu's support asks for it.
    pub bce_request_id: Option<String>,
}

impl DeadLetter {
    /// For a job that ended with this outcome at `dead_at`.
    pub fn new(outcome: Outcome, lane: &str, dead_at: Timestamp, attempts: u32) -> Self {
        Self {
            outcome: outcome.as_str().to_owned(),
            reason: outcome.reason().to_owned(),
            lane: Some(lane.to_owned()),
            dead_at: Some(dead_at),
            attempts,
            ..Self::default()
        }
    }

    /// With the explanation for a job without an answer, and the last answer.
    #[must_use]
    pub fn explained(self, explanation: Option<&str>, answer: Option<&Answer>) -> Self {
        let message = answer.and_then(|answer| answer.message.as_deref()).or(explanation);
        Self {
            error_message: message.map(str::to_owned),
            http_status: answer.map(|answer| answer.status),
            error_code: answer.and_then(|answer| answer.code.clone()),
            bce_request_id: answer.and_then(|answer| answer.request_id.clone()),
            ..self
        }
    }

    /// Whether a message is a dead letter.
    pub fn is_in(properties: &BasicProperties) -> bool {
        Headers(properties.headers().as_ref()).text(OUTCOME).is_some()
    }

    /// Reads the headers of a message. `None`: it is no dead letter.
    pub fn read(properties: &BasicProperties) -> Option<Self> {
        let headers = Headers(properties.headers().as_ref());
        let text = |name| headers.text(name).map(str::to_owned);
        Some(Self {
            outcome: text(OUTCOME)?,
            reason: text(REASON).unwrap_or_default(),
            lane: text(LANE),
            dead_at: headers.instant(DEAD_AT),
            attempts: headers.integer(ATTEMPTS).and_then(|count| count.try_into().ok()).unwrap_or(0),
            error_message: text(ERROR_MESSAGE),
            http_status: headers.integer(HTTP_STATUS).and_then(|status| status.try_into().ok()),
            error_code: text(ERROR_CODE),
            bce_request_id: text(REQUEST_ID),
        })
    }

    /// What is known of a message among the dead letters that RabbitMQ put there by itself, with this routing key. It has no
    /// outcome; its reason is RabbitMQ's, or `unroutable`, and `unreadable` where the daemon had it put aside.
    pub fn by_rabbitmq(properties: &BasicProperties, key: &str) -> Self {
        let headers = properties.headers().as_ref();
        let reason = match Headers(headers).text("x-first-death-reason") {
            Some("rejected") => "unreadable",
            Some(reason) => reason,
            None => "unroutable",
        };
        let death = headers.and_then(last_death);
        let queue = Headers(death).text("queue");
        let of_queue = queue.and_then(|queue| queue.rsplit_once('.')).map(|(_, lane)| lane);
        // The key of an urgent job ends so. That of a stray is no lane's.
        let of_key = || Some(key.strip_suffix(".urgent").unwrap_or(key)).filter(|lane| !lane.contains('.'));
        Self {
            reason: reason.to_owned(),
            lane: of_queue.or_else(of_key).map(str::to_owned),
            dead_at: match death.and_then(|death| death.inner().get("time")) {
                Some(AMQPValue::Timestamp(seconds)) => {
                    i64::try_from(*seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok())
                }
                _ => None,
            },
            ..Self::default()
        }
    }

    /// Writes what [`DeadLetter::read`] reads.
    pub fn write(&self, headers: &mut FieldTable) {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut set = |name: &str, value: Option<AMQPValue>| {
            if let Some(value) = value {
                headers.insert(name.into(), value);
            }
        };
        set(OUTCOME, Some(text(&self.outcome)));
        set(REASON, Some(text(&self.reason)));
        set(LANE, self.lane.as_deref().map(text));
        set(DEAD_AT, self.dead_at.map(|dead_at| text(&dead_at.to_string())));
        set(ATTEMPTS, Some(AMQPValue::LongLongInt(self.attempts.into())));
        set(ERROR_MESSAGE, self.error_message.as_deref().map(text));
        set(HTTP_STATUS, self.http_status.map(|status| AMQPValue::LongLongInt(status.into())));
        set(ERROR_CODE, self.error_code.as_deref().map(text));
        set(REQUEST_ID, self.bce_request_id.as_deref().map(text));
    }
}

/// RabbitMQ's record of the last queue that a message died in.
fn last_death(headers: &FieldTable) -> Option<&FieldTable> {
    match headers.inner().get("x-death")? {
        AMQPValue::FieldArray(deaths) => match deaths.as_slice().first()? {
            AMQPValue::FieldTable(death) => Some(death),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Reason;

    #[test]
    fn what_rabbitmq_put_aside_is_known_by_its_death_or_its_key() {
        let by_rabbitmq = |headers: FieldTable, key: &str| {
            let letter = DeadLetter::by_rabbitmq(&BasicProperties::default().with_headers(headers), key);
            (letter.lane, letter.reason, letter.dead_at.map(Timestamp::as_second))
        };
        let expected = |lane: Option<&str>, reason: &str, at| (lane.map(str::to_owned), reason.to_owned(), at);
        for (key, lane) in [("prod", Some("prod")), ("prod.urgent", Some("prod")), ("wake.dead", None)] {
            assert_eq!(by_rabbitmq(FieldTable::default(), key), expected(lane, "unroutable", None));
        }
        for (told, reason) in [("expired", "expired"), ("rejected", "unreadable")] {
            let mut death = FieldTable::default();
            death.insert("queue".into(), AMQPValue::LongString("wake.jobs.prod".into()));
            death.insert("time".into(), AMQPValue::Timestamp(1_795_000_000));
            let mut headers = FieldTable::default();
            headers.insert("x-death".into(), AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()));
            headers.insert("x-first-death-reason".into(), AMQPValue::LongString(told.into()));
            let at = Some(1_795_000_000);
            assert_eq!(by_rabbitmq(headers, "wake.dead"), expected(Some("prod"), reason, at));
        }
    }

    fn read(headers: FieldTable) -> Option<DeadLetter> {
        DeadLetter::read(&BasicProperties::default().with_headers(headers))
    }

    #[test]
    fn a_dead_letter_is_read_as_it_was_written() {
        let now = "2026-11-25T07:30:00.5Z".parse().unwrap();
        let failed = DeadLetter::new(Outcome::Failed(Reason::NotFound), "prod", now, 3);
        let answer = Answer {
            status: 404,
            code: Some("NoSuchObject".to_owned()),
            message: Some("no such instance".to_owned()),
            request_id: Some("r-1".to_owned()),
            ..Answer::default()
        };
        let explained = failed.clone().explained(Some("something else"), Some(&answer));
        assert_eq!(explained.error_message.as_deref(), Some("no such instance"), "the API's own words");
        let rejected = DeadLetter::new(Outcome::Rejected, "prod", now, 0).explained(Some("no JSON"), None);
        for letter in [failed, explained, rejected] {
            let mut headers = FieldTable::default();
            letter.write(&mut headers);
            assert_eq!(read(headers), Some(letter));
        }
    }

    #[test]
    fn what_somebody_else_wrote_reads_as_absent_and_what_has_no_outcome_as_none() {
        assert_eq!(read(FieldTable::default()), None);
        let forgeries = [
            (OUTCOME, AMQPValue::LongString("failed".into())),
            (REASON, AMQPValue::Boolean(true)),
            (DEAD_AT, AMQPValue::LongString("yesterday".into())),
            (ATTEMPTS, AMQPValue::LongLongInt(-1)),
            (HTTP_STATUS, AMQPValue::LongLongInt(1_000_000)),
        ];
        let mut headers = FieldTable::default();
        for (name, value) in forgeries {
            headers.insert(name.into(), value);
        }
        assert_eq!(read(headers), Some(DeadLetter { outcome: "failed".to_owned(), ..DeadLetter::default() }));
    }
}
