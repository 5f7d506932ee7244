//! Starts the simulator and calls it, signed and unsigned, like a client.

#![allow(dead_code, reason = "each test that starts a simulator uses another part of this")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use reveille::bce::sign::{self, SignedHeaders};
use serde_json::Value;

use super::eventually;

pub const KEY: &str = "sim-access-key";
pub const SECRET: &str = "sim-secret-key";

/// A running `bcc-sim`, killed when dropped.
pub struct Sim {
    child: Child,
    pub address: String,
    client: reqwest::Client,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }

    /// Status and error code, empty if there is none.
    pub fn verdict(&self) -> (u16, String) {
        let json: Value = serde_json::from_str(&self.body).unwrap_or_default();
        (self.status, json["code"].as_str().unwrap_or_default().to_owned())
    }
}

/// How a call is signed, if not in the usual way.
pub struct Signing<'a> {
    pub key: &'a str,
    pub secret: &'a str,
    pub signed: SignedHeaders<'a>,
    /// Sent with the call; those that are not listed are not signed.
    pub headers: Vec<(&'a str, &'a str)>,
    /// The offset of the client's clock.
    pub skew: SignedDuration,
}

impl Default for Signing<'_> {
    fn default() -> Self {
        let signed = SignedHeaders::Listed(&["host", "x-bce-date"]);
        Self { key: KEY, secret: SECRET, signed, headers: Vec::new(), skew: SignedDuration::ZERO }
    }
}

impl Sim {
    /// On a free port, with these further flags.
    pub fn start(flags: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", flags)
    }

    /// At this address, for instance that of an earlier one.
    pub fn start_at(address: &str, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bcc-sim"))
            .args(["--listen", address])
            .args(flags)
            .env_remove("BCC_SIM_ACCESS_KEY_ID")
            .env_remove("BCC_SIM_SECRET_ACCESS_KEY")
            .env_remove("BCC_SIM_SESSION_TOKEN")
            .stdout(Stdio::piped())
            .spawn()
            .expect("bcc-sim starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("bcc-sim listening on http://").expect("its first line").to_owned();
        // http:// uses no TLS, but reqwest needs a provider all the same. A second install is refused: fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let redirect = reqwest::redirect::Policy::none();
        let client = reqwest::Client::builder().no_proxy().redirect(redirect).timeout(Duration::from_secs(10)).build();
        Self { child, address, client: client.unwrap() }
    }

    /// The endpoint for a lane.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The id of the process, to send signals to.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it. Nothing listens at its address any more.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        eventually("the simulator ends", async || self.child.try_wait().unwrap()).await
    }

    /// A signed call. `target` is path and query.
    pub async fn call(&self, method: &str, target: &str, body: &str) -> Answer {
        self.call_signed(method, target, body, Signing::default()).await
    }

    pub async fn start_instance(&self, id: &str) -> Answer {
        self.call("PUT", &format!("/v2/instance/{id}?start"), "").await
    }

    pub async fn call_signed(&self, method: &str, target: &str, body: &str, signing: Signing<'_>) -> Answer {
        let headers = self.signed_headers(method, target, body, &signing);
        self.send(method, target, body, &headers).await
    }

    /// The headers of a signed call, `Host` and `Content-Length` among them, as they go on the wire.
    pub fn signed_headers(
        &self,
        method: &str,
        target: &str,
        body: &str,
        signing: &Signing<'_>,
    ) -> Vec<(String, String)> {
        let now = Timestamp::now() + signing.skew;
        let (date, length) = (sign::date(now), body.len().to_string());
        let mut headers = vec![("host", self.address.as_str()), ("content-length", &length)];
        if !signing.headers.iter().any(|(name, _)| *name == "x-bce-date") {
            headers.push(("x-bce-date", &date));
        }
        headers.extend(&signing.headers);
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let query: Vec<(&str, &str)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .collect();
        let request = sign::Request { method, path, query: &query, headers: &headers };
        let text = sign::authorization(signing.key, signing.secret, now, sign::EXPIRATION, request, signing.signed);
        headers.push(("authorization", &text));
        headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    pub async fn send(&self, method: &str, target: &str, body: &str, headers: &[(String, String)]) -> Answer {
        let url = format!("http://{}{target}", self.address);
        let mut request = self.client.request(Method::from_bytes(method.as_bytes()).unwrap(), url);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let response = request.body(body.to_owned()).send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.text().await.expect("a whole body") }
    }

    /// A signed call over a separate connection.
    pub fn raw(&self, method: &str, target: &str) -> RawCall {
        let mut request = format!("{method} {target} HTTP/1.1\r\n");
        for (name, value) in self.signed_headers(method, target, "", &Signing::default()) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str("connection: close\r\n\r\n");
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        RawCall(stream)
    }

    /// A control request that must succeed.
    pub async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(method, &format!("/_sim/{path}"), &body, &[]).await;
        assert_eq!(answer.status, 200, "{method} /_sim/{path} {body}: {}", answer.body);
        answer.json()
    }

    pub async fn calls(&self) -> Vec<Value> {
        self.control("GET", "calls", Value::Null).await.as_array().unwrap().clone()
    }

    /// The instance as the simulator has it.
    pub async fn instance(&self, id: &str) -> Value {
        let all = self.control("GET", "instances", Value::Null).await;
        all.as_array().unwrap().iter().find(|one| one["id"] == id).cloned().unwrap_or_default()
    }
}

/// A call that was sent.
pub struct RawCall(TcpStream);

impl RawCall {
    /// The raw bytes that arrived, and how it ended.
    pub fn answer(mut self, patience: Duration) -> (String, std::io::Result<()>) {
        self.0.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = Vec::new();
        let end = self.0.read_to_end(&mut bytes).map(|_| ());
        (String::from_utf8_lossy(&bytes).into_owned(), end)
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.stop();
    }
}
