//! `reveille batches`.

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::broker;
use crate::support::child::{Ran, run};
use crate::support::daemon::Config;
use crate::support::instance;
use crate::support::stage::{Stage, Wishes, config};

async fn batches(config: &Config, arguments: &[&str]) -> Ran {
    run(config.command(&[&["batches"], arguments].concat()), "").await
}

/// What is listed, as JSON.
async fn listed(config: &Config, arguments: &[&str]) -> Vec<Value> {
    let ran = batches(config, &[&["--output", "json"], arguments].concat()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    serde_json::from_str(&ran.output).unwrap_or_else(|error| panic!("{error}: {}", ran.output))
}

async fn submit(stage: &Stage, batch: &str, lines: &[String]) {
    let command = stage.daemon.config.command(&["submit", "--lane", "prod", "--batch", batch, "--file", "-"]);
    let ran = run(command, &lines.join("\n")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}

#[tokio::test]
async fn the_latest_batches_are_listed_with_what_came_of_their_jobs() {
    let mut stage = Stage::set().await;
    let evil = "\u{1b}[2J\u{9b}evening";
    let never = r#"{"instance_id":"i-sim00009","not_before":"9999-12-31T23:59:59Z"}"#.to_owned();
    submit(&stage, "morning", &[instance(1), "i-gone0001".to_owned(), never]).await;
    stage.outcomes(2).await;
    submit(&stage, evil, &[instance(2)]).await;
    stage.outcomes(1).await;
    // Without an announcement, as by another client, and the last one twice, as after a crash.
    stage.job("single", json!({"instance_id": instance(3), "batch_id": "single"})).await;
    let copy = stage.event().await.to_string();
    stage.queues.publish("", "reveille.outcomes.log", BasicProperties::default(), copy.as_bytes()).await;
    stage.queues.publish("", "reveille.outcomes.log", BasicProperties::default(), b"noise").await;

    let config = &stage.daemon.config;
    let all = listed(config, &[]).await;
    let told: Vec<_> = all.iter().map(|row| (&row["batch"], &row["announced"], &row["ended"], &row["done"])).collect();
    let (yes, no, one) = (&json!(true), &json!(false), &json!(1));
    let (single, evening, morning) = (&json!("single"), &json!(evil), &json!("morning"));
    let expected = [(single, &Value::Null, one, no), (evening, one, one, yes), (morning, &json!(3), &json!(2), no)];
    assert_eq!(told, expected);
    assert_eq!(all[2]["outcomes"], json!({"failed": 1, "started": 1}));
    for row in &all {
        let time = |field: &str| row[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        assert!(row["lanes"] == json!(["prod"]) && time("first_event") <= time("last_event"), "{row}");
    }
    assert_eq!(listed(config, &["-n", "1"]).await, all[..1]);
    assert_eq!(listed(config, &["--lane", "prod", "--since", "1h"]).await, all);

    let ran = batches(config, &[]).await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{}", ran.output);
    let lines: Vec<&str> = ran.output.lines().collect();
    assert!(lines[0].starts_with("BATCH") && lines.len() == 4, "{}", ran.output);
    assert!(lines[1].starts_with("single ") && lines[1].contains("  1, not announced  1 started  "), "{}", ran.output);
    assert!(lines[2].starts_with(r"\u{1b}[2J\u{9b}evening  prod  1 of 1 "), "{}", ran.output);
    assert!(
        lines[3].starts_with("morning ") && lines[3].contains("  2 of 3            1 failed, 1 started  "),
        "{}",
        ran.output
    );

    let ran = batches(config, &["--lane", "prd"]).await;
    assert_eq!((ran.code, ran.output.as_str()), (Some(2), ""), "{}", ran.errors);
    assert!(
        ran.errors.contains("lane prd is not configured here") && ran.errors.contains("did you mean prod?"),
        "{}",
        ran.errors
    );
    for wrong in [["-n", "0"], ["-n", "1001"], ["--since", "soon"], ["--lane", "Prod"]] {
        assert_eq!(batches(config, &wrong).await.code, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn where_there_is_no_batch_or_no_log_that_is_said() {
    let stage = Stage::set().await;
    let ran = batches(&stage.daemon.config, &[]).await;
    assert_eq!((ran.code, ran.output.as_str()), (Some(0), ""), "{}", ran.errors);
    assert!(ran.errors.contains("no batch within the last 24h: begin earlier with --since"), "{}", ran.errors);
    assert_eq!(listed(&stage.daemon.config, &[]).await, Vec::<Value>::new());

    let (vhost, nowhere) = (broker::vhost(), "http://127.0.0.1:9");
    let ran = batches(&Config::write(&config(&vhost.url, nowhere, &Wishes::default())), &[]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("there is no log of outcomes at"), "{}", ran.errors);
    let ran = batches(&Config::write("[broker]\nurl = \"amqp://guest:hush@127.0.0.1:9\""), &[]).await;
    assert_eq!((ran.code, ran.output.as_str()), (Some(69), ""), "{}", ran.errors);
    assert!(ran.errors.contains("127.0.0.1:9") && !ran.errors.contains("hush"), "{}", ran.errors);
}
