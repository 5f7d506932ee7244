//! A huge batch does not delay a small urgent one, and urgent jobs starve no others.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use serde_json::json;

use crate::support::account::Account;
use crate::support::stage::{LANE, Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

const URGENT: &str = "prod.urgent";

fn instances(numbers: std::ops::RangeInclusive<usize>) -> impl Iterator<Item = String> {
    numbers.map(instance)
}

/// A slow lane, so that a batch waits.
async fn stage(jobs: usize, rate: usize) -> (Stage, Account) {
    stage_with(jobs, rate, "").await
}

/// The same with a further line in the lane's table.
async fn stage_with(jobs: usize, rate: usize, more: &str) -> (Stage, Account) {
    let fleet = format!("Stopped={jobs}");
    let lane = format!("rate = {rate}\nburst = 1\nconcurrency = 4\n{more}");
    let stage = Stage::with(Wishes { fleet: &fleet, lane: &lane, ..Wishes::default() }).await;
    let account = Account::open(&stage.vhost.url).await;
    (stage, account)
}

/// The instances in the order in which they were called.
async fn called(stage: &Stage) -> Vec<String> {
    stage.sim.log().await.into_iter().map(|call| call.instance).collect()
}

#[tokio::test]
async fn an_urgent_job_overtakes_the_batch_that_waits() {
    overtakes(300, 25, 1).await;
}

/// Twenty jobs share a call, and it is in one of the next calls.
#[tokio::test]
async fn an_urgent_job_overtakes_jobs_that_are_called_together() {
    overtakes(2500, 10, 20).await;
}

/// The last of `jobs` is urgent, and comes while the others wait for a lane of this rate that calls `batch` at a time.
async fn overtakes(jobs: usize, rate: usize, batch: usize) {
    let (mut stage, mut account) = stage_with(jobs, rate, &format!("batch = {batch}")).await;
    // So that none is called before all are there, however long submitting takes.
    stage.daemon.stop().await;
    account.submit(instances(1..=jobs - 1), json!({})).await;
    stage.daemon.start_again();
    eventually("the batch is on its way", async || (stage.sim.calls_made().await >= 10).then_some(())).await;
    let before = stage.sim.calls_made().await;
    account.submit_as(LANE, URGENT, BasicProperties::default(), instances(jobs..=jobs), json!({})).await;
    let confirmed = stage.sim.calls_made().await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), jobs)].into());
    let urgent = instance(jobs);
    let calls = stage.sim.wire().await;
    let place = calls.iter().position(|call| call.instances.contains(&urgent)).unwrap();
    println!("submitted after {before} to {confirmed} calls, called after {place} of {}", calls.len());
    // A second's worth is more than any delivery takes; without a queue of its own it would have been the last.
    assert!(place <= confirmed + rate, "after {place} calls, {confirmed} of them before it was there");
    assert!(confirmed + rate < calls.len() - rate, "it had others to overtake: {} calls", calls.len());
}

#[tokio::test]
async fn a_flood_of_urgent_jobs_leaves_the_others_their_turn() {
    let (mut stage, mut account) = stage(100, 50).await;
    stage.daemon.stop().await;
    account.submit(instances(1..=12), json!({})).await;
    account.submit_as(LANE, URGENT, BasicProperties::default(), instances(13..=100), json!({})).await;
    stage.daemon.start_again();
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 100)].into());
    let order: Vec<bool> = called(&stage).await.iter().map(|instance| instance.as_str() <= "i-sim00012").collect();
    // Four urgent ones and then a new one; the very first deliveries may come from one of the queues only.
    for (start, turn) in order.windows(10).enumerate().skip(5).take(40) {
        let new = turn.iter().filter(|new| **new).count();
        assert!((1..=3).contains(&new), "{new} of ten from call {start} on: {order:?}");
    }
}

#[tokio::test]
async fn urgent_jobs_outlive_a_kill_and_come_back_from_the_ladder() {
    let (mut stage, mut account) = stage(120, 100).await;
    for instance in instances(1..=120).step_by(7) {
        stage.sim.script(&instance, json!([{"status": 503}])).await;
    }
    account.submit(instances(1..=60), json!({})).await;
    account.submit_as(LANE, URGENT, BasicProperties::default(), instances(61..=120), json!({})).await;
    for calls in [20, 60] {
        eventually("calls are made", async || (called(&stage).await.len() >= calls).then_some(())).await;
        stage.daemon.kill().await;
        stage.daemon.start_again();
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 120)].into());
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for call in stage.sim.log().await.iter().filter(|call| call.status == Some(200) && call.operation == "start") {
        *counts.entry(call.instance.clone()).or_default() += 1;
    }
    assert_eq!((counts.len(), counts.values().max()), (120, Some(&1)), "every machine was started once");
}

#[tokio::test]
async fn submit_puts_urgent_jobs_into_their_queue() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let file = std::env::temp_dir().join(format!("reveille-urgent-{}", std::process::id()));
    let line = |instance: &str, priority: &str| format!(r#"{{"instance_id":"{instance}","priority":"{priority}"}}"#);
    let lines = [line("i-sim00002", "urgent"), line("i-sim00003", "normal"), "i-sim00004".to_owned()].join("\n");
    std::fs::write(&file, lines).unwrap();
    let path = file.to_str().unwrap();
    for arguments in [&["i-sim00001", "--urgent"][..], &["--file", path]] {
        let submit = ["submit", "--lane", "prod"].iter().chain(arguments).copied().collect::<Vec<_>>();
        let output = stage.daemon.config.command(&submit).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    std::fs::remove_file(&file).unwrap();
    // The one by flag, and the one by its priority.
    stage.queues.has("reveille.urgent.prod", 2, 0).await;
    stage.queues.has("reveille.jobs.prod", 2, 0).await;
    stage.daemon.start_again();
    stage.outcomes(4).await;
}

/// RabbitMQ 4 serves two messages of a priority above 4 for each of the others; 3.10 has no priorities in such queues.
#[tokio::test]
async fn the_priority_that_rabbitmq_4_gives_is_kept() {
    let (mut stage, mut account) = stage(330, 100).await;
    stage.daemon.stop().await;
    account.submit(instances(1..=300), json!({})).await;
    let high = BasicProperties::default().with_priority(9);
    account.submit_as(LANE, LANE, high, instances(301..=330), json!({})).await;
    stage.daemon.start_again();
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 330)].into());
    let order = called(&stage).await;
    let place = order.iter().rposition(|instance| instance.as_str() > "i-sim00300").unwrap();
    let version = stage.vhost.node.ctl(&["version"]);
    println!("RabbitMQ {}: the last of 30 with a high priority was called after {place} of 330", version.trim());
    if !version.starts_with("3.") {
        assert!(place < 100, "after {place} calls");
    } else {
        assert!(place >= 300, "first come, first served: after {place} calls");
    }
}
