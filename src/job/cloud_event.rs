//! Jobs that come as events of CloudEvents 1.0, in both content modes of its
//! [AMQP binding](https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/amqp-protocol-binding.md):
//! *structured*, the whole event as JSON in the body, and *binary*, the bare job in the body and the event's attributes in
//! headers.
//!
//! The content type decides, then the headers. A body with a `specversion` and without an `instance_id` is an event
//! whatever its content type: some producers, Dapr among them, send events as `text/plain`.

use std::borrow::Cow;

use lapin::BasicProperties;
use lapin::types::ShortString;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::{BODY_LIMIT, ID_LIMIT, Job, Unreadable, body, explain, malformed};
use crate::events::{CONTENT_TYPE, Wave, is_traceparent};
use crate::headers::Headers;

/// The type of an event that is a job.
pub const START_REQUESTED: &str = "io.reveille.start.requested.v1";
/// The version of CloudEvents that is read.
const VERSION: &str = "1.0";
/// The start of the media types of all event formats.
const FORMATS: &str = "application/cloudevents";
/// Before the names of attributes in headers: the two prefixes of the binding, and that of
/// [Knative's binding for RabbitMQ](https://github.com/knative-extensions/eventing-rabbitmq/blob/main/cloudevents-protocol-spec/spec.md).
/// A message has all its attributes under one prefix.
const PREFIXES: [&str; 3] = ["cloudEvents:", "cloudEvents_", "ce-"];

/// A message as it was read.
#[derive(Debug)]
pub struct Reading {
    /// The job, or why there is none.
    pub job: Result<Job, Unreadable>,
    /// What the event around the job says.
    pub envelope: Envelope,
}

/// What an event says around its job. Empty for a bare job.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The job's id, from the event's source and id; at most 255 bytes.
    pub job_id: Option<String>,
    /// The trace that the event belongs to, checked.
    pub traceparent: Option<String>,
}

/// Reads a message: a bare job, or an event with a job.
pub fn read(properties: &BasicProperties, body: &[u8]) -> Reading {
    let Reading { job, envelope } = read_any(properties, body);
    Reading { job: job.and_then(in_a_batch), envelope }
}

/// A job that waits for others has to say for which.
fn in_a_batch(job: Job) -> Result<Job, Unreadable> {
    match job.wave {
        Some(wave) if wave > Wave::FIRST && job.batch_id.is_none() => Err(malformed(format!(
            "wave {wave} is that of a batch, and the job names none: expected a batch_id, or no wave"
        ))),
        _ => Ok(job),
    }
}

fn read_any(properties: &BasicProperties, body: &[u8]) -> Reading {
    match format(properties) {
        Some(format) if format == CONTENT_TYPE => return structured(body),
        Some(format) => {
            let problem = format!("content_type is {format:?}: of the event formats only {CONTENT_TYPE} is read");
            return Reading { job: Err(malformed(problem)), envelope: Envelope::in_headers(properties) };
        }
        None => {}
    }
    if let Some(attributes) = Attributes::in_headers(properties) {
        let job = attributes.check().and_then(|()| Job::parse(body));
        return Reading { job, envelope: attributes.envelope() };
    }
    match Job::parse(body) {
        Err(_) if is_event(body) => structured(body),
        job => Reading { job, envelope: Envelope::default() },
    }
}

impl Envelope {
    /// What the headers of an event in binary mode say, without a look at the body.
    pub fn in_headers(properties: &BasicProperties) -> Self {
        Attributes::in_headers(properties).map(|attributes| attributes.envelope()).unwrap_or_default()
    }
}

/// The event format that the content type names, in lower case and without parameters.
fn format(properties: &BasicProperties) -> Option<String> {
    let content_type = properties.content_type().as_ref().map(ShortString::as_str)?;
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media_type.starts_with(FORMATS).then_some(media_type)
}

/// Whether a body that is no job is an event.
fn is_event(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Sign {
        #[serde(rename = "specversion")]
        _specversion: IgnoredAny,
        instance_id: Option<IgnoredAny>,
    }
    !is_array(body) && serde_json::from_slice(body::json(body)).is_ok_and(|sign: Sign| sign.instance_id.is_none())
}

/// serde takes an array for a struct, too.
fn is_array(body: &[u8]) -> bool {
    body::json(body).trim_ascii_start().starts_with(b"[")
}

/// An event as it stands in JSON.
#[derive(Deserialize)]
struct Event<'a> {
    specversion: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    source: Option<String>,
    id: Option<String>,
    /// Of any type: an odd one is as good as none.
    traceparent: Option<Value>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    data_base64: Option<IgnoredAny>,
}

fn structured(body: &[u8]) -> Reading {
    let none = |unreadable| Reading { job: Err(unreadable), envelope: Envelope::default() };
    if body.len() > BODY_LIMIT {
        return none(Unreadable::TooLarge(body.len()));
    }
    if is_array(body) {
        return none(malformed("expected an event as a JSON object".to_owned()));
    }
    match serde_json::from_slice::<Event<'_>>(body::json(body)) {
        Ok(event) => event.read(),
        Err(_) => none(explain::<Event<'_>>(body)),
    }
}

impl Event<'_> {
    fn read(self) -> Reading {
        let Self { specversion, kind, source, id, traceparent, data, data_base64 } = self;
        let traceparent = traceparent.as_ref().and_then(Value::as_str).map(str::to_owned);
        let attributes = Attributes {
            prefix: "",
            specversion: specversion.map(Cow::from),
            kind: kind.map(Cow::from),
            source: source.map(Cow::from),
            id: id.map(Cow::from),
            traceparent: traceparent.map(Cow::from),
        };
        let job = attributes.check().and_then(|()| match data {
            _ if data_base64.is_some() => {
                Err(malformed("the event has data_base64: expected the job in data, as a JSON object".to_owned()))
            }
            Some(data) => {
                let job = Job::parse(data.get().as_bytes());
                job.map_err(|unreadable| malformed(format!("data: {unreadable}")))
            }
            None => Err(malformed("the event has no data: expected the job in it, as a JSON object".to_owned())),
        });
        Reading { job, envelope: attributes.envelope() }
    }
}

/// The attributes of an event that are of use here, as found.
struct Attributes<'a> {
    /// Before their names.
    prefix: &'static str,
    specversion: Option<Cow<'a, str>>,
    kind: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    traceparent: Option<Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    /// `None`: the message is no event in binary mode, which would have a header for its `specversion`.
    fn in_headers(properties: &'a BasicProperties) -> Option<Self> {
        let headers = Headers(properties.headers().as_ref());
        let prefix = *PREFIXES.iter().find(|prefix| headers.has(&format!("{prefix}specversion")))?;
        let text = |name| headers.text(&format!("{prefix}{name}")).map(Cow::from);
        Some(Self {
            prefix,
            specversion: text("specversion"),
            kind: text("type"),
            source: text("source"),
            id: text("id"),
            traceparent: text("traceparent"),
        })
    }

    fn check(&self) -> Result<(), Unreadable> {
        let prefix = self.prefix;
        for (name, value, expected) in [
            ("specversion", &self.specversion, Some(VERSION)),
            ("type", &self.kind, Some(START_REQUESTED)),
            ("source", &self.source, None),
            ("id", &self.id, None),
        ] {
            match (value.as_deref(), expected) {
                (None | Some(""), _) => {
                    return Err(malformed(format!(
                        "the event has no {prefix}{name}, a text that CloudEvents requires"
                    )));
                }
                (Some(value), Some(expected)) if value != expected => {
                    return Err(malformed(format!("the event's {prefix}{name} is {value:?}: expected {expected:?}")));
                }
                _ => {}
            }
        }
        match self.source.as_deref() {
            Some(source) if !is_reference(source) => {
                Err(malformed(format!("the event's {prefix}source is {source:?}: expected a URI reference")))
            }
            _ => Ok(()),
        }
    }

    fn envelope(&self) -> Envelope {
        let source = self.source.as_deref().filter(|source| !source.is_empty() && is_reference(source));
        let id = self.id.as_deref().filter(|id| !id.is_empty());
        let traceparent = self.traceparent.as_deref().filter(|text| is_traceparent(text));
        Envelope {
            job_id: source.zip(id).map(|(source, id)| job_id(source, id)),
            traceparent: traceparent.map(str::to_owned),
        }
    }
}

/// Whether a source can be a URI reference, as far as matters: without white space, it ends where the job's id has a space.
fn is_reference(source: &str) -> bool {
    !source.chars().any(|character| character.is_whitespace() || character.is_control())
}

/// The id of an event is unique within its source only, so the job's id has both: two events never have one id. What is
/// too long for the id of a job is hashed into a UUIDv8.
fn job_id(source: &str, id: &str) -> String {
    let whole = format!("{source} {id}");
    if whole.len() <= ID_LIMIT {
        return whole;
    }
    let half = *Sha256::digest(whole).first_chunk().expect("a SHA-256 has 32 bytes");
    Builder::from_custom_bytes(half).into_uuid().to_string()
}

#[cfg(test)]
mod tests {
    use lapin::types::{AMQPValue, FieldTable};
    use serde_json::json;

    use super::*;

    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const JOB: &str = r#"{"instance_id":"i-0000","labels":{"team":"ops"}}"#;

    fn typed(content_type: &str) -> BasicProperties {
        BasicProperties::default().with_content_type(content_type.into())
    }

    fn headers(entries: impl IntoIterator<Item = (String, AMQPValue)>) -> BasicProperties {
        let mut headers = FieldTable::default();
        for (name, value) in entries {
            headers.insert(name.as_str().into(), value);
        }
        typed("application/json").with_headers(headers)
    }

    /// The attributes of a whole event under this prefix.
    fn attributes(prefix: &str) -> Vec<(String, AMQPValue)> {
        [("specversion", "1.0"), ("type", START_REQUESTED), ("source", "/alarms"), ("id", "42"), ("traceparent", TRACE)]
            .map(|(name, value)| (format!("{prefix}{name}"), AMQPValue::LongString(value.into())))
            .into()
    }

    fn event() -> Value {
        let job: Value = serde_json::from_str(JOB).unwrap();
        json!({"specversion": "1.0", "type": START_REQUESTED, "source": "/alarms", "id": "42", "traceparent": TRACE,
            "time": "2026-11-25T07:30:00Z", "datacontenttype": "application/json", "subject": "web-1", "other": [1],
            "data": job})
    }

    fn with(name: &str, value: Value) -> Vec<u8> {
        let mut event = event();
        event[name] = value;
        event.to_string().into_bytes()
    }

    fn problem(properties: &BasicProperties, body: &[u8]) -> String {
        read(properties, body).job.unwrap_err().to_string()
    }

    #[test]
    fn an_event_of_either_mode_is_the_job_in_it() {
        let (job, whole) = (Job::parse(JOB.as_bytes()).unwrap(), event().to_string());
        let envelope = || Envelope { job_id: Some("/alarms 42".to_owned()), traceparent: Some(TRACE.to_owned()) };
        let structured = |properties: &BasicProperties, body: &str| {
            let reading = read(properties, body.as_bytes());
            assert_eq!((reading.job, reading.envelope), (Ok(job.clone()), envelope()), "{properties:?}");
        };
        for content_type in [
            "application/cloudevents+json",
            "application/cloudevents+json; charset=UTF-8",
            " Application/CloudEvents+JSON ;charset=utf-8",
            "text/plain",
            "application/json",
            "",
        ] {
            structured(&typed(content_type), &whole);
        }
        structured(&BasicProperties::default(), &format!("\u{feff}\n{whole}"));
        // The binding allows the headers of binary mode beside an event in the body.
        structured(&headers(attributes("ce-")).with_content_type(CONTENT_TYPE.into()), &whole);
        for prefix in PREFIXES {
            structured(&headers(attributes(prefix)), JOB);
        }
    }

    #[test]
    fn a_bare_job_stays_one_whatever_stands_beside_it() {
        let other = format!(r#"{{"specversion":"7","type":"other",{}"#, &JOB[1..]);
        let stray = headers([("ce-id".to_owned(), AMQPValue::LongInt(7)), ("id".to_owned(), AMQPValue::Void)]);
        for (properties, body) in
            [(BasicProperties::default(), JOB), (typed("text/plain"), JOB), (stray, JOB), (typed("x"), other.as_str())]
        {
            let reading = read(&properties, body.as_bytes());
            assert_eq!((reading.job, reading.envelope), (Job::parse(JOB.as_bytes()), Envelope::default()));
        }
        let wrong = problem(&BasicProperties::default(), br#"{"specversion":"1.0","instance_id":7}"#);
        assert!(wrong.starts_with("instance_id: invalid type"), "{wrong}");
    }

    #[test]
    fn a_job_of_a_later_wave_says_of_which_batch() {
        let bare = |more: &str| format!(r#"{{"instance_id":"i-0000",{more}}}"#);
        let wrong = problem(&BasicProperties::default(), bare(r#""wave":2"#).as_bytes());
        assert_eq!(wrong, "wave 2 is that of a batch, and the job names none: expected a batch_id, or no wave");
        for right in [r#""wave":1"#, r#""wave":2,"batch_id":"b""#] {
            assert!(read(&BasicProperties::default(), bare(right).as_bytes()).job.is_ok(), "{right}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_event_is_named_with_what_would_be_right() {
        let properties = typed(CONTENT_TYPE);
        let long = "x".repeat(60_000);
        for (name, value, expected) in [
            ("specversion", json!("0.3"), r#"the event's specversion is "0.3": expected "1.0""#),
            ("specversion", json!(1.0), "specversion: invalid type: floating point `1.0`, expected a string"),
            ("type", json!("io.reveille.instance.failed.v1"), r#"expected "io.reveille.start.requested.v1""#),
            ("type", json!(long), "the event's type is \"xxx"),
            ("type", json!("\u{1b}[2J"), r#"the event's type is "\u{1b}[2J": expected"#),
            ("type", Value::Null, "the event has no type, a text that CloudEvents requires"),
            ("id", json!(""), "the event has no id"),
            ("id", json!(7), "id: invalid type: integer `7`"),
            ("source", Value::Null, "the event has no source"),
            ("source", json!("a b"), r#"the event's source is "a b": expected a URI reference"#),
            ("data", Value::Null, "the event has no data: expected the job in it"),
            ("data", json!({}), "data: missing field `instance_id`"),
            ("data", json!([]), "data: "),
            ("data", json!(JOB), "data: invalid type: string"),
            ("data", json!({"instance_id": "i-../x"}), "data: instance_id: \"i-../x\" is no instance id"),
            ("data", json!({"instance_id": "i-0000", "batch_id": "b".repeat(129)}), "data: batch_id has 129 bytes"),
            ("data_base64", json!("e30="), "the event has data_base64: expected the job in data"),
        ] {
            let wrong = problem(&properties, &with(name, value));
            assert!(wrong.contains(expected) && wrong.len() < 400, "{name}: {wrong}");
            assert!(wrong.chars().all(|character| !character.is_control()), "{wrong:?}");
        }
        let [open, twice] = ["[".repeat(60_000), event().to_string().replacen(r#""data":"#, r#""data":{},"data":"#, 1)];
        for (body, expected) in [
            ("", "EOF"),
            ("[]", "expected an event as a JSON object"),
            (r#"["1.0","t","s","i",null,null,null]"#, "expected an event as a JSON object"),
            (JOB, "the event has no specversion"),
            ("\"hello\"", "invalid type"),
            (&open, ""),
            (&twice, "duplicate field `data`"),
            (&format!("{} more", event()), "trailing characters"),
            (r#"{"specversion":"1.0","data":{"labels":}}"#, "expected value"),
        ] {
            let wrong = problem(&properties, body.as_bytes());
            assert!(wrong.contains(expected) && wrong.len() < 400, "{body:.80}: {wrong}");
        }
        let deep =
            format!(r#"{{"specversion":"1.0","traceparent":{}{},"data":{JOB}}}"#, "[".repeat(900), "]".repeat(900));
        assert!(problem(&properties, deep.as_bytes()).len() < 400);
        assert!(problem(&properties, &[b' '; BODY_LIMIT + 1]).contains("at most 65536"));
        let utf16: Vec<u8> = event().to_string().encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(problem(&properties, &utf16), "the body is in UTF-16: expected JSON in UTF-8");
        for format in ["application/cloudevents+avro", "application/cloudevents-batch+json", "application/cloudevents"]
        {
            let wrong = problem(&typed(&format!("{format}; charset=utf-8")), event().to_string().as_bytes());
            let expected = format!("content_type is {format:?}: of the event formats only {CONTENT_TYPE} is read");
            assert_eq!(wrong, expected);
        }
    }

    #[test]
    fn what_is_wrong_with_headers_is_named_with_the_header() {
        for prefix in PREFIXES {
            let text = |value: &str| AMQPValue::LongString(value.into());
            for (name, value, expected) in [
                ("specversion", text("2.0"), format!(r#"{prefix}specversion is "2.0": expected "1.0""#)),
                ("specversion", AMQPValue::Double(1.0), format!("has no {prefix}specversion, a text")),
                ("type", text("other"), format!(r#"{prefix}type is "other": expected "{START_REQUESTED}""#)),
                ("source", text("a\u{9b}"), format!(r#"{prefix}source is "a\u{{9b}}": expected a URI reference"#)),
                ("id", AMQPValue::LongInt(7), format!("has no {prefix}id, a text")),
                ("id", AMQPValue::LongString(vec![0xff].into()), format!("has no {prefix}id, a text")),
            ] {
                let mut entries = attributes(prefix);
                entries.retain(|(there, _)| *there != format!("{prefix}{name}"));
                entries.push((format!("{prefix}{name}"), value));
                let wrong = problem(&headers(entries), JOB.as_bytes());
                assert!(wrong.contains(&expected), "{wrong}");
            }
        }
        let wrong = problem(&headers(attributes("ce-")), b"{}");
        assert!(wrong.starts_with("missing field `instance_id`"), "{wrong}");
    }

    #[test]
    fn events_of_different_ids_or_sources_are_jobs_of_different_ids() {
        let job_id = |source: &str, id: &str| {
            let mut event = event();
            (event["source"], event["id"]) = (json!(source), json!(id));
            let envelope = read(&typed(CONTENT_TYPE), event.to_string().as_bytes()).envelope;
            envelope.job_id.filter(|job_id| job_id.len() <= ID_LIMIT)
        };
        let long = "x".repeat(ID_LIMIT);
        let ids =
            [("/a", "b c"), ("/b", "1"), ("/a", "1"), ("/a", &long), ("/b", &long), (&long, "1"), ("/a 1", &long[1..])]
                .map(|(source, id)| job_id(source, id));
        assert_eq!(ids[0].as_deref(), Some("/a b c"));
        assert_eq!(ids[3], job_id("/a", &long), "always the same");
        let distinct: std::collections::BTreeSet<_> = ids[..6].iter().flatten().collect();
        assert_eq!((distinct.len(), &ids[6]), (6, &None), "{ids:?}");
        // A rejected event is named too, where its id can be read.
        let other = read(&typed(CONTENT_TYPE), &with("type", json!("other")));
        assert_eq!((other.job.is_err(), other.envelope.job_id.as_deref()), (true, Some("/alarms 42")));
    }

    #[test]
    fn a_trace_that_is_none_is_left_out() {
        for odd in [json!(7), json!(""), json!(format!("{TRACE} ")), Value::Null, json!({"a": 1})] {
            let reading = read(&typed(CONTENT_TYPE), &with("traceparent", odd));
            assert_eq!((reading.job.is_ok(), reading.envelope.traceparent), (true, None));
        }
    }
}
