//! What came back from a call, or why nothing did.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::codes::{Codes, Meaning};
use super::endpoint::Endpoint;
use super::keep_alive::{self, Made};

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
    /// Given by a proxy, a gateway or a captive portal in the API's place, as far as [`RequestId`] tells. It tells nothing
    /// about the instance, the keys or the time.
    pub foreign: bool,
    /// What the code means, by the lane's rules or the built-in table; `None` where the status decides.
    pub meaning: Option<Meaning>,
}

/// How a lane's answers are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Which answers are the API's.
    pub request_id: RequestId,
    /// What their codes mean.
    pub codes: Codes,
}

/// Whether an answer has to carry a request id to count as the API's. Every answer of the API does, in the header
/// `x-bce-request-id` (<https://cloud.baidu.com/doc/BCC/s/Mjwvyo6bm-en>), and error bodies repeat it as `requestId`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestId {
    /// An answer without one, in header or body, is [`foreign`](Answer::foreign).
    #[default]
    Required,
    /// A proxy on the way strips the header: only a body that is neither empty nor an object is foreign then.
    Optional,
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
    /// `made`: the connection that was made for the call.
    pub(super) fn of(error: reqwest::Error, made: Option<Made>, endpoint: &Endpoint) -> Self {
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
        match keep_alive::closed(&chain).filter(|_| keep_alive::was_reused(&chain, made)) {
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

/// All that is read of a success here.
#[derive(Deserialize)]
struct SuccessBody {
    #[serde(rename = "requestId")]
    request_id: Option<String>,
}

impl Answer {
    /// Whether the status is a 2xx. A [`foreign`](Answer::foreign) answer can have one too.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Reads status, headers and body. A body that is no error object leaves the fields it would have given empty.
    pub fn read(status: u16, header: impl Fn(&str) -> Option<String>, body: &[u8], by: &Reading) -> Self {
        let id_of_header = header("x-bce-request-id").filter(|id| !id.is_empty());
        let (id_of_body, code, message) = if !(200..300).contains(&status) {
            let error = serde_json::from_slice::<ErrorBody>(body).ok();
            error.map_or((None, None, None), |error| (error.request_id, error.code, error.message))
        } else if id_of_header.is_none() {
            let success = serde_json::from_slice::<SuccessBody>(body).ok();
            (success.and_then(|success| success.request_id), None, None)
        } else {
            (None, None, None)
        };
        let request_id = id_of_header.or(id_of_body.filter(|id| !id.is_empty()));
        let foreign = request_id.is_none()
            && match by.request_id {
                RequestId::Required => true,
                RequestId::Optional => body.trim_ascii_start().first().is_some_and(|first| *first != b'{'),
            };
        let date = header("date").as_deref().and_then(http_date);
        let code = code.filter(|code| !code.is_empty()).map(|code| shorten(code, CODE_LIMIT));
        Self {
            status,
            meaning: code.as_ref().filter(|_| !foreign).and_then(|code| by.codes.meaning(status, code)),
            code,
            message: message.map(|message| shorten(message, MESSAGE_LIMIT)),
            request_id: request_id.map(|id| shorten(id, CODE_LIMIT)),
            retry_after: header("retry-after").and_then(|value| retry_after(&value, date)),
            date,
            foreign,
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

    fn read_by(request_id: RequestId, status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let header = |name: &str| headers.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Answer::read(status, header, body.as_bytes(), &Reading { request_id, ..Reading::default() })
    }

    fn read(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        read_by(RequestId::Required, status, headers, body)
    }

    const ID: (&str, &str) = ("x-bce-request-id", "r-2");

    #[test]
    fn an_error_body_is_read_whatever_is_missing_in_it() {
        let body = r#"{"requestId":"r-1","code":"Instance.StartExpiredInstance","message":"pay","more":1}"#;
        let answer = read(409, &[], body);
        assert_eq!(answer.code.as_deref(), Some("Instance.StartExpiredInstance"));
        assert_eq!((answer.message.as_deref(), answer.request_id.as_deref()), (Some("pay"), Some("r-1")));
        for body in ["", &body[..40], r#"{"code":7}"#, r#"{"code":""}"#] {
            let request_id = Some("r-2".to_owned());
            assert_eq!(read(409, &[ID], body), Answer { status: 409, request_id, ..Answer::default() }, "{body}");
        }
        assert_eq!(read(502, &[ID], "").request_id.as_deref(), Some("r-2"));
    }

    #[test]
    fn what_has_no_request_id_in_header_or_body_is_foreign() {
        let pages = ["<html>502</html>", "  <p>", "[]", "upstream error", "", " ", "{}", r#" {"requestId":"r"#];
        let forged = [r#"{"requestId":""}"#, r#"{"requestId":7}"#, r#"{"instance":{"id":"i-0000"}}"#];
        for status in [200, 204, 302, 400, 401, 404, 409, 429, 502] {
            for body in pages.iter().chain(&forged) {
                assert_eq!(read(status, &[], body), Answer { status, foreign: true, ..Answer::default() }, "{body}");
                assert!(read(status, &[("x-bce-request-id", "")], body).foreign, "{body}");
                assert!(!read(status, &[ID], body).foreign, "{body}");
            }
            let body = r#"{"requestId":"r-1","failedInstanceIdList":[]}"#;
            let answer = read(status, &[], body);
            assert!(!answer.foreign && answer.request_id.as_deref() == Some("r-1"), "{status}");
        }
    }

    #[test]
    fn what_a_code_means_only_the_apis_answer_tells() {
        let body = r#"{"code":"Instance.NoStock","message":"none left"}"#;
        assert!(matches!(read(403, &[ID], body).meaning, Some(Meaning::NoCapacity(_))));
        assert_eq!((read(403, &[], body).meaning, read(200, &[ID], body).meaning), (None, None));
        assert_eq!(read(403, &[ID], r#"{"code":"AccessDenied"}"#).meaning, None);
    }

    #[test]
    fn where_the_request_id_is_optional_a_body_that_is_no_object_is_foreign() {
        for body in ["<html>502</html>", "  <p>", "[]", "upstream error"] {
            assert!(read_by(RequestId::Optional, 409, &[], body).foreign, "{body}");
            assert!(!read_by(RequestId::Optional, 409, &[ID], body).foreign, "{body}");
        }
        for body in ["", " ", "{}", r#" {"instance":{"#] {
            assert!(!read_by(RequestId::Optional, 200, &[], body).foreign, "{body}");
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
