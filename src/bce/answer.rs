//! What came back from a call, or why nothing did.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::keep_alive;

/// Longest error message kept, in characters; the API's own are far shorter, a proxy's page is not.
const MESSAGE_LIMIT: usize = 1024;
/// Longest error code or request id kept, in characters.
const CODE_LIMIT: usize = 128;

/// An HTTP answer, read as far as a verdict needs it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `code` of the error body; `None` where the body is missing, cut off, or a proxy's HTML.
    pub code: Option<String>,
    /// `message` of the error body.
    pub message: Option<String>,
    /// Header `x-bce-request-id`, else `requestId` of the body: what Baidu's support asks for.
    pub request_id: Option<String>,
    /// Header `Retry-After`, in either of its forms.
    pub retry_after: Option<Duration>,
    /// Header `Date`: the server's clock.
    pub date: Option<Timestamp>,
    /// Said by a proxy, a load balancer or a captive portal on the way: the body is no JSON, and there is no
    /// `x-bce-request-id`, which every answer of the API carries. It tells nothing about the instance.
    pub foreign: bool,
}

/// A call that got no answer. The instance may have been started all the same, except where said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No connection came about, so nothing was asked of the API.
    #[error("no connection to the API: {0}")]
    Unreachable(String),
    /// The server's certificate was refused: a matter of the endpoint or of an interceptor, not of one job.
    #[error("the API's certificate was refused: {0}")]
    Tls(String),
    /// The proxy before the API is at fault, or whatever answers like one. Says which, and what to do.
    #[error("{0}")]
    Proxy(String),
    /// The time-out passed.
    #[error("the API did not answer in time")]
    TimedOut,
    /// The connection broke after the request went out.
    #[error("the connection to the API broke: {0}")]
    Broken(String),
    /// The server closed a connection it had kept open, as the call went out over it. That is no fault of the API's nor of
    /// the call, which is to be made once more, over a [`fresh`](super::Client::fresh) connection.
    #[error("the API closed a connection as a call went out over it: {why}")]
    Stale {
        /// What ended the call.
        why: String,
        /// Not where it could not be written to its end.
        may_have_been_carried_out: bool,
    },
    /// The keys have expired, so nothing was sent. Says which, since when, and what to do.
    #[error("{0}")]
    NoKeys(String),
}

impl NoAnswer {
    /// The name in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::Proxy(_) => "proxy",
            Self::TimedOut => "timeout",
            Self::Broken(_) => "broken",
            Self::Stale { .. } => "stale",
            Self::NoKeys(_) => "no_keys",
        }
    }
}

impl NoAnswer {
    /// `was_reused`: the connection had been used before.
    pub(super) fn of(error: reqwest::Error, was_reused: bool, endpoint: &Endpoint) -> Self {
        // The URL would only repeat what the job says already.
        let error = error.without_url();
        let chain = causes(&error);
        if error.is_connect() {
            let (is_tls, why) = (chain.iter().any(|cause| is_tls(*cause)), deepest(&chain));
            return match endpoint.proxy() {
                Some(proxy) if let Some(fault) = proxy.fault(&chain, is_tls, endpoint, &why) => Self::Proxy(fault),
                _ if is_tls => Self::Tls(why),
                Some(proxy) => Self::Unreachable(format!("through the proxy of {}: {why}", proxy.variable())),
                None => Self::Unreachable(why),
            };
        }
        if error.is_timeout() {
            return Self::TimedOut;
        }
        match keep_alive::closed(&chain).filter(|_| was_reused) {
            Some(may_have_been_carried_out) => Self::Stale { why: deepest(&chain), may_have_been_carried_out },
            None => Self::Broken(deepest(&chain)),
        }
    }
}

fn causes(error: &reqwest::Error) -> Vec<&(dyn Error + 'static)> {
    let outermost: &(dyn Error + 'static) = error;
    std::iter::successors(Some(outermost), |error| (*error).source()).collect()
}

/// The innermost cause is the one that says what happened; those around it say "error sending request".
fn deepest(chain: &[&(dyn Error + 'static)]) -> String {
    chain.last().map(ToString::to_string).unwrap_or_default()
}

/// An `io::Error` shows the cause of what is in it, not what is in it: and here one is in another.
fn is_tls(error: &(dyn Error + 'static)) -> bool {
    error.is::<rustls::Error>()
        || error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).is_some_and(|inner| is_tls(inner))
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP {}", self.status)?;
        for part in [&self.code, &self.message].into_iter().flatten() {
            write!(f, ", {part}")?;
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(rename = "requestId")]
    request_id: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

impl Answer {
    /// Whether the status is a 2xx. A [`foreign`](Answer::foreign) answer can have one too.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reads status, headers and body. A body that is no error object leaves the fields it would have given empty.
    pub fn read(status: u16, header: impl Fn(&str) -> Option<String>, body: &[u8]) -> Self {
        let error = if (200..300).contains(&status) { None } else { serde_json::from_slice::<ErrorBody>(body).ok() };
        let (id_of_body, code, message) = match error {
            Some(error) => (error.request_id, error.code, error.message),
            None => (None, None, None),
        };
        let date = header("date").as_deref().and_then(http_date);
        Self {
            status,
            code: code.filter(|code| !code.is_empty()).map(|code| shorten(code, CODE_LIMIT)),
            message: message.map(|message| shorten(message, MESSAGE_LIMIT)),
            request_id: header("x-bce-request-id").or(id_of_body).map(|id| shorten(id, CODE_LIMIT)),
            retry_after: header("retry-after").and_then(|value| retry_after(&value, date)),
            date,
            foreign: header("x-bce-request-id").is_none()
                && body.trim_ascii_start().first().is_some_and(|first| *first != b'{'),
        }
    }
}

/// Seconds, or a date: the latter is counted from the server's own clock where it told it.
fn retry_after(value: &str, server_time: Option<Timestamp>) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let seconds = http_date(value)?.as_second() - server_time?.as_second();
    Some(Duration::from_secs(seconds.max(0).unsigned_abs()))
}

/// `Tue, 24 Nov 2026 16:42:43 GMT` (RFC 9110 §5.6.7).
fn http_date(value: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(value.trim()).ok().map(|date| date.timestamp())
}

/// The first `limit` characters.
pub(crate) fn shorten(mut text: String, limit: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(limit) {
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Answer::read(status, header, body.as_bytes())
    }

    #[test]
    fn an_error_body_is_read_whatever_is_missing_in_it() {
        let body = r#"{"requestId":"r-1","code":"Instance.StartExpiredInstance","message":"pay","more":1}"#;
        let answer = read(409, &[], body);
        assert_eq!(answer.code.as_deref(), Some("Instance.StartExpiredInstance"));
        assert_eq!((answer.message.as_deref(), answer.request_id.as_deref()), (Some("pay"), Some("r-1")));
        for body in ["", &body[..40], r#"{"code":7}"#, r#"{"code":""}"#] {
            assert_eq!(read(409, &[], body), Answer { status: 409, ..Answer::default() }, "{body}");
        }
        assert_eq!(read(502, &[("x-bce-request-id", "r-2")], "").request_id.as_deref(), Some("r-2"));
    }

    #[test]
    fn what_is_neither_json_nor_has_the_apis_request_id_is_foreign() {
        for body in ["<html>502</html>", "  <p>", "[]", "upstream error"] {
            assert_eq!(read(409, &[], body), Answer { status: 409, foreign: true, ..Answer::default() }, "{body}");
            assert!(!read(409, &[("x-bce-request-id", "r-2")], body).foreign, "{body}");
        }
        for body in ["", " ", "{}", r#" {"instance":{"#] {
            assert!(!read(200, &[], body).foreign, "{body}");
        }
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(read(429, &[("retry-after", "7")], "").retry_after, Some(Duration::from_secs(7)));
        let dates = [("retry-after", "Tue, 24 Nov 2026 16:43:43 GMT"), ("date", "Tue, 24 Nov 2026 16:42:43 GMT")];
        assert_eq!(read(429, &dates, "").retry_after, Some(Duration::from_secs(60)));
        assert_eq!(read(429, &[("retry-after", "soon")], "").retry_after, None);
        assert_eq!(read(429, &[("retry-after", "-1")], "").retry_after, None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let body = serde_json::json!({"code": "X", "message": "é".repeat(5000)}).to_string();
        assert_eq!(read(500, &[], &body).message.unwrap().chars().count(), MESSAGE_LIMIT);
    }
}
