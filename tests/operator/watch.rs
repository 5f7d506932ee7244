//! `reveille watch`.

use std::ops::RangeInclusive;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::broker;
use crate::support::child::{Child, Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::files::Folder;
use crate::support::scene::Scene;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{eventually, instance};

/// A job that never ends.
const NEVER: &str = r#"{"instance_id":"i-sim00001","not_before":"9999-12-31T23:59:59Z"}"#;

/// Submits a batch with these lines.
async fn submit(daemon: &Daemon, batch: &str, lines: &[String]) {
    let command = daemon.config.command(&["submit", "--lane", "prod", "--batch", batch, "--file", "-"]);
    let ran = run(command, &lines.join("\n")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}

fn instances(numbers: RangeInclusive<usize>) -> Vec<String> {
    numbers.map(instance).collect()
}

async fn watch(config: &Config, arguments: &[&str]) -> Ran {
    run(config.command(&[&["watch"], arguments].concat()), "").await
}

/// The words of each line of the table.
fn table(output: &str) -> Vec<Vec<&str>> {
    output.lines().take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().collect()).collect()
}

const HEAD: [&str; 3] = ["OUTCOME", "REASON", "JOBS"];

#[tokio::test]
async fn a_batch_is_watched_from_its_middle_and_after_it() {
    let slow = Wishes { lane: "rate = 10\nburst = 1", fleet: "Stopped=90", ..Wishes::default() };
    let mut stage = Stage::with(slow).await;
    submit(&stage.daemon, "morning", &instances(1..=90)).await;
    stage.outcomes(5).await;
    let ran = watch(&stage.daemon.config, &["morning"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert_eq!(table(&ran.output), [HEAD.to_vec(), vec!["started", "90"]]);
    let progress = |line: &&str| line.starts_with("morning: ") && line.contains(" of 90 ended: ");
    let told: Vec<&str> = ran.errors.lines().filter(progress).collect();
    assert!(!told.is_empty() && told.len() < 5, "a line every few seconds: {}", ran.errors);
    assert!(told.iter().any(|line| line.contains("/s, ") && line.contains(" left; ")), "{told:#?}");

    let again = watch(&stage.daemon.config, &["morning", "--since", "10m"]).await;
    assert_eq!((again.code, &again.output), (Some(0), &ran.output), "{}", again.errors);
}

#[tokio::test]
async fn announcements_add_up_failures_are_listed_and_copies_count_once() {
    let mut stage = Stage::set().await;
    submit(&stage.daemon, "morning", &["i-sim00001".to_owned(), "i-gone0001".to_owned()]).await;
    submit(&stage.daemon, "evening", &["i-gone0003".to_owned()]).await;
    for _ in 0..5 {
        let copy = stage.event().await.to_string();
        stage.queues.publish("", "reveille.outcomes.log", BasicProperties::default(), copy.as_bytes()).await;
    }
    stage.queues.publish("", "reveille.outcomes.log", BasicProperties::default(), b"noise").await;
    submit(&stage.daemon, "morning", &["i-gone0002".to_owned(), "i-sim00002".to_owned()]).await;

    let folder = Folder::new();
    let path = folder.put("failures", "of yesterday\n");
    let ran = watch(&stage.daemon.config, &["morning", "--failures-file", &path]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert_eq!(table(&ran.output), [HEAD.to_vec(), vec!["failed", "not_found", "2"], vec!["started", "2"]]);
    let written = std::fs::read_to_string(&path).unwrap();
    let failures: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(failures.len(), 2, "{written}");
    for (failure, instance) in failures.iter().zip(["i-gone0001", "i-gone0002"]) {
        assert_eq!((&failure["instance_id"], &failure["reason"]), (&json!(instance), &json!("not_found")));
        let line = format!("{instance}  not_found, HTTP 404 NoSuchObject");
        assert!(ran.output.contains(&format!("\n  {line}\n")), "{}", ran.output);
        assert!(ran.errors.contains(&format!("not up: {line}\n")), "{}", ran.errors);
    }
    let ran = watch(&stage.daemon.config, &["morning", "--failures-file", &folder.path("no/file")]).await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.errors.contains("cannot write --failures-file"), "{}", ran.errors);
}

#[tokio::test]
async fn a_batch_that_goes_on_is_left_at_a_timeout_or_a_signal_and_the_command_is_told() {
    let stage = Stage::set().await;
    submit(&stage.daemon, "morning", &[NEVER.to_owned(), "i-sim00002".to_owned()]).await;
    let left = |output: &str| {
        assert!(output.contains("1 of 2 jobs of batch morning have ended, and the others go on"), "{output}");
        assert!(output.contains("to watch it again: reveille watch --since 24h morning\n"), "{output}");
        assert!(output.lines().any(|line| line.split_whitespace().eq(["started", "1"])), "{output}");
    };
    let ran = watch(&stage.daemon.config, &["morning", "--timeout", "5s"]).await;
    assert_eq!(ran.code, Some(124), "{}", ran.errors);
    left(&(ran.output + &ran.errors));
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut watching = Child::start(stage.daemon.config.command(&["watch", "morning"]));
        eventually("it is watched", async || watching.output().contains("1 of 2 ended").then_some(())).await;
        watching.signal(signal);
        assert_eq!(watching.ended().await.code(), Some(code), "{}", watching.output());
        left(&watching.output());
    }
}

#[tokio::test]
async fn a_batch_that_is_not_announced_is_waited_for_and_then_given_up() {
    let stage = Stage::set().await;
    let waiting = "was not announced within the last 24h: waiting for it";
    let mut watching = Child::start(stage.daemon.config.command(&["watch", "morning"]));
    eventually("it waits", async || watching.output().contains(waiting).then_some(())).await;
    submit(&stage.daemon, "morning", &["i-sim00001".to_owned()]).await;
    assert_eq!(watching.ended().await.code(), Some(0), "{}", watching.output());

    let ran = watch(&stage.daemon.config, &["mornign"]).await;
    assert_eq!((ran.code, ran.output.as_str()), (Some(2), ""), "{}", ran.errors);
    assert!(ran.errors.contains(waiting) && ran.errors.contains("check its name"), "{}", ran.errors);
}

#[tokio::test]
async fn jobs_that_ended_before_the_announcement_are_of_an_earlier_batch() {
    let mut stage = Stage::set().await;
    stage.job("early", json!({"instance_id": "i-gone0001", "batch_id": "morning"})).await;
    stage.outcome().await;
    submit(&stage.daemon, "morning", &[NEVER.to_owned()]).await;
    let ran = watch(&stage.daemon.config, &["morning", "--timeout", "5s"]).await;
    assert_eq!((ran.code, ran.output.as_str()), (Some(124), ""), "{}", ran.errors);
    assert!(ran.errors.contains("1 jobs of an earlier batch morning are not counted"), "{}", ran.errors);
    assert!(ran.errors.contains("0 of 1 jobs of batch morning have ended"), "{}", ran.errors);
}

#[tokio::test]
async fn a_broker_that_is_lost_is_waited_for_and_the_watch_goes_on() {
    let slow = Wishes { lane: "rate = 10\nburst = 1", ..Wishes::default() };
    let mut scene = Scene::set(100, slow).await;
    let mut watching = Child::start(scene.daemon.config.command(&["watch", "morning"]));
    eventually("it waits", async || watching.output().contains("waiting for it").then_some(())).await;
    submit(&scene.daemon, "morning", &instances(1..=100)).await;
    eventually("some have ended", async || watching.output().contains(" of 100 ended: ").then_some(())).await;
    scene.node.kill();
    eventually("it is said", async || watching.output().contains("RabbitMQ is away, and tried again").then_some(()))
        .await;
    scene.node.restart();
    let code = watching.ended().await.code();
    let output = watching.output();
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("RabbitMQ is there again"), "{output}");
    assert!(output.lines().any(|line| line.split_whitespace().eq(["started", "100"])), "{output}");
}

#[tokio::test]
async fn what_a_watch_lacks_is_named() {
    let (vhost, nowhere) = (broker::vhost(), "http://127.0.0.1:9");
    let no_log = Config::write(&config(&vhost.url, nowhere, &Wishes::default()));
    let ran = watch(&no_log, &["morning"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(
        ran.errors.contains("there is no log of outcomes at") && ran.errors.contains("`reveille run`"),
        "{}",
        ran.errors
    );

    let ran = watch(&Config::write("[broker]\nurl = \"amqp://guest:hush@127.0.0.1:9\""), &["morning"]).await;
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    assert!(ran.errors.contains("127.0.0.1:9") && !ran.errors.contains("hush"), "{}", ran.errors);

    let stage = Stage::on(vhost, Wishes::default()).await;
    let (node, vhost) = (&stage.vhost.node, stage.vhost.name.as_str());
    let user = format!("watch-{vhost}");
    node.ctl(&["add_user", &user, "hush"]);
    node.ctl(&["set_permissions", "-p", vhost, &user, "", "", "^reveille\\.outcomes$"]);
    let url = stage.vhost.url.replace("guest:guest", &format!("{user}:hush"));
    let ran = watch(&Config::write(&config(&url, nowhere, &Wishes::default())), &["morning"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("the user needs permission to read reveille.outcomes.log"), "{}", ran.errors);
    assert!(!ran.errors.contains("hush"), "{}", ran.errors);
}

#[tokio::test]
async fn a_paused_lane_is_told_while_its_batch_is_watched() {
    let stage = Stage::set().await;
    let command = async |arguments: &[&str]| run(stage.daemon.config.command(arguments), "").await;
    assert_eq!(command(&["pause", "prod", "--as", "ops"]).await.code, Some(0));
    submit(&stage.daemon, "morning", &instances(1..=3)).await;
    let mut watching = Child::start(stage.daemon.config.command(&["watch", "morning"]));
    let paused = "lane prod is paused, and its jobs wait: by ops; until ";
    eventually("it is told", async || watching.output().contains(paused).then_some(())).await;
    assert_eq!(command(&["resume", "prod"]).await.code, Some(0));
    assert_eq!(watching.ended().await.code(), Some(0), "{}", watching.output());
    assert!(watching.output().contains("lane prod is not paused any more"), "{}", watching.output());
}
