//! Stopping: jobs in flight are finished, the rest is requeued, and the baton goes last.

use std::time::Duration;

use serde_json::json;

use crate::support::account::Account;
use crate::support::child::Child;
use crate::support::stage::{Stage, Wishes, in_batches};
use crate::support::{PATIENCE, eventually, instance};

#[tokio::test]
async fn a_graceful_stop_under_load_finishes_what_is_in_flight_and_returns_the_rest() {
    // With shared calls, one at a time is load enough.
    let concurrency = if in_batches() { 1 } else { 8 };
    let wishes = Wishes {
        fleet: "Stopped=600",
        lane: &format!("rate = 1000\nburst = 1\nconcurrency = {concurrency}"),
        sim: &["--latency", "300ms"],
        ..Wishes::default()
    };
    let mut stage = Stage::with(wishes).await;
    stage.wake_all(1..=600).await;
    eventually("jobs are in flight", async || (stage.sim.log().await.len() >= 16).then_some(())).await;
    stage.daemon.stop().await;

    // Every call that was made has its outcome, and every other job is back in its queue.
    let called = stage.sim.log().await.len();
    assert!(called < 600, "the stop came under load");
    let first = stage.outcomes(called).await;
    stage.back(600 - called).await;

    // The rest may be quick.
    stage.sim.faults(json!([])).await;
    stage.daemon.start_again();
    let second = stage.outcomes(600 - called).await;
    assert!(first.keys().chain(second.keys()).count() == 600 && !first.keys().any(|job| second.contains_key(job)));
    assert_eq!(stage.sim.log().await.len(), 600, "no instance was called twice");
}

#[tokio::test]
async fn what_the_grace_does_not_suffice_for_goes_back_and_nothing_is_lost() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let text = std::fs::read_to_string(&stage.daemon.config.path).unwrap() + "[shutdown]\ngrace = \"500ms\"\n";
    std::fs::write(&stage.daemon.config.path, text).unwrap();
    stage.daemon.start_again();
    stage.daemon.ready().await;

    stage.sim.script("i-sim00001", json!([{"hang": "after"}])).await;
    stage.wake("i-sim00001").await;
    eventually("the call is made", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.daemon.child.signal("INT");
    assert_eq!(stage.daemon.child.ended().await.code(), Some(0));
    stage.back(1).await;

    // The call had succeeded, so the job meets a 409 and must not take it for another client's start.
    stage.daemon.start_again();
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(true)));
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let mut stage = Stage::set().await;
    stage.sim.script("i-sim00001", json!([{"hang": "before"}])).await;
    stage.wake("i-sim00001").await;
    eventually("the call is made", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.daemon.child.signal("TERM");
    eventually("the stop has begun", async || stage.daemon.child.output().contains("a second signal").then_some(()))
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(stage.daemon.child.is_running(), "the call is given its time");
    stage.daemon.child.signal("TERM");
    assert_eq!(stage.daemon.child.ended().await.code(), Some(128 + 15));
    stage.back(1).await;
}

/// Closing a terminal sends it twice.
#[tokio::test]
async fn a_hangup_stops_gracefully_however_often_it_comes() {
    let mut stage = Stage::with(Wishes { sim: &["--latency", "2s"], ..Wishes::default() }).await;
    stage.wake("i-sim00001").await;
    eventually("the call is made", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.daemon.child.signal("HUP");
    eventually("the stop has begun", async || stage.daemon.child.output().contains("a second signal").then_some(()))
        .await;
    stage.daemon.child.signal("HUP");
    assert_eq!(stage.daemon.child.ended().await.code(), Some(0));
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn a_hangup_that_was_ignored_at_the_start_stays_ignored() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let daemon = stage.daemon.config.command(&["run"]);
    let mut command = std::process::Command::new("/usr/bin/nohup");
    command.env_clear().arg(daemon.get_program()).args(daemon.get_args());
    command.envs(daemon.get_envs().filter_map(|(name, value)| Some((name, value?))));
    stage.daemon.child = Child::start(command);
    stage.daemon.ready().await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.daemon.child.pid())).unwrap();
    let has_hangup = |line: &str| {
        let mask = status.lines().find_map(|text| text.strip_prefix(line)).unwrap().trim();
        u64::from_str_radix(mask, 16).unwrap() & 1 == 1
    };
    assert!(has_hangup("SigIgn:") && !has_hangup("SigCgt:"), "{status}");
    stage.daemon.child.signal("HUP");
    // A stop here would otherwise be the second signal, which exits at once.
    stage.daemon.stop().await;
}

#[tokio::test]
async fn the_baton_goes_to_the_replica_that_stands_by() {
    let mut stage = Stage::set().await;
    let config = std::fs::read_to_string(&stage.daemon.config.path).unwrap();
    let second = crate::support::daemon::Daemon::start(&config);
    second.ready().await;
    assert!(second.get("/readyz").await.1.contains(r#""prod":"standing_by""#));
    assert!(stage.daemon.holds_the_lane().await && !second.holds_the_lane().await);
    stage.wake("i-sim00001").await;
    stage.outcome().await;

    stage.daemon.stop().await;
    second.takes_the_lane().await;
    stage.wake("i-sim00002").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_loses_no_job() {
    let lane = "rate = 100\nburst = 1\nconcurrency = 8";
    let sim = &["--fault", "status-500=0.05", "--fault", "throttled=0.05"];
    let mut stage = Stage::with(Wishes { fleet: "Stopped=1600", lane, sim, ..Wishes::default() }).await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=1600).map(instance), json!({})).await;
    let mut wanted = 0;
    for round in 0..20_u64 {
        // Some calls further on, at least one, and then at a different stage of a call each time.
        wanted = (wanted + 20).max(stage.sim.log().await.len() + 1);
        eventually("calls are made", async || (stage.sim.log().await.len() >= wanted).then_some(())).await;
        assert!(stage.sim.log().await.len() < 1600, "the kills come under load");
        tokio::time::sleep(Duration::from_millis(round * 3 % 13)).await;
        stage.daemon.kill().await;
        stage.daemon.start_again();
    }
    // With shared calls the lane has a tenth of the rate, and most jobs are called singly after a failed one.
    let patience = if in_batches() { PATIENCE * 3 } else { PATIENCE };
    assert_eq!(account.close(patience).await, [("started".to_owned(), 1600)].into());
    stage.sim.every_machine_started_once(1600).await;
}
