//! `reveille cancel`, `pause`, `resume` and `snooze`.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::broker;
use crate::support::child::{Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{eventually, instance};

const STARTS: [&str; 2] = ["start", "batch_start"];
/// So slow that a command comes before the last job is called.
const SLOW: &str = "rate = 5\nburst = 1";

async fn command(config: &Config, arguments: &[&str]) -> Ran {
    run(config.command(arguments), "").await
}

/// Gives a command, which has to take effect.
async fn give(stage: &Stage, arguments: &[&str]) -> String {
    let ran = command(&stage.daemon.config, &[arguments, &["--as", "ops@desk", "--reason", "patching"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    ran.errors
}

/// Instances that the API was asked to start.
async fn called(sim: &Sim) -> usize {
    let calls = sim.wire().await;
    calls.iter().filter(|call| STARTS.contains(&call.operation.as_str())).count()
}

fn batch(name: &str, numbers: std::ops::RangeInclusive<usize>) -> Vec<(String, Value)> {
    numbers
        .map(|number| (format!("{name}-{number}"), json!({"instance_id": instance(number), "batch_id": name})))
        .collect()
}

/// Paused by hand, as the metric and `/readyz` say.
async fn is_paused(daemon: &Daemon) {
    daemon.paused("by_hand", &["by ops@desk: patching; until ", "or `reveille resume prod`"]).await;
}

#[tokio::test]
async fn a_lane_that_is_paused_by_hand_makes_no_call_until_it_is_resumed() {
    let mut stage = Stage::with(Wishes { lane: SLOW, ..Wishes::default() }).await;
    stage.wake_all(1..=20).await;
    stage.outcomes(3).await;
    let told = give(&stage, &["pause", "prod"]).await;
    assert!(told.contains("lane prod is paused, until `reveille resume prod`; its jobs wait"), "{told}");
    let before = called(&stage.sim).await;
    is_paused(&stage.daemon).await;
    let log = stage.daemon.child.output();
    assert!(
        log.contains("lane paused by hand, its jobs wait unharmed") && log.contains("command lane.pause: lane prod")
    );
    // A restart does not end it, nor does a crash.
    stage.daemon.stop().await;
    stage.daemon.start_again();
    is_paused(&stage.daemon).await;
    stage.daemon.kill().await;
    stage.daemon.start_again();
    is_paused(&stage.daemon).await;
    assert_eq!(called(&stage.sim).await, before, "no call, and no probe of a start");
    let told = give(&stage, &["resume", "prod"]).await;
    assert!(told.contains("lane prod is not paused by hand any more"), "{told}");
    stage.outcomes(20 - 3).await;
    stage.daemon.is_held().await;
    stage.all_acked().await;
}

#[tokio::test]
async fn events_say_that_a_lane_is_paused_by_whom_and_why_and_that_it_works_again() {
    let mut stage = Stage::set().await;
    give(&stage, &["pause", "prod", "--until", "1h"]).await;
    let paused = stage.event().await;
    assert_eq!(paused["type"], "io.reveille.lane.paused.v1");
    assert_eq!(paused["data"]["cause"], "by_hand");
    assert!(paused["data"]["text"].as_str().unwrap().starts_with("by ops@desk: patching; until "), "{paused}");
    give(&stage, &["resume", "prod"]).await;
    assert_eq!(stage.event().await["type"], "io.reveille.lane.resumed.v1");
    let applied = stage.queues.read_stream("reveille.outcomes.log", &mut 0).await;
    let applied: Vec<Value> = applied
        .iter()
        .filter(|message| message.routing_key.as_str() == "_control.applied")
        .map(|message| serde_json::from_slice(&message.data).unwrap())
        .collect();
    let said: Vec<(&Value, &Value)> =
        applied.iter().map(|event| (&event["data"]["command"], &event["data"]["by"])).collect();
    assert_eq!(said, [(&json!("lane.pause"), &json!("ops@desk")), (&json!("lane.resume"), &json!("ops@desk"))]);
    assert_eq!(applied[0]["data"]["lanes"], json!(["prod"]));
    assert_eq!(applied[0]["data"]["replica"]["pid"], stage.daemon.child.pid());
}

#[tokio::test]
async fn a_pause_by_hand_ends_by_itself_at_its_time() {
    let mut stage = Stage::set().await;
    give(&stage, &["pause", "prod", "--until", "4s"]).await;
    stage.wake("i-sim00001").await;
    assert_eq!(stage.event().await["type"], "io.reveille.lane.paused.v1");
    assert_eq!(stage.event().await["type"], "io.reveille.lane.resumed.v1");
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn the_jobs_of_a_cancelled_batch_end_without_a_call() {
    let mut stage = Stage::with(Wishes { lane: SLOW, ..Wishes::default() }).await;
    for (id, job) in batch("morning", 1..=15).into_iter().chain(batch("evening", 16..=18)) {
        stage.job(&id, job).await;
    }
    let mut ended = stage.outcomes(2).await;
    let told = give(&stage, &["cancel", "morning"]).await;
    assert!(
        told.contains("jobs of batch morning that were submitted until now, or are within a minute, are cancelled"),
        "{told}"
    );
    let before = called(&stage.sim).await;
    ended.extend(stage.outcomes(16).await);
    let of = |batch: &str, outcome: &str| {
        ended.values().filter(|job| job["batch_id"] == batch && job["outcome"] == outcome).count()
    };
    assert_eq!((of("evening", "started"), of("morning", "started") + of("morning", "cancelled")), (3, 15));
    // Some of the second batch may have been called before; no more than that is called of the first one.
    assert!(called(&stage.sim).await <= before + 3, "{} calls before, {} now", before, called(&stage.sim).await);
    let cancelled = ended.values().find(|job| job["outcome"] == "cancelled").expect("the lane is slow");
    assert_eq!(cancelled["reason"], "by_command");
    assert_eq!(cancelled["error_message"], "cancelled by ops@desk: patching");
    assert_eq!((&cancelled["attempts"], &cancelled["ambiguous"]), (&json!(0), &json!(false)));
    assert_eq!(stage.dead().await.len(), 0, "a cancelled job is no dead letter");
}

#[tokio::test]
async fn a_job_that_waits_for_its_time_is_cancelled_too_and_a_later_one_is_not() {
    let mut stage = Stage::set().await;
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(8);
    let job = json!({"instance_id": "i-sim00001", "batch_id": "morning", "not_before": soon.to_string()});
    stage.job("early", job).await;
    eventually("it is parked", async || {
        let parked = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;
        (stage.daemon.metric(parked).await == 1.0).then_some(())
    })
    .await;
    give(&stage, &["cancel", "morning"]).await;
    // Submitted well after the command, as its timestamp says.
    let later = u64::try_from(jiff::Timestamp::now().as_second()).unwrap() + 3600;
    let properties = BasicProperties::default().with_message_id("late".into()).with_timestamp(later);
    stage.message(properties, br#"{"instance_id":"i-sim00002","batch_id":"morning"}"#).await;
    let ended = stage.outcomes(2).await;
    assert_eq!((&ended["early"]["outcome"], &ended["late"]["outcome"]), (&json!("cancelled"), &json!("started")));
}

#[tokio::test]
async fn an_instance_is_left_alone_while_it_is_snoozed() {
    let mut stage = Stage::set().await;
    give(&stage, &["snooze", "i-sim00001", "--until", "1h"]).await;
    stage.wake("i-sim00001").await;
    stage.wake("i-sim00002").await;
    let ended = stage.outcomes(2).await;
    let snoozed = &ended["i-sim00001"];
    assert_eq!((&snoozed["outcome"], &snoozed["reason"]), (&json!("cancelled"), &json!("snoozed")));
    assert!(snoozed["error_message"].as_str().unwrap().starts_with("snoozed until 20"), "{snoozed}");
    assert_eq!(ended["i-sim00002"]["outcome"], "started");
    give(&stage, &["snooze", "i-sim00001", "--end"]).await;
    stage.job("again", json!({"instance_id": "i-sim00001"})).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    give(&stage, &["cancel", "--instance", "i-sim00003"]).await;
    stage.wake("i-sim00003").await;
    assert_eq!(stage.outcome().await["outcome"], "cancelled", "it does not say when it was submitted");
}

#[tokio::test]
async fn a_command_that_is_given_while_no_daemon_runs_holds_once_one_does() {
    let mut stage = Stage::set().await;
    stage.daemon.kill().await;
    eventually("it is gone", async || (stage.queues.count("reveille.replicas").await.1 == 0).then_some(())).await;
    for (id, job) in batch("morning", 1..=5) {
        stage.job(&id, job).await;
    }
    let ran = command(&stage.daemon.config, &["cancel", "morning", "--as", "ops"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("no daemon runs: it takes effect when one starts"), "{}", ran.errors);
    let told = command(&stage.daemon.config, &["pause", "prod"]).await.errors;
    assert!(told.contains("no replica is known to run lane prod now: once one does it is paused"), "{told}");
    stage.daemon.start_again();
    stage.daemon.paused("by_hand", &["@"]).await;
    give(&stage, &["resume", "prod"]).await;
    let ended = stage.outcomes(5).await;
    assert!(ended.values().all(|job| job["outcome"] == "cancelled"), "{ended:?}");
    assert_eq!(called(&stage.sim).await, 0);
}

/// How so many jobs of a batch ended, by their ids. An event that was published before a kill, and not acked, comes twice.
async fn ends(stage: &mut Stage, batch: &str, count: usize) -> BTreeMap<String, Value> {
    let mut ends = BTreeMap::new();
    while ends.len() < count {
        let data = stage.event().await["data"].clone();
        if data["final"] == true && data["batch_id"] == batch {
            let id = data["job_id"].as_str().expect("an outcome names its job").to_owned();
            let before = ends.insert(id, data["outcome"].clone());
            assert!(before.is_none_or(|before| before == data["outcome"]), "a copy says the same: {data}");
        }
    }
    ends
}

/// Each time, the daemon is killed at another moment between the command and its effect.
#[tokio::test]
async fn a_kill_between_a_command_and_its_effect_loses_neither() {
    let mut stage = Stage::with(Wishes { lane: SLOW, fleet: "Stopped=100", ..Wishes::default() }).await;
    for round in 0..4_usize {
        let name = format!("round-{round}");
        let numbers = round * 20 + 1..=round * 20 + 20;
        for (id, job) in batch(&name, numbers) {
            stage.job(&id, job).await;
        }
        let config = &stage.daemon.config;
        let arguments = ["cancel", name.as_str(), "--lane", "prod"];
        let cancelling = command(config, &arguments);
        let waited = std::time::Duration::from_millis(u64::try_from(round).unwrap() * 60);
        let killing = async {
            tokio::time::sleep(waited).await;
            stage.daemon.child.signal("KILL");
        };
        let (ran, ()) = tokio::join!(cancelling, killing);
        assert!([Some(0), Some(1)].contains(&ran.code), "{}", ran.errors);
        stage.daemon.child.ended().await;
        let before = called(&stage.sim).await;
        stage.daemon.start_again();
        let ended = ends(&mut stage, &name, 20).await;
        assert!(ended.values().any(|outcome| outcome == "cancelled"), "{ended:?}");
        assert_eq!(called(&stage.sim).await, before, "none is called by a daemon that starts after the command");
    }
}

#[tokio::test]
async fn both_replicas_know_a_command_and_a_take_over_does_not_end_it() {
    let vhost = broker::vhost();
    let sim = Sim::start(&["--fleet", "Stopped=20"]);
    let text = config(&vhost.url, &sim.url(), &Wishes::default());
    let mut daemons = [Daemon::start(&text), Daemon::start(&text)];
    for daemon in &daemons {
        daemon.ready().await;
    }
    eventually("one holds the lane", async || {
        let holds = [daemons[0].holds_the_lane().await, daemons[1].holds_the_lane().await];
        holds.contains(&true).then_some(())
    })
    .await;
    Queues::connect(&vhost.url).await.has("reveille.replicas", 0, 2).await;
    let ran = command(&daemons[0].config, &["pause", "prod", "--as", "ops@desk", "--reason", "patching"]).await;
    assert_eq!((ran.code, ran.errors.lines().count()), (Some(0), 1), "{}", ran.errors);
    let holder = usize::from(!daemons[0].holds_the_lane().await);
    is_paused(&daemons[holder]).await;
    daemons[holder].kill().await;
    is_paused(&daemons[1 - holder]).await;
    assert_eq!(called(&sim).await, 0);
}

#[tokio::test]
async fn wrong_commands_are_told_with_the_remedy_and_nothing_is_given() {
    let stage = Stage::set().await;
    let long = "x".repeat(501);
    for (arguments, expected) in [
        (vec!["pause", "prd"], "there is no lane prd at"),
        (vec!["pause", "prd"], "did you mean prod?"),
        (vec!["pause", "Prod!"], "is no lane name: expected a-z 0-9 -"),
        (vec!["pause", "prod", "--until", "07:30"], "is a time of day without a time zone: add --tz"),
        (vec!["pause", "prod", "--until", "2020-01-01T00:00:00Z"], "is past: expected a time to come"),
        (vec!["pause", "prod", "--until", "1000h"], "is more than 30 days ahead"),
        (vec!["pause", "prod", "--reason", &long], "it has 501 bytes: expected 500 at most"),
        (vec!["resume"], "<LANE>"),
        (vec!["cancel"], "<BATCH|--instance <ID>>"),
        (vec!["cancel", "morning", "--lane", "prd"], "did you mean prod?"),
        (vec!["cancel", ""], "it has 0 bytes: expected 1 to 128"),
        (vec!["cancel", "--instance", "../x"], "is no instance id"),
        (vec!["snooze", "i-sim00001"], "--until <TIME>"),
        (vec!["snooze", "i-sim00001", "--until", "soon"], "is no time: expected a length"),
        (vec!["snooze", "i-sim00001", "--until", "1h", "--tz", "Mars/Base"], "is no time zone of this system"),
    ] {
        let ran = command(&stage.daemon.config, &arguments).await;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.errors);
        assert!(ran.errors.contains(expected), "{arguments:?}: {}", ran.errors);
    }
    let read = stage.queues.read_stream("reveille.control.log", &mut 0).await;
    assert_eq!(read.len(), 1, "only the daemon's own mark");
}

#[tokio::test]
async fn what_is_no_command_changes_nothing_and_stops_nothing() {
    let mut stage = Stage::set().await;
    let evil = "\u{1b}[2J\nlane paused";
    let event = |kind: &str, data: Value| {
        json!({"specversion": "1.0", "id": kind, "source": "/", "type": format!("io.reveille.{kind}.v1"),
            "time": jiff::Timestamp::now(), "data": data})
        .to_string()
    };
    for body in [
        "noise".to_owned(),
        event("lane.pause", json!({"lane": "prod"})),
        event("lane.pause", json!({"lane": "x".repeat(10_000), "by": "me"})),
        event("lane.explode", json!({"lane": "prod", "by": "me"})),
        event("batch.cancel", json!({"batch_id": evil, "by": evil, "reason": evil})),
    ] {
        stage.queues.publish("reveille.control", "command.x", BasicProperties::default(), body.as_bytes()).await;
    }
    eventually("the last one is applied", async || {
        stage.daemon.child.output().contains("command batch.cancel: batch ").then_some(())
    })
    .await;
    stage.wake("i-sim00001").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    assert!(!stage.daemon.child.output().contains(evil), "text from outside is escaped");
    give(&stage, &["pause", "prod"]).await;
}
