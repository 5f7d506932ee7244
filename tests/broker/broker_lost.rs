//! RabbitMQ stops and restarts; the lane recovers, and no job is lost.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;

use crate::support::broker::Node;
use crate::support::daemon::Daemon;
use crate::support::scene::Scene;
use crate::support::stage::Wishes;
use crate::support::{PATIENCE, eventually};

const STARTED: &str = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;

/// A hundred jobs a second.
const STEADY: Wishes<'_> = Wishes { lane: "rate = 100\nburst = 1\nconcurrency = 8", retry: "", fleet: "", sim: &[] };

/// Slow enough to last until `rabbitmqctl` is done, which takes seconds on a busy machine.
const SLOW: Wishes<'_> = Wishes { lane: "rate = 40\nburst = 1\nconcurrency = 8", ..STEADY };

#[tokio::test]
async fn a_killed_broker_is_waited_for_and_no_job_is_lost() {
    let mut scene = Scene::set(800, STEADY).await;
    scene.submit(1..801, json!({})).await;
    for called in [100, 200] {
        scene.calls(called).await;
        scene.node.kill();
        assert!(scene.sim.log().await.len() < 800, "the kill came under load");
        assert_eq!(scene.readiness(r#""prod":"waiting""#).await, 503);
        assert_eq!(scene.daemon.metric("reveille_broker_connected").await, 0.0);
        assert!(scene.daemon.child.is_running());
        scene.node.restart();
        scene.daemon.ready().await;
    }
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 800)].into());
    scene.sim.every_machine_started_once(800).await;
    assert!(scene.daemon.holds_the_lane().await);
    scene.daemon.stop().await;
}

#[tokio::test]
async fn a_broker_that_stops_or_closes_every_connection_is_waited_for_and_no_job_is_lost() {
    let mut scene = Scene::set(800, SLOW).await;
    let closing = scene.node.prepare(r#"rabbit_networking:close_all_connections("spring cleaning")"#);
    scene.submit(1..801, json!({})).await;
    scene.calls(40).await;
    closing.now();
    assert!(scene.sim.log().await.len() < 800, "it comes under load");
    eventually("it is noticed", async || scene.daemon.child.output().contains("spring cleaning").then_some(())).await;
    scene.daemon.ready().await;
    scene.calls(200).await;
    assert!(scene.sim.log().await.len() < 800, "the restart comes under load");
    scene.node.restart();
    scene.daemon.ready().await;
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 800)].into());
    scene.sim.every_machine_started_once(800).await;
}

/// Sets RabbitMQ's memory alarm.
const SHORT_OF_MEMORY: &str = "vm_memory_monitor:set_vm_memory_high_watermark(0.00001)";

#[tokio::test]
async fn a_broker_short_of_memory_is_waited_for_and_no_connection_given_up() {
    let mut scene = Scene::set(800, SLOW).await;
    let alarm = scene.node.prepare(SHORT_OF_MEMORY);
    scene.submit(1..801, json!({})).await;
    scene.calls(40).await;
    alarm.now();
    assert!(scene.sim.log().await.len() < 800, "the alarm comes under load");
    assert_eq!(scene.readiness("blocked: low on memory").await, 503);
    assert_eq!(scene.daemon.metric("reveille_broker_blocked").await, 1.0);
    // A daemon that starts meanwhile is worse off: it does not even have a baton.
    let config = std::fs::read_to_string(&scene.daemon.config.path).unwrap();
    let second = Daemon::start(&config);
    eventually("it says so", async || second.get("/readyz").await.1.contains("blocked: ").then_some(())).await;

    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = scene.daemon.metric(STARTED).await;
    // Longer than heartbeats, and longer than a daemon waits for a baton if the broker is not blocked.
    tokio::time::sleep(Duration::from_secs(33)).await;
    assert_eq!(scene.daemon.metric(STARTED).await, ended, "nothing ends meanwhile");

    scene.node.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    for daemon in [&scene.daemon, &second] {
        daemon.ready().await;
        assert_eq!(daemon.metric("reveille_broker_blocked").await, 0.0);
        assert_eq!(daemon.child.output().matches(" connected ").count(), 1, "{}", daemon.child.output());
    }
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 800)].into());
    scene.sim.every_machine_started_once(800).await;
    assert_eq!(scene.sim.log().await.len(), 800, "no call was made twice");
}

#[tokio::test]
async fn a_stop_while_the_broker_is_short_of_memory_ends_in_time_and_no_job_is_lost() {
    let lane = "rate = 40\nburst = 1\nconcurrency = 8\n[shutdown]\ngrace = \"2s\"";
    let mut scene = Scene::set(400, Wishes { lane, ..STEADY }).await;
    let config = std::fs::read_to_string(&scene.daemon.config.path).unwrap();
    let mut second = Daemon::start(&config);
    second.ready().await;
    let alarm = scene.node.prepare(SHORT_OF_MEMORY);
    scene.submit(1..401, json!({})).await;
    scene.calls(40).await;
    alarm.now();
    assert!(scene.sim.log().await.len() < 400, "the alarm comes under load");
    // One holds the lane, one stands by, and one does not even have a baton. RabbitMQ blocks only publishers.
    let mut third = Daemon::start(&config);
    for daemon in [&scene.daemon, &third] {
        eventually("it says so", async || daemon.get("/readyz").await.1.contains("blocked: ").then_some(())).await;
    }
    for daemon in [&mut scene.daemon, &mut second, &mut third] {
        daemon.child.signal("TERM");
    }
    for daemon in [&mut scene.daemon, &mut second, &mut third] {
        assert_eq!(daemon.child.ended().await.code(), Some(0), "{}", daemon.child.output());
    }
    scene.node.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    scene.daemon.start_again();
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 400)].into());
    scene.sim.every_machine_started_once(400).await;
}

#[tokio::test]
async fn a_broker_short_of_disk_is_waited_for_and_no_connection_given_up() {
    let mut scene = Scene::set(800, SLOW).await;
    let alarm = scene.node.prepare(r#"rabbit_disk_monitor:set_disk_free_limit("1000000GB")"#);
    scene.submit(1..801, json!({})).await;
    scene.calls(40).await;
    alarm.now();
    assert!(scene.sim.log().await.len() < 800, "the alarm comes under load");
    assert_eq!(scene.readiness("blocked: low on disk").await, 503);
    assert_eq!(scene.daemon.metric("reveille_broker_blocked").await, 1.0);
    scene.node.ctl(&["set_disk_free_limit", "50MB"]);
    scene.daemon.ready().await;
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 800)].into());
    assert_eq!(scene.sim.log().await.len(), 800, "no call was made twice");
    assert_eq!(scene.daemon.child.output().matches(" connected ").count(), 1, "{}", scene.daemon.child.output());
}

#[tokio::test]
async fn ten_thousand_parked_jobs_outlive_their_broker() {
    let mut scene = Scene::set(10_000, Wishes::default()).await;
    // A busy machine needs half a minute to park them.
    let due = Timestamp::now() + PATIENCE;
    scene.submit(1..10_001, json!({ "not_before": due.to_string() })).await;
    let parked = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;
    eventually("all are parked", async || (scene.daemon.metric(parked).await >= 10_000.0).then_some(())).await;
    assert!(scene.daemon.metric(STARTED).await < 10_000.0, "the broker goes while they are in the ladder");
    scene.node.kill();
    scene.node.restart();
    // What a queue could not dead-letter as it came back, RabbitMQ retries after three minutes.
    assert_eq!(scene.account.close(PATIENCE * 5).await, [("started".to_owned(), 10_000)].into());
    scene.sim.every_machine_started_once(10_000).await;
    let calls = scene.sim.log().await;
    assert!(calls.iter().all(|call| call.unix_micros >= due.as_microsecond()), "none is called before its time");
    println!("the last one {} s after it", (calls[calls.len() - 1].unix_micros - due.as_microsecond()) / 1_000_000);
}

#[tokio::test]
async fn a_delivery_held_longer_than_the_broker_allows_is_lost_to_nobody() {
    let node = Node::start(&["--conf", "consumer_timeout = 8000"]);
    // The broker checks once a minute otherwise.
    node.ctl(&["eval", "application:set_env(rabbit, channel_tick_interval, 1000)."]);
    let url = node.url.clone();
    let lane = "rate = 20\nburst = 1\nconcurrency = 8\ntimeout = \"60s\"";
    let mut scene = Scene::on(node, &url, 300, Wishes { lane, ..Wishes::default() }).await;
    scene.sim.script("i-sim00001", json!([{"hang": "after"}])).await;
    scene.submit(1..301, json!({})).await;
    // Up to 4.2 RabbitMQ closes the channel, which the daemon may not notice: what RabbitMQ sends after that makes
    // lapin end the connection. Since 4.3 it cancels the consumer, and logs nothing.
    let log = scene.node.folder.join("log/node.log");
    eventually("the broker takes it back", async || {
        let closed = std::fs::read_to_string(&log).ok()?.contains("has timed out waiting for");
        let ended = "the broker ended the subscription to reveille.jobs.prod";
        (closed || scene.daemon.child.output().contains(ended)).then_some(())
    })
    .await;
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 300)].into());
    scene.sim.every_machine_started_once(300).await;
    let operations = scene.sim.operations("i-sim00001").await;
    assert_eq!(operations, ["start", "start", "describe"], "called again, and not taken for somebody else's");
}
