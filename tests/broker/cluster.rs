//! A cluster of three RabbitMQ nodes loses one or two of them under load: the lane goes on as soon as there is a
//! majority, and no job is lost.

use std::ops::RangeInclusive;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::support::account::{Account, LEDGER};
use crate::support::cluster::{Cluster, IGNORE, PAUSE, cluster};
use crate::support::daemon::Daemon;
use crate::support::pace::{self, Lateness};
use crate::support::proxy::Proxy;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{GLANCE, PATIENCE, eventually, instance};

const RATE: f64 = 50.0;
const BURST: u32 = 5;
const JOBS: &str = "reveille.jobs.prod";
/// RabbitMQ 3.10 loses the messages of a queue in a kill if the queue was declared less than about a second before.
const SETTLED: Duration = Duration::from_secs(3);

/// A daemon whose broker is a cluster behind a load balancer, and jobs.
struct Scene {
    vhost: String,
    account: Account,
    daemon: Daemon,
    /// Dropped before the simulator, which it calls.
    lateness: Lateness,
    sim: Sim,
    balancer: Proxy,
}

impl Scene {
    /// Everything is declared over node 0, which then leads every queue; then the daemon is connected to node `to`.
    async fn set(cluster: &Cluster, jobs: usize, to: usize) -> Self {
        let vhost = cluster.vhost();
        let balancer = Proxy::before(&cluster.urls([0, 1, 2])).await;
        let url = format!("{}/{vhost}", balancer.url);
        let sim = Sim::start(&["--fleet", &format!("Stopped={jobs}")]);
        let lane = format!("rate = {RATE}\nburst = {BURST}");
        let mut daemon = Daemon::start(&config(&url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() }));
        daemon.ready().await;
        let account = Account::open(&url).await.of_node(format!("{}/{vhost}", cluster.urls([0, 1, 2])[0]));
        if to != 0 {
            daemon.stop().await;
            balancer.prefer(&cluster.urls([to, (to + 1) % 3, (to + 2) % 3]));
            daemon.start_again();
            daemon.ready().await;
        }
        tokio::time::sleep(SETTLED).await;
        assert_eq!(cluster.leader(&vhost, JOBS), 0);
        let lateness = Lateness::measure(&sim);
        Self { vhost, account, daemon, lateness, sim, balancer }
    }

    async fn submit(&mut self, jobs: RangeInclusive<usize>) {
        self.account.submit(jobs.map(instance), json!({})).await;
    }

    async fn calls(&self) -> usize {
        self.sim.log().await.len()
    }

    /// Waits until this many calls were made in all.
    async fn called(&self, calls: usize) {
        eventually("calls are made", async || (self.calls().await >= calls).then_some(())).await;
    }

    async fn all_ended(&mut self, jobs: usize) {
        let waiting = async {
            while self.account.ended().await < jobs {
                tokio::time::sleep(GLANCE).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("after {PATIENCE:?}, {}", self.account.missing());
        }
    }

    /// Prints how long no call was made because of the event at `moment`.
    async fn print_silence(&self, what: &str, moment: Timestamp) {
        // Calls go on for a while with what is in hand as a node goes down.
        let after = Duration::from_secs(15);
        let silence = pace::silence(&pace::times(&self.sim.log().await), moment.as_microsecond(), after);
        println!("{what}: no calls for {silence:.1?}");
    }

    /// Every job started its machine, every machine once, and never too fast.
    async fn close(mut self, jobs: usize) {
        assert_eq!(self.account.close(PATIENCE).await, [("started".to_owned(), jobs)].into());
        self.sim.every_machine_started_once(jobs).await;
        self.lateness.assert_pace(&self.sim.wire().await, RATE, BURST);
    }
}

/// Either of the two: RabbitMQ may answer the replica that takes over with INTERNAL_ERROR while leaders move, and then
/// the other one gets the lane.
async fn one_holds(one: &Daemon, other: &Daemon) {
    eventually("one holds the lane and the other stands by", async || {
        let ready = one.get("/readyz").await.0 == 200 && other.get("/readyz").await.0 == 200;
        (ready && one.holds_the_lane().await != other.holds_the_lane().await).then_some(())
    })
    .await;
}

/// RabbitMQ 3.10 refuses everything over a channel that first met a queue while its leader was dead and no other
/// elected, for as long as that node is down. That moment is held here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_outcomes_is_killed_before_the_first_of_them_come() {
    let mut cluster = cluster().await;
    let mut scene = Scene::set(&cluster, 100, 1).await;
    cluster.elections(&scene.vhost, LEDGER, "suspend");
    cluster.kill(0);
    let elected = async || cluster.find_leader(&scene.vhost, JOBS).filter(|leader| *leader != 0);
    eventually("jobs have another leader", elected).await;
    scene.submit(1..=100).await;
    scene.called(50).await;
    // By then RabbitMQ 3.10 has refused their outcomes; RabbitMQ 4 delays the confirms.
    tokio::time::sleep(SETTLED).await;
    cluster.elections(&scene.vhost, LEDGER, "resume");
    scene.all_ended(100).await;
    cluster.restart(0);
    scene.close(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_of_the_jobs_is_killed_and_once_it_is_back_the_next() {
    let mut cluster = cluster().await;
    let mut scene = Scene::set(&cluster, 1000, 1).await;
    scene.submit(1..=500).await;
    scene.called(50).await;
    let calls = scene.calls().await;
    assert!(calls < 500, "the kill comes under load");
    let moment = Timestamp::now();
    cluster.kill(0);
    scene.called(calls + 50).await;
    scene.print_silence("leader killed", moment).await;
    scene.all_ended(500).await;
    cluster.restart(0);
    scene.daemon.ready().await;

    // The next leader may be the node that the daemon is connected to.
    let next = cluster.leader(&scene.vhost, JOBS);
    scene.submit(501..=1000).await;
    scene.called(550).await;
    let calls = scene.calls().await;
    assert!(calls < 1000, "the kill comes under load");
    let moment = Timestamp::now();
    cluster.kill(next);
    scene.called(calls + 50).await;
    scene.print_silence(&format!("node {next} killed"), moment).await;
    scene.all_ended(1000).await;
    cluster.restart(next);
    scene.close(1000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_that_the_holder_is_connected_to_is_killed() {
    let mut cluster = cluster().await;
    let mut scene = Scene::set(&cluster, 600, 1).await;
    // The other replica is connected to another node.
    scene.balancer.prefer(&cluster.urls([2, 0, 1]));
    let other = Daemon::start(&std::fs::read_to_string(&scene.daemon.config.path).unwrap());
    other.ready().await;
    assert!(scene.daemon.holds_the_lane().await && !other.holds_the_lane().await);
    scene.submit(1..=600).await;
    scene.called(50).await;
    let calls = scene.calls().await;
    assert!(calls < 600, "the kill comes under load");
    let moment = Timestamp::now();
    cluster.kill(1);
    scene.called(calls + 50).await;
    scene.print_silence("the holder's node killed", moment).await;
    one_holds(&scene.daemon, &other).await;
    cluster.restart(1);
    scene.close(600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_hangs_with_leaders_and_the_connection_is_left_for_another() {
    let mut cluster = cluster().await;
    let mut scene = Scene::set(&cluster, 800, 0).await;
    scene.submit(1..=800).await;
    scene.called(50).await;
    let calls = scene.calls().await;
    assert!(calls < 800, "it freezes under load");
    let moment = Timestamp::now();
    cluster.freeze(0);
    // As a load balancer does after failed health checks.
    scene.balancer.prefer(&cluster.urls([1, 2, 0]));
    // More than it had in hand.
    scene.called(calls + 150).await;
    scene.print_silence("node frozen", moment).await;
    // As an operator does.
    cluster.kill(0);
    cluster.restart(0);
    scene.close(800).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_jobs_wait_and_go_on_when_it_is_back() {
    let mut cluster = cluster().await;
    let mut scene = Scene::set(&cluster, 600, 0).await;
    scene.submit(1..=600).await;
    scene.called(50).await;
    cluster.kill(1);
    cluster.kill(2);
    // What was in hand may still be called, but nothing is confirmed any more, so nothing is acked.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let calls = scene.calls().await;
    assert!(calls < 600, "the lane came to rest");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(scene.calls().await, calls);
    assert!(scene.daemon.child.is_running());

    cluster.restart(1);
    scene.called(calls + 20).await;
    cluster.restart(2);
    scene.close(600).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_others_lose_sight_of_gives_up_the_lane_and_is_left_for_them() {
    let mut cluster = cluster().await;
    cluster.partitions_are(PAUSE);
    let mut scene = Scene::set(&cluster, 700, 2).await;
    scene.balancer.prefer(&cluster.urls([0, 1, 2]));
    let other = Daemon::start(&std::fs::read_to_string(&scene.daemon.config.path).unwrap());
    other.ready().await;
    let split = cluster.prepare_split(2);
    scene.submit(1..=500).await;
    scene.called(50).await;
    let moment = Timestamp::now();
    cluster.split_off(2, split);
    assert!(scene.calls().await < 500, "the split came under load");
    if cluster.can_pause() {
        // Its node pauses, so the holder connects to another one.
        let lost = "the connection to RabbitMQ is lost";
        eventually("the holder leaves", async || scene.daemon.child.output().contains(lost).then_some(())).await;
        one_holds(&scene.daemon, &other).await;
    } else {
        // It stays connected, receives no baton there, and makes no more calls.
        eventually("the other one holds the lane", async || other.holds_the_lane().await.then_some(())).await;
    }
    scene.print_silence("node 2 split off", moment).await;
    let calls = scene.calls().await;
    scene.submit(501..=700).await;
    scene.called(calls + 100).await;
    cluster.join_again(2);
    cluster.partitions_are(IGNORE);
    scene.all_ended(700).await;
    scene.close(700).await;
}
