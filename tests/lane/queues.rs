//! The lane and its queues: retries do not starve new jobs, and an unroutable message does not count as stored.

use lapin::BasicProperties;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::support::stage::{Stage, Wishes};
use crate::support::{eventually, instance};

/// The exchange and routing key to which a job is published. A due one goes through the ladder's foot.
type Place = (&'static str, &'static str);
const NEW: Place = ("reveille.jobs", "prod");
const URGENT: Place = ("reveille.jobs", "prod.urgent");
const DUE: Place = ("reveille.delay.return", "0.prod");

async fn put(stage: &Stage, (exchange, key): Place, number: usize) {
    let instance = instance(number);
    let properties = BasicProperties::default().with_message_id(instance.as_str().into());
    let body = json!({ "instance_id": instance }).to_string();
    stage.queues.publish(exchange, key, properties, body.as_bytes()).await;
}

#[tokio::test]
async fn a_flood_of_due_jobs_leaves_new_ones_their_turn() {
    let lane = "rate = 50\nburst = 1\nconcurrency = 1";
    let mut stage = Stage::with(Wishes { fleet: "Stopped=50", lane, ..Wishes::default() }).await;
    stage.daemon.stop().await;
    for number in 1..=50 {
        // The first ten are new jobs.
        put(&stage, if number <= 10 { NEW } else { DUE }, number).await;
    }
    stage.daemon.start_again();
    stage.outcomes(50).await;
    let order: Vec<bool> = stage.sim.log().await.iter().map(|call| call.instance.as_str() <= "i-sim00010").collect();
    // Four due jobs and then a new one; the very first deliveries may come from one of the queues only.
    for (start, turn) in order.windows(10).enumerate().skip(5).take(35) {
        let new = turn.iter().filter(|new| **new).count();
        assert!((1..=3).contains(&new), "{new} of ten from call {start} on: {order:?}");
    }
}

/// Includes the single calls after a take-over.
#[tokio::test]
async fn no_more_calls_are_in_flight_than_the_lane_allows() {
    let lane = "rate = 50\nburst = 50\nconcurrency = 1\nbatch = 1";
    let mut stage = Stage::with(Wishes { lane, sim: &["--latency", "1s"], ..Wishes::default() }).await;
    stage.daemon.stop().await;
    for (number, place) in (1..=9).zip([NEW, URGENT, DUE].into_iter().cycle()) {
        put(&stage, place, number).await;
    }
    stage.daemon.start_again();
    stage.outcomes(9).await;
    let calls = stage.sim.log().await;
    for pair in calls.windows(2) {
        let apart = pair[1].unix_micros - pair[0].unix_micros;
        assert!(apart >= 1_000_000, "{apart} µs apart, where each takes a second: {calls:?}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_queues_that_are_missing() {
    let retry = "initial = \"200ms\"\n[shutdown]\ngrace = \"500ms\"";
    let mut stage = Stage::with(Wishes { retry, ..Wishes::default() }).await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let queue = "reveille.outcomes.log";
    // A foreign queue instead of the log, so that the daemon cannot declare and bind its own again.
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    channel.queue_delete(stage.events_queue(), QueueDeleteOptions::default()).await.unwrap();
    stage.wake("i-sim00001").await;
    eventually("the event is refused", async || {
        stage.daemon.child.output().contains("no queue takes messages").then_some(())
    })
    .await;
    stage.daemon.stop().await;
    stage.back(1).await;
}

#[tokio::test]
async fn an_outcome_that_no_queue_takes_keeps_its_job_until_one_does() {
    let stage = Stage::set().await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let (queue, key) = ("reveille.outcomes.log", "#");
    // A foreign queue instead of the log, so that the daemon cannot declare and bind its own again.
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    // The test's own queue accepts only events of its lane, as any user's might.
    let ours = stage.events_queue();
    channel.queue_delete(ours, QueueDeleteOptions::default()).await.unwrap();

    stage.wake("i-sim00001").await;
    eventually("the event is refused", async || {
        stage.daemon.child.output().contains("no queue takes messages").then_some(())
    })
    .await;
    let in_flight = r#"reveille_jobs_in_flight{lane="prod"}"#;
    assert_eq!(stage.daemon.metric(in_flight).await, 1.0, "the job is not acked");
    let ended = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;
    assert_eq!(stage.daemon.metric(ended).await, 0.0);

    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), "reveille.outcomes".into(), key.into(), options, none).await.unwrap();
    eventually("the event is taken", async || (stage.daemon.metric(ended).await == 1.0).then_some(())).await;
    stage.all_acked().await;
    assert_eq!(stage.sim.log().await.len(), 1, "the call was made once");
}
