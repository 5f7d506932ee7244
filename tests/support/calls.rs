//! The daemon tests' queries and settings of the simulator.

use serde_json::{Value, json};

use super::sim::Sim;

/// The operation of probes and of checks of keys.
pub const LIST: &str = "list";

impl Sim {
    /// The next answers for one instance, in order.
    pub async fn script(&self, instance: &str, answers: Value) {
        self.control("PUT", &format!("script/{instance}"), answers).await;
    }

    /// The faults from now on, a list of rules.
    pub async fn faults(&self, rules: Value) {
        self.control("PUT", "faults", json!({ "rules": rules })).await;
    }

    pub async fn set_status(&self, instance: &str, status: &str) {
        self.set_instance(instance, json!({ "status": status })).await;
    }

    /// The same with further fields, such as `hold` or `boots_into`.
    pub async fn set_instance(&self, instance: &str, state: Value) {
        self.control("PUT", &format!("instances/{instance}"), state).await;
    }

    /// Asserts that exactly so many machines were started, each by one call.
    pub async fn every_machine_started_once(&self, machines: usize) {
        let instances = self.control("GET", "instances", Value::Null).await;
        let starts = |instance: &Value| instance["starts"].as_u64().expect("a number");
        let started: Vec<&Value> =
            instances.as_array().expect("a list").iter().filter(|instance| starts(instance) > 0).collect();
        let often: Vec<&Value> = started.iter().filter(|instance| starts(instance) > 1).copied().collect();
        assert!(often.is_empty(), "started more than once: {often:?}");
        assert_eq!(started.len(), machines, "machines were started");
    }

    /// How many calls were made so far.
    pub async fn calls_made(&self) -> usize {
        let health = self.control("GET", "health", Value::Null).await;
        usize::try_from(health["calls"].as_u64().expect("a number")).expect("some thousands")
    }

    /// Every call so far, in order, as it was made.
    pub async fn wire(&self) -> Vec<Call> {
        self.calls().await.iter().enumerate().map(|(number, call)| Call::read(number, call)).collect()
    }

    /// The calls for instances so far, in order: a shared start call is a start of each. Probes and checks of keys, which
    /// are lists of whatever there is, are left out.
    pub async fn log(&self) -> Vec<Call> {
        self.wire().await.into_iter().filter(|call| call.operation != LIST).flat_map(Call::of_each).collect()
    }

    /// The operations of the calls for one instance, in order.
    pub async fn operations(&self, instance: &str) -> Vec<String> {
        let calls = self.log().await.into_iter();
        calls.filter(|call| call.instance == instance).map(|call| call.operation).collect()
    }
}

/// One call of the simulator's log.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its place in the log.
    pub number: usize,
    pub unix_micros: i64,
    pub operation: String,
    /// Empty if it named none, or several.
    pub instance: String,
    /// All named instances.
    pub instances: Vec<String>,
    pub status: Option<u64>,
    pub fault: Option<String>,
    pub took_effect: bool,
}

impl Call {
    fn read(number: usize, call: &Value) -> Self {
        let text = |key: &str| call[key].as_str().map(str::to_owned);
        Self {
            number,
            unix_micros: call["unix_micros"].as_i64().expect("a call has a time"),
            operation: text("operation").expect("a call has an operation"),
            instance: text("instance_id").unwrap_or_default(),
            instances: match &call["instance_ids"] {
                Value::Array(many) => many.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
                _ => text("instance_id").into_iter().collect(),
            },
            status: call["status"].as_u64(),
            fault: text("fault"),
            took_effect: call["took_effect"].as_bool().expect("a call took effect or not"),
        }
    }

    fn of_each(self) -> Vec<Self> {
        if self.operation != "batch_start" {
            return vec![self];
        }
        let start =
            |instance: &String| Self { operation: "start".to_owned(), instance: instance.clone(), ..self.clone() };
        self.instances.iter().map(start).collect()
    }

    /// Whether it was refused for several instances because of one, and so says nothing of each.
    pub fn refused_all(&self) -> bool {
        self.instances.len() > 1
            && self.fault.is_none()
            && self.status.is_some_and(|status| (400..429).contains(&status))
    }
}
