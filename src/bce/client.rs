//! The signed HTTP client of one account in one region.

use std::error::Error;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, HOST, HeaderMap};
use reqwest::{Method, Response, Url, redirect};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::answer::{Answer, NoAnswer};
use super::credentials::Credentials;
use super::instance::{InstanceId, InstanceState};
use super::sign::{self, SignedHeaders};

/// No answer is read beyond this many bytes: the API's are a few hundred, a describe a few thousand.
const BODY_LIMIT: usize = 64 * 1024;

/// Where the API is: scheme and authority, nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    url: Url,
    /// The Host header exactly as it goes on the wire and into the signature: with the port unless it is the default.
    host: String,
}

impl Endpoint {
    /// `https://bcc.{region}.baidubce.com` (<https://cloud.baidu.com/doc/BCC/s/0jwvyo603>).
    ///
    /// # Errors
    /// Where `region` is not of lower-case letters and digits.
    pub fn of_region(region: &str) -> Result<Self, String> {
        if region.is_empty() || !region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err("a region such as bj, bd, gz, su, fwh, hkg".to_owned());
        }
        format!("https://bcc.{region}.baidubce.com").parse()
    }
}

impl FromStr for Endpoint {
    type Err = String;

    /// Says what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "a URL of scheme and host alone, such as https://bcc.bj.baidubce.com".to_owned();
        let url = Url::parse(text).map_err(|_| expected())?;
        let bare = matches!(url.scheme(), "http" | "https")
            && matches!(url.path(), "" | "/")
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let host = url.host_str().filter(|_| bare).ok_or_else(expected)?;
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        Ok(Self { url, host })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For the whole call, connection and answer included.
    pub total: Duration,
}

/// The calls this client makes, by the names they have in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `PUT /v2/instance/{id}?start`
    Start,
    /// `GET /v2/instance/{id}`
    Describe,
    /// `GET /v2/instance?maxKeys=1`
    Probe,
}

impl Operation {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Describe => "describe",
            Self::Probe => "probe",
        }
    }
}

/// Signs and sends. Keeps connections alive; follows no redirect, so no signature ever reaches another host.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    endpoint: Endpoint,
    credentials: Credentials,
}

impl Client {
    /// A client for `endpoint` that keeps up to `connections` idle connections open.
    ///
    /// # Errors
    /// Where TLS cannot be set up, for instance without any trusted root certificate on the machine.
    pub fn new(
        endpoint: Endpoint,
        credentials: Credentials,
        timeouts: Timeouts,
        connections: usize,
    ) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .user_agent(concat!("reveille/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            // A retry inside the client would be an attempt nobody counted and no limiter saw.
            .retry(reqwest::retry::never())
            .connect_timeout(timeouts.connect)
            .timeout(timeouts.total)
            .pool_max_idle_per_host(connections)
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { http, endpoint, credentials })
    }

    /// Asks the API to start `instance`. A 2xx means it was stopped and is starting now.
    ///
    /// # Errors
    /// [`NoAnswer`] where none came.
    pub async fn start(&self, instance: &InstanceId) -> Result<Answer, NoAnswer> {
        let (answer, _) = self.call(Method::PUT, &format!("/v2/instance/{instance}"), &[("start", "")]).await?;
        Ok(answer)
    }

    /// Asks for the state of `instance`; `None` beside a 2xx whose body could not be read.
    ///
    /// # Errors
    /// [`NoAnswer`] where none came.
    pub async fn describe(&self, instance: &InstanceId) -> Result<(Answer, Option<InstanceState>), NoAnswer> {
        #[derive(Deserialize)]
        struct Body {
            instance: Instance,
        }
        #[derive(Deserialize)]
        struct Instance {
            status: String,
        }
        let (answer, body) = self.call(Method::GET, &format!("/v2/instance/{instance}"), &[]).await?;
        let state = serde_json::from_slice::<Body>(&body).ok().map(|body| InstanceState::parse(&body.instance.status));
        Ok((answer, state))
    }

    /// Asks for a list of one instance: the cheapest call there is that needs good keys, a good clock and a good way.
    ///
    /// # Errors
    /// [`NoAnswer`] where none came.
    pub async fn probe(&self) -> Result<Answer, NoAnswer> {
        let (answer, _) = self.call(Method::GET, "/v2/instance", &[("maxKeys", "1")]).await?;
        Ok(answer)
    }

    async fn call(&self, method: Method, path: &str, query: &[(&str, &str)]) -> Result<(Answer, Vec<u8>), NoAnswer> {
        let mut url = self.endpoint.url.clone();
        url.set_path(path);
        if !query.is_empty() {
            let pairs = query
                .iter()
                .map(|(name, value)| if value.is_empty() { (*name).to_owned() } else { format!("{name}={value}") });
            url.set_query(Some(&pairs.collect::<Vec<_>>().join("&")));
        }

        let now = Timestamp::now();
        let date = sign::date(now);
        let token = self.credentials.session_token.as_ref().map(ExposeSecret::expose_secret);
        let host = self.endpoint.host.as_str();
        let mut headers = vec![("host", host), ("x-bce-date", &date)];
        let mut signed = vec!["host", "x-bce-date"];
        if let Some(token) = token {
            headers.push(("x-bce-security-token", token));
            signed.push("x-bce-security-token");
        }
        let authorization = sign::authorization(
            &self.credentials.access_key_id,
            self.credentials.secret_access_key.expose_secret(),
            now,
            sign::EXPIRATION,
            sign::Request { method: method.as_str(), path, query, headers: &headers },
            SignedHeaders::Listed(&signed),
        );

        let mut request = self
            .http
            .request(method, url)
            .header(HOST, host)
            .header(AUTHORIZATION, authorization)
            .header("x-bce-date", &date);
        if let Some(token) = token {
            request = request.header("x-bce-security-token", token);
        }
        let response = request.send().await.map_err(no_answer)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = read_body(response).await;
        Ok((Answer::read(status, |name| text(&headers, name), &body), body))
    }
}

/// Reads up to [`BODY_LIMIT`]. The status has come, so a body that breaks off or is late is just a shorter one.
async fn read_body(mut response: Response) -> Vec<u8> {
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        let room = BODY_LIMIT - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() >= room {
            break;
        }
    }
    body
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

fn no_answer(error: reqwest::Error) -> NoAnswer {
    // The URL would only repeat what the job says already.
    let error = error.without_url();
    let chain = causes(&error);
    if error.is_connect() {
        if chain.iter().any(|cause| is_tls(*cause)) {
            return NoAnswer::Tls(deepest(&chain));
        }
        return NoAnswer::Unreachable(deepest(&chain));
    }
    if error.is_timeout() { NoAnswer::TimedOut } else { NoAnswer::Broken(deepest(&chain)) }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_signed_is_the_host_on_the_wire() {
        let host = |url: &str| url.parse::<Endpoint>().unwrap().host;
        assert_eq!(host("https://bcc.bj.baidubce.com"), "bcc.bj.baidubce.com");
        assert_eq!(host("https://bcc.bj.baidubce.com:443/"), "bcc.bj.baidubce.com");
        assert_eq!(host("http://127.0.0.1:8080"), "127.0.0.1:8080");
        assert_eq!(host("http://[::1]:8080"), "[::1]:8080");
        assert_eq!(Endpoint::of_region("gz").unwrap().to_string(), "https://bcc.gz.baidubce.com");
    }

    #[test]
    fn an_endpoint_is_scheme_and_host_alone() {
        for text in ["bcc.bj.baidubce.com", "ftp://h", "http://h/v2", "http://h?a", "http://u:p@h", "http://", ""] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        assert!(Endpoint::of_region("bj.evil.example/").is_err());
    }
}
