//! The signed HTTP client of one account in one region: how calls are sent. `calls.rs` has the calls.
//!
//! The advice to check the endpoint is given only while the API has never answered ([`Client::was_answered`]): an
//! unreachable API is an outage either way, and one that has answered before is at the right address.
//!
//! The expiry of keys is judged by the API's clock, and for a probe by both clocks. Otherwise an answer with a date far
//! ahead would be the last one, since no request would be sent whose answer could correct it. If our own clock is ahead
//! by more than temporary keys have left, no call is made until new keys are there: that is logged, and better than
//! calls that must fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response, redirect};
use rustls::ClientConfig;
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tower::util::MapResponseLayer;
use tracing::{debug, info};

use super::answer::{Answer, NoAnswer, Reading};
use super::clock::Clock;
use super::credentials::Credentials;
use super::endpoint::Endpoint;
use super::keep_alive::{self, ConnectionId};
use super::sign::{self, SignedHeaders};
use super::tls;

/// What the official SDKs send with a body.
const JSON: &str = "application/json;charset=utf-8";
/// Changes of the clock's offset by fewer seconds than this are not logged: clocks drift.
const WORTH_TELLING: u64 = 60;

/// Timeouts of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection, TLS included.
    pub connect: Duration,
    /// For the whole call, connection and answer included.
    pub total: Duration,
}

/// Signs and sends requests. Keeps connections alive, unless it is a [`fresh`](Client::fresh) one; follows no redirect,
/// so no signature ever reaches another host.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    account: Arc<Account>,
    reading: Reading,
}

/// What a client shares with its fresh one.
#[derive(Debug)]
struct Account {
    endpoint: Endpoint,
    /// Replaced as a whole, so no request mixes old and new keys.
    credentials: watch::Sender<Arc<Credentials>>,
    clock: Clock,
    /// Keeps no connections.
    fresh: reqwest::Client,
    /// The API has answered a call.
    was_answered: AtomicBool,
    /// Of an inspecting client.
    certificate: tls::Seen,
}

/// The status with which a proxy asks for a login. The API never answers with it.
const PROXY_AUTHENTICATION_REQUIRED: u16 = 407;

/// A request before it is signed.
pub(super) struct Request<'a> {
    pub method: Method,
    pub path: &'a str,
    /// Parameters before percent-encoding; an action such as `start` has an empty value.
    pub query: &'a [(&'a str, &'a str)],
    /// JSON. It is not signed: bce-auth-v1 has no payload hash.
    pub body: Option<Vec<u8>>,
    /// No answer is read beyond this many bytes.
    pub limit: usize,
    /// It is sent even if the keys have expired by the API's clock, unless they have by ours too.
    pub asks_for_the_time: bool,
}

/// The body of an answer.
pub(super) struct Body {
    pub bytes: Vec<u8>,
    /// Neither truncated at the limit nor broken off.
    pub whole: bool,
}

/// Why no client could be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// TLS could not be set up, for instance because the machine trusts no root certificate.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The HTTP client or its proxy could not be built.
    #[error(transparent)]
    Http(#[from] reqwest::Error),
}

impl Client {
    /// A client for `endpoint`, through the proxy that it names and no other. It keeps up to `connections` idle
    /// connections, each for [`keep_alive::LONGEST_IDLE`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn new(
        endpoint: Endpoint,
        credentials: Credentials,
        timeouts: Timeouts,
        connections: usize,
    ) -> Result<Self, ClientError> {
        let http = builder(&endpoint, timeouts)?
            .pool_max_idle_per_host(connections)
            .pool_idle_timeout(keep_alive::LONGEST_IDLE)
            .build()?;
        let fresh = builder(&endpoint, timeouts)?.pool_max_idle_per_host(0).build()?;
        Ok(Self::over(http, fresh, endpoint, credentials, tls::Seen::default()))
    }

    /// A client for a few calls, each over a new connection, that remembers the API's [`certificate`](Self::certificate).
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn inspecting(endpoint: Endpoint, credentials: Credentials, timeouts: Timeouts) -> Result<Self, ClientError> {
        let seen = tls::Seen::default();
        let recording = tls::recording(endpoint.url.host_str().unwrap_or_default(), seen.clone())?;
        let http = builder_with(&endpoint, timeouts, recording)?.pool_max_idle_per_host(0).build()?;
        Ok(Self::over(http.clone(), http, endpoint, credentials, seen))
    }

    fn over(
        http: reqwest::Client,
        fresh: reqwest::Client,
        endpoint: Endpoint,
        credentials: Credentials,
        certificate: tls::Seen,
    ) -> Self {
        let credentials = watch::Sender::new(Arc::new(credentials));
        let (clock, was_answered) = Default::default();
        let account = Arc::new(Account { endpoint, credentials, clock, fresh, was_answered, certificate });
        Self { http, account, reading: Reading::default() }
    }

    /// The client with another [`Reading`] of answers.
    #[must_use]
    pub fn with_reading(self, reading: Reading) -> Self {
        Self { reading, ..self }
    }

    /// The same, but with a new connection for each call: its results are not due to an old connection.
    pub fn fresh(&self) -> Self {
        let (http, account, reading) = (self.account.fresh.clone(), self.account.clone(), self.reading.clone());
        Self { http, account, reading }
    }

    /// The keys in force.
    pub fn credentials(&self) -> Arc<Credentials> {
        self.account.credentials.borrow().clone()
    }

    /// Uses `credentials` for every request from now on. Returns whether they differ from the present ones.
    pub fn replace_credentials(&self, credentials: Credentials) -> bool {
        self.account.credentials.send_if_modified(|present| {
            let other = **present != credentials;
            if other {
                *present = Arc::new(credentials);
            }
            other
        })
    }

    /// Notifies when keys are replaced: await `changed()`.
    pub fn keys_changed(&self) -> watch::Receiver<Arc<Credentials>> {
        self.account.credentials.subscribe()
    }

    /// The API's clock minus ours, in seconds, as learned from its answers.
    pub fn clock_offset(&self) -> i64 {
        self.account.clock.offset()
    }

    /// Whether the keys in force have expired, by the API's clock. Nothing is sent then.
    pub fn keys_expired(&self) -> bool {
        self.account.credentials.borrow().expired(self.account.clock.now())
    }

    /// Whether the API has answered any call yet. Before that, it may not exist at this address.
    pub fn was_answered(&self) -> bool {
        self.account.was_answered.load(Ordering::Relaxed)
    }

    /// The API's certificate (DER), once it was accepted. `None`: it was not, the endpoint has no TLS, or this is no
    /// [`inspecting`](Self::inspecting) client.
    pub fn certificate(&self) -> Option<Vec<u8>> {
        self.account.certificate.get()
    }

    /// Signs and sends `request`, and learns the time from the answer.
    pub(super) async fn send(&self, request: Request<'_>) -> Result<(Answer, Body), NoAnswer> {
        let limit = request.limit;
        let request = self.sign(request, &self.credentials())?;
        let sent = Instant::now();
        let (response, opened) = keep_alive::watched(request.send()).await;
        let response = response.map_err(|error| self.no_answer(error, opened))?;
        let (received, round_trip) = (Timestamp::now(), sent.elapsed());
        let status = response.status().as_u16();
        if status == PROXY_AUTHENTICATION_REQUIRED {
            return Err(NoAnswer::Proxy(self.account.endpoint.wants_a_user()));
        }
        let headers = response.headers().clone();
        let body = read_body(response, limit).await;
        let answer = Answer::read(status, |name| text(&headers, name), &body.bytes, &self.reading);
        self.learn(&answer, received, round_trip);
        if !answer.from_proxy {
            self.account.was_answered.store(true, Ordering::Relaxed);
        }
        Ok((answer, body))
    }

    /// Why there was no answer; with what to check, if there never was one.
    fn no_answer(&self, error: reqwest::Error, opened: Option<ConnectionId>) -> NoAnswer {
        let endpoint = &self.account.endpoint;
        match NoAnswer::of(error, opened, endpoint) {
            NoAnswer::Unreachable(why) if !self.was_answered() => {
                let proxy = endpoint.proxy().map(|proxy| format!(", and {}", proxy.variable())).unwrap_or_default();
                NoAnswer::Unreachable(format!("{why}; it has never answered so far: check region or endpoint{proxy}"))
            }
            other => other,
        }
    }

    fn sign(&self, request: Request<'_>, credentials: &Credentials) -> Result<RequestBuilder, NoAnswer> {
        let now = self.account.clock.now();
        if let Some(expires_at) = credentials.expires_at.filter(|_| credentials.expired(now)) {
            let by_ours = credentials.expired(Timestamp::now());
            // If the keys have expired only by the API's clock, another answer has to show whether that clock is right.
            if by_ours || !request.asks_for_the_time {
                let id = &credentials.access_key_id;
                let clock = if by_ours {
                    String::new()
                } else {
                    format!(" by the API's clock, which is {} seconds ahead of ours", self.clock_offset())
                };
                return Err(NoAnswer::NoKeys(format!(
                    "the temporary keys {id} expired at {expires_at}{clock}: put new ones into the lane's credentials_file"
                )));
            }
        }
        let date = sign::date(now);
        let host = self.account.endpoint.host.as_str();
        let mut headers = vec![("host", host), ("x-bce-date", date.as_str())];
        if request.body.is_some() {
            headers.push(("content-type", JSON));
        }
        let token = credentials.session_token.as_ref().map(ExposeSecret::expose_secret);
        headers.extend(token.map(|token| ("x-bce-security-token", token)));
        let signed: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let authorization = sign::authorization(
            &credentials.access_key_id,
            credentials.secret_access_key.expose_secret(),
            now,
            sign::EXPIRATION,
            sign::Request {
                method: request.method.as_str(),
                path: request.path,
                query: request.query,
                headers: &headers,
            },
            SignedHeaders::Listed(&signed),
        );

        let mut url = self.account.endpoint.url.clone();
        url.set_path(request.path);
        let query: Vec<String> = request.query.iter().map(|(name, value)| sign::parameter(name, value)).collect();
        url.set_query((!query.is_empty()).then(|| query.join("&")).as_deref());
        let mut builder = self
            .http
            .request(request.method, url)
            .header(HOST, host)
            .header(AUTHORIZATION, sensitive(&authorization)?)
            .header("x-bce-date", &date);
        if let Some(token) = token {
            builder = builder.header("x-bce-security-token", sensitive(token)?);
        }
        if let Some(body) = request.body {
            builder = builder.header(CONTENT_TYPE, JSON).body(body);
        }
        Ok(builder)
    }

    /// A proxy's clock is not the API's.
    fn learn(&self, answer: &Answer, received: Timestamp, round_trip: Duration) {
        let Some(date) = answer.date.filter(|_| !answer.from_proxy) else { return };
        let Some(moved) = self.account.clock.learn(date, received, round_trip) else { return };
        let (endpoint, offset) = (&self.account.endpoint, self.account.clock.offset());
        if moved.unsigned_abs() >= WORTH_TELLING {
            info!(%endpoint, offset, "the API's clock is this many seconds ahead of ours, and calls are signed by it");
        } else {
            debug!(%endpoint, offset, "followed the API's clock");
        }
    }
}

fn builder(endpoint: &Endpoint, timeouts: Timeouts) -> Result<ClientBuilder, ClientError> {
    builder_with(endpoint, timeouts, tls::config()?)
}

fn builder_with(endpoint: &Endpoint, timeouts: Timeouts, tls: ClientConfig) -> Result<ClientBuilder, ClientError> {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        // We have read the environment ourselves.
        .no_proxy()
        .user_agent(concat!("reveille/", env!("CARGO_PKG_VERSION")))
        .redirect(redirect::Policy::none())
        // A retry inside the client would be an uncounted attempt, past the limiter.
        .retry(reqwest::retry::never())
        .connect_timeout(timeouts.connect)
        .timeout(timeouts.total)
        .tcp_nodelay(true)
        .connector_layer(MapResponseLayer::new(keep_alive::connected));
    Ok(match endpoint.proxy() {
        Some(proxy) => builder.proxy(proxy.to_reqwest()?),
        None => builder,
    })
}

/// A header value that libraries leave out of their logs.
fn sensitive(value: &str) -> Result<HeaderValue, NoAnswer> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| NoAnswer::NoKeys("the keys are not plain ASCII: check the lane's credentials".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Reads up to `limit`. The status has arrived, so a body that breaks off or is late is just shorter.
async fn read_body(mut response: Response, limit: usize) -> Body {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => {
                let room = limit - bytes.len();
                bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
                if chunk.len() > room {
                    return Body { bytes, whole: false };
                }
            }
            Ok(None) => return Body { bytes, whole: true },
            Err(_) => return Body { bytes, whole: false },
        }
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
