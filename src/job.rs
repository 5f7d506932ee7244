//! The job message: its body, the event that may be around it, and the progress in its headers.

mod body;
mod cloud_event;
mod park;
mod progress;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::ShortString;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bce::InstanceId;
use crate::bce::answer::shorten;
use crate::events::Wave;

pub use self::cloud_event::{Envelope, Reading, START_REQUESTED, read};
pub use self::park::ParkCause;
pub use self::progress::{Boot, Progress, job_id, once};

/// Largest body of a job, in bytes.
pub const BODY_LIMIT: usize = 64 * 1024;
/// The fields of a job.
pub const FIELDS: [&str; 9] =
    ["instance_id", "batch_id", "wave", "conflict", "confirm", "not_before", "deadline", "priority", "labels"];
/// Longest id of a job, in bytes.
pub const ID_LIMIT: usize = 255;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
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
    /// By their names in settings, options and jobs.
    pub const NAMED: [(&str, Self); 3] = [("fail", Self::Fail), ("accept", Self::Accept), ("verify", Self::Verify)];
}

/// When a job is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confirm {
    /// Once the API has accepted the start.
    Accepted,
    /// Once the instance runs.
    Running,
}

impl Confirm {
    /// By their names in settings, options and jobs.
    pub const NAMED: [(&str, Self); 2] = [("accepted", Self::Accepted), ("running", Self::Running)];
}

/// How soon a job is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// In order of arrival.
    Normal,
    /// Before normal ones.
    Urgent,
}

impl Priority {
    /// By their names in jobs.
    pub const NAMED: [(&str, Self); 2] = [("normal", Self::Normal), ("urgent", Self::Urgent)];
}

macro_rules! read_by_name {
    ($($kind:ident),*) => {$(
        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                body::named(deserializer, &Self::NAMED)
            }
        }
    )*};
}
read_by_name!(Conflict, Confirm, Priority);

/// The body of a job message. Unknown fields are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Job {
    /// The instance to start.
    pub instance_id: InstanceId,
    /// Groups jobs; at most 128 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_id: Option<String>,
    /// The wave of its batch: it waits until all jobs of the waves before have ended. The first where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
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
            wave: None,
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
        let job: Self = serde_json::from_slice(body::json(body)).map_err(|_| explain::<Self>(body))?;
        check(&job)?;
        Ok(job)
    }
}

/// The body of a job with another deadline, and whatever else it says. `None`: it is no JSON object.
pub fn with_deadline(body: &[u8], deadline: Timestamp) -> Option<Vec<u8>> {
    let mut fields: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body::json(body)).ok()?;
    let is_event = !fields.contains_key("instance_id");
    let job = match fields.get_mut("data") {
        Some(serde_json::Value::Object(data)) if is_event => data,
        _ => &mut fields,
    };
    job.insert("deadline".to_owned(), deadline.to_string().into());
    serde_json::to_vec(&fields).ok()
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
fn explain<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Unreadable {
    if body::is_utf16(body) {
        return malformed("the body is in UTF-16: expected JSON in UTF-8".to_owned());
    }
    let mut json = serde_json::Deserializer::from_slice(body::json(body));
    let explanation = match serde_path_to_error::deserialize::<_, T>(&mut json) {
        Ok(_) => json.end().err().map_or_else(|| "not one JSON object".to_owned(), |error| error.to_string()),
        Err(error) if matches!(error.path().iter().next(), None | Some(serde_path_to_error::Segment::Unknown)) => {
            error.inner().to_string()
        }
        Err(error) => format!("{}: {}", error.path(), error.inner()),
    };
    malformed(explanation)
}

fn malformed(explanation: String) -> Unreadable {
    Unreadable::Malformed(shorten(explanation, EXPLANATION_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_body_with_another_deadline_says_whatever_else_it_said() {
        let later = "2026-11-26T07:30:00Z".parse().unwrap();
        let body = "\u{feff}{\"instance_id\":\"i-0000\",\"extra\":[1],\"deadline\":\"2026-11-25T00:00:00Z\"}";
        let body = with_deadline(body.as_bytes(), later).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"instance_id": "i-0000", "extra": [1], "deadline": "2026-11-26T07:30:00Z"})
        );
        assert_eq!(with_deadline(b"[]", later), None);
        let event = with_deadline(br#"{"specversion":"1.0","data":{"instance_id":"i-0000"}}"#, later).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&event).unwrap();
        assert_eq!(json["data"], serde_json::json!({"instance_id": "i-0000", "deadline": "2026-11-26T07:30:00Z"}));
    }

    #[test]
    fn every_field_is_listed() {
        let job = Job::parse(
            br#"{"instance_id":"i-YufwpQAe","batch_id":"b","wave":2,"conflict":"accept","confirm":"running","priority":"urgent",
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
            (
                r#"{"instance_id":"i-0000","conflict":"maybe"}"#,
                "conflict: unknown variant `maybe`, expected fail, accept or verify",
            ),
            (
                r#"{"instance_id":"i-0000","conflict":"verfy"}"#,
                "unknown variant `verfy`, expected fail, accept or verify; did you mean verify?",
            ),
            (r#"{"instance_id":"i-0000","conflict":7}"#, "conflict: invalid type: integer `7`, expected a string"),
            (
                r#"{"instance_id":"i-0000","priority":"urgnt"}"#,
                "priority: unknown variant `urgnt`, expected normal or urgent; did you mean urgent?",
            ),
            (r#"{"instance_id":"i-0000","confirm":"soon"}"#, "confirm: unknown variant `soon`"),
            (r#"{"instance_id":"i-0000","deadline":"tomorrow"}"#, "deadline: "),
            (r#"{"instance_id":"i-0000","labels":{"a":1}}"#, "labels.a: invalid type"),
            (
                r#"{"instance_id":"i-0000","batch_id":"b","wave":0}"#,
                "wave: invalid value: integer `0`, expected a whole",
            ),
            (
                r#"{"instance_id":"i-0000","batch_id":"b","wave":4294967296}"#,
                "expected a whole number from 1 to 4294967295",
            ),
            (
                r#"{"instance_id":"i-0000","batch_id":"b","wave":-1}"#,
                "wave: invalid type: integer `-1`, expected a whole number from 1",
            ),
            (r#"{"instance_id":"i-0000","batch_id":"b","wave":"2"}"#, "wave: invalid type: string \"2\""),
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
}
