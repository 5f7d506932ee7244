//! Messages published where no client should publish stop nothing.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::json;

use crate::support::account::Account;
use crate::support::daemon::Daemon;
use crate::support::python::{DEEP, publish_odd};
use crate::support::stage::{Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

/// More than RabbitMQ dead-letters from a queue at a time: 32.
const STRAYS: usize = 40;
const BATON: &str = "reveille.baton.prod";
const BATONS: usize = 100_000;
const JOBS: usize = 200;

const STEADY: Wishes<'_> =
    Wishes { lane: "rate = 50\nburst = 1\nconcurrency = 8", retry: "", fleet: "Stopped=800", sim: &[] };

async fn write(stage: &Stage, exchange: &str, key: &str, count: usize) {
    let strays = (0..count).map(|_| stage.queues.publish(exchange, key, BasicProperties::default(), b"stray"));
    stream::iter(strays).buffer_unordered(200).collect::<()>().await;
}

#[tokio::test]
async fn strays_in_the_delay_ladder_become_dead_letters_and_jobs_fall_through_it() {
    let mut stage = Stage::set().await;
    for level in ["00", "01", "02", "03"] {
        write(&stage, "", &format!("reveille.delay.{level}"), STRAYS).await;
    }
    // Through all four levels.
    let due = Timestamp::now() + Duration::from_secs(15);
    stage.job("i-sim00001", json!({"instance_id": "i-sim00001", "not_before": due.to_string()})).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    stage.queues.has("reveille.dead", 4 * STRAYS, 0).await;
    assert!(stage.dead().await.iter().all(|dead| dead.data == b"stray"), "kept whole");
}

/// Falling through the upper levels takes days, so messages are published where they would arrive.
#[tokio::test]
async fn at_every_level_a_key_that_is_no_parked_jobs_leads_to_the_dead_letters() {
    let stage = Stage::set().await;
    let mut count = 0;
    for level in 0..18 {
        let exchange =
            if level == 0 { "reveille.delay.return".to_owned() } else { format!("reveille.delay.{:02}", level - 1) };
        let own = format!("reveille.delay.{level:02}");
        let odd = (1..=18).map(|words| vec!["x"; words].join("."));
        for key in odd.chain([own, String::new(), "prod".to_owned(), "1.x".to_owned()]) {
            // At the foot, a message with the lane's name as key is a job.
            if level > 0 || key != "prod" {
                write(&stage, &exchange, &key, 1).await;
                count += 1;
            }
        }
    }
    stage.queues.has("reveille.dead", count, 0).await;
}

#[tokio::test]
async fn a_thousand_messages_in_each_other_queue_stop_nothing() {
    const STRAYS: usize = 1000;
    let mut stage = Stage::with(STEADY).await;
    let queues = ["urgent.prod", "due.prod", "jobs.prod", "dead", "replicas", "outcomes.log"];
    for queue in queues {
        write(&stage, "", &format!("reveille.{queue}"), STRAYS).await;
    }
    // Those in a lane's queues are unreadable jobs, each with an event and a dead letter.
    stage.queues.has("reveille.dead", 4 * STRAYS, 0).await;
    stage.queues.has("reveille.replicas", 0, 1).await;
    stage.daemon.kill().await;
    stage.daemon.start_again();
    stage.daemon.takes_the_lane().await;
    stage.wake("i-sim00001").await;
    eventually("the job is called", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.all_acked().await;
    held_once(&stage.daemon);
}

/// The lane was neither lost nor taken for lost.
fn held_once(daemon: &Daemon) {
    let output = daemon.child.output();
    assert_eq!(output.matches("lane held").count(), 1, "{output}");
    assert!(!output.contains("run anew") && !output.contains("connecting again"), "{output}");
}

/// Adds batons as fast as RabbitMQ accepts them.
async fn flood(stage: &Stage, count: usize, body: &[u8]) {
    let channel = stage.queues.connection.create_channel().await.unwrap();
    for _ in 0..count {
        let (options, none) = (BasicPublishOptions::default(), BasicProperties::default());
        channel.basic_publish("".into(), BATON.into(), options, body, none).await.unwrap();
    }
    // Answered once all of them were accepted.
    channel.close(200, "done".into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_batons_costs_no_replica_its_lane() {
    let mut stage = Stage::with(STEADY).await;
    let mut account = Account::open(&stage.vhost.url).await;
    let jobs = |round: usize| (round * JOBS + 1..=(round + 1) * JOBS).map(instance);
    let called = async |stage: &Stage, jobs: usize| {
        let calls = async || (stage.sim.log().await.len() >= jobs).then_some(());
        eventually("the jobs are called", calls).await;
    };

    account.submit(jobs(0), json!({})).await;
    flood(&stage, BATONS, b"x").await;
    account.submit(jobs(1), json!({})).await;
    called(&stage, 2 * JOBS).await;
    stage.queues.has(BATON, 0, 1).await;
    held_once(&stage.daemon);

    // And without any consumer, large ones first.
    stage.daemon.kill().await;
    flood(&stage, 40, &vec![0; 1024 * 1024]).await;
    flood(&stage, BATONS, b"x").await;
    account.submit(jobs(2), json!({})).await;
    stage.daemon.start_again();
    called(&stage, 3 * JOBS).await;
    stage.queues.has(BATON, 0, 1).await;
    held_once(&stage.daemon);

    // A flood that goes on while the lane moves from one replica to another.
    let second = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    second.ready().await;
    let on = async {
        loop {
            flood(&stage, 1000, b"x").await;
        }
    };
    account.submit(jobs(3), json!({})).await;
    let going_over = async {
        called(&stage, 3 * JOBS + JOBS / 2).await;
        held_once(&stage.daemon);
        stage.daemon.child.signal("KILL");
        second.takes_the_lane().await;
        called(&stage, 4 * JOBS).await;
    };
    tokio::select! {
        () = going_over => {}
        never = on => never,
    }
    held_once(&second);
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 4 * JOBS)].into());
}

/// RabbitMQ delivers such a message to one replica after the other.
#[tokio::test]
async fn a_baton_that_lapin_cannot_read_costs_no_replica_its_connection() {
    let mut stage = Stage::with(STEADY).await;
    let second = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    second.ready().await;
    for (queue, instance) in [("reveille.replicas", "i-sim00001"), (BATON, "i-sim00002")] {
        let odd = ["message_id", "name", "tables:most", "arrays:12600", "frame:131072"].map(|kind| (kind, "odd"));
        publish_odd(&stage.vhost.url, "", queue, &odd);
        stage.queues.has_within(DEEP, queue, 0, if queue == BATON { 1 } else { 2 }).await;
        stage.wake(instance).await;
        assert_eq!(stage.outcome().await["outcome"], "started");
    }
    stage.daemon.stop().await;
    second.holds_the_lane().await;
    stage.wake("i-sim00003").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    for output in [stage.daemon.child.output(), second.child.output()] {
        assert!(output.matches(" connected ").count() == 1 && !output.contains("is lost"), "{output}");
    }
}
