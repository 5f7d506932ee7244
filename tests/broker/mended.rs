//! Parts of the lane's topology are deleted or full: jobs wait, nothing is acked, and it goes on once that is repaired,
//! by the daemon itself where it can.

use std::time::Duration;

use jiff::Timestamp;
use lapin::options::{
    ExchangeDeclareOptions, ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::{Vhost, jobs_left};
use crate::support::stage::{Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

const LOST: &str = "reveille_queues_lost_total";
const STARTED: &str = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;

const STEADY: Wishes<'_> =
    Wishes { lane: "rate = 50\nburst = 1\nconcurrency = 8", retry: "", fleet: "Stopped=200", sim: &[] };

fn instances(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(instance)
}

async fn calls(stage: &Stage, count: usize) {
    eventually("calls are made", async || (stage.sim.log().await.len() >= count).then_some(())).await;
}

async fn channel(stage: &Stage) -> Channel {
    stage.queues.connection.create_channel().await.unwrap()
}

/// Waits until no more of `jobs` end, since their events are refused: some in flight may still be accepted.
async fn nothing_more_ends(stage: &Stage, jobs: u32) {
    let ended = eventually("nothing more ends", async || {
        let ended = stage.daemon.metric(STARTED).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        (stage.daemon.metric(STARTED).await == ended).then_some(ended)
    })
    .await;
    let left: u32 = jobs_left(&stage.vhost.url).values().sum();
    assert!(left > 0, "some are refused");
    assert_eq!(f64::from(jobs - left), ended, "nothing is acked");
}

async fn delete_exchange(stage: &Stage, exchange: &str) {
    channel(stage).await.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
}

async fn delete_queue(stage: &Stage, queue: &str) -> u32 {
    channel(stage).await.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap()
}

/// Leaves the daemon's log as the only queue for outcomes. While an exchange is being deleted, RabbitMQ can route a
/// message to only some of its queues, and confirm it: with one queue, the message is stored or refused.
async fn leave_the_log_alone(stage: &Stage) {
    delete_queue(stage, stage.events_queue().as_str()).await;
}

/// Nothing was dropped with a connection, so no call was made twice.
async fn waited_in_place(stage: &Stage, calls: usize) {
    assert!(!stage.daemon.child.output().contains("connecting again"), "the connection stands");
    assert_eq!(stage.sim.log().await.len(), calls, "no call was made twice");
}

#[tokio::test]
async fn a_deleted_outcomes_exchange_is_declared_again() {
    let stage = Stage::with(STEADY).await;
    leave_the_log_alone(&stage).await;
    let mut account = Account::of_the_log(&stage.vhost.url);
    account.submit(instances(200), json!({})).await;
    for called in [40, 100] {
        calls(&stage, called).await;
        delete_exchange(&stage, "reveille.outcomes").await;
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 200)].into());
    waited_in_place(&stage, 200).await;
}

#[tokio::test]
async fn what_the_daemon_cannot_mend_keeps_every_job_until_somebody_does() {
    let stage = Stage::with(STEADY).await;
    leave_the_log_alone(&stage).await;
    let mut account = Account::of_the_log(&stage.vhost.url);
    account.submit(instances(100), json!({})).await;
    calls(&stage, 40).await;
    // An exchange of the same name and another kind, behind which there is no queue.
    delete_exchange(&stage, "reveille.outcomes").await;
    let (durable, none) = (ExchangeDeclareOptions { durable: true, ..Default::default() }, FieldTable::default());
    eventually("the daemon was slower", async || {
        // The daemon may have declared its own before.
        delete_exchange(&stage, "reveille.outcomes").await;
        let channel = channel(&stage).await;
        channel.exchange_declare("reveille.outcomes".into(), ExchangeKind::Fanout, durable, none.clone()).await.ok()
    })
    .await;
    account.submit(instances(200).skip(100), json!({})).await;
    // A declaration in progress may have bound the log to it.
    let (log, channel) = ("reveille.outcomes.log", channel(&stage).await);
    let unbind = async || {
        channel.queue_unbind(log.into(), "reveille.outcomes".into(), "#".into(), none.clone()).await.unwrap();
    };
    eventually("it says what it cannot mend", async || {
        unbind().await;
        let output = stage.daemon.child.output();
        (output.contains("jobs wait until that is mended") && output.contains("it exists with other arguments"))
            .then_some(())
    })
    .await;
    unbind().await;
    nothing_more_ends(&stage, 200).await;

    delete_exchange(&stage, "reveille.outcomes").await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 200)].into());
    waited_in_place(&stage, 200).await;
}

#[tokio::test]
async fn a_full_queue_of_a_user_holds_jobs_back_until_there_is_room() {
    let stage = Stage::with(STEADY).await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit(instances(50), json!({})).await;
    calls(&stage, 30).await;
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let channel = channel(&stage).await;
    channel.queue_declare("small".into(), QueueDeclareOptions::durable(), full).await.unwrap();
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind("small".into(), "reveille.outcomes".into(), "#".into(), options, none).await.unwrap();
    account.submit(instances(100).skip(50), json!({})).await;
    eventually("it is refused", async || stage.daemon.child.output().contains("rejected the message").then_some(()))
        .await;
    nothing_more_ends(&stage, 100).await;

    delete_queue(&stage, "small").await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 100)].into());
    waited_in_place(&stage, 100).await;
    let log = stage.daemon.child.output();
    let lines = ["rejected the message", "the broker takes these messages now"];
    assert_eq!(lines.map(|line| log.matches(line).count()), [1, 1], "not one for each message: {log}");
}

/// The broker retries dead-lettering to a missing queue every three minutes, unless configured otherwise before the
/// first queue is declared.
fn impatient() -> Vhost {
    let vhost = Vhost::alone();
    vhost.node.ctl(&["eval", "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 1000)."]);
    vhost
}

#[tokio::test]
async fn a_lane_whose_queues_are_deleted_has_them_declared_again_and_nothing_parked_is_lost() {
    let stage = Stage::on(impatient(), STEADY).await;
    let mut account = Account::open(&stage.vhost.url).await;
    let all: Vec<String> = instances(200).collect();
    let due = (Timestamp::now() + Duration::from_secs(20)).to_string();
    account.submit(all[..100].iter().cloned(), json!({ "not_before": due })).await;
    let parked = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;
    eventually("they are parked", async || (stage.daemon.metric(parked).await >= 100.0).then_some(())).await;
    stage.all_acked().await;

    delete_exchange(&stage, "reveille.delay.return").await;
    delete_exchange(&stage, "reveille.jobs").await;
    for queue in ["reveille.due.prod", "reveille.jobs.prod"] {
        assert_eq!(delete_queue(&stage, queue).await, 0, "nothing is lost with it");
    }
    eventually("they are missed", async || (stage.daemon.metric(LOST).await >= 2.0).then_some(())).await;
    eventually("they are declared again, and consumed", async || {
        let queues = ["reveille.due.prod", "reveille.jobs.prod"];
        let channel = channel(&stage).await;
        let there = ExchangeDeclareOptions { passive: true, ..Default::default() };
        // A declaration in progress may have passed the exchange before it was deleted.
        let (exchange, kind) = ("reveille.jobs".into(), ExchangeKind::Topic);
        channel.exchange_declare(exchange, kind, there, FieldTable::default()).await.ok()?;
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        for queue in queues {
            let found = channel.queue_declare(queue.into(), passive, FieldTable::default()).await.ok()?;
            (found.consumer_count() == 1).then_some(())?;
        }
        // Until it is bound, submitted jobs are dead-lettered.
        let bindings = ["list_bindings", "-p", &stage.vhost.name, "source_name", "destination_name", "routing_key"];
        stage.vhost.node.ctl(&bindings).contains("reveille.jobs\treveille.jobs.prod\tprod\n").then_some(())
    })
    .await;
    account.submit(all[100..].iter().cloned(), json!({})).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 200)].into());
    waited_in_place(&stage, 200).await;
}

#[tokio::test]
async fn a_deleted_level_of_the_delay_ladder_is_declared_again() {
    let vhost = impatient();
    let sim = &["--fault", "status-503=0.2"];
    let stage = Stage::on(vhost, Wishes { sim, ..STEADY }).await;
    let mut account = Account::open(&stage.vhost.url).await;
    let all: Vec<String> = instances(200).collect();
    let due_in = |seconds| json!({ "not_before": (Timestamp::now() + Duration::from_secs(seconds)).to_string() });
    account.submit(all[..60].iter().cloned(), json!({})).await;
    calls(&stage, 20).await;
    // Nothing is lost with it: retries stay below. 12 to 15 s lead through the levels of 8 and 4 s, 4 to 7 s enter at
    // that of 4.
    assert_eq!(delete_queue(&stage, "reveille.delay.02").await, 0);
    account.submit(all[60..100].iter().cloned(), due_in(15)).await;
    let parked = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;
    eventually("jobs are above the level", async || (stage.daemon.metric(parked).await >= 40.0).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    account.submit(all[100..150].iter().cloned(), due_in(7)).await;
    eventually("they are taken", async || (stage.daemon.metric(parked).await >= 90.0).then_some(())).await;
    delete_exchange(&stage, "reveille.delay.02").await;
    account.submit(all[150..].iter().cloned(), due_in(7)).await;
    let counts = account.close(PATIENCE).await;
    assert_eq!(counts, [("started".to_owned(), 200)].into());
    assert!(!stage.daemon.child.output().contains("connecting again"), "the connection stands");
}
