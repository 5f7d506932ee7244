//! Messages that lapin cannot read, and messages that would fill the memory, harm only themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::{self, Node, Vhost};
use crate::support::daemon::Daemon;
use crate::support::python::{DEEP, publish_odd, try_publish_odd};
use crate::support::queues::{Queues, header};
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

/// Kinds of messages that RabbitMQ passes on, and the reason of their rejection.
const ODD: [(&str, &str); 16] = [
    ("message_id", "its property message_id is not UTF-8"),
    ("correlation_id", "its property correlation_id is not UTF-8"),
    ("reply_to", "its property reply_to is not UTF-8"),
    ("type", "its property type is not UTF-8"),
    ("app_id", "its property app_id is not UTF-8"),
    ("cluster_id", "its property cluster_id is not UTF-8"),
    ("content_type", "its property content_type is not UTF-8"),
    ("content_encoding", "its property content_encoding is not UTF-8"),
    ("name", "its headers are not UTF-8 in a name"),
    ("values:385", "its headers are of more than 384 values"),
    ("tables:129", "its headers are nested more than 128 deep"),
    ("tables:1600", "its headers are nested more than 128 deep"),
    ("tables:most", "its headers are nested more than 128 deep"),
    ("arrays:129", "its headers are nested more than 128 deep"),
    ("arrays:12600", "its headers are nested more than 128 deep"),
    ("arrays:most", "its headers are nested more than 128 deep"),
];

fn job(number: usize) -> String {
    json!({"instance_id": instance(number)}).to_string()
}

/// On every path: new jobs, urgent ones, and due ones.
#[tokio::test]
async fn messages_that_lapin_cannot_read_are_rejected_each_for_itself_and_no_connection_is_lost() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=100", ..Wishes::default() }).await;
    let bodies: Vec<String> = (1..=ODD.len()).map(job).collect();
    let odd: Vec<(&str, &str)> = ODD.iter().zip(&bodies).map(|((kind, _), body)| (*kind, body.as_str())).collect();
    let mut wanted = BTreeMap::new();
    for (exchange, key) in [("reveille.jobs", "prod"), ("reveille.jobs", "prod.urgent"), ("", "reveille.due.prod")] {
        publish_odd(&stage.vhost.url, exchange, key, &odd);
    }
    for (_, problem) in ODD {
        *wanted.entry(problem.to_owned()).or_insert(0) += 3;
    }
    for number in 51..=90 {
        stage.wake(&instance(number)).await;
    }
    let (mut started, mut rejected) = (BTreeSet::new(), BTreeMap::new());
    while started.len() < 40 || rejected.values().sum::<usize>() < 3 * ODD.len() {
        let data = stage.event_within(DEEP).await["data"].clone();
        let text = |field: &str| data[field].as_str().unwrap_or_default().to_owned();
        match text("outcome").as_str() {
            "rejected" => *rejected.entry(text("error_message")).or_insert(0) += 1,
            "started" => assert!(started.insert(text("instance_id")), "{data}"),
            _ => panic!("{data}"),
        }
    }
    assert_eq!(rejected, wanted);
    stage.all_acked().await;
    stage.queues.has("reveille.dead", 3 * ODD.len(), 0).await;
    let output = stage.daemon.child.output();
    assert!(output.matches(" connected ").count() == 1 && !output.contains("is lost"), "{output}");
    assert_eq!(stage.sim.log().await.len(), 40, "no call for any of them");
}

/// RabbitMQ 3.10 would dead-letter nothing any more, so neither would parked jobs return.
#[tokio::test]
async fn a_forged_death_does_not_end_what_passes_dead_letters_on() {
    let mut stage = Stage::on(Vhost::alone(), Wishes::default()).await;
    publish_odd(&stage.vhost.url, "reveille.jobs", "prod", &[("death", &job(1))]);
    assert_eq!(stage.outcomes(1).await["death"]["error_message"], "its headers are not UTF-8 in a name");
    let not_before = jiff::Timestamp::now() + std::time::Duration::from_secs(3);
    stage.job("parked", json!({"instance_id": "i-sim00002", "not_before": not_before})).await;
    assert_eq!(stage.outcomes(1).await["parked"]["outcome"], "started");
    let letter = stage.dead().await.remove(0);
    assert_eq!(header(&letter.properties, "x-reveille-reason"), "unreadable");
}

/// With RabbitMQ's headers of the first time, as "Move messages" leaves them.
#[tokio::test]
async fn an_unreadable_dead_letter_that_is_put_back_stays_whole() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=1", ..Wishes::default() }).await;
    let body = vec![b'x'; 90_000];
    stage.message(BasicProperties::default().with_message_id("large".into()), &body).await;
    for _ in 0..3 {
        let data = stage.event().await["data"].clone();
        assert_eq!((&data["job_id"], &data["outcome"]), (&json!("large"), &json!("rejected")), "{data}");
        stage.queues.has("reveille.dead", 1, 0).await;
        let letter = stage.dead().await.remove(0);
        assert_eq!(letter.data, body);
        let headers = letter.properties.headers().clone().expect("RabbitMQ's");
        assert!(headers.inner().contains_key("x-death"), "{headers:?}");
        stage.message(letter.properties, &letter.data).await;
    }
}

/// A queue that accepts nothing, and a name over which RabbitMQ closes connections.
#[tokio::test]
async fn replies_that_nobody_takes_hold_up_neither_memory_nor_another_lanes() {
    const JOBS: usize = 600;
    let vhost = broker::vhost();
    let sim = Sim::start(&["--fleet", "Stopped=700"]);
    let wishes = Wishes { lane: "batch = 1", ..Wishes::default() };
    let other = format!("[[lane]]\nname = \"other\"\nendpoint = {:?}\nrate = 1000\n", sim.url());
    let daemon = Daemon::start(&(config(&vhost.url, &sim.url(), &wishes) + &other));
    daemon.ready().await;
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare("full".into(), QueueDeclareOptions::default(), full).await.unwrap();
    let mut replies = queues.listen("", "").await;
    let mut account = Account::open(&vhost.url).await;
    let padding = json!({ "labels": { "long": "x".repeat(50_000) } });
    for (to, from) in [("amq.rabbitmq.reply-to.x.y", 0), ("full", JOBS / 2)] {
        let properties = BasicProperties::default().with_reply_to(to.into());
        let instances = (from + 1..=from + JOBS / 2).map(instance);
        account.submit_as("prod", "prod", properties, instances, padding.clone()).await;
    }
    let properties = BasicProperties::default().with_reply_to(replies.queue());
    let instances = (JOBS + 1..=JOBS + 50).map(instance);
    account.submit_as("other", "other", properties, instances, json!({})).await;
    for _ in 0..50 {
        let reply = tokio::time::timeout(PATIENCE, replies.next()).await.expect("each is given its reply");
        reply.expect("subscribed").expect("open");
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS + 50)].into());
    let peak = daemon.child.memory("VmHWM");
    assert!(peak < 100 * 1024, "{peak} KiB");
}

/// Its queue is bound to every key of the lane.
#[tokio::test]
async fn submit_hears_of_its_jobs_whatever_else_is_published_there() {
    let stage = Stage::set().await;
    stage.sim.faults(json!([{"fault": {"status": 500}}])).await;
    let mut submit = stage.daemon.config.command(&["submit", "--lane", "prod", "--wait", "i-sim00001"]);
    let submitting = tokio::task::spawn_blocking(move || submit.output().expect("it runs"));
    eventually("it is called", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.queues.publish("reveille.outcomes", "prod.noise", BasicProperties::default(), &vec![b'x'; 10_000_000]).await;
    // This ends the test's own listener, which uses lapin without our checks.
    for (kind, _) in ODD {
        // RabbitMQ 4.3 accepts no such address for a stream, and closes the connection over it.
        let is_taken = try_publish_odd(&stage.vhost.url, "reveille.outcomes", "prod.noise", &[(kind, "{}")]);
        assert!(is_taken || kind == "reply_to", "{kind}");
    }
    stage.sim.faults(json!([])).await;
    let ran = submitting.await.expect("it ends");
    let (output, errors) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && output.contains("started"), "{output} {errors}");
}

/// With the deepest accepted headers, a job goes every way: it is called, parked, and dead-lettered.
#[tokio::test]
async fn headers_as_deep_as_they_may_be_go_through_the_ladder_and_among_the_dead_letters() {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    let kinds = ["tables:128", "arrays:128", "values:192", "frame:100000"];
    let mut messages = Vec::new();
    for kind in kinds {
        let instance = format!("i-unknown{}", kind.replace(':', ""));
        stage.sim.script(&instance, json!([{"status": 500}])).await;
        messages.push((kind, json!({ "instance_id": instance }).to_string()));
    }
    let messages: Vec<(&str, &str)> = messages.iter().map(|(kind, body)| (*kind, body.as_str())).collect();
    publish_odd(&stage.vhost.url, "reveille.jobs", "prod", &messages);
    for (id, outcome) in stage.outcomes(kinds.len()).await {
        assert_eq!((&outcome["reason"], &outcome["attempts"]), (&json!("not_found"), &json!(2)), "{id}");
    }
    stage.all_acked().await;
    for letter in stage.dead().await {
        assert_eq!(header(&letter.properties, "x-reveille-headers-dropped"), "");
    }
}

/// RabbitMQ adds its delivery count, and splits no header.
#[tokio::test]
async fn headers_that_burst_the_frame_once_rabbitmq_has_added_to_them_are_rejected() {
    let mut stage = Stage::set().await;
    stage.sim.script("i-sim00001", json!([{"hang": "before"}])).await;
    publish_odd(&stage.vhost.url, "reveille.jobs", "prod", &[("frame:131072", &job(1))]);
    eventually("it is called", async || (stage.sim.log().await.len() == 1).then_some(())).await;
    stage.daemon.kill().await;
    publish_odd(&stage.vhost.url, "reveille.jobs", "prod", &[("plain", &job(2))]);
    stage.daemon.start_again();
    let outcomes = stage.outcomes(2).await;
    assert_eq!(outcomes["plain"]["outcome"], "started");
    let odd = &outcomes["frame:131072"];
    assert_eq!((&odd["outcome"], &odd["ambiguous"]), (&json!("rejected"), &json!(true)), "it was handed out before");
    let problem = odd["error_message"].as_str().unwrap();
    // Since RabbitMQ 4.3 two numbers are added.
    let added = ["take a frame of 13109", "take a frame of 13112"];
    assert!(added.iter().any(|size| problem.contains(size)), "{problem}");
    assert!(problem.contains("at most 131072 can be read"), "{problem}");
    stage.queues.has("reveille.dead", 1, 0).await;
    assert!(!stage.daemon.child.output().contains("is lost"), "{}", stage.daemon.child.output());
}

#[tokio::test]
async fn on_a_broker_with_small_frames_jobs_with_large_headers_come_through_all_the_same() {
    let node = Arc::new(Node::start(&["--conf", "frame_max = 8192"]));
    let vhost = Vhost { url: format!("{}/t1", node.url), name: "t1".to_owned(), node };
    let mut stage = Stage::on(vhost, Wishes::default()).await;
    for (number, size) in [(1, 7_700), (2, 500), (3, 10)] {
        let instance = instance(number);
        // A 500, so that it is parked, and finally a dead letter.
        let script = if number == 3 { json!([{"status": 500}]) } else { json!([{"status": 500}, {"status": 404}]) };
        stage.sim.script(&instance, script).await;
        let mut headers = FieldTable::default();
        headers.insert("large".into(), AMQPValue::LongString("v".repeat(size).into()));
        let properties = BasicProperties::default().with_message_id(instance.as_str().into()).with_headers(headers);
        stage.message(properties, job(number).as_bytes()).await;
    }
    let outcomes = stage.outcomes(3).await;
    assert_eq!(outcomes["i-sim00003"]["outcome"], "started");
    for id in ["i-sim00001", "i-sim00002"] {
        assert_eq!((&outcomes[id]["reason"], &outcomes[id]["attempts"]), (&json!("not_found"), &json!(2)), "{id}");
    }
    stage.all_acked().await;
    let kept: BTreeMap<String, bool> = stage
        .dead()
        .await
        .iter()
        .map(|letter| {
            let dropped = header(&letter.properties, "x-reveille-headers-dropped") == "true";
            (letter.properties.message_id().as_ref().unwrap().to_string(), dropped)
        })
        .collect();
    assert_eq!(kept, [("i-sim00001".to_owned(), true), ("i-sim00002".to_owned(), false)].into());
    assert!(!stage.daemon.child.output().contains("is lost"), "{}", stage.daemon.child.output());
}

/// Bodies of 16 MB, and then in each of its queues more jobs than the lane's prefetch, each as large as a job may be:
/// small ones first, so that the lane raises its prefetch.
#[tokio::test]
async fn a_usual_lane_stays_below_64_mebibytes_whatever_is_published() {
    const SMALL: usize = 60;
    const LARGE: usize = 300;
    let lane = "rate = 20\nburst = 5\nbatch = 1";
    let stage = Stage::with(Wishes { fleet: "Stopped=1000", lane, ..Wishes::default() }).await;
    let huge = vec![b'x'; 16_000_000]; // RabbitMQ 4 takes 16 MiB at most
    for number in 0..8 {
        let properties = BasicProperties::default().with_message_id(format!("huge-{number}").into());
        stage.message(properties, &huge).await;
    }
    stage.queues.has("reveille.dead", 8, 0).await;
    let mut headers = FieldTable::default();
    headers.insert("large".into(), AMQPValue::LongString("v".repeat(100_000).into()));
    let large = BasicProperties::default().with_headers(headers);
    for number in 1..=SMALL + LARGE {
        let padding = if number > SMALL { "x".repeat(60_000) } else { String::new() };
        let body = json!({"instance_id": instance(number), "padding": padding}).to_string();
        let properties = if number > SMALL { large.clone() } else { BasicProperties::default() };
        for (exchange, key) in [("reveille.jobs", "prod"), ("reveille.jobs", "prod.urgent"), ("", "reveille.due.prod")]
        {
            stage.queues.publish(exchange, key, properties.clone(), body.as_bytes()).await;
        }
    }
    eventually("large ones are called", async || (stage.sim.log().await.len() > 3 * SMALL + 60).then_some(())).await;
    let peak = stage.daemon.child.memory("VmHWM");
    assert!(peak < 64 * 1024, "{peak} KiB");
}
