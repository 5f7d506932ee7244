//! Two lanes in one daemon, one of them in trouble: the cost for the other one's jobs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Consumer};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::broker::{self, jobs_left};
use super::daemon::Daemon;
use super::queues::Queues;
use super::sim::Sim;
use super::{PATIENCE, eventually, instance};

/// Jobs of the steady lane in one window, and the time between them.
const WINDOW: usize = 100;
const EVERY: Duration = Duration::from_millis(25);
/// Waiting jobs of the lane in trouble, for each window with trouble.
const FLOOD: usize = 1000;
/// Calls of the lane in trouble fail after this time: longer than a window.
const TIMEOUT: Duration = Duration::from_secs(4);
/// A foreign queue without room for the events of the lane in trouble.
const FULL: &str = "full";

/// What goes wrong with one lane.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// Its API accepts calls and does not answer.
    Hangs,
    /// Its API bears a twentieth of its rate.
    Throttles,
    /// A queue that is bound to its outcomes refuses them.
    Refuses,
}

/// A daemon with two lanes, each with a simulator of its own.
struct Scene {
    vhost: broker::Vhost,
    queues: Queues,
    /// Events of the steady lane's jobs.
    events: Consumer,
    troubled: Sim,
    /// Kept for as long as the daemon calls it.
    _steady: Sim,
    daemon: Daemon,
    submitted: usize,
}

impl Scene {
    async fn set(rounds: usize) -> Self {
        let vhost = broker::vhost();
        let troubled = Sim::start(&["--fleet", &format!("Stopped={}", rounds * FLOOD)]);
        let steady = Sim::start(&["--fleet", &format!("Stopped={}", (2 * rounds + 1) * WINDOW)]);
        let lane = |name: &str, sim: &Sim| {
            let url = sim.url();
            format!("[[lane]]\nname = {name:?}\nendpoint = {url:?}\nrate = 200\ntimeout = \"{TIMEOUT:?}\"\n")
        };
        let config = format!(
            "[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n{}{}",
            vhost.url,
            lane("troubled", &troubled),
            lane("steady", &steady)
        );
        let daemon = Daemon::start(&config);
        daemon.ready().await;
        let queues = Queues::connect(&vhost.url).await;
        for lane in ["troubled", "steady"] {
            queues.has(&format!("reveille.jobs.{lane}"), 0, 1).await;
        }
        let events = queues.listen("reveille.outcomes", "steady.started").await;
        Self { vhost, queues, events, troubled, _steady: steady, daemon, submitted: 0 }
    }

    /// From a job's submission to its outcome's arrival, in microseconds: for a window's worth at a steady pace.
    async fn window(&mut self) -> Vec<u128> {
        let (queues, events, first) = (&self.queues, &mut self.events, self.submitted + 1);
        let publishing = async {
            let mut published = BTreeMap::new();
            let mut pace = interval(EVERY);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for number in first..first + WINDOW {
                pace.tick().await;
                published.insert(instance(number), Instant::now());
                submit(queues, "steady", number).await;
            }
            published
        };
        let listening = async {
            let mut ended = BTreeMap::new();
            while ended.len() < WINDOW {
                let event = events.next().await.expect("subscribed").expect("open");
                let arrived = Instant::now();
                let event: Value = serde_json::from_slice(&event.data).expect("an event is JSON");
                ended.insert(event["subject"].as_str().expect("it names its instance").to_owned(), arrived);
            }
            ended
        };
        let both = timeout(PATIENCE, futures_util::future::join(publishing, listening)).await;
        let (published, ended) = both.expect("every job ends");
        self.submitted += WINDOW;
        published.iter().map(|(instance, published)| ended[instance].duration_since(*published).as_micros()).collect()
    }

    /// Submits a flood of jobs to the lane in trouble; returns once the trouble occurs.
    async fn begin(&self, trouble: Trouble, round: usize) {
        match trouble {
            Trouble::Hangs => self.troubled.faults(json!([{"fault": {"hang": "before"}}])).await,
            Trouble::Throttles => drop(self.troubled.control("PUT", "limit", json!({ "rate": 10 })).await),
            Trouble::Refuses => self.bind_full().await,
        }
        let before = self.hits(trouble).await;
        let numbers = round * FLOOD + 1..=(round + 1) * FLOOD;
        futures_util::stream::iter(numbers.map(|number| submit(&self.queues, "troubled", number)))
            .buffer_unordered(100)
            .collect::<()>()
            .await;
        eventually("it is in trouble", async || (self.hits(trouble).await > before).then_some(())).await;
    }

    /// How often the trouble has occurred so far.
    async fn hits(&self, trouble: Trouble) -> usize {
        match trouble {
            Trouble::Hangs => self.troubled.log().await.iter().filter(|call| call.fault.is_some()).count(),
            Trouble::Throttles => self.troubled.log().await.iter().filter(|call| call.status == Some(429)).count(),
            Trouble::Refuses => self.daemon.child.output().matches("rejected the message").count(),
        }
    }

    /// Ends the trouble, removes the waiting jobs, and waits until the lane has nothing in hand.
    async fn end(&self, trouble: Trouble) {
        match trouble {
            Trouble::Hangs => self.troubled.faults(json!([])).await,
            Trouble::Throttles => drop(self.troubled.control("PUT", "limit", json!({ "rate": null })).await),
            Trouble::Refuses => {
                let channel = self.queues.connection.create_channel().await.unwrap();
                channel.queue_delete(FULL.into(), QueueDeleteOptions::default()).await.unwrap();
            }
        }
        eventually("nothing is left of it", async || {
            for queue in ["reveille.jobs.troubled", "reveille.due.troubled"] {
                self.queues.take_all(queue).await;
            }
            let is_held = self.daemon.get("/readyz").await.1.contains(r#""troubled":"held""#);
            (is_held && jobs_left(&self.vhost.url).is_empty()).then_some(())
        })
        .await;
    }

    async fn bind_full(&self) {
        let mut full = FieldTable::default();
        full.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
        full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
        let channel = self.queues.connection.create_channel().await.unwrap();
        channel.queue_declare(FULL.into(), QueueDeclareOptions::durable(), full).await.unwrap();
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(FULL.into(), "reveille.outcomes".into(), "troubled.*".into(), options, none).await.unwrap();
    }
}

async fn submit(queues: &Queues, lane: &str, number: usize) {
    let instance = instance(number);
    let properties = BasicProperties::default().with_message_id(instance.as_str().into());
    let body = json!({ "instance_id": instance }).to_string();
    queues.publish("reveille.jobs", lane, properties, body.as_bytes()).await;
}

fn percentile(mut times: Vec<u128>, percent: usize) -> u128 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// The percentile of the median window, which a machine that stalls for a second does not affect.
fn usual(windows: &[Vec<u128>], percent: usize) -> u128 {
    percentile(windows.iter().map(|times| percentile(times.clone(), percent)).collect(), 50)
}

/// What the trouble of one lane costs another: how long the other one's jobs take, window by window.
#[derive(Default)]
pub struct Cost {
    alone: Vec<Vec<u128>>,
    beside: Vec<Vec<u128>>,
}

impl Cost {
    /// Windows with and without the trouble alternate, so that other load on the machine affects both.
    pub async fn of(trouble: Trouble, rounds: usize) -> Self {
        let mut scene = Scene::set(rounds).await;
        scene.window().await;
        let mut cost = Self::default();
        for round in 0..rounds {
            cost.alone.push(scene.window().await);
            scene.begin(trouble, round).await;
            cost.beside.push(scene.window().await);
            // At its rate the lane would have called half of them.
            eventually("the trouble lasted: most jobs still wait", async || {
                (scene.queues.count("reveille.jobs.troubled").await.0 as usize > FLOOD / 2).then_some(())
            })
            .await;
            scene.end(trouble).await;
        }
        cost
    }

    /// The usual microseconds in which so many percent of the jobs ended: alone, and beside the lane in trouble.
    pub fn within(&self, percent: usize) -> (u128, u128) {
        (usual(&self.alone, percent), usual(&self.beside, percent))
    }
}
