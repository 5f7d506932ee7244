//! A real Prometheus that scrapes a daemon.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use jiff::Timestamp;
use serde_json::Value;

use super::child::Child;
use super::{eventually, http};

/// The job named in the alerts of docs/operations.md.
const JOB: &str = "reveille";
/// Also the timeout of a scrape.
const INTERVAL: &str = "1s";

/// The labels of a series.
pub type Labels = BTreeMap<String, String>;

pub struct Prometheus {
    child: Child,
    folder: PathBuf,
}

impl Prometheus {
    /// Starts one that scrapes the daemon at `target`, which may end later.
    pub fn start(target: &str) -> Self {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("the folder for test files is there");
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {INTERVAL}, scrape_timeout: {INTERVAL}}}\n\
             scrape_configs: [{{job_name: {JOB}, static_configs: [{{targets: [{target:?}]}}]}}]\n"
        );
        std::fs::write(&config, text).expect("it was just made");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg("--web.listen-address=127.0.0.1:0");
        Self { child: Child::start(command), folder }
    }

    /// The present result of an expression: its series, with their values. An alert fires if there are any.
    pub async fn query(&self, expression: &str) -> Vec<(Labels, f64)> {
        self.query_at(Timestamp::now(), expression).await
    }

    /// The result at an instant: where that is less than five minutes ahead, as if nothing changed until then.
    pub async fn query_at(&self, instant: Timestamp, expression: &str) -> Vec<(Labels, f64)> {
        let mut url = reqwest::Url::parse(&format!("http://{}/api/v1/query", self.address().await)).expect("a URL");
        url.query_pairs_mut().append_pair("query", expression).append_pair("time", &instant.to_string());
        let body = http().get(url).send().await.expect("Prometheus answers").text().await.expect("in UTF-8");
        let answer: Value = serde_json::from_str(&body).expect("in JSON");
        assert_eq!(answer["status"], "success", "{expression}: {body}");
        let data = &answer["data"];
        assert_eq!(data["resultType"], "vector", "{expression} is no alert: {body}");
        let series = data["result"].as_array().expect("a vector").iter();
        series
            .map(|series| {
                let labels = serde_json::from_value(series["metric"].clone()).expect("labels are texts");
                let value = series["value"][1].as_str().and_then(|value| value.parse().ok()).expect("a number");
                (labels, value)
            })
            .collect()
    }

    /// Waits until an expression has series, and returns them.
    pub async fn fires(&self, expression: &str) -> Vec<Labels> {
        eventually(expression, async || {
            let series = self.query(expression).await;
            (!series.is_empty()).then(|| series.into_iter().map(|(labels, _)| labels).collect())
        })
        .await
    }

    async fn address(&self) -> String {
        eventually("Prometheus is ready", async || {
            let output = self.child.output();
            output.contains("ready to receive web requests").then_some(())?;
            let (_, line) = output.split_once("\"Listening on\"")?;
            let (_, address) = line.split_once("address=")?;
            address.split_whitespace().next().map(str::to_owned)
        })
        .await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It still writes there until it has ended.
        self.child.signal("KILL");
        while self.child.is_running() {
            std::thread::sleep(super::GLANCE);
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
