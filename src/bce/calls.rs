//! The calls of the API.
//!
//! A list of states that could not be read as a whole says nothing of any instance; in a complete one, an absent
//! instance does not exist. Lists are read up to 1 MiB: 10 KiB for each of the hundred instances they can name.

use std::collections::{HashMap, HashSet};

use reqwest::Method;
use serde::Deserialize;
use serde_json::json;

use super::answer::{Answer, NoAnswer};
use super::client::{Body, Client, Request};
use super::instance::{InstanceId, InstanceState};

/// Most instances per call; the API refuses a call with more, as a whole
/// (<https://cloud.baidu.com/doc/BCC/s/4koffviai>, <https://cloud.baidu.com/doc/BCC/s/Zkyb0d4cj>).
pub const MOST_IDS: usize = 100;

/// Limit for answers about one instance, in bytes: errors have a few hundred, a describe a few thousand.
const ONE: usize = 64 * 1024;
/// Limit for a list of [`MOST_IDS`] instances: 10 KiB each, several times the size of one with many disks and tags.
/// With the calls in flight, this bounds the memory that a broken API can use.
const MANY: usize = 1024 * 1024;

/// The calls this client makes, by their names in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `PUT /v2/instance/{id}?start`
    Start,
    /// `GET /v2/instance/{id}`
    Describe,
    /// `GET /v2/instance?maxKeys=1`
    Probe,
    /// The same, to learn whether the keys are accepted.
    Check,
    /// `POST /v2/instance/listByInstanceId`
    States,
    /// `GET /v2/instance`, a page of it.
    List,
    /// `PUT /v2/instance/batchAction?start`
    StartBatch,
}

impl Operation {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Describe => "describe",
            Self::Probe => "probe",
            Self::Check => "check",
            Self::States => "states",
            Self::List => "list",
            Self::StartBatch => "start_batch",
        }
    }
}

/// An instance in an answer.
#[derive(Deserialize)]
struct Shown {
    id: Option<String>,
    status: String,
}

impl Client {
    /// Starts `instance`. A 2xx means that it was stopped and is starting now.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn start(&self, instance: &InstanceId) -> Result<Answer, NoAnswer> {
        let path = format!("/v2/instance/{instance}");
        let request = Request {
            method: Method::PUT,
            path: &path,
            query: &[("start", "")],
            body: None,
            limit: ONE,
            asks_for_the_time: false,
        };
        self.send(request).await.map(|(answer, _)| answer)
    }

    /// Asks for the state of `instance`; `None` beside a 2xx whose body could not be read.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn describe(&self, instance: &InstanceId) -> Result<(Answer, Option<InstanceState>), NoAnswer> {
        #[derive(Deserialize)]
        struct Described {
            instance: Shown,
        }
        let path = format!("/v2/instance/{instance}");
        let request =
            Request { method: Method::GET, path: &path, query: &[], body: None, limit: ONE, asks_for_the_time: false };
        let (answer, body) = self.send(request).await?;
        let described = if answer.from_proxy { None } else { serde_json::from_slice::<Described>(&body.bytes).ok() };
        Ok((answer, described.map(|described| InstanceState::parse(&described.instance.status))))
    }

    /// The cheapest list, to learn whether keys, clock, endpoint and network are good: a 2xx that is not
    /// [`from_proxy`](Answer::from_proxy) shows that they are.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn probe(&self) -> Result<Answer, NoAnswer> {
        let request = Request {
            method: Method::GET,
            path: "/v2/instance",
            query: &[("maxKeys", "1")],
            body: None,
            limit: ONE,
            asks_for_the_time: true,
        };
        self.send(request).await.map(|(answer, _)| answer)
    }

    /// Asks for the states of up to [`MOST_IDS`] instances. The API leaves out unknown ones, so they are absent from
    /// the map; `None` if the body could not be read as a whole, which says nothing of any instance.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn states(
        &self,
        instances: &[InstanceId],
    ) -> Result<(Answer, Option<HashMap<InstanceId, InstanceState>>), NoAnswer> {
        let request = Request {
            method: Method::POST,
            path: "/v2/instance/listByInstanceId",
            query: &[("maxKeys", "100")],
            body: Some(ids(instances)),
            limit: MANY,
            asks_for_the_time: false,
        };
        let (answer, body) = self.send(request).await?;
        let states = if is_told(&answer) { states(instances, &body) } else { None };
        Ok((answer, states))
    }

    /// Starts up to [`MOST_IDS`] instances. By its documentation the API starts all of them or, with a 409 that names
    /// none, not one; but a 2xx can name some that failed, without a reason. Those are returned; `None` if the body
    /// could not be read, so that any may have failed. [`Client::states`] shows their state.
    ///
    /// # Errors
    /// [`NoAnswer`], if there was none.
    pub async fn start_batch(&self, instances: &[InstanceId]) -> Result<(Answer, Option<Vec<InstanceId>>), NoAnswer> {
        let request = Request {
            method: Method::PUT,
            path: "/v2/instance/batchAction",
            query: &[("start", "")],
            body: Some(ids(instances)),
            limit: ONE,
            asks_for_the_time: false,
        };
        let (answer, body) = self.send(request).await?;
        let failed = if is_told(&answer) { failed(instances, &body) } else { None };
        Ok((answer, failed))
    }
}

/// Whether the API itself answered, with success.
fn is_told(answer: &Answer) -> bool {
    answer.is_success() && !answer.from_proxy
}

fn ids(instances: &[InstanceId]) -> Vec<u8> {
    json!({ "instanceIds": instances }).to_string().into_bytes()
}

/// The states of those of `instances` that a list names.
fn states(instances: &[InstanceId], body: &Body) -> Option<HashMap<InstanceId, InstanceState>> {
    #[derive(Deserialize)]
    struct List {
        instances: Vec<Shown>,
        /// There is another page, so an instance that is absent here may exist.
        #[serde(rename = "isTruncated", default)]
        is_truncated: bool,
    }
    let list = serde_json::from_slice::<List>(&body.bytes).ok().filter(|list| !list.is_truncated)?;
    let shown: HashMap<&str, InstanceState> = list
        .instances
        .iter()
        .filter_map(|shown| Some((shown.id.as_deref()?, InstanceState::parse(&shown.status))))
        .collect();
    let of = |instance: &InstanceId| Some((instance.clone(), *shown.get(instance.as_str())?));
    Some(instances.iter().filter_map(of).collect())
}

/// Those of `instances` that the answer to a batch names as failed. It may have no body.
fn failed(instances: &[InstanceId], body: &Body) -> Option<Vec<InstanceId>> {
    #[derive(Deserialize, Default)]
    struct Batch {
        #[serde(rename = "failedInstanceIdList", default)]
        failed: Option<HashSet<String>>,
    }
    let batch = match body.bytes.trim_ascii() {
        [] if body.whole => Batch::default(),
        bytes => serde_json::from_slice(bytes).ok()?,
    };
    let failed = batch.failed.unwrap_or_default();
    Some(instances.iter().filter(|instance| failed.contains(instance.as_str())).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids_of(texts: &[&str]) -> Vec<InstanceId> {
        texts.iter().map(|text| InstanceId::parse(text).unwrap()).collect()
    }

    fn body(text: &str) -> Body {
        Body { bytes: text.into(), whole: true }
    }

    #[test]
    fn a_list_tells_of_those_it_names_and_of_nobody_else() {
        let asked = ids_of(&["i-aaaa", "i-bbbb", "i-cccc"]);
        let list = r#"{"isTruncated":false,"instances":[{"id":"i-bbbb","status":"Running","more":1},
            {"id":"i-aaaa","status":"NotKnownYet"},{"id":"i-other","status":"Stopped"},{"status":"Error"}]}"#;
        let found = states(&asked, &body(list)).unwrap();
        let expected = [(asked[0].clone(), InstanceState::Passing), (asked[1].clone(), InstanceState::Running)];
        assert_eq!(found, HashMap::from(expected));
        assert_eq!(states(&asked, &body(r#"{"instances":[]}"#)), Some(HashMap::new()));
    }

    #[test]
    fn half_a_list_tells_of_nobody() {
        let asked = ids_of(&["i-aaaa"]);
        let whole = r#"{"instances":[{"id":"i-aaaa","status":"Running"}]}"#;
        assert!(states(&asked, &body(whole)).is_some());
        for text in ["", "{}", &whole[..30], r#"{"isTruncated":true,"instances":[]}"#, "<html>"] {
            assert_eq!(states(&asked, &body(text)), None, "{text}");
        }
    }

    #[test]
    fn a_batch_may_name_who_failed_or_say_nothing() {
        let asked = ids_of(&["i-aaaa", "i-bbbb"]);
        for text in ["", " ", "{}", r#"{"failedInstanceIdList":null}"#, r#"{"failedInstanceIdList":["i-other"]}"#] {
            assert_eq!(failed(&asked, &body(text)), Some(vec![]), "{text}");
        }
        let named = r#"{"requestId":"r","failedInstanceIdList":["i-bbbb","i-bbbb"]}"#;
        assert_eq!(failed(&asked, &body(named)), Some(ids_of(&["i-bbbb"])));
        for torn in [&named[..40], "<html>"] {
            assert_eq!(failed(&asked, &body(torn)), None, "{torn}");
        }
        assert_eq!(failed(&asked, &Body { bytes: Vec::new(), whole: false }), None);
    }
}
