//! The real simulator, steered through its control endpoint.

use std::process::Command;

use serde_json::{Value, json};

use super::child::Child;
use super::{eventually, http};

pub struct Sim {
    pub url: String,
    child: Child,
}

impl Sim {
    pub async fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bcc-sim"));
        command.env_clear().args(["--listen", "127.0.0.1:0"]).args(arguments);
        let child = Child::start(command);
        let url = eventually("the simulator listens", async || {
            let output = child.output();
            let (_, rest) = output.split_once("bcc-sim listening on ")?;
            rest.split_once('\n').map(|(url, _)| url.to_owned())
        })
        .await;
        Self { url, child }
    }

    pub async fn get(&self, path: &str) -> Value {
        let url = format!("{}/_sim/{path}", self.url);
        let text = http().get(url).send().await.expect("the simulator answers").text().await.expect("text");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    pub async fn put(&self, path: &str, body: Value) {
        let url = format!("{}/_sim/{path}", self.url);
        let response = http().put(url).body(body.to_string()).send().await.expect("the simulator answers");
        let status = response.status();
        assert!(status.is_success(), "{path}: {status}: {}", response.text().await.unwrap_or_default());
    }

    /// The next answers for one instance, one after the other.
    pub async fn script(&self, instance: &str, answers: Value) {
        self.put(&format!("script/{instance}"), answers).await;
    }

    pub async fn set_status(&self, instance: &str, status: &str) {
        self.put(&format!("instances/{instance}"), json!({ "status": status })).await;
    }

    /// Every call so far, in order.
    pub async fn calls(&self) -> Vec<Call> {
        let calls = self.get("calls").await;
        calls.as_array().expect("a list").iter().map(Call::read).collect()
    }

    /// The operations asked of one instance, in order.
    pub async fn operations(&self, instance: &str) -> Vec<String> {
        let calls = self.calls().await.into_iter();
        calls.filter(|call| call.instance == instance).map(|call| call.operation).collect()
    }
}

/// One call of the simulator's log.
#[derive(Debug, Clone)]
pub struct Call {
    pub unix_micros: i64,
    pub operation: String,
    pub instance: String,
    pub status: Option<u64>,
    pub fault: Option<String>,
    pub took_effect: bool,
}

impl Call {
    fn read(call: &Value) -> Self {
        let text = |key: &str| call[key].as_str().map(str::to_owned);
        Self {
            unix_micros: call["unix_micros"].as_i64().expect("a call has a time"),
            operation: text("operation").expect("a call has an operation"),
            instance: text("instance_id").unwrap_or_default(),
            status: call["status"].as_u64(),
            fault: text("fault"),
            took_effect: call["took_effect"].as_bool().expect("a call took effect or not"),
        }
    }
}
