//! The same command again.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::support::child::{Ran, run};
use crate::support::daemon::Daemon;
use crate::support::instance;
use crate::support::stage::{LANE, Stage, Wishes, in_batches};

async fn submit(daemon: &Daemon, arguments: &[&str]) -> Ran {
    let ran =
        run(daemon.config.command(&[&["submit", "--lane", LANE, "--batch", "morning"], arguments].concat()), "").await;
    assert!(ran.errors.starts_with("submitting ") && ran.errors.contains(" as batch morning"), "{}", ran.errors);
    ran
}

/// The final events of so many copies of jobs, and the announcements before and between them.
async fn events(stage: &mut Stage, copies: usize) -> (Vec<Value>, Vec<Value>) {
    let (mut ends, mut announcements) = (Vec::new(), Vec::new());
    while ends.len() < copies {
        let event = stage.event().await;
        if event["type"] == "io.reveille.batch.submitted.v1" {
            announcements.push(event);
        } else if event["data"]["final"] == true {
            ends.push(event);
        }
    }
    (ends, announcements)
}

/// The start calls for an instance, alone or with others.
async fn starts(stage: &Stage, instance: &str) -> usize {
    let operations = stage.sim.operations(instance).await;
    operations.iter().filter(|operation| operation.starts_with("start")).count()
}

#[tokio::test]
async fn the_same_command_again_starts_nothing_twice_while_jobs_wait_and_after_they_ended() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let ids: Vec<String> = (1..=10).map(instance).chain(["i-gone0001".to_owned()]).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    for _ in 0..2 {
        assert_eq!(submit(&stage.daemon, &ids).await.code, Some(0));
    }
    stage.queues.has("reveille.jobs.prod", 22, 0).await;
    stage.daemon.start_again();
    let (waiting, announcements) = events(&mut stage, 22).await;
    assert_eq!(announcements.len(), 2);
    assert_eq!(announcements[0]["id"], announcements[1]["id"]);
    let calls = stage.sim.log().await.len();
    // A shared call with an instance that is gone is refused, and its instances are called again.
    assert!(in_batches() || calls == 11, "{calls} calls");

    let reversed: Vec<&str> = ids.iter().rev().copied().chain(["--wait"]).collect();
    let ran = submit(&stage.daemon, &reversed).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.output.lines().any(|line| line.split_whitespace().eq(["started", "10"])), "{}", ran.output);
    let (ended, announcements) = events(&mut stage, 11).await;
    assert_eq!(announcements.len(), 1);
    for event in waiting.iter().chain(&ended) {
        let gone = event["subject"] == "i-gone0001";
        assert_eq!(event["data"]["outcome"], if gone { "failed" } else { "started" });
        let same = waiting.iter().chain(&ended).filter(|other| other["id"] == event["id"]).count();
        assert_eq!(same, 3, "{event}");
    }
    stage.sim.every_machine_started_once(10).await;
    assert_eq!(stage.sim.log().await.len(), calls);
    assert_eq!(stage.dead().await.len(), 1);

    let watched = run(stage.daemon.config.command(&["watch", "morning"]), "").await;
    assert_eq!(watched.code, Some(1), "{}", watched.errors);
    assert!(watched.errors.contains("11 jobs of an earlier batch morning are not counted"), "{}", watched.errors);
    assert!(watched.output.lines().any(|line| line.split_whitespace().eq(["started", "10"])), "{}", watched.output);
}

#[tokio::test]
async fn the_same_command_again_starts_nothing_twice_while_jobs_are_parked_or_their_instances_boot() {
    let slow = Wishes { sim: &["--boot-time", "3s"], ..Wishes::default() };
    let mut stage = Stage::with(slow).await;
    let at = (Timestamp::now() + SignedDuration::from_secs(4)).to_string();
    let command = ["--at", &at, "--deadline", "30m", "--confirm", "running", "i-sim00001", "i-sim00002"];
    for _ in 0..2 {
        assert_eq!(submit(&stage.daemon, &command).await.code, Some(0));
    }
    let (ends, _) = events(&mut stage, 4).await;
    for event in &ends {
        assert_eq!(event["data"]["outcome"], "running", "{event}");
        assert_eq!(ends.iter().filter(|other| other["id"] == event["id"]).count(), 2, "{event}");
    }
    for instance in ["i-sim00001", "i-sim00002"] {
        assert_eq!(starts(&stage, instance).await, 1);
    }
}

#[tokio::test]
async fn another_label_or_batch_makes_another_job_and_a_deadline_from_now_does_not() {
    let mut stage = Stage::set().await;
    for (batch, more) in [("morning", &[][..]), ("morning", &["--label", "try=2"]), ("noon", &[])] {
        let command = [&["submit", "--batch", batch, "i-sim00001", "--deadline", "30m"], more].concat();
        for _ in 0..2 {
            let ran = run(stage.daemon.config.command(&command), "").await;
            assert_eq!(ran.code, Some(0), "{}", ran.errors);
        }
    }
    let (ends, _) = events(&mut stage, 6).await;
    let mut jobs: Vec<&Value> = ends.iter().map(|event| &event["data"]["job_id"]).collect();
    jobs.sort_by_key(ToString::to_string);
    jobs.dedup();
    assert_eq!(jobs.len(), 3);
    assert!(
        ends.iter().all(|event| event["data"]["labels"] == json!({}) || event["data"]["labels"] == json!({"try": "2"}))
    );
    // A deadline that counts from now is another order under the same id: called again, and with the same outcome.
    assert_eq!(starts(&stage, "i-sim00001").await, 6);
    stage.sim.every_machine_started_once(1).await;
}
