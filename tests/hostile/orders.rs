//! An id and an instance are no secret: a client that knows those of a job can neither end it nor change its outcome.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicNackOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::daemon::Daemon;
use crate::support::lossy::Lossy;
use crate::support::queues::{Queues, header};
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{PATIENCE, broker, eventually};

const INSTANCE: &str = "i-sim00001";

fn headers(entries: &[(&str, &str)]) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in entries {
        headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    BasicProperties::default().with_message_id(INSTANCE.into()).with_headers(headers)
}

impl Stage {
    /// The data of the next `count` final outcomes, in order.
    async fn ends(&mut self, count: usize) -> Vec<Value> {
        let mut ends = Vec::new();
        while ends.len() < count {
            let data = self.event().await["data"].clone();
            if data["final"] == true {
                ends.push(data);
            }
        }
        ends
    }
}

/// Forged as well as possible: with the headers of a parked copy, and all its time used up.
#[tokio::test]
async fn a_message_with_a_parked_jobs_id_and_instance_ends_nothing_but_itself() {
    let mut stage = Stage::set().await;
    stage.sim.script(INSTANCE, json!([{"status": 429, "retry_after": 15}])).await;
    let body = json!({"instance_id": INSTANCE, "labels": {"whose": "ours"}});
    stage.job(INSTANCE, body.clone()).await;
    let parked = r#"reveille_jobs_parked_total{cause="throttled",lane="prod"}"#;
    eventually("it is parked", async || (stage.daemon.metric(parked).await == 1.0).then_some(())).await;

    let gone_by = json!({"instance_id": INSTANCE, "deadline": "2026-01-01T00:00:00Z"}).to_string();
    let copy = [
        ("x-reveille-received-at", "2026-11-25T07:30:00Z"),
        ("x-reveille-failing-since", "2026-01-01T00:00:00Z"),
        ("x-reveille-order", "00000000000000000000000000000000"),
    ];
    stage.message(headers(&[]), gone_by.as_bytes()).await;
    stage.message(headers(&copy), gone_by.as_bytes()).await;
    let ends = stage.ends(3).await;
    let said: Vec<&Value> = ends.iter().map(|end| &end["outcome"]).collect();
    assert_eq!(said, ["expired", "expired", "started"], "{ends:?}");
    assert_eq!((&ends[2]["attempts"], &ends[2]["labels"]["whose"]), (&json!(1), &json!("ours")), "{ends:?}");
    assert_eq!(stage.sim.instance(INSTANCE).await["starts"], 1);
}

/// The job is redelivered to the replica that takes the lane over: then the log is read for how it ended.
#[tokio::test]
async fn an_event_that_the_daemon_did_not_publish_ends_no_job() {
    let mut stage = Stage::set().await;
    // One of the daemon's own, as a model for the forgery.
    stage.wake(INSTANCE).await;
    stage.outcomes(1).await;
    let genuine = stage.queues.read_stream("reveille.outcomes.log", &mut 0).await.pop().expect("it is in the log");
    stage.daemon.stop().await;
    stage.wake("i-sim00002").await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let got = channel.basic_get("reveille.jobs.prod".into(), BasicGetOptions::default()).await.unwrap();
    got.expect("it is there").nack(BasicNackOptions { requeue: true, ..Default::default() }).await.unwrap();
    stage.back(1).await;
    for outcome in ["started", "failed"] {
        stage.queues.forge(&genuine, "i-sim00002", outcome, Timestamp::now()).await;
    }
    stage.daemon.start_again();
    let outcomes = stage.outcomes(1).await;
    assert_eq!(outcomes["i-sim00002"]["outcome"], "started");
    assert_eq!(stage.sim.instance("i-sim00002").await["starts"], 1, "it was called");
}

/// "Move messages" moves the letters of all lanes.
#[tokio::test]
async fn a_dead_letter_of_another_lane_is_told_of() {
    let mut stage = Stage::set().await;
    let letter = headers(&[
        ("x-reveille-outcome", "failed"),
        ("x-reveille-dead-at", "2026-11-25T07:30:00Z"),
        ("x-reveille-lane", "other"),
    ]);
    let letter = letter.with_message_id("letter".into());
    stage.message(letter, json!({"instance_id": INSTANCE}).to_string().as_bytes()).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    let output = stage.daemon.child.output();
    assert!(output.contains("it was another lane's") && output.contains(r#"before="other""#), "{output}");
}

/// As the management page's "Move messages" does.
#[tokio::test]
async fn a_dead_letter_that_is_moved_back_as_it_is_is_tried_afresh_and_has_events_of_its_own() {
    let mut stage = Stage::with(Wishes { retry: "max_attempts = 2\ninitial = \"1ms\"", ..Wishes::default() }).await;
    stage.sim.script(INSTANCE, json!([{"status": 500}, {"status": 500}, {"status": 500}])).await;
    stage.wake(INSTANCE).await;
    let first = stage.event().await;
    assert_eq!(first["data"]["reason"], "exhausted");
    let letter = stage.dead().await.remove(0);
    let dead_at = header(&letter.properties, "x-reveille-dead-at");
    let again = letter.properties.with_delivery_mode(2);
    stage.queues.publish("", "reveille.jobs.prod", again, &letter.data).await;

    let second = stage.event().await;
    assert_eq!((&second["data"]["outcome"], &second["data"]["attempts"]), (&json!("started"), &json!(2)), "{second}");
    assert_eq!((&second["data"]["job_id"], &first["id"]), (&json!(INSTANCE), &json!(format!("{INSTANCE}/start"))));
    assert_eq!(second["id"], json!(format!("{INSTANCE}/start/{dead_at}")), "no copy of the first one");
    assert_eq!(stage.daemon.child.output().matches("a dead letter was put back").count(), 1);
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
}

/// RabbitMQ counts a lost connection like a crash. For a message with 19 returns, one more would be the end.
#[tokio::test]
async fn a_job_that_is_being_called_as_the_connection_is_lost_is_not_poisoned_by_that() {
    let vhost = broker::vhost();
    let lossy = Lossy::before(&vhost.url).await;
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let wishes = Wishes { lane: "timeout = \"60s\"\nbatch = 1", ..Wishes::default() };
    let mut daemon = Daemon::start(&config(&lossy.url, &sim.url(), &wishes));
    daemon.ready().await;
    daemon.stop().await;
    let mut account = Account::open(&vhost.url).await;
    account.submit([INSTANCE.to_owned()], json!({})).await;
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    for _ in 0..19 {
        let got = eventually("it is there", async || {
            channel.basic_get("reveille.jobs.prod".into(), BasicGetOptions::default()).await.unwrap()
        });
        got.await.nack(BasicNackOptions { requeue: true, ..Default::default() }).await.unwrap();
    }
    sim.faults(json!([{"fault": {"hang": "before"}}])).await;
    daemon.start_again();
    for calls in 1..=3 {
        eventually("it is called", async || (sim.operations(INSTANCE).await.len() >= calls).then_some(())).await;
        lossy.cut();
    }
    sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 1)].into());
    assert_eq!(sim.instance(INSTANCE).await["starts"], 1);
}
