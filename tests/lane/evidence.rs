//! Attribution of failures: an outage is no job's fault, and a job that always fails is not the lane's.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::stage::{Stage, Wishes};
use crate::support::{eventually, instance};

async fn paused(stage: &Stage, reason: &str) {
    let metric = format!(r#"reveille_lane_paused{{lane="prod",reason="{reason}"}}"#);
    eventually("the lane is paused", async || (stage.daemon.metric(&metric).await == 1.0).then_some(())).await;
}

/// Calls for these always fail with this fault, from now on, and all others succeed.
async fn fails_always(stage: &Stage, instances: &[String], fault: Value) {
    stage.sim.faults(json!([{"fault": fault, "instances": instances, "operations": ["start"]}])).await;
}

/// Eight attempts are used up within a minute, and an outage can last longer.
#[tokio::test]
async fn an_outage_costs_a_lone_job_nothing() {
    // The last is a proxy's page.
    for fault in [json!({"status": 503}), json!("reset-before"), json!({"status": 403, "html": true})] {
        let mut stage = Stage::set().await;
        stage.sim.faults(json!([{ "fault": fault }])).await;
        stage.wake(&instance(1)).await;
        paused(&stage, "outage").await;
        stage.sim.faults(json!([])).await;
        let outcome = stage.outcome().await;
        assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)), "{outcome}");
        assert_eq!(stage.daemon.charged().await, 0.0);
    }
}

/// After a pause it is the only job left to try.
#[tokio::test]
async fn a_lone_job_that_always_fails_ends_and_the_lane_works() {
    for (fault, reason) in [(json!({"status": 500}), "exhausted"), (json!({"status": 403}), "access_denied")] {
        let retry = "max_attempts = 2\ninitial = \"200ms\"\nmax = \"1s\"";
        let mut stage = Stage::with(Wishes { retry, lane: "batch = 1", ..Wishes::default() }).await;
        stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
        stage.wake(&instance(1)).await;
        paused(&stage, "keys").await;
        fails_always(&stage, &[instance(1)], fault).await;
        let outcome = stage.outcome().await;
        assert_eq!((&outcome["outcome"], &outcome["reason"]), (&json!("failed"), &json!(reason)), "{outcome}");
        stage.wake(&instance(2)).await;
        assert_eq!(stage.outcome().await["outcome"], "started");
        stage.daemon.is_held().await;
    }
}

/// No other job is there to be called, and nothing else fails.
#[tokio::test]
async fn seven_jobs_that_always_fail_end_alone_and_pause_no_lane() {
    let retry = "max_attempts = 3\ninitial = \"200ms\"\nmax = \"1s\"";
    let mut stage = Stage::with(Wishes { retry, lane: "batch = 1", ..Wishes::default() }).await;
    let bad: Vec<String> = (1..=7).map(instance).collect();
    fails_always(&stage, &bad, json!({"status": 500})).await;
    for instance in &bad {
        stage.wake(instance).await;
    }
    for outcome in stage.outcomes(7).await.values() {
        assert_eq!((&outcome["reason"], &outcome["attempts"]), (&json!("exhausted"), &json!(3)), "{outcome}");
    }
    stage.daemon.never_paused().await;
}

/// The lane is paused at first, since all calls fail. Trials show that only these fail, and they end.
#[tokio::test]
async fn thirty_jobs_that_always_fail_end_though_nothing_else_is_there() {
    let retry = "max_attempts = 2\ninitial = \"200ms\"\nmax = \"1s\"";
    let wishes = Wishes { retry, lane: "rate = 100\nbatch = 1", fleet: "Stopped=30", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let bad: Vec<String> = (1..=30).map(instance).collect();
    fails_always(&stage, &bad, json!({"status": 500})).await;
    for instance in &bad {
        stage.wake(instance).await;
    }
    for outcome in stage.outcomes(30).await.values() {
        assert_eq!((&outcome["reason"], &outcome["attempts"]), (&json!("exhausted"), &json!(2)), "{outcome}");
    }
    stage.daemon.is_held().await;
    stage.daemon.works_again().await;
}

/// Only a start can show then that the API is back.
async fn works_again_although_lists_fail_so(fault: Value) {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    stage.sim.faults(json!([{"fault": {"status": 503}}])).await;
    stage.wake(&instance(1)).await;
    paused(&stage, "outage").await;
    stage.sim.faults(json!([{"fault": fault, "operations": ["list"]}])).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)), "{outcome}");
    stage.daemon.is_held().await;
    stage.daemon.works_again().await;
}

#[tokio::test]
async fn a_lane_whose_lists_fail_works_again_once_starts_do() {
    works_again_although_lists_fail_so(json!({"status": 503})).await;
}

#[tokio::test]
async fn a_lane_whose_lists_a_gateway_throttles_works_again_once_starts_do() {
    works_again_although_lists_fail_so(json!({"status": 429, "gateway": true})).await;
}

/// A job whose call failed on trial waits for the others of that trial, and a stop ends that wait.
#[tokio::test]
async fn a_stop_in_the_middle_of_a_trial_waits_for_no_other_call() {
    let retry = "initial = \"200ms\"\nmax = \"1s\"\n[shutdown]\ngrace = \"3s\"";
    let mut stage = Stage::with(Wishes { retry, lane: "batch = 1", ..Wishes::default() }).await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake(&instance(1)).await;
    paused(&stage, "keys").await;
    fails_always(&stage, &[instance(1)], json!({"status": 500})).await;
    eventually("it has failed on trial", async || {
        stage.sim.log().await.iter().any(|call| call.status == Some(500)).then_some(())
    })
    .await;
    stage.daemon.stop().await;
    let output = stage.daemon.child.output();
    assert!(!output.contains("still in flight after the grace"), "{output}");
    stage.sim.faults(json!([])).await;
    stage.daemon.start_again();
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)), "{outcome}");
}

/// Enough for an outage fail again and again, and are due before anything new.
#[tokio::test]
async fn jobs_that_always_fail_do_not_keep_a_lane_from_new_ones() {
    let lane = "timeout = \"1s\"\nbatch = 1";
    let mut stage = Stage::with(Wishes { lane, fleet: "Stopped=50", ..Wishes::default() }).await;
    let bad: Vec<String> = (11..=40).map(instance).collect();
    fails_always(&stage, &bad, json!({"status": 500})).await;
    for instance in &bad {
        stage.wake(instance).await;
    }
    paused(&stage, "outage").await;
    eventually("they are due", async || (stage.queues.count("reveille.due.prod").await.0 >= 4).then_some(())).await;
    stage.wake(&instance(7)).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["instance_id"], &outcome["outcome"]), (&json!(instance(7)), &json!("started")), "{outcome}");
}

#[tokio::test]
async fn a_pause_is_no_time_for_which_a_job_failed() {
    let retry = "initial = \"200ms\"\nmax = \"1s\"\ngive_up_after = \"6s\"";
    let mut stage = Stage::with(Wishes { retry, lane: "batch = 1", ..Wishes::default() }).await;
    let creating = json!({"status": 409, "code": "Instance.StartInstanceWhenCreating"});
    stage.sim.script(&instance(1), json!([{"status": 500}, creating])).await;
    stage.wake(&instance(1)).await;
    eventually("it has failed", async || (stage.daemon.charged().await >= 1.0).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake(&instance(2)).await;
    paused(&stage, "keys").await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    stage.sim.faults(json!([])).await;
    let outcomes = stage.outcomes(2).await;
    assert_eq!(outcomes[&instance(1)]["outcome"], "started", "{outcomes:?}");
    assert_eq!(outcomes[&instance(1)]["attempts"], 3, "{outcomes:?}");
}

/// The grace period is for a stop.
#[tokio::test]
async fn a_pause_breaks_no_call_off_however_short_the_grace() {
    let lane = "timeout = \"30s\"\nbatch = 1\n[shutdown]\ngrace = \"500ms\"";
    let mut stage = Stage::with(Wishes { lane, ..Wishes::default() }).await;
    stage.sim.script(&instance(1), json!([{"delay": "15s"}])).await;
    stage.wake(&instance(1)).await;
    eventually("the call is made", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake(&instance(2)).await;
    paused(&stage, "keys").await;
    let in_flight = async || stage.daemon.metric(r#"reveille_jobs_in_flight{lane="prod"}"#).await;
    eventually("nothing but the call is out", async || (in_flight().await == 1.0).then_some(())).await;
    // Several times the grace period.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(in_flight().await, 1.0, "the call is still out");

    let first = stage.outcome().await;
    let expected = (&json!(instance(1)), &json!("started"), &json!(false));
    assert_eq!((&first["job_id"], &first["outcome"], &first["ambiguous"]), expected, "{first}");
    assert_eq!(stage.sim.operations(&instance(1)).await, ["start"]);
    // Nothing has ended the pause yet, so the call outlasted it.
    paused(&stage, "keys").await;
    stage.sim.faults(json!([])).await;
    let second = stage.outcome().await;
    assert_eq!((&second["outcome"], &second["ambiguous"]), (&json!("started"), &json!(false)), "{second}");
}

/// A call can take as long as its time-out.
#[tokio::test]
async fn a_pause_is_shown_while_calls_made_before_it_are_out() {
    let mut stage = Stage::with(Wishes { lane: "timeout = \"30s\"\nbatch = 1", ..Wishes::default() }).await;
    stage.sim.script(&instance(1), json!([{"delay": "15s"}])).await;
    stage.wake(&instance(1)).await;
    eventually("the call is made", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake(&instance(2)).await;
    eventually("it is shown", async || {
        stage.daemon.get("/readyz").await.1.contains(r#""prod":"paused: "#).then_some(())
    })
    .await;
    assert_eq!(stage.daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await, 1.0);
    eventually("nothing but the call is out", async || {
        (stage.daemon.metric(r#"reveille_jobs_in_flight{lane="prod"}"#).await == 1.0).then_some(())
    })
    .await;
    stage.sim.faults(json!([])).await;
    for outcome in stage.outcomes(2).await.into_values() {
        assert_eq!(outcome["outcome"], "started", "{outcome}");
    }
}
