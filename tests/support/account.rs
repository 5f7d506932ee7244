//! The accounting at the end of every test with faults.
//!
//! *Every job submitted has exactly one distinct final event id, and all events of that id have the same outcome; none
//! is missing; none is in two places.*

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use serde_json::{Value, json};

use super::queues::Queues;
use super::stage::LANE;
use super::{GLANCE, broker};

/// Keeps the events for the accounting: a quorum queue, so that it outlives connections and brokers.
pub const LEDGER: &str = "ledger";

/// The source of the events.
enum Ledger {
    Queue,
    /// The daemon's own log of outcomes, from this offset on: for tests that delete the exchange, and so every binding
    /// that the daemon does not make again.
    Log(i64),
}

/// The jobs of a test, and their events.
pub struct Account {
    url: String,
    /// The node whose queues are checked at the end: not that of `url` if that leads to a proxy or a load balancer.
    node: String,
    ledger: Ledger,
    /// Lanes to which jobs were submitted.
    lanes: BTreeSet<String>,
    submitted: BTreeSet<String>,
    /// By job: the id of its final event, and outcome and reason.
    ended: BTreeMap<String, (String, String, String)>,
    /// Final events, copies included.
    pub events: usize,
}

impl Account {
    /// Opens the account, before the first job is submitted and once the daemon has declared its exchanges.
    pub async fn open(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("the broker is there");
        let channel = connection.create_channel().await.expect("a channel");
        let mut quorum = FieldTable::default();
        quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        channel.queue_declare(LEDGER.into(), QueueDeclareOptions::durable(), quorum).await.expect("declared");
        let (exchange, options) = ("reveille.outcomes", QueueBindOptions::default());
        channel
            .queue_bind(LEDGER.into(), exchange.into(), "#".into(), options, FieldTable::default())
            .await
            .expect("bound");
        Self {
            url: url.to_owned(),
            node: url.to_owned(),
            ledger: Ledger::Queue,
            lanes: BTreeSet::new(),
            submitted: BTreeSet::new(),
            ended: BTreeMap::new(),
            events: 0,
        }
    }

    /// Opens the account on the daemon's log of outcomes.
    pub fn of_the_log(url: &str) -> Self {
        let ledger = Ledger::Log(0);
        Self {
            url: url.to_owned(),
            node: url.to_owned(),
            ledger,
            lanes: BTreeSet::new(),
            submitted: BTreeSet::new(),
            ended: BTreeMap::new(),
            events: 0,
        }
    }

    /// Sets the node whose queues are checked at the end, with its vhost.
    pub fn of_node(self, node: String) -> Self {
        Self { node, ..self }
    }

    /// Submits a job for each instance, under the instance's id, with `more` fields in its body.
    pub async fn submit(&mut self, instances: impl IntoIterator<Item = String>, more: Value) {
        self.submit_to(LANE, instances, more).await;
    }

    /// The same for another lane than the usual one.
    pub async fn submit_to(&mut self, lane: &str, instances: impl IntoIterator<Item = String>, more: Value) {
        self.submit_as(lane, lane, BasicProperties::default(), instances, more).await;
    }

    /// The same with a routing key and with properties.
    pub async fn submit_as(
        &mut self,
        lane: &str,
        key: &str,
        properties: BasicProperties,
        instances: impl IntoIterator<Item = String>,
        more: Value,
    ) {
        let queues = Queues::connect(&self.url).await;
        let instances: Vec<String> = instances.into_iter().collect();
        let publishing = instances.iter().map(|instance| {
            let mut body = json!({ "instance_id": instance });
            for (field, value) in more.as_object().into_iter().flatten() {
                body[field] = value.clone();
            }
            let properties = properties.clone().with_message_id(instance.as_str().into());
            let queues = &queues;
            async move { queues.publish("reveille.jobs", key, properties, body.to_string().as_bytes()).await }
        });
        stream::iter(publishing).buffer_unordered(200).collect::<()>().await;
        self.submitted.extend(instances);
        self.lanes.insert(lane.to_owned());
    }

    /// How many jobs have ended, as far as is known.
    pub async fn ended(&mut self) -> usize {
        // The broker may be down, or go down: then nothing more is known.
        if let Ok(connection) = Connection::connect(&self.url, ConnectionProperties::default()).await {
            let _ = self.read(&Queues::over(connection).await).await;
        }
        self.ended.len()
    }

    /// The jobs that have not ended, as far as is known.
    pub fn missing(&self) -> String {
        let missing: Vec<&String> = self.submitted.iter().filter(|job| !self.ended.contains_key(*job)).collect();
        let (count, of, some) = (missing.len(), self.submitted.len(), &missing[..missing.len().min(5)]);
        format!("{count} of {of} jobs have not ended: {some:?} …")
    }

    async fn read(&mut self, queues: &Queues) -> Result<(), lapin::Error> {
        let (messages, end) = match &mut self.ledger {
            Ledger::Queue => queues.take(LEDGER).await,
            Ledger::Log(from) => (queues.read_stream("reveille.outcomes.log", from).await, Ok(())),
        };
        for message in messages {
            let event: Value = serde_json::from_slice(&message.data).expect("an event is JSON");
            let data = &event["data"];
            if data["final"] != true {
                continue;
            }
            self.events += 1;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (job, told) =
                (text(&data["job_id"]), (text(&event["id"]), text(&data["outcome"]), text(&data["reason"])));
            assert!(self.submitted.contains(&job), "an end of a job nobody submitted: {event}");
            let before = self.ended.entry(job).or_insert_with(|| told.clone());
            assert_eq!(before, &told, "two ends of one job: {event}");
        }
        end
    }

    /// Waits until every job has ended and none is left in a queue, within `patience`, and closes the account.
    ///
    /// Returns how many jobs ended with each outcome, by `outcome` or `outcome reason`.
    pub async fn close(&mut self, patience: Duration) -> BTreeMap<String, usize> {
        let start = Instant::now();
        let queues = Queues::connect(&self.url).await;
        loop {
            self.read(&queues).await.expect("the ledger can be read");
            let left = self.left(&queues).await;
            if self.ended.len() == self.submitted.len() && left.is_empty() {
                break;
            }
            assert!(start.elapsed() < patience, "after {patience:?}, {}; left: {left:?}", self.missing());
            tokio::time::sleep(GLANCE * 4).await;
        }
        // A copy elsewhere would still publish its event.
        self.read(&queues).await.expect("the ledger can be read");
        let failed = self.ended.iter().filter(|(_, (_, outcome, _))| outcome == "failed" || outcome == "rejected");
        let failed: BTreeSet<&str> = failed.map(|(job, _)| job.as_str()).collect();
        let dead = queues.take_all("reveille.dead").await;
        let dead: BTreeSet<&str> =
            dead.iter().map(|message| message.properties.message_id().as_ref().expect("an id").as_str()).collect();
        assert_eq!(dead, failed, "dead are the jobs that failed, and no others");
        let mut counts = BTreeMap::new();
        for (_, outcome, reason) in self.ended.values() {
            *counts.entry(format!("{outcome} {reason}").trim_end().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Messages of jobs, ready or unacked, in any queue. Unacked ones are asked for once nothing else is missing, since
    /// that takes a moment.
    async fn left(&self, queues: &Queues) -> BTreeMap<String, u32> {
        let ready = self.ready(queues).await;
        if !ready.is_empty() || self.ended.len() < self.submitted.len() {
            return ready;
        }
        // Not on the test's own thread: a proxy that the daemon needs may run there.
        let node = self.node.clone();
        tokio::task::spawn_blocking(move || broker::jobs_left(&node)).await.expect("the broker is asked")
    }

    async fn ready(&self, queues: &Queues) -> BTreeMap<String, u32> {
        let levels = (0..18).map(|level| format!("reveille.delay.{level:02}"));
        let lanes =
            self.lanes.iter().flat_map(|lane| ["urgent", "due", "jobs"].map(|kind| format!("reveille.{kind}.{lane}")));
        let mut left = BTreeMap::new();
        for name in lanes.chain(levels) {
            let (ready, _) = queues.count(&name).await;
            if ready > 0 {
                left.insert(name, ready);
            }
        }
        left
    }
}
