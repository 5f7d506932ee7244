//! Temporary failures return through the delay ladder; permanent ones end the job.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, ToSpan};
use serde_json::json;

use crate::support::eventually;
use crate::support::queues::header;
use crate::support::stage::{Stage, Wishes};

#[tokio::test]
async fn transient_failures_are_tried_again_until_one_succeeds() {
    let mut stage = Stage::set().await;
    let failures =
        json!([{"status": 500}, {"status": 503}, {"reset": "before"}, {"status": 502, "html": true}, "normal"]);
    stage.sim.script("i-sim00001", failures).await;
    stage.wake("i-sim00001").await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(5)));
    assert_eq!(outcome["ambiguous"], false);
    assert_eq!(stage.sim.operations("i-sim00001").await, ["start"; 5]);
    stage.all_acked().await;
    assert_eq!(stage.daemon.charged().await, 4.0);
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn attempts_that_are_used_up_end_the_job_with_the_last_answer() {
    let retry = "max_attempts = 3\ninitial = \"200ms\"\nmax = \"1s\"";
    let mut stage = Stage::with(Wishes { retry, ..Wishes::default() }).await;
    // If the API answers no call at all, the lane pauses, and the job waits.
    let fault = json!({"status": 503, "code": "ServiceUnavailable", "message": "try later"});
    let rules = json!([{"fault": fault, "operations": ["start"]}]);
    stage.sim.faults(rules).await;
    stage.wake("i-sim00001").await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["reason"], &outcome["attempts"]), (&json!("exhausted"), &json!(3)));
    assert_eq!((&outcome["http_status"], &outcome["error_message"]), (&json!(503), &json!("try later")));
    assert_eq!(stage.sim.operations("i-sim00001").await, ["start"; 3]);
    stage.all_acked().await;
    let dead = stage.dead().await;
    assert_eq!(header(&dead[0].properties, "x-reveille-reason"), "exhausted");
    assert_eq!(header(&dead[0].properties, "x-reveille-error-message"), "try later");
}

#[tokio::test]
async fn a_call_that_succeeded_unseen_is_reported_as_started_and_ambiguous() {
    let lane = "timeout = \"5s\"\nconflict = \"fail\"\nbatch = 1";
    let mut stage = Stage::with(Wishes { lane, ..Wishes::default() }).await;
    stage.sim.script("i-sim00001", json!([{"hang": "after"}])).await;
    stage.sim.script("i-sim00002", json!([{"status": 500, "when": "after"}])).await;
    stage.wake("i-sim00001").await;
    stage.wake("i-sim00002").await;
    for (instance, outcome) in stage.outcomes(2).await {
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(true)), "{instance}");
        assert_eq!(stage.sim.operations(&instance).await, ["start", "start", "describe"]);
    }
    stage.sim.every_machine_started_once(2).await;
}

#[tokio::test]
async fn throttling_costs_no_attempt_and_keeps_to_retry_after() {
    let mut stage = Stage::set().await;
    let throttled = json!({"status": 429, "retry_after": 2});
    stage.sim.script("i-sim00001", json!([throttled, throttled, "normal"])).await;
    stage.wake("i-sim00001").await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)));
    let calls = stage.sim.log().await;
    assert_eq!(calls.len(), 3);
    for pair in calls.windows(2) {
        assert!(pair[1].unix_micros - pair[0].unix_micros >= 2_000_000, "{calls:?}");
    }
    assert_eq!(stage.daemon.metric(r#"reveille_jobs_parked_total{cause="throttled",lane="prod"}"#).await, 2.0);
}

#[tokio::test]
async fn an_instance_still_being_created_is_waited_for() {
    let wishes =
        Wishes { fleet: "Creating=1", lane: "conflict = \"fail\"", sim: &["--boot-time", "1h"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    stage.wake("i-sim00001").await;
    eventually("a second try", async || (stage.sim.operations("i-sim00001").await.len() >= 2).then_some(())).await;
    stage.sim.set_status("i-sim00001", "Stopped").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn a_lane_fault_leaves_its_jobs_unharmed() {
    let mut stage = Stage::set().await;
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "InvalidAccessKeyId"}}])).await;
    stage.wake("i-sim00001").await;
    eventually("the fault is seen", async || {
        (stage.daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await == 1.0).then_some(())
    })
    .await;
    eventually("several tries", async || (stage.sim.wire().await.len() > 2).then_some(())).await;
    stage.sim.faults(json!([])).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)));
    assert_eq!(stage.daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await, 0.0);
    let log = stage.daemon.child.output();
    assert_eq!(log.matches("lane paused").count(), 1, "once for the change of state, not for each job: {log}");
    assert!(stage.dead().await.is_empty());
}

#[tokio::test]
async fn a_redirect_is_a_lane_fault_and_never_followed() {
    let mut stage = Stage::set().await;
    let other = crate::support::sim::Sim::start(&[]);
    let location = format!("{}/v2/instance/i-sim00001?start", other.url());
    stage.sim.faults(json!([{"fault": {"status": 307, "location": location}}])).await;
    stage.wake("i-sim00001").await;
    eventually("the answer is seen", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    stage.sim.faults(json!([])).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    assert!(other.log().await.is_empty());
}

#[tokio::test]
async fn a_job_is_not_called_before_its_time() {
    let mut stage =
        Stage::with(Wishes { fleet: "Stopped=1,Running=1", lane: "conflict = \"fail\"", ..Wishes::default() }).await;
    let not_before = Timestamp::now() + 3.seconds();
    for instance in ["i-sim00001", "i-sim00002"] {
        stage.job(instance, json!({"instance_id": instance, "not_before": not_before})).await;
    }
    let outcomes = stage.outcomes(2).await;
    assert_eq!(outcomes["i-sim00001"]["outcome"], "started");
    // Waiting until `not_before` is no attempt: the 409 is still judged by the policy.
    assert_eq!(outcomes["i-sim00002"]["reason"], "conflict");
    for call in stage.sim.log().await {
        assert!(call.unix_micros >= not_before.as_microsecond(), "{call:?}");
    }
}

#[tokio::test]
async fn a_parked_job_waits_in_the_ladder_as_it_came() {
    let stage = Stage::set().await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let body =
        json!({"instance_id": "i-sim00001", "not_before": Timestamp::now() + 100.hours(), "more": now}).to_string();
    let properties = lapin::BasicProperties::default()
        .with_message_id("later".into())
        .with_user_id("guest".into())
        .with_expiration("3600000".into());
    stage.message(properties, body.as_bytes()).await;
    // 100 hours are more than the whole ladder: the job returns from its top and goes up again.
    let parked =
        eventually("the job is in the ladder", async || stage.queues.take_all("reveille.delay.17").await.pop()).await;
    assert_eq!(parked.data, body.as_bytes());
    assert_eq!(parked.properties.message_id().as_ref().unwrap().as_str(), "later");
    assert_eq!((parked.properties.user_id(), parked.properties.expiration()), (&None, &None));
    assert_eq!(header(&parked.properties, "x-reveille-attempts"), "0");
    assert_eq!(header(&parked.properties, "x-reveille-touched"), "false");
    assert_eq!(parked.routing_key.as_str(), format!("{}prod", "1.".repeat(18)));
    stage.all_acked().await;
    assert!(stage.sim.log().await.is_empty());
}
