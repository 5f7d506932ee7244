//! Replicas share lanes evenly, and moving a lane loses no job and does not raise its rate.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::{self, Vhost};
use crate::support::calls::Call;
use crate::support::daemon::Daemon;
use crate::support::pace::{self, Lateness};
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::{PATIENCE, eventually, instance};

const BURST: u32 = 2;
const REPLICAS: &str = "reveille.replicas";

/// Lanes, each with machines of its own, and the replicas that run them.
struct Fleet {
    lanes: usize,
    /// Machines of each lane.
    machines: usize,
    rate: f64,
    daemons: Vec<Daemon>,
    sim: Sim,
    vhost: Vhost,
}

impl Fleet {
    fn new(vhost: Vhost, lanes: usize, machines: usize, rate: f64, sim: &[&str]) -> Self {
        let sim = Sim::start(&[&["--fleet", &format!("Stopped={}", lanes * machines)], sim].concat());
        Self { lanes, machines, rate, daemons: Vec::new(), sim, vhost }
    }

    /// Starts one more replica, with these lanes.
    fn start(&mut self, lanes: Range<usize>) {
        let (broker, api, rate) = (&self.vhost.url, self.sim.url(), self.rate);
        let mut config = format!("[broker]\nurl = {broker:?}\n[http]\nlisten = \"127.0.0.1:0\"\n");
        for lane in lanes.map(name) {
            config += &format!("[[lane]]\nname = {lane:?}\nendpoint = {api:?}\nrate = {rate}\nburst = {BURST}\n");
        }
        self.daemons.push(Daemon::start_logging(&config, "reveille=info"));
    }

    async fn ready(&self) {
        for daemon in &self.daemons {
            daemon.ready().await;
        }
    }

    /// Waits until the replicas except `gone` hold this many lanes each.
    async fn even(&self, gone: Option<usize>, held: &[usize]) {
        let living: Vec<&Daemon> =
            self.daemons.iter().enumerate().filter(|(number, _)| Some(*number) != gone).map(|(_, one)| one).collect();
        let mut last = Vec::new();
        eventually("the lanes are shared evenly", async || {
            let mut now = Vec::new();
            for daemon in &living {
                now.push(held_by(daemon).await);
            }
            if now != last {
                println!("  lanes held: {now:?}");
                last = now;
            }
            (last == held).then_some(())
        })
        .await;
    }

    /// Submits jobs for these machines of every lane.
    async fn submit(&self, account: &mut Account, machines: Range<usize>) {
        for lane in 0..self.lanes {
            let first = lane * self.machines + 1;
            let instances = machines.clone().map(|machine| instance(first + machine));
            account.submit_to(&name(lane), instances, json!({})).await;
        }
    }

    /// How often a lane was given back.
    fn moves(&self) -> usize {
        self.daemons.iter().map(|daemon| daemon.child.output().matches("more lanes than our share").count()).sum()
    }

    /// Some of the jobs `submitted` to each lane are not called yet: all so far happened under load.
    async fn assert_busy(&self, submitted: usize) {
        let called = self.calls_of_each_lane().await;
        let left =
            |calls: &Vec<Call>| submitted - calls.iter().map(|call| &call.instance).collect::<BTreeSet<_>>().len();
        let left: Vec<usize> = called.iter().map(left).collect();
        let (least, most) = (left.iter().min().unwrap(), left.iter().max().unwrap());
        println!("  {least} to {most} of {submitted} jobs are left in each lane");
        assert!(*least > 0, "a lane had run out of jobs: {left:?}");
    }

    async fn calls_of_each_lane(&self) -> Vec<Vec<Call>> {
        let mut calls = vec![Vec::new(); self.lanes];
        for call in self.sim.log().await {
            let number: usize = call.instance.trim_start_matches("i-sim").parse().unwrap();
            calls[(number - 1) / self.machines].push(call);
        }
        calls
    }

    /// Every job started its machine, every machine once, and no lane was called too fast. Returns each lane's calls.
    async fn close(&self, mut account: Account, lateness: Lateness) -> Vec<Vec<Call>> {
        let jobs = self.lanes * self.machines;
        assert_eq!(account.close(2 * PATIENCE).await, [("started".to_owned(), jobs)].into());
        self.sim.every_machine_started_once(jobs).await;
        let calls = self.calls_of_each_lane().await;
        for calls in &calls {
            lateness.assert_pace(calls, self.rate, BURST);
        }
        calls
    }
}

fn name(lane: usize) -> String {
    format!("lane-{lane:02}")
}

async fn held_by(daemon: &Daemon) -> usize {
    let (_, metrics) = daemon.get("/metrics").await;
    metrics.lines().filter(|line| line.starts_with("reveille_lane_held{") && line.ends_with(" 1")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_lanes_are_even_once_there_are_three_replicas_after_a_death_and_after_a_return() {
    const LANES: usize = 30;
    // Three quarters of a minute's worth, and then half as many each time: more than are called while lanes move.
    const FIRST: usize = 90;
    const MORE: usize = 45;
    let mut fleet = Fleet::new(Vhost::alone(), LANES, FIRST + 2 * MORE, 2.0, &[]);
    // The worst case: one replica has them all.
    fleet.start(0..LANES);
    fleet.even(None, &[LANES]).await;
    let mut account = Account::open(&fleet.vhost.url).await;
    let lateness = Lateness::measure(&fleet.sim);
    fleet.submit(&mut account, 0..FIRST).await;
    let since = Instant::now();
    for _ in 1..3 {
        fleet.start(0..LANES);
    }
    fleet.even(None, &[10, 10, 10]).await;
    println!("even {:.1?} after two more were started, moves so far: {}", since.elapsed(), fleet.moves());
    fleet.assert_busy(FIRST).await;

    fleet.submit(&mut account, FIRST..FIRST + MORE).await;
    let since = Instant::now();
    fleet.daemons[0].kill().await;
    fleet.even(Some(0), &[15, 15]).await;
    println!("even {:.1?} after the death, moves so far: {}", since.elapsed(), fleet.moves());
    fleet.assert_busy(FIRST + MORE).await;

    fleet.submit(&mut account, FIRST + MORE..FIRST + 2 * MORE).await;
    let since = Instant::now();
    fleet.daemons[0].start_again();
    fleet.even(None, &[10, 10, 10]).await;
    println!("even {:.1?} after the return, moves so far: {}", since.elapsed(), fleet.moves());
    fleet.assert_busy(FIRST + 2 * MORE).await;
    // While RabbitMQ does not answer, no replica is counted until the next count.
    for daemon in &fleet.daemons {
        eventually("all are counted", async || (daemon.metric("reveille_replicas").await == 3.0).then_some(())).await;
    }
    fleet.close(account, lateness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_moves_under_load_is_called_for_no_job_twice() {
    const LANES: usize = 6;
    const MACHINES: usize = 400;
    let mut fleet = Fleet::new(broker::vhost(), LANES, MACHINES, 20.0, &["--latency", "100ms"]);
    fleet.start(0..LANES);
    fleet.even(None, &[LANES]).await;
    let mut account = Account::open(&fleet.vhost.url).await;
    let lateness = Lateness::measure(&fleet.sim);
    fleet.submit(&mut account, 0..MACHINES).await;
    fleet.start(0..LANES);
    fleet.even(None, &[3, 3]).await;
    assert!(fleet.sim.log().await.len() < LANES * MACHINES, "the moves come under load");
    assert_eq!(fleet.moves(), 3);

    let calls = fleet.close(account, lateness).await;
    assert!(calls.iter().all(|calls| calls.len() == MACHINES), "one call for each job");
    for (lane, calls) in calls.iter().enumerate() {
        let longest = pace::times(calls).windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
        println!("{}: no calls for {} ms at most", name(lane), longest / 1000);
    }
}

#[tokio::test]
async fn replicas_with_different_lanes_come_to_rest() {
    let mut fleet = Fleet::new(broker::vhost(), 6, 1, 100.0, &[]);
    fleet.start(0..4);
    fleet.ready().await;
    fleet.start(2..6);
    eventually("both are counted by both", async || {
        let seen =
            [fleet.daemons[0].metric("reveille_replicas").await, fleet.daemons[1].metric("reveille_replicas").await];
        (seen == [2.0, 2.0]).then_some(())
    })
    .await;
    let mut last = (0, Instant::now());
    eventually("no lane moves for as long as ten looks", async || {
        let moves = fleet.moves();
        if moves != last.0 {
            last = (moves, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(10)).then_some(())
    })
    .await;
    assert!(last.0 <= 8, "each lane once by each at most: {}", last.0);
    assert_eq!(held_by(&fleet.daemons[0]).await + held_by(&fleet.daemons[1]).await, 6);
}

#[tokio::test]
async fn a_replica_is_counted_while_it_lives_and_answers() {
    let mut fleet = Fleet::new(broker::vhost(), 4, 1, 100.0, &[]);
    for _ in 0..2 {
        fleet.start(0..4);
    }
    fleet.even(None, &[2, 2]).await;
    let since = Instant::now();
    fleet.daemons[0].child.signal("STOP");
    fleet.even(Some(0), &[4]).await;
    println!("all lanes taken over {:.1?} after SIGSTOP", since.elapsed());
    eventually("the frozen one is counted no more", async || {
        (fleet.daemons[1].metric("reveille_replicas").await == 1.0).then_some(())
    })
    .await;
    println!("counted no more {:.1?} after SIGSTOP", since.elapsed());
    fleet.daemons[0].child.signal("CONT");
    fleet.even(None, &[2, 2]).await;

    // Without its queue no replica is counted: it is declared again, and they are.
    let queues = Queues::connect(&fleet.vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    channel.queue_delete(REPLICAS.into(), QueueDeleteOptions::default()).await.unwrap();
    eventually("both are counted again", async || {
        let channel = queues.connection.create_channel().await.unwrap();
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue = channel.queue_declare(REPLICAS.into(), passive, FieldTable::default()).await.ok()?;
        (queue.consumer_count() == 2).then_some(())
    })
    .await;
    // A stopping replica is no longer counted before it exits, and the other takes all.
    fleet.daemons[1].child.signal("TERM");
    fleet.even(Some(1), &[4]).await;
}

#[tokio::test]
async fn replicas_that_cannot_be_counted_any_more_are_not_shown() {
    let mut fleet = Fleet::new(broker::vhost(), 2, 1, 100.0, &[]);
    fleet.start(0..2);
    let shown = async |replicas: f64| {
        eventually(&format!("{replicas} replicas are shown"), async || {
            (fleet.daemons[0].metric("reveille_replicas").await == replicas).then_some(())
        })
        .await;
    };
    shown(1.0).await;
    let may_read = |queues: &str| {
        fleet.vhost.node.ctl(&["set_permissions", "-p", &fleet.vhost.name, "guest", ".*", ".*", queues]);
    };
    may_read(r"^(?!reveille\.replicas$)");
    // Its subscription ends with the queue, and a new one is refused.
    let queues = Queues::connect(&fleet.vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    channel.queue_delete(REPLICAS.into(), QueueDeleteOptions::default()).await.unwrap();
    shown(0.0).await;
    may_read(".*");
    shown(1.0).await;
}
