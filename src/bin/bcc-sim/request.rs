//! A received request, decoded: which operation on which instances.

use std::borrow::Cow;

use hyper::body::Bytes;
use hyper::http::request::Parts;
use serde::de::DeserializeOwned;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use crate::reply::ApiError;

/// Most ids in a batch or a list by ids.
pub const MOST_IDS: usize = 100;

/// Longer ids are truncated, so that the call log's memory stays bounded.
pub const LONGEST_ID: usize = 128;

/// The request as received, percent-decoded where it was encoded: the signature is computed from this form.
#[derive(Debug)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl Received {
    pub fn new(parts: &Parts, body: Bytes) -> Result<Self, ApiError> {
        let decode = |text: &str| percent_decode(text).ok_or_else(|| ApiError::invalid_uri(parts.uri.path()));
        let mut query = Vec::new();
        for pair in parts.uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.push((decode(name)?, decode(value)?));
        }
        let headers = parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        Ok(Self { method: parts.method.to_string(), path: decode(parts.uri.path())?, query, headers, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON. Its `Content-Type` does not matter: the Python SDK sends none.
    fn json<T: DeserializeOwned>(&self) -> Result<T, ApiError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            let code = if error.is_data() { "InappropriateJSON" } else { "MalformedJSON" };
            ApiError::new(400, code, format!("The request body is not what the call takes: {error}"))
        })
    }
}

/// `None` if a `%` is not followed by two hex digits or the bytes are not UTF-8. A `+` stays a `+`.
fn percent_decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || char::from(bytes.next()?).to_digit(16);
            let (high, low) = (digit()?, digit()?);
            decoded.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    Start,
    Stop,
    BatchStart,
    BatchStop,
    Describe,
    List,
    ListByIds,
    /// An unknown `/v2` call. It is refused, and logged like the others.
    Other,
}

/// The instances a call names.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    Nothing,
    One(Box<str>),
    Many(Box<[String]>),
}

impl Subject {
    pub fn names(&self, id: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::One(one) => **one == *id,
            Self::Many(many) => many.iter().any(|one| one == id),
        }
    }
}

/// Always with `instance_id`, `null` if the call names no single instance; with `instance_ids` if it names several.
impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Nothing => map.serialize_entry("instance_id", &None::<&str>)?,
            Self::One(id) => map.serialize_entry("instance_id", id)?,
            Self::Many(ids) => {
                map.serialize_entry("instance_id", &None::<&str>)?;
                map.serialize_entry("instance_ids", ids)?;
            }
        }
        map.end()
    }
}

/// What a request asks for. An invalid one still has an operation, for the log.
#[derive(Debug)]
pub struct Ask {
    pub operation: Operation,
    pub subject: Subject,
    /// What is wrong with it, reported only after the signature was found right.
    pub trouble: Option<ApiError>,
}

#[derive(Deserialize)]
struct Ids {
    #[serde(rename = "instanceIds")]
    instance_ids: Vec<String>,
}

impl Ask {
    pub fn read(received: &Received) -> Self {
        let segments: Vec<&str> = received.path.split('/').skip(1).collect();
        match (received.method.as_str(), segments.as_slice()) {
            ("GET", ["v2", "instance"]) => Self::fine(Operation::List, Subject::Nothing),
            ("PUT", ["v2", "instance", "batchAction"]) => match action(received) {
                Ok(Operation::Start) => Self::many(Operation::BatchStart, received),
                Ok(_) => Self::many(Operation::BatchStop, received),
                Err(trouble) => Self::refused(Subject::Nothing, trouble),
            },
            ("POST", ["v2", "instance", "listByInstanceId"]) => Self::many(Operation::ListByIds, received),
            ("GET", ["v2", "instance", id]) => Self::fine(Operation::Describe, one(id)),
            ("PUT", ["v2", "instance", id]) => match action(received) {
                Ok(operation) => Self::fine(operation, one(id)),
                Err(trouble) => Self::refused(one(id), trouble),
            },
            (method, ["v2", "instance"] | ["v2", "instance", _]) => Self::refused(
                Subject::Nothing,
                ApiError::new(400, "InvalidHTTPRequest", format!("{method} is not a method of {}", received.path)),
            ),
            _ => Self::refused(Subject::Nothing, ApiError::invalid_uri(&received.path)),
        }
    }

    fn fine(operation: Operation, subject: Subject) -> Self {
        Self { operation, subject, trouble: None }
    }

    fn refused(subject: Subject, trouble: ApiError) -> Self {
        Self { operation: Operation::Other, subject, trouble: Some(trouble) }
    }

    fn many(operation: Operation, received: &Received) -> Self {
        match received.json::<Ids>() {
            Ok(Ids { instance_ids: ids }) if ids.is_empty() || ids.len() > MOST_IDS => Self {
                operation,
                subject: Subject::Nothing,
                trouble: Some(ApiError::new(
                    400,
                    "InappropriateJSON",
                    format!("instanceIds must name 1 to {MOST_IDS} instances; it names {}", ids.len()),
                )),
            },
            Ok(Ids { instance_ids: ids }) => {
                Self::fine(operation, Subject::Many(ids.into_iter().map(|id| shortened(&id)).collect()))
            }
            Err(trouble) => Self { operation, subject: Subject::Nothing, trouble: Some(trouble) },
        }
    }
}

fn one(id: &str) -> Subject {
    Subject::One(shortened(id).into())
}

/// An id for lookup and log. A truncated one matches no instance: it ends in a character that no id has.
fn shortened(id: &str) -> String {
    match id.char_indices().nth(LONGEST_ID) {
        Some((end, _)) => format!("{}…", &id[..end]),
        None => id.to_owned(),
    }
}

/// The parameter without a value that names the action. Others (`clientToken`, …) may be beside it.
fn action(received: &Received) -> Result<Operation, ApiError> {
    match (received.parameter("start"), received.parameter("stop")) {
        (Some(_), None) => Ok(Operation::Start),
        (None, Some(_)) => Ok(Operation::Stop),
        _ => {
            let why =
                Cow::Borrowed("The query must say exactly one of ?start and ?stop; bcc-sim knows no other action");
            Err(ApiError::new(400, "InvalidHTTPRequest", why))
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A request in the form that the verifier and the router get.
    pub fn received(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Received {
        let mut builder = hyper::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        Received::new(&parts, Bytes::copy_from_slice(body.as_bytes())).unwrap()
    }

    fn ask(method: &str, target: &str, body: &str) -> Ask {
        Ask::read(&received(method, target, &[], body))
    }

    #[test]
    fn every_operation_is_recognised_in_the_spellings_of_the_sdks() {
        let ids = r#"{"instanceIds": ["i-a", "i-b"]}"#;
        for (method, target, body, operation) in [
            ("PUT", "/v2/instance/i-a?start", "", Operation::Start),
            ("PUT", "/v2/instance/i-a?start=", "", Operation::Start),
            ("PUT", "/v2/instance/i-a?clientToken=x&stop=", "{}", Operation::Stop),
            ("PUT", "/v2/instance/batchAction?clientToken=x&start=", ids, Operation::BatchStart),
            ("PUT", "/v2/instance/batchAction?stop", ids, Operation::BatchStop),
            ("GET", "/v2/instance/i-a?containsFailed=True", "", Operation::Describe),
            ("GET", "/v2/instance?maxKeys=100", "", Operation::List),
            ("POST", "/v2/instance/listByInstanceId?maxKeys=1", ids, Operation::ListByIds),
        ] {
            let ask = ask(method, target, body);
            assert_eq!(ask.operation, operation, "{method} {target}");
            assert!(ask.trouble.is_none(), "{method} {target}: {:?}", ask.trouble);
        }
    }

    #[test]
    fn what_is_no_call_is_refused_with_the_documented_code() {
        let many = format!(r#"{{"instanceIds": {:?}}}"#, vec!["i-a"; 101]);
        for (method, target, body, code) in [
            ("PUT", "/v2/instance/i-a", "", "InvalidHTTPRequest"),
            ("PUT", "/v2/instance/i-a?start&stop", "", "InvalidHTTPRequest"),
            ("DELETE", "/v2/instance/i-a", "", "InvalidHTTPRequest"),
            ("GET", "/v2/volume", "", "InvalidURI"),
            ("GET", "/v3/instance", "", "InvalidVersion"),
            ("PUT", "/v2/instance/batchAction?start", "{", "MalformedJSON"),
            ("PUT", "/v2/instance/batchAction?start", "{}", "InappropriateJSON"),
            ("PUT", "/v2/instance/batchAction?start", r#"{"instanceIds": []}"#, "InappropriateJSON"),
            ("PUT", "/v2/instance/batchAction?start", &many, "InappropriateJSON"),
        ] {
            assert_eq!(ask(method, target, body).trouble.unwrap().code, code, "{method} {target}");
        }
    }

    #[test]
    fn an_overlong_id_is_cut_and_a_short_one_is_not() {
        let long = "é".repeat(LONGEST_ID + 1);
        assert_eq!(shortened(&long), format!("{}…", "é".repeat(LONGEST_ID)));
        assert_eq!(shortened(&long[2..]), "é".repeat(LONGEST_ID));
    }

    #[test]
    fn percent_encoding_is_undone_once_and_bad_encoding_is_noticed() {
        assert_eq!(percent_decode("i%2dA%25+b").as_deref(), Some("i-A%+b"));
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(percent_decode(bad), None, "{bad}");
        }
    }
}
