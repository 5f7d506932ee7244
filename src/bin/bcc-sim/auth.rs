//! The verifier: parses the `Authorization` header itself, and computes the signature from the received request.

use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use reveille::bce::sign::{Request, SignedHeaders, canonical_request, signature};

use crate::reply::ApiError;
use crate::request::Received;

/// An account that may call.
#[derive(Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub access_key_id: String,
    pub secret_access_key: String,
    /// If set, the key is a temporary (STS) one, and every call must carry the token.
    #[serde(default)]
    pub session_token: Option<String>,
}

/// The fields of `bce-auth-v1/{key}/{timestamp}/{expiration}/{signed headers}/{signature}`.
#[derive(Debug, PartialEq)]
struct Authorization<'a> {
    /// The first four fields as sent: the signing key is derived from exactly this text.
    prefix: &'a str,
    access_key_id: &'a str,
    timestamp: Timestamp,
    expiration: SignedDuration,
    /// Empty means the default set.
    signed_headers: Vec<&'a str>,
    signature: &'a str,
}

impl<'a> Authorization<'a> {
    fn read(text: &'a str) -> Result<Self, ApiError> {
        let fields: Vec<&str> = text.split('/').collect();
        let &[version, access_key_id, timestamp, expiration, names, signature] = fields.as_slice() else {
            return Err(malformed(format!("it has {} fields, not 6", fields.len())));
        };
        if version != "bce-auth-v1" {
            return Err(malformed(format!("{version:?} is not a version this API knows")));
        }
        let time = timestamp.parse().ok().filter(|_| timestamp.len() == "2026-01-15T08:30:00Z".len());
        let seconds = expiration.parse().ok().filter(|_| !expiration.starts_with('+'));
        let signed_headers: Vec<&str> = names.split(';').filter(|_| !names.is_empty()).collect();
        if signed_headers.iter().any(|name| name.is_empty() || name.bytes().any(|byte| byte.is_ascii_uppercase())) {
            return Err(malformed(format!("{names:?} is not a list of lower-case header names")));
        }
        if signature.len() != 64 || !signature.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(malformed("the signature is not 64 hex digits".into()));
        }
        Ok(Self {
            prefix: &text[..text.len() - names.len() - signature.len() - 2],
            access_key_id,
            timestamp: time.ok_or_else(|| malformed(format!("{timestamp:?} is not a UTC time in seconds")))?,
            expiration: seconds
                .map(SignedDuration::from_secs)
                .ok_or_else(|| malformed(format!("{expiration:?} is not a number of seconds")))?,
            signed_headers,
            signature,
        })
    }

    fn signed(&self) -> SignedHeaders<'_> {
        match self.signed_headers.as_slice() {
            [] => SignedHeaders::Default,
            names => SignedHeaders::Listed(names),
        }
    }
}

/// Verifies a request: the key first, then the clock, then the signature. Its date may be off by `tolerance`.
pub fn verify(
    received: &Received,
    accounts: &[Account],
    now: Timestamp,
    tolerance: SignedDuration,
) -> Result<(), ApiError> {
    let text = received.header("authorization").ok_or_else(|| malformed("the request has none".into()))?;
    let authorization = Authorization::read(text)?;
    let account = check_key(received, accounts, authorization.access_key_id)?;
    check_time(received, &authorization, now, tolerance)?;
    check_headers(received, &authorization.signed_headers)?;

    let query: Vec<_> = received.query.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let headers: Vec<_> = received.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let request = Request { method: &received.method, path: &received.path, query: &query, headers: &headers };
    let canonical = canonical_request(request, authorization.signed());
    if signature(&account.secret_access_key, authorization.prefix, &canonical) == authorization.signature {
        Ok(())
    } else {
        tracing::debug!(canonical, "signature differs");
        Err(ApiError::new(
            400,
            "SignatureDoesNotMatch",
            "The request signature we calculated does not match the signature you provided. \
             Check your Secret Access Key and signing method.",
        ))
    }
}

/// A temporary key without its token is an unknown key to the API.
fn check_key<'a>(received: &Received, accounts: &'a [Account], access_key_id: &str) -> Result<&'a Account, ApiError> {
    let unknown = |why: &'static str| Err(ApiError::new(403, "InvalidAccessKeyId", why));
    let Some(account) = accounts.iter().find(|account| account.access_key_id == access_key_id) else {
        return unknown("The Access Key ID you provided does not exist in our records.");
    };
    // In a header or, as one SDK can, in the query.
    let token = received.header("x-bce-security-token").or_else(|| received.parameter("x-bce-security-token"));
    match &account.session_token {
        Some(expected) if token != Some(expected.as_str()) => unknown(
            "The Access Key ID is a temporary one, and its x-bce-security-token is missing or not the right one.",
        ),
        _ => Ok(account),
    }
}

fn check_time(
    received: &Received,
    authorization: &Authorization<'_>,
    now: Timestamp,
    tolerance: SignedDuration,
) -> Result<(), ApiError> {
    let signed_ago = now.duration_since(authorization.timestamp);
    if signed_ago > authorization.expiration || -signed_ago > tolerance {
        return Err(expired(authorization.timestamp, now));
    }
    match date(received)? {
        Some(date) if now.duration_since(date).abs() > tolerance => Err(expired(date, now)),
        _ => Ok(()),
    }
}

/// `x-bce-date` takes precedence over `Date`; a request may have neither.
fn date(received: &Received) -> Result<Option<Timestamp>, ApiError> {
    let (text, parsed) = if let Some(text) = received.header("x-bce-date") {
        (text, text.parse())
    } else if let Some(text) = received.header("date") {
        (text, rfc2822::DateTimeParser::new().parse_timestamp(text))
    } else {
        return Ok(None);
    };
    parsed.map(Some).map_err(|_| ApiError::new(400, "InvalidHTTPRequest", format!("{text:?} is not a date")))
}

fn check_headers(received: &Received, listed: &[&str]) -> Result<(), ApiError> {
    let missing: Vec<&str> = listed.iter().copied().filter(|name| received.header(name).is_none()).collect();
    if !missing.is_empty() {
        // The code and the text that users of the cloud report; no page documents them.
        let message = format!("Missing headers required by signing: {}", missing.join(", "));
        return Err(ApiError::new(400, "IamSignatureInvalid", message));
    }
    let host_signed = if listed.is_empty() { received.header("host").is_some() } else { listed.contains(&"host") };
    if host_signed { Ok(()) } else { Err(malformed("the host header must be signed".into())) }
}

fn malformed(why: String) -> ApiError {
    ApiError::new(400, "InvalidHTTPAuthHeader", format!("The HTTP authorization header is invalid: {why}"))
}

fn expired(date: Timestamp, now: Timestamp) -> ApiError {
    ApiError::new(400, "RequestExpired", format!("Request has expired. Its date is {date}, the server's {now:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::tests::received;
    use reveille::bce::sign::authorization;
    use serde_json::Value;

    const NOW: &str = "2026-01-15T08:30:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn account() -> Account {
        Account { access_key_id: "ak".into(), secret_access_key: "sk".into(), session_token: None }
    }

    /// A start request, signed over these headers with these lists and times.
    fn signed(headers: &[(&str, &str)], names: SignedHeaders<'_>, timestamp: &str, expiration: i64) -> Received {
        let request = Request { method: "PUT", path: "/v2/instance/i-a", query: &[("start", "")], headers };
        let text = authorization("ak", "sk", timestamp.parse().unwrap(), expiration, request, names);
        let mut headers = headers.to_vec();
        headers.push(("authorization", &text));
        received("PUT", "/v2/instance/i-a?start", &headers, "")
    }

    fn judged(received: &Received, account: Account, now: Timestamp) -> Result<(), ApiError> {
        verify(received, &[account], now, SignedDuration::from_mins(30))
    }

    fn code(received: &Received) -> String {
        judged(received, account(), now()).map_or_else(|error| error.code.into_owned(), |()| "fine".into())
    }

    #[test]
    fn both_forms_of_the_header_pass_and_unlisted_headers_do_not_matter() {
        let headers =
            [("host", "127.0.0.1:80"), ("x-bce-date", NOW), ("content-length", "0"), ("x-bce-request-id", "own")];
        assert_eq!(code(&signed(&headers, SignedHeaders::Default, NOW, 1800)), "fine");
        assert_eq!(code(&signed(&headers, SignedHeaders::Listed(&["host"]), NOW, 3600)), "fine");
        assert_eq!(code(&signed(&headers, SignedHeaders::Listed(&["host", "x-bce-date"]), NOW, 1800)), "fine");
    }

    #[test]
    fn every_vector_of_the_official_sdks_verifies() {
        let file: Value = serde_json::from_str(include_str!("../../../tests/bce_auth_v1.json")).unwrap();
        for vector in file["vectors"].as_array().unwrap() {
            let text = |key: &str| vector[key].as_str().unwrap().to_owned();
            let pairs = vector["query"].as_array().unwrap().iter();
            let mut headers: Vec<(String, String)> = vector["headers"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.to_lowercase(), value.as_str().unwrap().trim_ascii().to_owned()))
                .collect();
            headers.push(("authorization".into(), text("authorization")));
            let received = Received {
                method: text("method"),
                path: text("path_decoded"),
                query: pairs
                    .map(|pair| (pair[0].as_str().unwrap().into(), pair[1].as_str().unwrap_or("").into()))
                    .collect(),
                headers,
                body: hyper::body::Bytes::new(),
            };
            let account = Account {
                access_key_id: text("access_key"),
                secret_access_key: text("secret_key"),
                session_token: None,
            };
            let signed_at = Timestamp::from_second(vector["timestamp_epoch"].as_i64().unwrap()).unwrap();
            let answer = judged(&received, account, signed_at);
            let code = answer.map_or_else(|error| error.code.into_owned(), |()| "fine".into());
            let expected = match text("id").as_str() {
                // Signed by the rules, but over too little, or for no time at all.
                "header-none" => "InvalidHTTPAuthHeader",
                "expiration--1" => "RequestExpired",
                _ => "fine",
            };
            assert_eq!(code, expected, "{}", text("id"));
        }
    }

    #[test]
    fn clocks_that_are_off_are_told_so() {
        let host = ("host", "h");
        let list = SignedHeaders::Listed(&["host"]);
        for (timestamp, expiration, headers, expected) in [
            ("2026-01-15T07:59:59Z", 1800, vec![host], "RequestExpired"),
            ("2026-01-15T08:00:00Z", 1800, vec![host], "fine"),
            ("2026-01-15T07:30:01Z", 3600, vec![host], "fine"),
            ("2026-01-15T09:00:01Z", 1800, vec![host], "RequestExpired"),
            (NOW, 1800, vec![host, ("x-bce-date", "2026-01-15T09:00:01Z")], "RequestExpired"),
            (NOW, 1800, vec![host, ("x-bce-date", "2026-01-15T07:59:59Z")], "RequestExpired"),
            (NOW, 1800, vec![host, ("date", "Thu, 15 Jan 2026 06:30:00 GMT")], "RequestExpired"),
            (NOW, 1800, vec![host, ("date", "Thu, 15 Jan 2026 06:30:00 GMT"), ("x-bce-date", NOW)], "fine"),
            (NOW, 1800, vec![host, ("x-bce-date", "yesterday")], "InvalidHTTPRequest"),
            (NOW, -1, vec![host], "RequestExpired"),
        ] {
            assert_eq!(code(&signed(&headers, list, timestamp, expiration)), expected, "{timestamp} {headers:?}");
        }
    }

    #[test]
    fn what_was_not_signed_or_not_sent_is_refused() {
        let headers = [("host", "h"), ("x-bce-date", NOW)];
        assert_eq!(code(&signed(&headers, SignedHeaders::Listed(&["x-bce-date"]), NOW, 1800)), "InvalidHTTPAuthHeader");
        assert_eq!(code(&signed(&headers[1..], SignedHeaders::Default, NOW, 1800)), "InvalidHTTPAuthHeader");
        let absent = SignedHeaders::Listed(&["content-length", "host"]);
        assert_eq!(code(&signed(&headers, absent, NOW, 1800)), "IamSignatureInvalid");
    }

    #[test]
    fn malformed_headers_are_refused_and_never_panic() {
        let zeros = "0".repeat(64);
        for text in [
            String::new(),
            "bce-auth-v1".into(),
            "/////".into(),
            format!("bce-auth-v2/ak/{NOW}/1800/host/{zeros}"),
            format!("bce-auth-v1/ak/today/1800/host/{zeros}"),
            format!("bce-auth-v1/ak/2026-01-15T08:30:00.5Z/1800/host/{zeros}"),
            format!("bce-auth-v1/ak/{NOW}/soon/host/{zeros}"),
            format!("bce-auth-v1/ak/{NOW}/1800/Host/{zeros}"),
            format!("bce-auth-v1/ak/{NOW}/1800/host;;x/{zeros}"),
            format!("bce-auth-v1/ak/{NOW}/1800/host/short"),
            format!("bce-auth-v1/ak/{NOW}/1800/host/{zeros}/more"),
        ] {
            let received = received("PUT", "/v2/instance/i-a?start", &[("host", "h"), ("authorization", &text)], "");
            assert_eq!(code(&received), "InvalidHTTPAuthHeader", "{text}");
        }
    }

    #[test]
    fn a_temporary_key_needs_its_token() {
        let account = Account { session_token: Some("token".into()), ..account() };
        for (headers, expected) in [
            (vec![("host", "h"), ("x-bce-security-token", "token")], Ok(())),
            (vec![("host", "h"), ("x-bce-security-token", "other")], Err("InvalidAccessKeyId")),
            (vec![("host", "h")], Err("InvalidAccessKeyId")),
        ] {
            let received = signed(&headers, SignedHeaders::Default, NOW, 1800);
            let answer = judged(&received, account.clone(), now());
            assert_eq!(answer.as_ref().map_err(|error| &*error.code), expected.as_ref().map_err(|code| *code));
        }
    }
}
