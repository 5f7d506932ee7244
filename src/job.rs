//! The job message: its body, and the progress in its headers.

mod body;
mod park;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bce::InstanceId;
use crate::bce::answer::shorten;
use crate::dead_letter::DeadLetter;
use crate::headers::Headers;

pub use self::park::ParkCause;

/// Largest body of a job, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;
/// The fields of a job.
pub const FIELDS: [&str; 8] =
    ["instance_id", "batch_id", "conflict", "confirm", "not_before", "deadline", "priority", "labels"];
/// Longest id of a batch, in bytes.
pub const BATCH_ID_LIMIT: usize = 128;
const LABELS_LIMIT: usize = 16;
/// Longest explanation of what is wrong with a message, in characters: it quotes values, which can be long.
const EXPLANATION_LIMIT: usize = 300;
/// Longest quoted name of an encoding, in characters.
const ENCODING_LIMIT: usize = 40;

/// Whether this deadline has passed at `now`.
pub fn is_past(deadline: Option<Timestamp>, now: Timestamp) -> bool {
    deadline.is_some_and(|deadline| deadline < now)
}

/// The time since an instant; zero if that is yet to come.
pub fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

/// What a 409 on a clean first touch means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conflict {
    /// The job failed: the instance was not stopped.
    Fail,
    /// The job is done: another client started the instance before.
    Accept,
    /// The instance's state decides.
    Verify,
}

impl Conflict {
    /// Reads its name in settings and jobs.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "fail" => Some(Self::Fail),
            "accept" => Some(Self::Accept),
            "verify" => Some(Self::Verify),
            _ => None,
        }
    }
}

/// When a job is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// Once the API has accepted the start.
    Accepted,
    /// Once the instance runs.
    Running,
}

impl Confirm {
    /// Reads its name in settings and jobs.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "accepted" => Some(Self::Accepted),
            "running" => Some(Self::Running),
            _ => None,
        }
    }
}

/// How soon a job is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// In order of arrival.
    Normal,
    /// Before normal ones.
    Urgent,
}

/// The body of a job message. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Job {
    /// The instance to start.
    pub instance_id: InstanceId,
    /// Groups jobs; at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// The 409 policy; the lane's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
    /// When the job is done; the lane's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<Confirm>,
    /// No call before this instant.
    #[serde(default, deserialize_with = "body::instant", skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// No call after this instant: the job ends `expired`.
    #[serde(default, deserialize_with = "body::instant", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// The queue into which `reveille submit` publishes the job. Once published, only the queue counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// Copied into outcomes; at most 16.
    #[serde(default, deserialize_with = "body::labels", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Why a message is no job. The whole message is dead-lettered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The body is larger than [`BODY_LIMIT`].
    #[error("the body has {0} bytes; at most {BODY_LIMIT} are read")]
    TooLarge(usize),
    /// The body is not JSON, or a field is missing or invalid.
    #[error("{0}")]
    Malformed(String),
}

impl Unreadable {
    /// Explains it for a message with these properties.
    pub fn in_message(&self, properties: &BasicProperties) -> String {
        match properties.content_encoding().as_ref().map(ShortString::as_str) {
            Some(encoding) if !body::is_plain(encoding) => {
                let encoding = shorten(encoding.to_owned(), ENCODING_LIMIT);
                format!(
                    "{self}; content_encoding is {encoding}: bodies are read as they are, uncompressed JSON in UTF-8"
                )
            }
            _ => self.to_string(),
        }
    }
}

impl Job {
    /// A job with nothing but its instance.
    pub fn of(instance_id: InstanceId) -> Self {
        Self {
            instance_id,
            batch_id: None,
            conflict: None,
            confirm: None,
            not_before: None,
            deadline: None,
            priority: None,
            labels: BTreeMap::new(),
        }
    }

    /// Reads a message body.
    ///
    /// # Errors
    /// [`Unreadable`], naming the field and what would be right.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        if body.len() > BODY_LIMIT {
            return Err(Unreadable::TooLarge(body.len()));
        }
        let job: Self = serde_json::from_slice(body::json(body)).map_err(|_| explain(body))?;
        check(&job)?;
        Ok(job)
    }
}

/// Checks the limits that the types do not express.
///
/// # Errors
/// [`Unreadable::Malformed`], naming the field and its limit.
pub fn check(job: &Job) -> Result<(), Unreadable> {
    if let Some(batch_id) = job.batch_id.as_ref().filter(|batch_id| batch_id.len() > BATCH_ID_LIMIT) {
        let length = batch_id.len();
        return Err(Unreadable::Malformed(format!("batch_id has {length} bytes: at most {BATCH_ID_LIMIT}")));
    }
    if job.labels.len() > LABELS_LIMIT {
        let count = job.labels.len();
        return Err(Unreadable::Malformed(format!("labels has {count} entries: at most {LABELS_LIMIT}")));
    }
    Ok(())
}

/// Parses an invalid body a second time, slower, to learn where it is invalid.
fn explain(body: &[u8]) -> Unreadable {
    if body::is_utf16(body) {
        return Unreadable::Malformed("the body is in UTF-16: expected JSON in UTF-8".to_owned());
    }
    let mut json = serde_json::Deserializer::from_slice(body::json(body));
    let explanation = match serde_path_to_error::deserialize::<_, Job>(&mut json) {
        Ok(_) => json.end().err().map_or_else(|| "not one JSON object".to_owned(), |error| error.to_string()),
        Err(error) if matches!(error.path().iter().next(), None | Some(serde_path_to_error::Segment::Unknown)) => {
            error.inner().to_string()
        }
        Err(error) => format!("{}: {}", error.path(), error.inner()),
    };
    Unreadable::Malformed(shorten(explanation, EXPLANATION_LIMIT))
}

/// How far a job has come. It is kept in headers, so a producer could forge it: impossible values count as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// `message_id` as the producer set it, else a UUIDv7 made at the first delivery and kept from the first park on.
    pub job_id: String,
    /// When the daemon first saw the job.
    pub received_at: Timestamp,
    /// Start calls that counted against `max_attempts`.
    pub attempts: u32,
    /// How often the job was parked after a call, counted or not, or gave way to others.
    pub reschedules: u32,
    /// When a call first failed, its own or a shared one: `give_up_after` counts from here.
    pub failing_since: Option<Timestamp>,
    /// A call may have been made for this job before, by us or for a copy of this message. A 409 then proves nothing.
    pub touched: bool,
    /// The API denied access to the instance once, while others got through. A second denial ends the job.
    pub denied: bool,
    /// The last call found no capacity. Others go first then.
    pub no_capacity: bool,
    /// The name of the order of which the message is a copy, if the daemon has given it one.
    pub order: Option<String>,
    /// The message was a dead letter of this instant, and was put back: a new order, not the one that failed.
    pub put_back: Option<Timestamp>,
    /// The job is in its second phase: its instance is polled until it runs, and no longer started.
    pub boot: Option<Boot>,
}

/// How far a job has come in the confirm phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// When the start was accepted.
    pub since: Timestamp,
    /// As the `started` event said.
    pub ambiguous: bool,
    /// The instance was seen starting, so `Stopped` is no longer the state before the start.
    pub seen_starting: bool,
    /// Polls that showed the instance's state.
    pub polls: u32,
}

impl Boot {
    /// The beginning of the confirm phase.
    pub fn begun(since: Timestamp, ambiguous: bool) -> Self {
        Self { since, ambiguous, seen_starting: false, polls: 0 }
    }
}

const JOB_ID: &str = "x-reveille-job-id";
const RECEIVED_AT: &str = "x-reveille-received-at";
const ATTEMPTS: &str = "x-reveille-attempts";
const RESCHEDULES: &str = "x-reveille-setbacks";
const FAILING_SINCE: &str = "x-reveille-failing-since";
const TOUCHED: &str = "x-reveille-touched";
const DENIED: &str = "x-reveille-denied";
const NO_CAPACITY: &str = "x-reveille-no-capacity";
/// `start` or `confirm`. The next four apply to the latter.
const PHASE: &str = "x-reveille-phase";
const STARTED_AT: &str = "x-reveille-started-at";
const AMBIGUOUS: &str = "x-reveille-ambiguous";
const SEEN_STARTING: &str = "x-reveille-seen-starting";
const POLLS: &str = "x-reveille-polls";
const ORDER: &str = "x-reveille-order";
const PUT_BACK: &str = "x-reveille-put-back";
/// Larger counts of attempts or reschedules are forged: a job parks for a second at least.
const COUNT_LIMIT: i64 = 1_000_000;

impl Progress {
    /// Reads the headers of a delivery. A dead letter that was put back is a new order, without its earlier progress.
    pub fn read(properties: &BasicProperties, now: Timestamp) -> Self {
        let written = Headers(properties.headers().as_ref());
        let put_back = DeadLetter::read(properties);
        let headers = if put_back.is_some() { Headers(None) } else { written };
        let count = |name| {
            let count = headers.integer(name).filter(|count| (0..=COUNT_LIMIT).contains(count));
            count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
        };
        let past = |name: &str| headers.instant(name).filter(|instant| *instant <= now);
        let message_id = properties.message_id().as_ref().map(ShortString::as_str).filter(|id| !id.is_empty());
        Self {
            job_id: message_id
                .or_else(|| written.text(JOB_ID).filter(|id| !id.is_empty() && id.len() <= 255))
                .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned),
            received_at: past(RECEIVED_AT).unwrap_or(now),
            attempts: count(ATTEMPTS),
            reschedules: count(RESCHEDULES),
            failing_since: past(FAILING_SINCE),
            touched: headers.flag(TOUCHED),
            denied: headers.flag(DENIED),
            no_capacity: headers.flag(NO_CAPACITY),
            order: headers.text(ORDER).map(str::to_owned),
            put_back: match put_back {
                Some(letter) => letter.dead_at,
                None => headers.instant(PUT_BACK),
            },
            // If forged, its job only polls, and publishes what is true.
            boot: past(STARTED_AT).filter(|_| headers.text(PHASE) == Some("confirm")).map(|since| Boot {
                since,
                ambiguous: headers.flag(AMBIGUOUS),
                seen_starting: headers.flag(SEEN_STARTING),
                polls: count(POLLS),
            }),
        }
    }

    /// Whether a message carries progress, which makes it a parked copy.
    pub fn is_in(properties: &BasicProperties) -> bool {
        Headers(properties.headers().as_ref()).text(RECEIVED_AT).is_some() && !DeadLetter::is_in(properties)
    }

    /// Writes what [`Progress::read`] reads.
    pub fn write(&self, headers: &mut FieldTable) {
        let mut set = |name: &str, value: Option<AMQPValue>| {
            if let Some(value) = value {
                headers.insert(name.into(), value);
            }
        };
        let text = |text: String| AMQPValue::LongString(text.into());
        set(JOB_ID, Some(text(self.job_id.clone())));
        set(RECEIVED_AT, Some(text(self.received_at.to_string())));
        set(ATTEMPTS, Some(AMQPValue::LongLongInt(self.attempts.into())));
        set(RESCHEDULES, Some(AMQPValue::LongLongInt(self.reschedules.into())));
        set(FAILING_SINCE, self.failing_since.map(|instant| text(instant.to_string())));
        set(TOUCHED, Some(AMQPValue::Boolean(self.touched)));
        set(DENIED, Some(AMQPValue::Boolean(self.denied)));
        set(NO_CAPACITY, Some(AMQPValue::Boolean(self.no_capacity)));
        set(ORDER, self.order.clone().map(text));
        set(PUT_BACK, self.put_back.map(|instant| text(instant.to_string())));
        // Always written, since the message may have an older value.
        set(PHASE, Some(text(if self.boot.is_some() { "confirm" } else { "start" }.to_owned())));
        if let Some(boot) = &self.boot {
            set(STARTED_AT, Some(text(boot.since.to_string())));
            set(AMBIGUOUS, Some(AMQPValue::Boolean(boot.ambiguous)));
            set(SEEN_STARTING, Some(AMQPValue::Boolean(boot.seen_starting)));
            set(POLLS, Some(AMQPValue::LongLongInt(boot.polls.into())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Outcome;

    fn explanation(body: &str) -> String {
        Job::parse(body.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_whole_job_is_read_and_unknown_fields_are_ignored() {
        let job = Job::parse(
            br#"{"instance_id":"i-YufwpQAe","batch_id":"b","conflict":"accept","confirm":"running","extra":{"a":[1]},
                "not_before":"2026-11-25T07:30:00+08:00","deadline":"2026-11-25T00:00:00Z","labels":{"team":"ops"}}"#,
        )
        .unwrap();
        assert_eq!(job.instance_id.as_str(), "i-YufwpQAe");
        assert_eq!((job.conflict, job.confirm), (Some(Conflict::Accept), Some(Confirm::Running)));
        assert_eq!(job.not_before, Some("2026-11-24T23:30:00Z".parse().unwrap()));
        assert_eq!(job.labels["team"], "ops");
        let bare = Job::parse(br#"{"instance_id":"i-0000","batch_id":null}"#).unwrap();
        assert_eq!((bare.batch_id, bare.conflict, bare.deadline), (None, None, None));
    }

    #[test]
    fn every_field_is_listed() {
        let job = Job::parse(
            br#"{"instance_id":"i-YufwpQAe","batch_id":"b","conflict":"accept","confirm":"running","priority":"urgent",
                "not_before":"2026-11-25T07:30:00+08:00","deadline":"2026-11-25T00:00:00Z","labels":{"team":"ops"}}"#,
        );
        let job = serde_json::to_value(job.unwrap()).unwrap();
        let mut listed = FIELDS.to_vec();
        listed.sort_unstable();
        assert_eq!(job.as_object().unwrap().keys().collect::<Vec<_>>(), listed);
    }

    #[test]
    fn what_is_wrong_is_named_with_the_field_and_the_remedy() {
        for (body, expected) in [
            ("", "EOF"),
            ("hello", "expected value"),
            ("[]", "Job"),
            ("{}", "missing field `instance_id`"),
            (r#"{"instance_id":7}"#, "instance_id: invalid type: integer `7`"),
            (r#"{"instance_id":"i-../x"}"#, "instance_id: \"i-../x\" is no instance id"),
            (r#"{"instance_id":"i-0000","conflict":"maybe"}"#, "conflict: unknown variant `maybe`"),
            (r#"{"instance_id":"i-0000","confirm":"soon"}"#, "confirm: unknown variant `soon`"),
            (r#"{"instance_id":"i-0000","deadline":"tomorrow"}"#, "deadline: "),
            (r#"{"instance_id":"i-0000","labels":{"a":1}}"#, "labels.a: invalid type"),
            (r#"{"instance_id":"i-0000"} more"#, "trailing characters"),
            (r#"{"instance_id":"i-0000","instance_id":"i-0001"}"#, "duplicate field"),
        ] {
            assert!(explanation(body).contains(expected), "{body}: {}", explanation(body));
        }
        let many: BTreeMap<String, String> = (0..17).map(|n| (n.to_string(), String::new())).collect();
        let body = serde_json::json!({"instance_id": "i-0000", "labels": many}).to_string();
        assert!(explanation(&body).contains("at most 16"));
        let body = serde_json::json!({"instance_id": "i-0000", "batch_id": "b".repeat(129)}).to_string();
        assert!(explanation(&body).contains("at most 128"));
        assert!(explanation(&"[".repeat(60_000)).len() < 400);
        assert!(explanation(&format!("{}1{}", "[".repeat(900), "]".repeat(900))).len() < 400);
        assert!(Job::parse(&vec![b' '; BODY_LIMIT + 1]).unwrap_err().to_string().contains("at most 65536"));
        assert!(Job::parse(b"{\"instance_id\":\"i-\xff\xfe00\"}").is_err());
        let long = serde_json::json!({"instance_id": "x".repeat(60_000)}).to_string();
        assert!(explanation(&long).len() < 400);
    }

    #[test]
    fn a_dead_letter_that_is_put_back_is_a_new_order_under_its_old_id() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let spent = Progress {
            job_id: "j-1".to_owned(),
            attempts: 8,
            touched: true,
            order: Some("o".to_owned()),
            ..Progress::read(&BasicProperties::default(), now)
        };
        let mut headers = FieldTable::default();
        spent.write(&mut headers);
        let dead_at = "2026-11-25T07:00:00Z".parse().unwrap();
        DeadLetter::new(Outcome::Rejected, "prod", dead_at, 8).write(&mut headers);
        let properties = BasicProperties::default().with_headers(headers);
        let later = "2026-11-25T08:00:00Z".parse().unwrap();
        let fresh = Progress::read(&BasicProperties::default(), later);
        let put_back = Some(dead_at);
        assert_eq!(Progress::read(&properties, later), Progress { job_id: "j-1".to_owned(), put_back, ..fresh });
        assert!(!Progress::is_in(&properties));
    }

    #[test]
    fn progress_survives_its_headers() {
        let now: Timestamp = "2026-11-25T07:30:00.5Z".parse().unwrap();
        let progress = Progress {
            job_id: "j-1".to_owned(),
            received_at: now,
            attempts: 3,
            reschedules: 4,
            failing_since: Some(now),
            touched: true,
            denied: true,
            no_capacity: true,
            order: Some("o".to_owned()),
            put_back: Some(now),
            boot: Some(Boot { since: now, ambiguous: true, seen_starting: true, polls: 5 }),
        };
        let mut headers = FieldTable::default();
        progress.write(&mut headers);
        let properties = BasicProperties::default().with_headers(headers.clone());
        assert_eq!(Progress::read(&properties, now), progress);
        let anew = Progress { boot: None, ..progress };
        anew.write(&mut headers);
        assert_eq!(Progress::read(&BasicProperties::default().with_headers(headers), now), anew);
        assert!(Progress::is_in(&properties) && !Progress::is_in(&BasicProperties::default()));
    }

    #[test]
    fn forged_progress_reads_as_absent() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let forgeries = [
            (ATTEMPTS, AMQPValue::LongLongInt(-1)),
            (RESCHEDULES, AMQPValue::LongLongInt(i64::MAX)),
            (RECEIVED_AT, AMQPValue::LongString("2036-01-01T00:00:00Z".into())),
            (FAILING_SINCE, AMQPValue::LongLongInt(3)),
            (TOUCHED, AMQPValue::LongString("true".into())),
            (PHASE, AMQPValue::LongString("confirm".into())),
            (STARTED_AT, AMQPValue::LongString("2036-01-01T00:00:00Z".into())),
            (JOB_ID, AMQPValue::LongString("x".repeat(256).into())),
        ];
        let mut headers = FieldTable::default();
        for (name, value) in forgeries {
            headers.insert(name.into(), value);
        }
        let progress = Progress::read(&BasicProperties::default().with_headers(headers), now);
        assert_eq!(progress.job_id.len(), 36);
        let clean = Progress { job_id: progress.job_id.clone(), ..Progress::read(&BasicProperties::default(), now) };
        assert_eq!(progress, clean);
    }
}
