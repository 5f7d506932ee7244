//! The main job for each outcome, and each policy for a 409.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::eventually;
use crate::support::queues::header;
use crate::support::stage::{Stage, Wishes};

#[tokio::test]
async fn a_stopped_instance_is_started() {
    let mut stage = Stage::set().await;
    let body = json!({"instance_id": "i-sim00001", "batch_id": "morning", "labels": {"team": "ops"}, "unknown": [1]});
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(traceparent.into()));
    let properties = BasicProperties::default().with_message_id("job-1".into()).with_headers(headers);
    stage.message(properties, body.to_string().as_bytes()).await;

    let event = stage.event().await;
    assert_eq!(event["type"], "io.reveille.instance.started.v1");
    assert_eq!(event["source"], "/reveille/lanes/prod");
    assert_eq!(event["subject"], "i-sim00001");
    assert_eq!(event["id"], "job-1/start");
    assert_eq!(event["traceparent"], traceparent);
    let data = &event["data"];
    assert_eq!((&data["job_id"], &data["lane"]), (&json!("job-1"), &json!("prod")));
    assert_eq!((&data["batch_id"], &data["labels"]), (&json!("morning"), &json!({"team": "ops"})));
    assert_eq!((&data["outcome"], &data["final"]), (&json!("started"), &json!(true)));
    assert_eq!((&data["attempts"], &data["http_status"]), (&json!(1), &json!(200)));
    assert_eq!(data["bce_request_id"].as_str().unwrap().len(), 36);
    assert_eq!((&data["ambiguous"], &data["reason"]), (&json!(false), &json!(null)));

    assert_eq!(stage.sim.operations("i-sim00001").await, ["start"]);
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
    assert_eq!(stage.daemon.metric(r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#).await, 1.0);
    assert_eq!(
        stage.daemon.metric(r#"reveille_api_requests_total{lane="prod",operation="start",status="200"}"#).await,
        1.0
    );
}

#[tokio::test]
async fn a_job_that_fails_is_kept_whole_with_its_reason() {
    let mut stage = Stage::set().await;
    let mut headers = FieldTable::default();
    headers.insert("team".into(), AMQPValue::LongString("ops".into()));
    let properties = BasicProperties::default()
        .with_message_id("job-1".into())
        .with_content_type("application/json".into())
        .with_app_id("scheduler".into())
        .with_headers(headers);
    let body = br#"{ "instance_id": "i-unknown1", "more": "kept" }"#;
    stage.message(properties, body).await;

    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["reason"]), (&json!("failed"), &json!("not_found")));
    assert_eq!((&outcome["http_status"], &outcome["error_code"]), (&json!(404), &json!("NoSuchObject")));
    stage.all_acked().await;
    let dead = stage.dead().await;
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].data, body);
    let properties = &dead[0].properties;
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "job-1");
    assert_eq!(properties.app_id().as_ref().unwrap().as_str(), "scheduler");
    for (name, value) in [
        ("team", "ops"),
        ("x-reveille-outcome", "failed"),
        ("x-reveille-reason", "not_found"),
        ("x-reveille-lane", "prod"),
        ("x-reveille-attempts", "1"),
        ("x-reveille-http-status", "404"),
        ("x-reveille-error-code", "NoSuchObject"),
    ] {
        assert_eq!(header(properties, name), value, "{name}");
    }
    assert_eq!(header(properties, "x-reveille-bce-request-id"), outcome["bce_request_id"].as_str().unwrap());
}

#[tokio::test]
async fn every_refusal_ends_with_its_own_reason() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=2,Expired=1,Error=1,Recycled=1", ..Wishes::default() }).await;
    let denied = json!({"status": 403, "code": "AccessDenied"});
    stage.sim.script("i-sim00001", json!([denied, denied])).await;
    stage.sim.script("i-sim00002", json!([{"status": 400, "code": "InvalidHTTPRequest"}])).await;
    for instance in ["i-sim00001", "i-sim00002", "i-sim00003", "i-sim00004", "i-sim00005", "i-unknown1"] {
        stage.wake(instance).await;
    }
    let outcomes = stage.outcomes(6).await;
    for (instance, reason) in [
        ("i-sim00001", "access_denied"),
        ("i-sim00002", "refused"),
        ("i-sim00003", "instance_expired"),
        ("i-sim00004", "wrong_state"),
        ("i-sim00005", "wrong_state"),
        ("i-unknown1", "not_found"),
    ] {
        assert_eq!(outcomes[instance]["reason"], reason, "{instance}");
    }
    stage.all_acked().await;
    assert_eq!(stage.dead().await.len(), 6);
}

#[tokio::test]
async fn a_request_that_came_too_slowly_or_too_early_is_tried_again() {
    let mut stage = Stage::set().await;
    for (instance, status) in [("i-sim00001", 408), ("i-sim00002", 425)] {
        stage.sim.script(instance, json!([{"status": status}])).await;
        stage.wake(instance).await;
    }
    for (instance, outcome) in stage.outcomes(2).await {
        assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(2)), "{instance}");
    }
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn verify_asks_for_the_state_and_the_state_decides() {
    let mut stage = Stage::with(Wishes {
        fleet: "Running=1,Starting=1,Scaling=1",
        sim: &["--boot-time", "1h"],
        ..Wishes::default()
    })
    .await;
    for instance in ["i-sim00001", "i-sim00002", "i-sim00003"] {
        stage.wake(instance).await;
    }
    let outcomes = stage.outcomes(2).await;
    for instance in ["i-sim00001", "i-sim00002"] {
        assert_eq!(outcomes[instance]["outcome"], "already_done", "{instance}");
        assert_eq!(outcomes[instance]["error_code"], "Instance.StartInstanceOperationForbidden");
        assert_eq!(stage.sim.operations(instance).await, ["start", "describe"]);
    }
    // Scaling is a transient state: the job is retried until it has passed.
    eventually("a second try", async || (stage.sim.operations("i-sim00003").await.len() >= 4).then_some(())).await;
    stage.sim.set_status("i-sim00003", "Stopped").await;
    let outcome = stage.outcome().await;
    assert_eq!(outcome["outcome"], "started");
    assert!(outcome["attempts"].as_u64().unwrap() > 2);
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn fail_and_accept_take_a_409_at_its_word() {
    let mut stage = Stage::with(Wishes { fleet: "Running=3", lane: "conflict = \"fail\"", ..Wishes::default() }).await;
    stage.wake("i-sim00001").await;
    stage.job("i-sim00002", json!({"instance_id": "i-sim00002", "conflict": "accept"})).await;
    stage.job("i-sim00003", json!({"instance_id": "i-sim00003", "conflict": "verify"})).await;
    let outcomes = stage.outcomes(3).await;
    assert_eq!(outcomes["i-sim00001"]["reason"], "conflict");
    assert_eq!(outcomes["i-sim00002"]["outcome"], "already_done");
    assert_eq!(outcomes["i-sim00003"]["outcome"], "already_done");
    assert_eq!(stage.sim.operations("i-sim00001").await, ["start"]);
    assert_eq!(stage.sim.operations("i-sim00002").await, ["start"]);
    stage.all_acked().await;
    assert_eq!(stage.dead().await.len(), 1);
}

#[tokio::test]
async fn a_409_that_cannot_be_verified_says_so() {
    let mut stage = Stage::with(Wishes { fleet: "Running=1", ..Wishes::default() }).await;
    stage.sim.script("i-sim00001", json!(["normal", {"status": 403, "code": "AccessDenied"}])).await;
    stage.wake("i-sim00001").await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["reason"], &outcome["http_status"]), (&json!("conflict_unverified"), &json!(403)));
}

#[tokio::test]
async fn a_job_past_its_deadline_expires_without_a_call() {
    let mut stage = Stage::set().await;
    stage.job("late", json!({"instance_id": "i-sim00001", "deadline": "2026-01-01T00:00:00Z"})).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("expired"), &json!(0)));
    stage.all_acked().await;
    assert!(stage.sim.log().await.is_empty());
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn a_job_without_message_id_gets_one_that_it_keeps() {
    let mut stage = Stage::set().await;
    stage.sim.script("i-sim00001", json!([{"status": 500}, {"status": 500}, "normal"])).await;
    stage.message(BasicProperties::default(), br#"{"instance_id":"i-sim00001"}"#).await;
    stage.message(BasicProperties::default(), br#"{"instance_id":"i-unknown1"}"#).await;
    let outcomes = stage.outcomes(2).await;
    for (job, outcome) in &outcomes {
        assert_eq!(uuid::Uuid::parse_str(job).unwrap().get_version_num(), 7);
        assert_eq!(outcome["job_id"], job.as_str());
    }
    let dead = stage.dead().await;
    let failed = outcomes.values().find(|outcome| outcome["outcome"] == "failed").unwrap();
    assert_eq!(header(&dead[0].properties, "x-reveille-job-id"), failed["job_id"].as_str().unwrap());
}

#[tokio::test]
async fn the_final_outcome_also_goes_to_whoever_asked() {
    use futures_util::StreamExt;

    let mut stage = Stage::set().await;
    let mut replies = stage.queues.listen("", "").await;
    let properties = || BasicProperties::default().with_correlation_id("ask-7".into());
    let asked = properties().with_reply_to(replies.queue()).with_message_id("answered".into());
    stage.message(asked, br#"{"instance_id":"i-sim00001"}"#).await;
    // These queues do not exist any more, which must not hold up anything.
    for gone in ["no-such-queue", "amq.rabbitmq.reply-to.g1h2.nobody", "reveille.delay.01"] {
        let asked = properties().with_reply_to(gone.into()).with_message_id(gone.into());
        stage.message(asked, br#"{"instance_id":"i-sim00002"}"#).await;
    }
    let outcomes = stage.outcomes(4).await;
    let reply = replies.next().await.unwrap().unwrap();
    assert_eq!(reply.properties.correlation_id().as_ref().unwrap().as_str(), "ask-7");
    let event: serde_json::Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(event["data"], outcomes["answered"]);
    stage.all_acked().await;
    assert!(stage.queues.take_all("reveille.delay.01").await.is_empty(), "the daemon's own queues take no replies");
}

/// RabbitMQ returns such a reply as unroutable, and delivers it.
#[tokio::test]
async fn a_direct_reply_arrives_and_is_not_told_as_a_lost_one() {
    use futures_util::StreamExt;
    use lapin::options::{BasicConsumeOptions, BasicPublishOptions};

    const DIRECT: &str = "amq.rabbitmq.reply-to";
    let stage = Stage::set().await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = channel.basic_consume(DIRECT.into(), "".into(), options, Default::default()).await.unwrap();
    let asked = BasicProperties::default().with_reply_to(DIRECT.into()).with_message_id("direct".into());
    let options = BasicPublishOptions::default();
    let body = br#"{"instance_id":"i-sim00001"}"#;
    channel.basic_publish("reveille.jobs".into(), "prod".into(), options, body, asked).await.unwrap();
    let reply = replies.next().await.unwrap().unwrap();
    let event: serde_json::Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(event["data"]["job_id"], "direct");
    // A lost reply is logged, and comes after it.
    let asked = BasicProperties::default().with_reply_to("no-such-queue".into()).with_message_id("lost".into());
    stage.message(asked, br#"{"instance_id":"i-sim00002"}"#).await;
    let log = eventually("the lost one is told", async || {
        let log = stage.daemon.child.output();
        log.contains("no reply given").then_some(log)
    })
    .await;
    let told: Vec<&str> = log.lines().filter(|line| line.contains("no reply given")).collect();
    assert!(told.len() == 1 && told[0].contains("no-such-queue"), "{told:?}");
}
