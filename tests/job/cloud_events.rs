//! Jobs that come as events of CloudEvents, in both content modes.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::queues::header;
use crate::support::stage::{Stage, Wishes};

const TYPE: &str = "io.reveille.start.requested.v1";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const STRUCTURED: &str = "application/cloudevents+json";

fn event(id: &str, instance: &str) -> Value {
    json!({"specversion": "1.0", "type": TYPE, "source": "/alarms", "id": id, "traceparent": TRACE,
        "data": {"instance_id": instance, "labels": {"alarm": "cpu-high"}}})
}

fn typed(content_type: &str) -> BasicProperties {
    BasicProperties::default().with_content_type(content_type.into())
}

/// The headers of an event in binary mode.
fn binary(prefix: &str, id: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in
        [("specversion", "1.0"), ("type", TYPE), ("source", "/alarms"), ("id", id), ("traceparent", TRACE)]
    {
        headers.insert(format!("{prefix}{name}").into(), AMQPValue::LongString(value.into()));
    }
    typed("application/json").with_headers(headers)
}

/// Each fails once, so that it is parked in between.
#[tokio::test]
async fn a_job_as_an_event_of_either_mode_is_started_and_keeps_its_names_while_it_is_parked() {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    let bare = |instance: &str| json!({"instance_id": instance, "labels": {"alarm": "cpu-high"}});
    let messages = [
        (typed(STRUCTURED), event("1", "i-sim00001")),
        // As Dapr sends them.
        (typed("text/plain"), event("2", "i-sim00002")),
        (binary("cloudEvents:", "3"), bare("i-sim00003")),
        (binary("cloudEvents_", "4"), bare("i-sim00004")),
        (binary("ce-", "5"), bare("i-sim00005")),
        (typed(STRUCTURED).with_message_id("named".into()), event("6", "i-sim00006")),
    ];
    let count = messages.len();
    for (number, (properties, body)) in (1..).zip(messages) {
        stage.sim.script(&format!("i-sim{number:05}"), json!([{"status": 500}])).await;
        let properties = properties.with_correlation_id(format!("ask-{number}").into());
        stage.message(properties, body.to_string().as_bytes()).await;
    }
    for _ in 0..count {
        let event = stage.event().await;
        let (data, instance) = (&event["data"], event["subject"].as_str().unwrap());
        let number = instance.trim_start_matches("i-sim").trim_start_matches('0');
        let job_id = if number == "6" { "named".to_owned() } else { format!("/alarms {number}") };
        assert_eq!((&data["outcome"], &data["attempts"]), (&json!("started"), &json!(2)), "{event}");
        assert_eq!((&data["job_id"], &event["id"]), (&json!(job_id), &json!(format!("{job_id}/start"))));
        assert_eq!(data["correlation_id"], format!("ask-{number}"));
        assert_eq!((&event["traceparent"], &data["labels"]), (&json!(TRACE), &json!({"alarm": "cpu-high"})));
    }
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn the_header_traceparent_comes_before_that_of_the_event() {
    let mut stage = Stage::set().await;
    let other = TRACE.replace("4bf9", "0000");
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(other.as_str().into()));
    stage.message(typed(STRUCTURED).with_headers(headers), event("1", "i-sim00001").to_string().as_bytes()).await;
    let event = stage.event().await;
    assert_eq!((&event["traceparent"], &event["data"]["correlation_id"]), (&json!(other), &json!(null)));
}

#[tokio::test]
async fn an_event_that_is_no_job_is_rejected_with_its_id_and_kept_whole() {
    let mut stage = Stage::set().await;
    let with = |name: &str, value: Value| {
        let mut event = event(name, "i-sim00001");
        event[name] = value;
        (typed(STRUCTURED), event)
    };
    let mut wrong_header = binary("ce-", "header");
    let mut headers = wrong_header.headers().clone().unwrap();
    headers.insert("ce-type".into(), AMQPValue::LongString("com.example.alarm".into()));
    wrong_header = wrong_header.with_headers(headers);
    let messages = [
        with("type", json!("io.reveille.instance.failed.v1")),
        with("specversion", json!("0.3")),
        with("data", json!(null)),
        with("data_base64", json!("e30=")),
        (typed("application/cloudevents-batch+json"), json!([event("batch", "i-sim00001")])),
        (wrong_header, json!({"instance_id": "i-sim00001"})),
    ];
    for (properties, body) in &messages {
        stage.message(properties.clone(), body.to_string().as_bytes()).await;
    }
    let outcomes = stage.outcomes(messages.len()).await;
    for (id, told) in [
        ("type", r#"the event's type is "io.reveille.instance.failed.v1": expected "io.reveille.start.requested.v1""#),
        ("specversion", r#"the event's specversion is "0.3": expected "1.0""#),
        ("data", "the event has no data: expected the job in it, as a JSON object"),
        ("data_base64", "the event has data_base64: expected the job in data, as a JSON object"),
        ("header", r#"the event's ce-type is "com.example.alarm": expected "io.reveille.start.requested.v1""#),
    ] {
        let outcome = &outcomes[&format!("/alarms {id}")];
        assert_eq!((&outcome["outcome"], &outcome["reason"]), (&json!("rejected"), &json!("unreadable")), "{id}");
        assert_eq!(outcome["error_message"], told);
    }
    let batch = outcomes.iter().find(|(job_id, _)| !job_id.starts_with("/alarms")).unwrap().1;
    assert!(batch["error_message"].as_str().unwrap().contains("only application/cloudevents+json is read"), "{batch}");
    stage.all_acked().await;
    let dead = stage.dead().await;
    let sorted = |mut bodies: Vec<Vec<u8>>| {
        bodies.sort();
        bodies
    };
    let sent = messages.iter().map(|(_, body)| body.to_string().into_bytes()).collect();
    assert_eq!(sorted(dead.iter().map(|letter| letter.data.clone()).collect()), sorted(sent));
    for letter in &dead {
        assert!(letter.properties.content_type().is_some());
        assert_eq!(header(&letter.properties, "x-reveille-reason"), "unreadable");
    }
    assert!(stage.sim.log().await.is_empty());
}

#[tokio::test]
async fn a_dead_letter_of_an_event_that_is_put_back_is_the_same_job_again() {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    let once = json!([{"status": 404, "code": "NoSuchObject"}]);
    for instance in ["i-sim00001", "i-sim00002"] {
        stage.sim.script(instance, once.clone()).await;
    }
    stage.message(typed(STRUCTURED), event("1", "i-sim00001").to_string().as_bytes()).await;
    stage.message(binary("cloudEvents_", "2"), json!({"instance_id": "i-sim00002"}).to_string().as_bytes()).await;
    for outcome in stage.outcomes(2).await.into_values() {
        assert_eq!(outcome["reason"], "not_found");
    }
    stage.all_acked().await;
    for letter in stage.dead().await {
        stage.queues.publish("", "reveille.jobs.prod", letter.properties.with_delivery_mode(2), &letter.data).await;
    }
    for _ in 0..2 {
        let event = stage.event().await;
        let (data, id) = (&event["data"], event["id"].as_str().unwrap());
        let job_id = if data["instance_id"] == "i-sim00001" { "/alarms 1" } else { "/alarms 2" };
        assert_eq!((&data["outcome"], &data["job_id"]), (&json!("started"), &json!(job_id)), "{event}");
        assert!(id.starts_with(&format!("{job_id}/start/2")), "by the instant of its death: {id}");
        assert_eq!(event["traceparent"], TRACE);
    }
    stage.all_acked().await;
    assert!(stage.dead().await.is_empty());
}
