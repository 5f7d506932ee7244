//! Broker, simulator and daemon, wired together: the beginning of most tests.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use lapin::message::Delivery;
use lapin::{BasicProperties, Consumer};
use serde_json::{Value, json};

use super::broker::{self, Vhost};
use super::daemon::Daemon;
use super::queues::Queues;
use super::sim::Sim;
use super::{PATIENCE, eventually, instance};

pub const LANE: &str = "prod";

pub struct Stage {
    pub vhost: Vhost,
    pub sim: Sim,
    pub daemon: Daemon,
    pub queues: Queues,
    events: Consumer,
}

/// A test's deviations from the usual stage.
#[derive(Default)]
pub struct Wishes<'a> {
    /// Lines of the lane's table. Fast by default, so that no test waits for the limiter.
    pub lane: &'a str,
    /// Lines of `[retry]`; by default eight attempts, close together.
    pub retry: &'a str,
    /// The simulator's fleet, 20 stopped instances by default.
    pub fleet: &'a str,
    /// Further arguments of the simulator.
    pub sim: &'a [&'a str],
}

impl Stage {
    pub async fn set() -> Self {
        Self::with(Wishes::default()).await
    }

    pub async fn with(wishes: Wishes<'_>) -> Self {
        Self::on(broker::vhost(), wishes).await
    }

    pub async fn on(vhost: Vhost, wishes: Wishes<'_>) -> Self {
        let fleet = if wishes.fleet.is_empty() { "Stopped=20" } else { wishes.fleet };
        let sim = Sim::start(&[&["--fleet", fleet], wishes.sim].concat());
        let daemon = Daemon::start(&config(&vhost.url, &sim.url(), &wishes));
        daemon.ready().await;
        let queues = Queues::connect(&vhost.url).await;
        // It may be ready before it holds the lane, and announces the lane before it subscribes.
        eventually("it takes jobs", async || (queues.count("reveille.jobs.prod").await.1 == 1).then_some(())).await;
        let events = queues.listen("reveille.outcomes", "prod.*").await;
        Self { vhost, sim, daemon, queues, events }
    }

    /// Publishes a job like a producer, under `id`.
    pub async fn job(&self, id: &str, body: Value) {
        self.message(BasicProperties::default().with_message_id(id.into()), body.to_string().as_bytes()).await;
    }

    /// A job with nothing but its instance, whose id it has.
    pub async fn wake(&self, instance: &str) {
        self.job(instance, json!({ "instance_id": instance })).await;
    }

    /// One each for the instances of these numbers, from 1 on, far faster than any lane calls.
    pub async fn wake_all(&self, instances: RangeInclusive<usize>) {
        let waking = instances.map(async |number| self.wake(&instance(number)).await);
        stream::iter(waking).buffer_unordered(200).collect::<()>().await;
    }

    pub async fn message(&self, properties: BasicProperties, body: &[u8]) {
        self.queues.publish("reveille.jobs", LANE, properties, body).await;
    }

    /// The next event, whole.
    pub async fn event(&mut self) -> Value {
        self.event_within(PATIENCE).await
    }

    /// The next event, whole, with another timeout.
    pub async fn event_within(&mut self, patience: Duration) -> Value {
        let next = tokio::time::timeout(patience, self.events.next()).await;
        let delivery =
            next.unwrap_or_else(|_| panic!("no event within {patience:?}")).expect("subscribed").expect("open");
        assert_eq!(delivery.properties.content_type().as_ref().unwrap().as_str(), "application/cloudevents+json");
        serde_json::from_slice(&delivery.data).expect("an event is JSON")
    }

    /// The data of the next `count` final outcomes, by job id. A second end of a job fails the test.
    pub async fn outcomes(&mut self, count: usize) -> BTreeMap<String, Value> {
        let mut outcomes = BTreeMap::new();
        while outcomes.len() < count {
            let event = self.event().await;
            let data = event["data"].clone();
            if data["final"] == true {
                let job = data["job_id"].as_str().expect("an outcome names its job").to_owned();
                assert!(outcomes.insert(job, data).is_none(), "a second end of one job: {event}");
            }
        }
        outcomes
    }

    /// The data of the single next outcome.
    pub async fn outcome(&mut self) -> Value {
        self.outcomes(1).await.into_values().next().expect("one was asked for")
    }

    /// The queue of the events, for a test to delete.
    pub fn events_queue(&self) -> lapin::types::ShortString {
        self.events.queue()
    }

    pub async fn dead(&self) -> Vec<Delivery> {
        self.queues.take_all("reveille.dead").await
    }

    /// Waits until so many jobs are back in the queue of new ones, without a consumer: a queue does not return the
    /// messages of a closed channel at once.
    pub async fn back(&self, jobs: usize) {
        self.queues.has("reveille.jobs.prod", jobs, 0).await;
    }

    /// Waits until no job is left in any queue, ready or unacked, except for dead letters.
    pub async fn all_acked(&self) {
        eventually("every job is acked", async || {
            (self.daemon.metric(r#"reveille_jobs_in_flight{lane="prod"}"#).await == 0.0).then_some(())
        })
        .await;
        for queue in ["reveille.urgent.prod", "reveille.due.prod", "reveille.jobs.prod"] {
            // A lane with a large prefetch has more than one consumer.
            eventually("nothing is left, and the lane is subscribed", async || {
                matches!(self.queues.count(queue).await, (0, 1..)).then_some(())
            })
            .await;
        }
    }
}

/// The configuration of a stage.
pub fn config(broker: &str, api: &str, wishes: &Wishes<'_>) -> String {
    let rate = if wishes.lane.contains("rate") { "" } else { "rate = 10000\nburst = 1000" };
    let retry = if wishes.retry.is_empty() { "initial = \"200ms\"\nmax = \"1s\"" } else { wishes.retry };
    let (mut lane, mut batch_of) = (wishes.lane.to_owned(), String::new());
    if let Some(batch) = batch(wishes.lane) {
        batch_of = format!("batch = {batch}\n");
        lane = slower(&lane);
    }
    format!(
        "[broker]\nurl = {broker:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[retry]\n{retry}\n\
         [[lane]]\nname = \"prod\"\nendpoint = {api:?}\n{rate}\n{batch_of}{lane}\n"
    )
}

/// With `REVEILLE_TEST_BATCH`, so many jobs share a call, unless a test sets that itself.
fn batch(lane: &str) -> Option<String> {
    std::env::var("REVEILLE_TEST_BATCH").ok().filter(|_| !lane.contains("batch"))
}

/// A tenth of the rate, if a test sets one, but at least ten calls a second: shared calls would finish all jobs before
/// any fault occurs.
fn slower(lane: &str) -> String {
    let slower = |line: &str| match line.strip_prefix("rate = ").and_then(|rate| rate.parse::<f64>().ok()) {
        Some(rate) => format!("rate = {:?}", rate.min((rate / 10.0).max(10.0))),
        None => line.to_owned(),
    };
    lane.lines().map(slower).collect::<Vec<_>>().join("\n")
}

/// Whether lanes have shared calls in this run of the tests.
pub fn in_batches() -> bool {
    batch("").is_some()
}
