//! The reply to a call on the wire: an answer, or none.

use std::borrow::Cow;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use uuid::Uuid;

/// As the API sends it.
pub const JSON: &str = "application/json;charset=utf-8";

/// An error as the API documents it: an HTTP status, a code and a message.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    pub status: u16,
    pub code: Cow<'static, str>,
    pub message: Cow<'static, str>,
    /// Seconds, for the header of that name.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code: code.into(), message: message.into(), retry_after: None }
    }

    /// A path outside the API. A version other than 2 has its own code.
    pub fn invalid_uri(path: &str) -> Self {
        let version = path.split('/').nth(1).and_then(|first| first.strip_prefix('v')).unwrap_or("");
        if version != "2" && !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()) {
            Self::new(404, "InvalidVersion", format!("There is no version {version} of this API"))
        } else {
            Self::new(400, "InvalidURI", "Could not parse the specified URI, or it names nothing bcc-sim simulates")
        }
    }

    fn body(&self, request_id: Uuid) -> Bytes {
        to_json(&json!({ "requestId": request_id.to_string(), "code": self.code, "message": self.message }))
    }
}

/// What the connection does.
#[derive(Debug)]
pub struct Reply {
    pub delay: Duration,
    pub ending: Ending,
}

#[derive(Debug)]
pub enum Ending {
    Send(Answer),
    /// Never answers; the connection stays open until the client leaves.
    Hang,
    /// Ends the connection with a TCP reset.
    Reset,
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self { delay: Duration::ZERO, ending: Ending::Send(answer) }
    }
}

/// An answer, and how its body is sent.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Bytes,
    pub retry_after: Option<u64>,
    pub location: Option<String>,
    /// Further headers, which replace those of the same name.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub manner: Manner,
}

/// How the bytes of a body are sent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Manner {
    #[default]
    Whole,
    /// Half of it, then the connection is closed, although `Content-Length` announced all.
    Cut,
    /// Byte by byte, with this pause after each.
    Trickle(Duration),
    /// Followed by spaces, up to this many bytes in all. JSON stays valid JSON.
    Padded(u64),
}

impl Answer {
    /// A 200; without a value its body is empty.
    pub fn success(value: Option<&Value>) -> Self {
        let body = value.map_or_else(Bytes::new, to_json);
        Self::new(200, JSON, body)
    }

    pub fn json(status: u16, value: &Value) -> Self {
        Self::new(status, JSON, to_json(value))
    }

    pub fn new(status: u16, content_type: &'static str, body: Bytes) -> Self {
        let (retry_after, location, headers) = (None, None, Vec::new());
        Self { status, content_type, body, retry_after, location, headers, manner: Manner::Whole }
    }

    pub fn error(error: &ApiError, request_id: Uuid) -> Self {
        let body = error.body(request_id);
        let retry_after = error.retry_after;
        Self { retry_after, ..Self::new(error.status, JSON, body) }
    }
}

fn to_json(value: &Value) -> Bytes {
    // A Value is always valid JSON: Display cannot fail.
    Bytes::from(value.to_string())
}
