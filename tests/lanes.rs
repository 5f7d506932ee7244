//! Several lanes in one daemon: what becomes of one is nothing to another, and those that idle cost little.

use std::fmt::Write;
use std::time::Duration;

use lapin::BasicProperties;
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use crate::support::broker;
use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::queues::Queues;
use crate::support::sim::Sim;

/// Jobs of the steady lane in one window, and how far apart.
const WINDOW: usize = 100;
const EVERY: Duration = Duration::from_millis(25);
/// Jobs that wait in the lane that is in trouble.
const FLOOD: usize = 3000;

/// A daemon with two lanes, each with a simulator of its own.
struct Scene {
    queues: Queues,
    troubled: Sim,
    steady: Sim,
    daemon: Daemon,
    called: usize,
}

impl Scene {
    async fn set(vhost: &str) -> Self {
        let troubled = Sim::start(&["--fleet", &format!("Stopped={FLOOD}")]);
        let steady = Sim::start(&["--fleet", "Stopped=2000"]);
        let lane = |name: &str, sim: &Sim| {
            format!("[[lane]]\nname = {name:?}\nendpoint = {:?}\nrate = 200\ntimeout = \"2s\"\n", sim.url())
        };
        let config = format!(
            "[broker]\nurl = {vhost:?}\n[http]\nlisten = \"127.0.0.1:0\"\n{}{}",
            lane("troubled", &troubled),
            lane("steady", &steady)
        );
        let daemon = Daemon::start(&config);
        daemon.ready().await;
        let queues = Queues::connect(vhost).await;
        for lane in ["troubled", "steady"] {
            let queue = format!("reveille.jobs.{lane}");
            eventually("jobs are taken", async || (queues.count(&queue).await.1 == 1).then_some(())).await;
        }
        Self { queues, troubled, steady, daemon, called: 0 }
    }

    async fn submit(&self, lane: &str, number: usize) {
        let instance = format!("i-sim{number:05}");
        let properties = BasicProperties::default().with_message_id(instance.as_str().into());
        let body = json!({ "instance_id": instance }).to_string();
        self.queues.publish("reveille.jobs", lane, properties, body.as_bytes()).await;
    }

    /// From a job's submission to its call, in microseconds: of a window's worth of jobs at a steady pace.
    async fn window(&mut self) -> Vec<i64> {
        let mut published = Vec::with_capacity(WINDOW);
        let mut pace = interval(EVERY);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in self.called + 1..=self.called + WINDOW {
            pace.tick().await;
            published.push(jiff::Timestamp::now().as_microsecond());
            self.submit("steady", number).await;
        }
        let all = self.called + WINDOW;
        let log =
            eventually("all are called", async || Some(self.steady.log().await).filter(|log| log.len() >= all)).await;
        let calls = &log[self.called..];
        self.called = all;
        calls.iter().zip(published).map(|(call, published)| call.unix_micros - published).collect()
    }
}

fn percentile(mut times: Vec<i64>, percent: usize) -> i64 {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// Windows with and without the trouble take turns, so that whatever else the machine does meets both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_api_hangs_does_not_slow_another() {
    let vhost = broker::vhost();
    let mut scene = Scene::set(&vhost.url).await;
    scene.troubled.faults(json!([{"fault": {"hang": "before"}}])).await;
    scene.window().await;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..3 {
        alone.extend(scene.window().await);
        let before = scene.troubled.log().await.len();
        for number in round * FLOOD / 3 + 1..=(round + 1) * FLOOD / 3 {
            scene.submit("troubled", number).await;
        }
        eventually("calls hang", async || (scene.troubled.log().await.len() > before).then_some(())).await;
        beside.extend(scene.window().await);
        scene.queues.take_all("reveille.jobs.troubled").await;
    }
    assert!(scene.daemon.child.output().contains("lane paused"), "it was in trouble");
    for percent in [50, 90] {
        let (alone, beside) = (percentile(alone.clone(), percent), percentile(beside.clone(), percent));
        #[expect(clippy::cast_precision_loss, reason = "some seconds")]
        let ratio = beside as f64 / alone as f64;
        println!("from submission to call, {percent} in 100 within: {alone} µs alone, {beside} µs beside, {ratio:.2}");
        // A call of the other lane takes two seconds to fail. What the machine does to both is left out of account.
        assert!(beside < 4 * alone + 200_000, "{beside} µs against {alone} µs");
    }
}

#[tokio::test]
async fn fifty_idle_lanes_take_less_than_fifty_mebibytes() {
    let vhost = broker::vhost();
    let mut config = format!("[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n", vhost.url);
    for number in 0..50 {
        // As in earnest, with TLS; nothing is called without a job.
        write!(config, "[[lane]]\nname = \"lane-{number}\"\nregion = \"bj\"\n").unwrap();
    }
    let daemon = Daemon::start(&config);
    daemon.ready().await;
    let held = || async { daemon.get("/readyz").await.1.matches(r#":"held""#).count() };
    eventually("all are held", async || (held().await == 50).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let resident = daemon.child.memory("VmRSS");
    println!("fifty idle lanes: {resident} KiB");
    assert!(resident < 50 * 1024, "{resident} KiB");
}
