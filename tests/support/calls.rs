//! What the daemon's tests ask of the simulator and order from it.

use serde_json::{Value, json};

use super::sim::Sim;

impl Sim {
    /// The next answers for one instance, one after the other.
    pub async fn script(&self, instance: &str, answers: Value) {
        self.control("PUT", &format!("script/{instance}"), answers).await;
    }

    /// The faults in force from now on, a list of rules.
    pub async fn faults(&self, rules: Value) {
        self.control("PUT", "faults", json!({ "rules": rules })).await;
    }

    pub async fn set_status(&self, instance: &str, status: &str) {
        self.control("PUT", &format!("instances/{instance}"), json!({ "status": status })).await;
    }

    /// Every call so far, in order.
    pub async fn log(&self) -> Vec<Call> {
        self.calls().await.iter().map(Call::read).collect()
    }

    /// The operations asked of one instance, in order.
    pub async fn operations(&self, instance: &str) -> Vec<String> {
        let calls = self.log().await.into_iter();
        calls.filter(|call| call.instance == instance).map(|call| call.operation).collect()
    }
}

/// One call of the simulator's log.
#[derive(Debug, Clone)]
pub struct Call {
    pub unix_micros: i64,
    pub operation: String,
    pub instance: String,
    /// Those that a call for many names.
    pub instances: Vec<String>,
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
            instances: serde_json::from_value(call["instance_ids"].clone()).unwrap_or_default(),
            status: call["status"].as_u64(),
            fault: text("fault"),
            took_effect: call["took_effect"].as_bool().expect("a call took effect or not"),
        }
    }
}
