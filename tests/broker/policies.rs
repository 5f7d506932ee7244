//! Policies on the daemon's queues, of which RabbitMQ tells no client: their effect on jobs is detected and logged.

use std::time::Duration;

use jiff::Timestamp;
use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::jobs_left;
use crate::support::stage::{Stage, Wishes};
use crate::support::{eventually, instance};

const DOCS: &str = include_str!("../../docs/rabbitmq.md");
const LOST: &str = "reveille_queues_lost_total";
const CUT_SHORT: &str = r#"reveille_delays_cut_short_total{lane="prod"}"#;
const PARKED: &str = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;

/// Sets a policy for the queues whose names match `pattern`.
fn set(stage: &Stage, kind: &str, name: &str, pattern: &str, definition: &str) {
    let policy = [kind, "-p", &stage.vhost.name, name, pattern, definition, "--apply-to", "queues"];
    stage.vhost.node.ctl(&policy);
}

fn clear(stage: &Stage, name: &str) {
    stage.vhost.node.ctl(&["clear_policy", "-p", &stage.vhost.name, name]);
}

async fn is_there(stage: &Stage, queue: &str) -> bool {
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), passive, FieldTable::default()).await.is_ok()
}

async fn job(stage: &Stage, number: usize, wait: Duration) {
    let instance = instance(number);
    let not_before = (Timestamp::now() + wait).to_string();
    stage.job(&instance, json!({"instance_id": instance, "not_before": not_before})).await;
}

async fn says(stage: &Stage, words: &str) {
    eventually(words, async || stage.daemon.child.output().contains(words).then_some(())).await;
}

#[tokio::test]
async fn a_level_that_a_policy_has_expire_is_said_to_be_lost() {
    let stage = Stage::set().await;
    set(&stage, "set_policy", "tidy", r"^reveille\.delay\.05$", r#"{"expires": 1000}"#);
    eventually("RabbitMQ deletes it", async || (!is_there(&stage, "reveille.delay.05").await).then_some(())).await;
    clear(&stage, "tidy");
    assert_eq!(stage.daemon.metric(LOST).await, 0.0);
    // The missing queue is noticed.
    job(&stage, 1, Duration::from_secs(40)).await;
    eventually("the job is parked", async || (stage.daemon.metric(PARKED).await == 1.0).then_some(())).await;
    eventually("it is counted", async || (stage.daemon.metric(LOST).await == 1.0).then_some(())).await;
    let names_it = |line: &str| line.contains("ERROR") && line.contains("reveille.delay.05");
    eventually("it is named", async || stage.daemon.child.output().lines().any(names_it).then_some(())).await;
    assert!(is_there(&stage, "reveille.delay.05").await);
}

#[tokio::test]
async fn queues_that_went_while_no_daemon_ran_are_said_to_be_lost_and_new_ones_are_not() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    for queue in ["reveille.delay.03", "reveille.urgent.prod", "reveille.dead"] {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    let config = std::fs::read_to_string(&stage.daemon.config.path).unwrap();
    std::fs::write(&stage.daemon.config.path, config.replace("[[lane]]", "[[lane]]\nname = \"new\"\n[[lane]]"))
        .unwrap();
    stage.daemon.start_again();
    stage.daemon.ready().await;
    assert_eq!(stage.daemon.metric(LOST).await, 3.0, "{}", stage.daemon.child.output());
    let output = stage.daemon.child.output();
    assert!(output.contains("reveille.dead, reveille.delay.03, reveille.urgent.prod"), "{output}");
}

#[tokio::test]
async fn a_policy_that_cuts_waits_short_is_said_to() {
    let mut stage = Stage::set().await;
    set(&stage, "set_policy", "tidy", "^reveille", r#"{"message-ttl": 500}"#);
    let due = Timestamp::now() + Duration::from_secs(50);
    job(&stage, 1, Duration::from_secs(50)).await;
    eventually("it is counted", async || (stage.daemon.metric(CUT_SHORT).await >= 1.0).then_some(())).await;
    says(&stage, "s in place of 16 s: a policy with message-ttl").await;
    assert!(Timestamp::now() < due);
    clear(&stage, "tidy");
    assert_eq!(stage.outcome().await["outcome"], "started");
    assert!(Timestamp::now() >= due, "not called before its time all the same");
}

#[tokio::test]
async fn a_policy_that_has_full_levels_let_jobs_go_loses_none() {
    let stage = Stage::set().await;
    let mut account = Account::open(&stage.vhost.url).await;
    set(&stage, "set_policy", "tidy", r"^reveille\.delay", r#"{"max-length": 1, "overflow": "drop-head"}"#);
    let not_before = (Timestamp::now() + Duration::from_secs(15)).to_string();
    account.submit((1..=5).map(instance), json!({"not_before": not_before})).await;
    eventually("it is counted", async || (stage.daemon.metric(CUT_SHORT).await >= 1.0).then_some(())).await;
    clear(&stage, "tidy");
    assert_eq!(account.close(crate::support::PATIENCE).await, [("started".to_owned(), 5)].into());
}

/// Sets the policies of docs/rabbitmq.md.
fn protect(stage: &Stage) {
    let line = DOCS.lines().find(|line| line.starts_with("rabbitmqctl set_policy ")).expect("the page has it");
    let words: Vec<String> =
        line.split(' ').skip(1).map(|word| word.trim_matches('\'').replace("VHOST", &stage.vhost.name)).collect();
    stage.vhost.node.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_policy_in_the_docs_protects_jobs_from_one_for_all_queues() {
    let stage = Stage::with(Wishes { lane: "rate = 50", ..Wishes::default() }).await;
    protect(&stage);
    let mut account = Account::open(&stage.vhost.url).await;
    let mut quorum = FieldTable::default();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let channel = stage.queues.connection.create_channel().await.unwrap();
    channel.queue_declare("canary".into(), QueueDeclareOptions::durable(), quorum).await.unwrap();
    let not_before = (Timestamp::now() + Duration::from_secs(25)).to_string();
    account.submit((1..=5).map(instance), json!({"not_before": not_before})).await;
    eventually("they are parked", async || (stage.daemon.metric(PARKED).await == 5.0).then_some(())).await;
    let tidy = r#"{"expires": 1000, "message-ttl": 500, "max-length": 1, "overflow": "drop-head"}"#;
    set(&stage, "set_policy", "tidy", "^(reveille|canary)", tidy);
    eventually("other queues go", async || (!is_there(&stage, "canary").await).then_some(())).await;
    assert_eq!(jobs_left(&stage.vhost.url).values().sum::<u32>(), 5);
    assert_eq!(account.close(crate::support::PATIENCE).await, [("started".to_owned(), 5)].into());
    assert_eq!([stage.daemon.metric(LOST).await, stage.daemon.metric(CUT_SHORT).await], [0.0, 0.0]);
}

/// An operator's policy overrides every other one. But it does not say what happens on overflow.
#[tokio::test]
async fn under_the_policy_in_the_docs_dead_letters_without_room_wait_with_their_jobs() {
    let stage = Stage::set().await;
    protect(&stage);
    set(&stage, "set_operator_policy", "quota", r"^reveille\.dead$", r#"{"max-length": 1}"#);
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=4).map(|number| format!("i-gone{number:04}")), json!({})).await;
    // Messages in flight as the first one arrives may still fit.
    eventually("it is full", async || (stage.queues.count("reveille.dead").await.0 > 0).then_some(())).await;
    account.submit((5..=8).map(|number| format!("i-gone{number:04}")), json!({})).await;
    says(&stage, "it is full, as a policy may have it").await;
    stage.vhost.node.ctl(&["clear_operator_policy", "-p", &stage.vhost.name, "quota"]);
    assert_eq!(account.close(crate::support::PATIENCE).await, [("failed not_found".to_owned(), 8)].into());
}
