//! One fault, for one call.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;
use uuid::Uuid;

use crate::reply::{Answer, ApiError, Ending, JSON, Manner, Reply};

/// What goes wrong with one call. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fault {
    /// Delay before the answer is sent. The call has been carried out by then, as by a slow server.
    pub delay: Duration,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// The API's own answer, its body sent in this manner.
    Genuine(Manner),
    /// Another answer instead.
    Forged(Box<Forged>),
    Hang(When),
    Reset(When),
}

impl Default for Kind {
    fn default() -> Self {
        Self::Genuine(Manner::Whole)
    }
}

/// Whether a fault happens before the call takes effect, or after: then the caller cannot know about the effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    #[default]
    Before,
    After,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Forged {
    pub status: u16,
    /// If not set, the API's most likely code for this status.
    pub code: Option<String>,
    pub message: Option<String>,
    /// The body instead of the JSON, word for word.
    pub body: Option<String>,
    /// An HTML page like a proxy's, instead of the JSON.
    pub html: bool,
    /// Answered by a gateway before the API: without a request id, and with no body but the given one.
    pub gateway: bool,
    pub retry_after: Option<u64>,
    pub location: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub when: When,
    pub manner: Manner,
}

impl Fault {
    /// Whether the call is carried out although its answer is faulty.
    pub fn lets_through(&self) -> bool {
        match &self.kind {
            Kind::Genuine(_) => true,
            Kind::Forged(forged) => forged.when == When::After,
            Kind::Hang(when) | Kind::Reset(when) => *when == When::After,
        }
    }

    /// Whether the caller gets the API's answer.
    pub fn sends_genuine(&self) -> bool {
        matches!(self.kind, Kind::Genuine(_))
    }

    /// The connection's reply, given the API's own answer (`None` if the call was not carried out).
    pub fn reply(&self, genuine: Option<Answer>, request_id: Uuid) -> Reply {
        let ending = match (&self.kind, genuine) {
            (Kind::Hang(_), _) => Ending::Hang,
            (Kind::Reset(_), _) => Ending::Reset,
            (Kind::Forged(forged), _) => Ending::Send(forged.answer(request_id)),
            (Kind::Genuine(manner), Some(answer)) => Ending::Send(Answer { manner: *manner, ..answer }),
            // Unreachable: a genuine answer always lets the call through.
            (Kind::Genuine(_), None) => Ending::Reset,
        };
        Reply { delay: self.delay, ending }
    }

    /// The error code that is sent, if the fault and not the API sets one.
    pub fn code(&self) -> Option<String> {
        match &self.kind {
            Kind::Forged(forged) => forged.says().map(|error| error.code.into_owned()),
            Kind::Genuine(_) | Kind::Hang(_) | Kind::Reset(_) => None,
        }
    }
}

impl Forged {
    fn answer(&self, request_id: Uuid) -> Answer {
        let mut answer = if let Some(error) = self.says() {
            Answer::error(&error, request_id)
        } else if self.html {
            Answer::new(self.status, "text/html", self.body.clone().map_or_else(|| self.page(), Bytes::from))
        } else if self.gateway {
            Answer::new(self.status, "text/plain", self.body.clone().map_or_else(Bytes::new, Bytes::from))
        } else {
            let json = || Bytes::from(json!({ "requestId": request_id.to_string() }).to_string());
            let body = self.body.clone().map_or_else(json, Bytes::from);
            Answer::new(self.status, JSON, body)
        };
        answer.retry_after = self.retry_after;
        answer.location.clone_from(&self.location);
        answer.headers = self.headers.iter().filter_map(|(name, value)| header(name, value)).collect();
        answer.manner = self.manner;
        answer
    }

    /// The API's error of this kind; none if the answer is a page, a text or a success.
    fn says(&self) -> Option<ApiError> {
        if self.html || self.gateway || self.body.is_some() || self.status < 300 {
            return None;
        }
        let code = self.code.clone().unwrap_or_else(|| usual_code(self.status).into());
        let message = self.message.clone().unwrap_or_else(|| "An error on order of the simulator's user".into());
        Some(ApiError::new(self.status, code, message))
    }

    fn page(&self) -> Bytes {
        let reason = hyper::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        let title = format!("{} {}", self.status, reason.unwrap_or("Unknown"));
        Bytes::from(format!(
            "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
             <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
        ))
    }
}

/// A header to be sent; `None` if it is invalid.
pub fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
}

fn usual_code(status: u16) -> &'static str {
    match status {
        300..=399 => "Redirected",
        401 => "AuthError",
        403 => "AccessDenied",
        404 => "NoSuchObject",
        409 => "Instance.StartInstanceOperationForbidden",
        412 => "PreconditionFailed",
        429 => "RequestLimitExceeded",
        400..=499 => "InvalidHTTPRequest",
        502 => "BadGateway",
        503 => "ServiceUnavailable",
        504 => "GatewayTimeout",
        _ => "InternalError",
    }
}
