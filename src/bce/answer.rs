//! The answer to a call, or why there was none.

use std::error::Error;
use std::fmt;
use std::io;
use std::time::Duration;

use jiff::Timestamp;
use serde::Deserialize;

use super::codes::{Codes, Meaning};
use super::endpoint::Endpoint;
use super::keep_alive::{self, ConnectionId};

/// Longest error message kept, in characters; the API's own are far shorter, a proxy's page is not.
const MESSAGE_LIMIT: usize = 1024;
/// Longest error code or request id kept, in characters.
const CODE_LIMIT: usize = 128;

/// An HTTP answer, parsed as far as verdicts need it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `code` of the error body; `None` if the body is missing, truncated, or a proxy's HTML.
    pub code: Option<String>,
    /// `message` of the error body.
    pub message: Option<String>,
    /// Header `x-bce-request-id`, else `requestId` of the body. Baidu's support asks for it.
    pub request_id: Option<String>,
    /// Header `Retry-After`, as seconds or as a date.
    pub retry_after: Option<Duration>,
    /// Header `Date`: the server's clock.
    pub date: Option<Timestamp>,
    /// Sent by a proxy, a gateway or a captive portal instead of the API, as far as [`RequestId`] shows. It says
    /// nothing about the instance, the keys or the time.
    pub from_proxy: bool,
    /// What the code means, by the lane's rules or the built-in table; `None` if the status decides.
    pub meaning: Option<Meaning>,
}

/// How a lane's answers are parsed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Which answers count as the API's.
    pub request_id: RequestId,
    /// What their codes mean.
    pub codes: Codes,
}

/// Whether an answer needs a request id to count as the API's. Every answer of the API has one, in the header
/// `x-bce-request-id` (<https://cloud.baidu.com/doc/BCC/s/Mjwvyo6bm-en>), and error bodies repeat it as `requestId`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestId {
    /// An answer without one, in header or body, is [`from_proxy`](Answer::from_proxy).
    #[default]
    Required,
    /// A proxy on the way strips the header: then only a body that is neither empty nor an object is a
    /// proxy's.
    Optional,
}

/// A call without an answer. The instance may have been started all the same, except where noted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// No connection was made, so no request was sent.
    #[error("no connection to the API: {0}")]
    Unreachable(String),
    /// The server's certificate was refused: a problem of the endpoint or of an interceptor, not of one job.
    #[error("the API's certificate was refused: {0}")]
    Tls(String),
    /// The proxy in front of the API is at fault. Names the proxy, and the remedy.
    #[error("{0}")]
    Proxy(String),
    /// The timeout passed.
    #[error("the API did not answer in time")]
    TimedOut,
    /// The connection broke after the request was sent.
    #[error("the connection to the API broke: {0}")]
    Broken(String),
    /// The server closed a kept connection as the call was sent over it. That is neither the API's nor the call's
    /// fault, and the call should be repeated over a [`fresh`](super::Client::fresh) connection.
    #[error("the API closed a connection as a call went out over it: {why}")]
    Stale {
        /// The error that ended the call.
        why: String,
        /// `false` if the request could not be written to its end.
        may_have_been_carried_out: bool,
    },
    /// The keys have expired, so nothing was sent. Names the key, since when, and the remedy.
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
    /// `opened`: the connection that was opened for the call.
    pub(super) fn of(error: reqwest::Error, opened: Option<ConnectionId>, endpoint: &Endpoint) -> Self {
        // The URL would only repeat the job's instance.
        let error = error.without_url();
        let chain = causes(&error);
        if error.is_connect() {
            let (is_tls, why) = (chain.iter().any(|cause| is_tls(*cause)), deepest(&chain));
            return match endpoint.proxy() {
                Some(proxy) if let Some(fault) = proxy.fault(&chain, is_tls, &endpoint.url, &why) => Self::Proxy(fault),
                _ if is_tls => Self::Tls(why),
                Some(proxy) => Self::Unreachable(format!("through the proxy of {}: {why}", proxy.variable())),
                None => Self::Unreachable(why),
            };
        }
        if error.is_timeout() {
            return Self::TimedOut;
        }
        match keep_alive::closed(&chain).filter(|_| keep_alive::was_reused(&chain, opened)) {
            Some(may_have_been_carried_out) => Self::Stale { why: deepest(&chain), may_have_been_carried_out },
            None => Self::Broken(deepest(&chain)),
        }
    }
}

fn causes(error: &reqwest::Error) -> Vec<&(dyn Error + 'static)> {
    let outermost: &(dyn Error + 'static) = error;
    std::iter::successors(Some(outermost), |error| (*error).source()).collect()
}

/// The innermost cause says what happened; those around it say "error sending request".
fn deepest(chain: &[&(dyn Error + 'static)]) -> String {
    chain.last().map(ToString::to_string).unwrap_or_default()
}

/// `io::Error::source` skips the error inside and returns that one's cause; here one `io::Error` is in another.
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

/// The part of a success body that is read here.
#[derive(Deserialize)]
struct SuccessBody {
    #[serde(rename = "requestId")]
    request_id: Option<String>,
}

impl Answer {
    /// Whether the status is a 2xx. An answer [`from_proxy`](Answer::from_proxy) can have one too.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Parses status, headers and body. If the body is no error object, its fields stay empty.
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
        let from_proxy = request_id.is_none()
            && match by.request_id {
                RequestId::Required => true,
                RequestId::Optional => body.trim_ascii_start().first().is_some_and(|first| *first != b'{'),
            };
        let date = header("date").as_deref().and_then(http_date);
        let code = code.filter(|code| !code.is_empty()).map(|code| shorten(code, CODE_LIMIT));
        Self {
            status,
            meaning: code.as_ref().filter(|_| !from_proxy).and_then(|code| by.codes.meaning(status, code)),
            code,
            message: message.map(|message| shorten(message, MESSAGE_LIMIT)),
            request_id: request_id.map(|id| shorten(id, CODE_LIMIT)),
            retry_after: header("retry-after").and_then(|value| retry_after(&value, date)),
            date,
            from_proxy,
        }
    }
}

/// Seconds, or a date, which is relative to the server's own clock if that is known.
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
                assert_eq!(read(status, &[], body), Answer { status, from_proxy: true, ..Answer::default() }, "{body}");
                assert!(read(status, &[("x-bce-request-id", "")], body).from_proxy, "{body}");
                assert!(!read(status, &[ID], body).from_proxy, "{body}");
            }
            let body = r#"{"requestId":"r-1","failedInstanceIdList":[]}"#;
            let answer = read(status, &[], body);
            assert!(!answer.from_proxy && answer.request_id.as_deref() == Some("r-1"), "{status}");
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
            assert!(read_by(RequestId::Optional, 409, &[], body).from_proxy, "{body}");
            assert!(!read_by(RequestId::Optional, 409, &[ID], body).from_proxy, "{body}");
        }
        for body in ["", " ", "{}", r#" {"instance":{"#] {
            assert!(!read_by(RequestId::Optional, 200, &[], body).from_proxy, "{body}");
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
