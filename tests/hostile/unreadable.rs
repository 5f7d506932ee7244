//! Nothing published to a lane is lost: a message that is no job ends as `rejected`, is kept whole, and the lane goes
//! on.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::python::publish_odd;
use crate::support::queues::header;
use crate::support::stage::{Stage, Wishes};

#[tokio::test]
async fn what_is_no_job_is_rejected_and_kept_and_the_lane_goes_on() {
    let mut stage = Stage::set().await;
    let ids = [
        "i-../../x",
        "..",
        "i-0000/../i-0001",
        "i-0000?stop",
        "i-%2f%2f%2f",
        "i-ab cd",
        " i-abcd",
        "i-дела",
        "",
        "i-",
        "i-abc",
        "x-abcd",
        "i-abcd\n",
        "i-abcd#",
        "i-abcd;",
        "i-ab\u{0}cd",
    ];
    let mut bodies: Vec<Vec<u8>> = ids.iter().map(|id| json!({ "instance_id": id }).to_string().into_bytes()).collect();
    bodies.extend(
        [
            &b""[..],
            b"wake up",
            b"null",
            b"[]",
            b"{}",
            b"{\"instance_id\":\"i-ab\xff\xfecd\"}",
            b"\xff\xfe\x00",
            b"{\"instance_id\":7}",
            b"{\"instance_id\":[\"i-sim00001\"]}",
            b"{\"instance_id\":\"i-sim00001\",\"labels\":\"none\"}",
            b"{\"instance_id\":\"i-sim00001\",\"deadline\":\"soon\"}",
            b"{\"instance_id\":\"i-sim00001\",\"conflict\":\"perhaps\"}",
            b"{\"instance_id\":\"i-sim00001\",\"confirm\":\"perhaps\"}",
            b"{\"instance_id\":\"i-sim00001\",\"priority\":\"utmost\"}",
            b"{\"instance_id\":\"i-sim00001\"} {\"instance_id\":\"i-sim00002\"}",
        ]
        .map(<[u8]>::to_vec),
    );
    bodies.push(vec![b'x'; 1024 * 1024]);
    bodies.push(
        format!(r#"{{"instance_id":"i-sim00001","labels":{}{}}}"#, "[".repeat(20_000), "]".repeat(20_000)).into(),
    );
    bodies.push("[".repeat(60_000).into());
    bodies.push(json!({"instance_id": "i-sim00001", "batch_id": "b".repeat(129)}).to_string().into());
    let labels: std::collections::BTreeMap<String, &str> = (0..17).map(|n| (n.to_string(), "v")).collect();
    bodies.push(json!({"instance_id": "i-sim00001", "labels": labels}).to_string().into());

    for (number, body) in bodies.iter().enumerate() {
        let properties = BasicProperties::default().with_message_id(format!("bad-{number}").into());
        stage.message(properties, body).await;
    }
    stage.wake("i-sim00001").await;

    let outcomes = stage.outcomes(bodies.len() + 1).await;
    assert_eq!(outcomes["i-sim00001"]["outcome"], "started");
    for (number, body) in bodies.iter().enumerate() {
        let outcome = &outcomes[&format!("bad-{number}")];
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]);
        assert_eq!((&outcome["outcome"], &outcome["reason"]), (&json!("rejected"), &json!("unreadable")), "{shown}");
        assert!(!outcome["error_message"].as_str().unwrap().is_empty(), "{shown}");
        assert_eq!(outcome["instance_id"], json!(null), "{shown}");
    }
    stage.all_acked().await;
    let mut dead = stage.dead().await;
    dead.sort_by_key(|message| {
        message.properties.message_id().as_ref().unwrap().as_str()[4..].parse::<usize>().unwrap()
    });
    let kept: Vec<&Vec<u8>> = dead.iter().map(|message| &message.data).collect();
    assert!(kept == bodies.iter().collect::<Vec<_>>(), "kept whole, each once");
    for message in &dead {
        let properties = &message.properties;
        if message.data.len() == 1024 * 1024 {
            // The daemon never had the whole message: RabbitMQ dead-lettered it.
            assert_eq!(header(properties, "x-first-death-reason"), "rejected");
            assert_eq!(header(properties, "x-first-death-queue"), "reveille.jobs.prod");
            continue;
        }
        assert_eq!(header(properties, "x-reveille-outcome"), "rejected");
        assert_eq!(header(properties, "x-reveille-reason"), "unreadable");
    }
    let calls = stage.sim.log().await;
    assert!(calls.len() == 1 && calls[0].instance == "i-sim00001", "no call for any of them: {calls:?}");
}

/// Bodies as serializers of many languages write them.
#[tokio::test]
async fn what_can_be_read_is_read_and_what_cannot_is_told_its_encoding() {
    let mut stage = Stage::set().await;
    let never = "9999-12-31T23:59:59Z";
    let bare = r#"{"instance_id":"i-sim00003"}"#;
    let nulls = json!({"instance_id": "i-sim00001", "batch_id": null, "conflict": null, "confirm": null, "not_before": null,
        "deadline": null, "priority": null, "labels": null});
    stage.job("nulls", nulls).await;
    stage.job("label", json!({"instance_id": "i-sim00002", "labels": {"a": null, "b": "c"}, "deadline": never})).await;
    let named = |id: &str| BasicProperties::default().with_message_id(id.into());
    stage.message(named("mark"), format!("\u{feff}{bare}").as_bytes()).await;
    let said = named("said").with_content_encoding("gzip".into());
    stage.message(said, br#"{"instance_id":"i-sim00004"}"#).await;
    let utf16: Vec<u8> = bare.encode_utf16().flat_map(u16::to_le_bytes).collect();
    stage.message(named("utf16"), &utf16).await;
    let gzip = named("gzip").with_content_encoding("gzip".into());
    stage.message(gzip, b"\x1f\x8b\x08\0\0\0\0\0").await;
    stage.job("waits", json!({"instance_id": "i-sim00005", "not_before": never})).await;

    let outcomes = stage.outcomes(6).await;
    for id in ["nulls", "label", "mark", "said"] {
        assert_eq!(outcomes[id]["outcome"], "started", "{id}: {}", outcomes[id]);
    }
    assert_eq!((&outcomes["nulls"]["labels"], &outcomes["label"]["labels"]), (&json!({}), &json!({"b": "c"})));
    for (id, words) in [
        ("utf16", "the body is in UTF-16: expected JSON in UTF-8"),
        ("gzip", "content_encoding is gzip: bodies are read as they are, uncompressed JSON in UTF-8"),
    ] {
        assert_eq!(outcomes[id]["reason"], "unreadable", "{id}");
        let told = outcomes[id]["error_message"].as_str().unwrap();
        assert!(told.contains(words), "{told}");
    }
    stage.all_acked().await;
    assert_eq!(stage.dead().await.len(), 2);
    assert_eq!(stage.daemon.metric(r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#).await, 1.0);
    assert!(stage.sim.operations("i-sim00005").await.is_empty(), "it waits for ever");
}

#[tokio::test]
async fn headers_of_every_kind_and_size_harm_nobody() {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    let mut deep = AMQPValue::Void;
    for _ in 0..50 {
        let mut table = FieldTable::default();
        table.insert("in".into(), deep);
        deep = AMQPValue::FieldTable(table);
    }
    let odd = [
        ("x-reveille-attempts", AMQPValue::LongString("many".into())),
        ("x-reveille-setbacks", AMQPValue::LongLongInt(i64::MIN)),
        ("x-reveille-received-at", AMQPValue::Boolean(true)),
        ("x-reveille-failing-since", AMQPValue::LongString("yesterday".into())),
        ("x-reveille-touched", AMQPValue::LongString("yes".into())),
        ("x-delivery-count", AMQPValue::LongString("99".into())),
        ("x-death", AMQPValue::LongString("not a list".into())),
        ("traceparent", AMQPValue::LongString("nonsense".into())),
        ("BCC", AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into())),
        ("bytes", AMQPValue::LongString(vec![0xff, 0xfe].into())),
        ("time", AMQPValue::Timestamp(u64::MAX)),
        ("deep", deep),
    ];
    let mut headers = FieldTable::default();
    for (name, value) in odd {
        headers.insert(name.into(), value);
    }
    let mut large = FieldTable::default();
    large.insert("large".into(), AMQPValue::LongString("v".repeat(120_000).into()));
    // The first call fails, so that each goes through the ladder; there is no such instance, so it is dead-lettered.
    for (id, headers) in [("odd", headers), ("large", large)] {
        let instance = format!("i-unknown{id}");
        stage.sim.script(&instance, json!([{"status": 500}])).await;
        let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
        stage.message(properties, json!({ "instance_id": instance }).to_string().as_bytes()).await;
    }
    let outcomes = stage.outcomes(2).await;
    for id in ["odd", "large"] {
        assert_eq!((&outcomes[id]["reason"], &outcomes[id]["attempts"]), (&json!("not_found"), &json!(2)), "{id}");
    }
    stage.all_acked().await;
    let dead = stage.dead().await;
    assert_eq!(dead.len(), 2);
    for message in dead {
        let dropped = header(&message.properties, "x-reveille-headers-dropped");
        assert_eq!(dropped == "true", message.properties.message_id().as_ref().unwrap().as_str() == "large");
    }
}

/// The log keeps such an event, and a replica that takes a lane over reads it back.
#[tokio::test]
async fn an_event_that_cannot_be_read_at_all_holds_no_lane_up() {
    let mut stage = Stage::set().await;
    // Under another lane's key, since this test's own listener could not read it either.
    let odd = ["message_id", "name", "frame:131072", "tables:most"].map(|kind| (kind, "{}"));
    publish_odd(&stage.vhost.url, "reveille.outcomes", "other.noise", &odd);
    stage.daemon.stop().await;
    stage.wake("i-sim00001").await;
    stage.daemon.start_again();
    let outcome = tokio::time::timeout(PATIENCE, stage.outcome()).await;
    assert_eq!(outcome.expect("the lane works")["outcome"], "started");
    let output = stage.daemon.child.output();
    assert_eq!(output.matches(" connected ").count(), 1, "{output}");
    assert!(!output.contains("is lost"), "{output}");
    assert!(!output.contains("cannot read back"), "{output}");
}
