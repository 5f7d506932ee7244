//! A message that crashes every process that handles it is ended in time, and harms no other.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::account::Account;
use crate::support::python::publish_odd;
use crate::support::queues::header;
use crate::support::stage::{LANE, Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

/// The test kills the daemon whenever the one instance is called, so that the message seems to be the cause.
#[tokio::test]
async fn a_message_that_kills_the_daemon_each_time_ends_as_poisoned_and_the_others_go_on() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=60", ..Wishes::default() }).await;
    stage.sim.faults(json!([{"fault": {"hang": "before"}, "instances": ["i-sim00001"]}])).await;
    let jobs: Vec<String> = (1..=60).map(instance).collect();
    stage.daemon.child.signal("STOP");
    for job in &jobs {
        stage.wake(job).await;
    }
    stage.daemon.child.signal("CONT");

    let mut kills = 0;
    let mut ended = std::collections::BTreeMap::new();
    loop {
        let touched = eventually("the deadly message is touched, or put away", async || {
            let touched = stage.sim.operations("i-sim00001").await.len() > kills;
            let poisoned = !touched && stage.queues.count("reveille.dead").await.0 > 0;
            (touched || poisoned).then_some(touched)
        })
        .await;
        if !touched {
            break;
        }
        kills += 1;
        stage.daemon.kill().await;
        stage.daemon.start_again();
    }
    assert!(kills <= 20, "{kills} deliveries");
    while ended.len() < jobs.len() {
        let event = stage.event().await;
        if event["data"]["final"] == true {
            let job = event["data"]["job_id"].as_str().unwrap().to_owned();
            assert!(
                event["data"]["reason"] != "poisoned" || event["data"]["ambiguous"] == true,
                "it was called: {event}"
            );
            let end = (event["data"]["outcome"].clone(), event["data"]["reason"].clone());
            assert_eq!(ended.entry(job).or_insert_with(|| end.clone()), &end, "{event}");
        }
    }
    assert_eq!(ended.remove("i-sim00001").unwrap(), (json!("failed"), json!("poisoned")));
    for (job, end) in ended {
        assert_eq!(end, (json!("started"), json!(null)), "{job}");
    }
    let dead = stage.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].data, json!({"instance_id": "i-sim00001"}).to_string().into_bytes());
    assert_eq!(header(&dead[0].properties, "x-reveille-reason"), "poisoned");
}

/// A crash loop, for lack of memory or by a flapping deployment, is no message's fault.
#[tokio::test]
async fn a_daemon_that_is_killed_over_and_over_poisons_no_job() {
    let lane = "rate = 2\nburst = 1";
    let mut stage = Stage::with(Wishes { fleet: "Stopped=100", lane, ..Wishes::default() }).await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=100).map(instance), json!({})).await;
    for _ in 0..24 {
        let before = stage.sim.log().await.len();
        eventually("calls are made", async || (stage.sim.log().await.len() > before).then_some(())).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        stage.daemon.kill().await;
        stage.daemon.start_again();
    }
    stage.daemon.kill().await;
    let fast = std::fs::read_to_string(&stage.daemon.config.path).unwrap().replace("rate = 2\n", "rate = 200\n");
    std::fs::write(&stage.daemon.config.path, fast).unwrap();
    stage.daemon.start_again();
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 100)].into());
}

/// No message is in hand by then: a replica that takes a lane over makes no call for a second.
#[tokio::test]
async fn a_daemon_that_is_killed_as_soon_as_it_has_the_lane_poisons_no_job_either() {
    let mut stage = Stage::set().await;
    stage.daemon.kill().await;
    stage.wake("i-sim00001").await;
    for _ in 0..24 {
        stage.daemon.start_again();
        stage.daemon.takes_the_lane().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        stage.daemon.kill().await;
    }
    stage.daemon.start_again();
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn a_message_that_cannot_be_read_at_all_is_put_aside_and_the_others_go_on() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=41", ..Wishes::default() }).await;
    let body = r#"{"instance_id":"i-sim00041"}"#;
    for number in 1..=40 {
        stage.wake(&instance(number)).await;
        if number == 20 {
            publish_odd(&stage.vhost.url, "reveille.jobs", "prod", &[("message_id", body)]);
        }
    }
    let mut ended = std::collections::BTreeSet::new();
    let mut rejected = 0;
    while ended.len() < 40 || rejected == 0 {
        let event = stage.event().await;
        if event["data"]["outcome"] == "rejected" {
            assert_eq!(event["data"]["error_message"], "its property message_id is not UTF-8", "{event}");
            rejected += 1;
        } else if event["data"]["final"] == true {
            assert_eq!(event["data"]["outcome"], "started", "{event}");
            ended.insert(event["data"]["job_id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(rejected, 1);
    stage.queues.has("reveille.dead", 1, 0).await;
    stage.daemon.ready().await;
    stage.all_acked().await;
    assert!(stage.sim.operations("i-sim00041").await.is_empty(), "nobody could read it");
}

/// The lane stops consuming because of the suspect, and then the calls in flight pause it. Its prefetched deliveries
/// must not stay unacked.
#[tokio::test]
async fn a_suspect_and_a_pause_at_once_leave_no_message_behind() {
    const JOBS: usize = 60;
    const SUSPECT: usize = 41;
    let lane = "rate = 1000\nburst = 1\nconcurrency = 64\ntimeout = \"2s\"\nbatch = 1";
    let mut stage = Stage::with(Wishes { fleet: "Stopped=60", lane, ..Wishes::default() }).await;
    let mut account = Account::open(&stage.vhost.url).await;
    stage.daemon.stop().await;
    for number in 1..=JOBS {
        account.submit([instance(number)], json!({})).await;
    }
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let mut taken = Vec::new();
    for _ in 0..JOBS {
        let got = channel.basic_get("reveille.jobs.prod".into(), BasicGetOptions::default()).await.unwrap();
        taken.push(got.expect("all are there").delivery);
    }
    // RabbitMQ 4.3 does not count returns by `basic.nack`.
    let back = BasicRejectOptions { requeue: true };
    for _ in 0..3 {
        taken[SUSPECT - 1].reject(back).await.unwrap();
        let again = eventually("it is there again", async || {
            channel.basic_get("reveille.jobs.prod".into(), BasicGetOptions::default()).await.unwrap()
        });
        taken[SUSPECT - 1] = again.await.delivery;
    }
    // They are redelivered in the order of their return.
    for delivery in taken {
        delivery.reject(back).await.unwrap();
    }

    stage.sim.faults(json!([{"fault": {"hang": "before"}}])).await;
    stage.daemon.start_again();
    eventually("the suspect is noticed", async || {
        stage.daemon.child.output().contains("one message at a time: this one").then_some(())
    })
    .await;
    let paused = r#"reveille_lane_paused{lane="prod",reason="outage"}"#;
    eventually("the lane is paused", async || (stage.daemon.metric(paused).await == 1.0).then_some(())).await;
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
}

/// A producer that copies a dead letter's headers sends one too. RabbitMQ leaves it unchanged on the first delivery.
#[tokio::test]
async fn a_count_of_deliveries_that_a_producer_wrote_is_not_believed() {
    const JOBS: usize = 50;
    let lane = "rate = 50\nburst = 1\nconcurrency = 2\nconflict = \"fail\"\nbatch = 1";
    let stage = Stage::with(Wishes { fleet: "Running=50", lane, ..Wishes::default() }).await;
    stage.queues.has("reveille.jobs.prod", 0, 1).await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=JOBS / 2).map(instance), json!({})).await;
    let mut headers = FieldTable::default();
    headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(5));
    let forged = BasicProperties::default().with_headers(headers);
    account.submit_as(LANE, LANE, forged, [instance(JOBS / 2 + 1)], json!({})).await;
    account.submit((JOBS / 2 + 2..=JOBS).map(instance), json!({})).await;
    assert_eq!(account.close(PATIENCE).await, [("failed conflict".to_owned(), JOBS)].into());
    let output = stage.daemon.child.output();
    assert!(!output.contains("one message at a time"), "{output}");
}
