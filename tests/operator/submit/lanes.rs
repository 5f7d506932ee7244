//! The lane that jobs are submitted to, and what is said of it before.

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::support::child::run;
use crate::support::daemon::{Config, Daemon};
use crate::support::eventually;
use crate::support::stage::{Stage, Wishes, config};

#[tokio::test]
async fn the_only_lane_is_the_default_and_of_several_one_has_to_be_chosen() {
    let mut stage = Stage::set().await;
    let ran = run(stage.daemon.config.command(&["submit", "i-sim00001"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("1 job submitted to lane prod as batch submit-"), "{}", ran.errors);
    stage.outcome().await;

    let one = config(&stage.vhost.url, &stage.sim.url(), &Wishes::default());
    let several = Config::write(&format!("{one}[[lane]]\nname = \"test-gz\"\nregion = \"gz\"\n"));
    for (arguments, told) in [
        (&["submit", "i-sim00001"][..], "several lanes: choose one with --lane; there are prod, test-gz"),
        (&["submit", "i-sim00001", "--lane", "prdo"], "has run with it; did you mean prod?\n"),
        (&["submit", "i-sim00001", "--lane", "weekend"], "has run with it; there are prod, test-gz\n"),
        (
            &["submit", "i-sim00001", "--lane", "Prod"],
            "\"Prod\" is no lane name: expected a-z 0-9 -; did you mean prod?",
        ),
        (&["submit", "i-sim00001", "--lane", "test-gz"], "there is no lane test-gz at "),
    ] {
        let ran = run(several.command(arguments), "").await;
        assert_eq!(ran.code, Some(2), "{}", ran.errors);
        assert!(ran.errors.contains(told), "{}", ran.errors);
    }
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn a_lane_that_only_replicas_know_is_named_where_another_was_meant() {
    let stage = Stage::set().await;
    let more = config(&stage.vhost.url, &stage.sim.url(), &Wishes::default()).replace("\"prod\"", "\"test-gz\"");
    let other = Daemon::start(&more);
    other.ready().await;
    let bare = Config::write(&format!("[broker]\nurl = {:?}\n", stage.vhost.url));
    eventually("both replicas answer", async || {
        let status = run(bare.command(&["status"]), "").await.output;
        (status.contains("prod ") && status.contains("test-gz ")).then_some(())
    })
    .await;
    for (arguments, told) in [
        (&["submit", "i-sim00001", "--lane", "prdo"][..], "there is no lane prdo at "),
        (&["submit", "i-sim00001", "--lane", "prdo"], "has run with it; did you mean prod?\n"),
        (&["submit", "i-sim00001", "--lane", "weekend"], "has run with it; there are prod, test-gz\n"),
        (&["submit", "i-sim00001"], "there is no lane default at "),
        (&["submit", "i-sim00001"], "has run with it; there are prod, test-gz\n"),
        (&["pause", "tst-gz"], "has run with it; did you mean test-gz?\n"),
    ] {
        let ran = run(bare.command(arguments), "").await;
        assert_eq!(ran.code, Some(2), "{}", ran.errors);
        assert!(ran.errors.contains(told), "{told}: {}", ran.errors);
    }
}

#[tokio::test]
async fn a_lane_that_is_paused_is_said_before_anything_is_submitted_with_why_and_until_when() {
    let mut stage = Stage::set().await;
    let config = Config::write(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    let command = async |arguments: &[&str]| run(config.command(arguments), "").await;
    let pause = ["pause", "prod", "--as", "ops", "--reason", "patch\u{1b}ing", "--until", "2h"];
    assert_eq!(command(&pause).await.code, Some(0));
    let ran = command(&["submit", "i-sim00001"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let lines: Vec<&str> = ran.errors.lines().collect();
    assert!(lines[0].starts_with("submitting 1 job to lane prod"), "{}", ran.errors);
    let told = r"lane prod is paused, and its jobs wait: by ops: patch\u{1b}ing; until 2";
    assert!(lines[1].starts_with(told), "{}", ran.errors);
    assert!(lines[2].starts_with("1 job submitted"), "{}", ran.errors);
    assert_eq!(command(&["resume", "prod"]).await.code, Some(0));
    stage.outcome().await;
    let ran = command(&["submit", "i-sim00002"]).await;
    assert!(ran.code == Some(0) && !ran.errors.contains("paused"), "{}", ran.errors);
    stage.outcome().await;
}

#[tokio::test]
async fn a_lane_that_no_daemon_runs_and_jobs_that_wait_are_said_before_anything_is_submitted() {
    let slow = Wishes { lane: "rate = 2\nbatch = 3", ..Wishes::default() };
    let mut stage = Stage::with(slow).await;
    let nobody = "no daemon runs lane prod: its jobs wait in RabbitMQ until `reveille run` runs with it\n";
    let submit = |more: &[&'static str]| stage.daemon.config.command(&[&["submit"], more].concat());
    let ran = run(submit(&["i-sim00001", "--wait"]), "").await;
    assert!(ran.code == Some(0) && !ran.errors.contains("no daemon runs"), "{}", ran.errors);
    let submit = {
        let config = Config::write(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
        move |more: &[&str]| config.command(&[&["submit"], more].concat())
    };
    stage.daemon.stop().await;
    let ran = run(submit(&["i-sim00001", "i-sim00002", "i-sim00003", "i-sim00004"]), "").await;
    let lines: Vec<&str> = ran.errors.lines().collect();
    assert!(lines[0].starts_with("submitting 4 jobs to lane prod as batch submit-"), "{}", ran.errors);
    assert_eq!((ran.code, lines[1]), (Some(0), nobody.trim_end()));
    assert!(lines.len() == 3 && lines[2].starts_with("4 jobs submitted"), "{}", ran.errors);

    stage.queues.has("reveille.jobs.prod", 4, 0).await;
    let ran = run(submit(&["i-sim00005", "--urgent"]), "").await;
    assert!(!ran.errors.contains("in lane prod already"), "an urgent job waits for none of those: {}", ran.errors);
    stage.queues.has("reveille.urgent.prod", 1, 0).await;
    let ran = run(submit(&["i-sim00005"]), "").await;
    let told = "4 jobs wait in lane prod already, and go first: 1s at least, with 2 calls a second of up to 3 jobs\n";
    assert!(ran.errors.contains(nobody) && ran.errors.contains(told), "{}", ran.errors);
    let ran = run(submit(&["i-sim00006", "--urgent"]), "").await;
    assert!(ran.errors.contains("1 job waits in lane prod already, and goes first: 1s at least"), "{}", ran.errors);
}

#[tokio::test]
async fn waves_are_refused_where_the_holder_is_of_a_version_that_has_none() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    // In its place something that holds the lane, and answers as versions before waves do.
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let _holder = channel.basic_consume("reveille.baton.prod".into(), "".into(), options, none).await.unwrap();
    let mut asked = stage.queues.listen("reveille.control", "ask.status").await;
    let answering = tokio::spawn(async move {
        let lane = json!({"lane": "prod", "state": "held", "rate": 20.0, "rate_configured": 20.0, "in_flight": 0});
        let replica = json!({"host": "old", "pid": 1, "version": "0.1.0"});
        let body = json!({"replica": replica, "part": 0, "parts": 1, "lanes": [lane]}).to_string();
        while let Some(Ok(question)) = asked.next().await {
            let (to, id) = (question.properties.reply_to().clone(), question.properties.correlation_id().clone());
            let (Some(to), Some(id)) = (to, id) else { continue };
            let properties = BasicProperties::default().with_correlation_id(id);
            let options = BasicPublishOptions::default();
            let published = channel.basic_publish("".into(), to, options, body.as_bytes(), properties).await;
            published.expect("the channel is open");
        }
    });
    for (more, told) in [
        (
            &["--ramp"][..],
            "lane prod is run by a replica of a version without waves, so it would start all jobs at once",
        ),
        (&["--max-failures", "5%"], "of a version without --max-failures as a part of a batch"),
    ] {
        let command = [&["submit", "--batch", "patched", "i-sim00001", "i-sim00002"], more].concat();
        let ran = run(stage.daemon.config.command(&command), "").await;
        assert_eq!(ran.code, Some(2), "{}", ran.errors);
        assert!(ran.errors.contains(told) && ran.errors.contains("upgrade all replicas first"), "{}", ran.errors);
    }
    stage.queues.has("reveille.jobs.prod", 0, 0).await;
    let ran =
        run(stage.daemon.config.command(&["submit", "--max-failures", "1", "i-sim00001", "i-sim00002"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    answering.abort();
}
