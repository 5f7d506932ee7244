//! The API's clock and ours differ: calls are signed by the API's.

use serde_json::{Value, json};

use crate::support::calls::Call;
use crate::support::pace::Lateness;
use crate::support::stage::{Stage, Wishes};
use crate::support::{eventually, instance};

const OFFSET: &str = r#"reveille_lane_clock_offset_seconds{lane="prod"}"#;
const PAUSED: &str = r#"reveille_lane_paused{lane="prod",reason="clock"}"#;
/// Far less than the clocks differ, and far more than a busy machine delays a call.
const TIGHT: &str = "1m";

/// The metric shows this offset, in seconds, to the precision of a `Date`.
async fn offset_is(stage: &Stage, expected: f64) {
    let offset = stage.daemon.metric(OFFSET).await;
    assert!((offset - expected).abs() <= 2.0, "{offset} where it is {expected}");
}

/// The status of each call of the log.
fn statuses(calls: &[Call]) -> Vec<u64> {
    calls.iter().map(|call| call.status.unwrap_or_default()).collect()
}

async fn started(stage: &mut Stage, instance: &str) {
    stage.wake(instance).await;
    is_started(&stage.outcome().await);
}

/// The job was started, without losing an attempt.
fn is_started(outcome: &Value) {
    let expected = (&json!("started"), &json!(1), &json!(false));
    assert_eq!((&outcome["outcome"], &outcome["attempts"], &outcome["ambiguous"]), expected, "{outcome}");
}

async fn one_correction_is_enough(offset: &str, seconds: f64) {
    let sim = ["--clock-offset", offset, "--clock-tolerance", TIGHT];
    let mut stage = Stage::with(Wishes { sim: &sim, ..Wishes::default() }).await;
    for instance in ["i-sim00001", "i-sim00002", "i-sim00003"] {
        started(&mut stage, instance).await;
    }
    assert_eq!(statuses(&stage.sim.wire().await), [400, 200, 200, 200, 200], "the check of the keys is corrected");
    offset_is(&stage, seconds).await;
    assert_eq!(stage.daemon.metric(PAUSED).await, 0.0);
    let log = stage.daemon.child.output();
    assert_eq!(log.matches("seconds ahead of ours").count(), 1, "{log}");
}

#[tokio::test]
async fn a_clock_twenty_minutes_slow_is_corrected_at_once() {
    one_correction_is_enough("20m", 1200.0).await;
}

#[tokio::test]
async fn a_clock_twenty_minutes_fast_is_corrected_at_once() {
    one_correction_is_enough("-20m", -1200.0).await;
}

#[tokio::test]
async fn the_correction_follows_a_clock_that_changes() {
    let mut stage = Stage::with(Wishes { sim: &["--clock-tolerance", TIGHT], ..Wishes::default() }).await;
    started(&mut stage, "i-sim00001").await;
    offset_is(&stage, 0.0).await;
    // Three changes so small that no call is refused for them.
    for (instance, seconds) in [("i-sim00002", 20.0), ("i-sim00003", 40.0), ("i-sim00004", 60.0)] {
        stage.sim.control("PUT", "clock", json!({"offset": format!("{seconds}s"), "tolerance": TIGHT})).await;
        started(&mut stage, instance).await;
        offset_is(&stage, seconds).await;
    }
    assert_eq!(statuses(&stage.sim.wire().await), [200; 5]);
    // A large change, and back.
    for (instance, offset, seconds) in [("i-sim00005", "-20m", -1200.0), ("i-sim00006", "0s", 0.0)] {
        stage.sim.control("PUT", "clock", json!({"offset": offset, "tolerance": TIGHT})).await;
        started(&mut stage, instance).await;
        offset_is(&stage, seconds).await;
    }
    assert_eq!(statuses(&stage.sim.wire().await)[5..], [400, 200, 400, 200]);
    assert_eq!(stage.daemon.metric(PAUSED).await, 0.0);
}

#[tokio::test]
async fn the_describe_call_is_corrected_as_well() {
    let wishes = Wishes { fleet: "Running=1", sim: &["--clock-tolerance", TIGHT], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let refused = json!([{"fault": {"status": 400, "code": "RequestExpired"}, "operations": ["describe"]}]);
    stage.sim.faults(refused).await;
    stage.wake("i-sim00001").await;
    eventually("the describe call is made again", async || {
        (stage.sim.operations("i-sim00001").await.len() >= 3).then_some(())
    })
    .await;
    stage.sim.faults(json!([])).await;
    assert_eq!(stage.sim.operations("i-sim00001").await[..3], ["start", "describe", "describe"]);
    assert_eq!(stage.outcome().await["attempts"], 1);
}

#[tokio::test]
async fn a_second_refusal_in_a_row_is_a_lane_fault_and_costs_the_job_nothing() {
    let mut stage = Stage::set().await;
    let refused = json!({"status": 400, "code": "RequestExpired", "message": "too late"});
    // A single one is no lane fault.
    stage.sim.script("i-sim00001", json!([refused])).await;
    started(&mut stage, "i-sim00001").await;
    stage.daemon.never_paused().await;

    stage.sim.script("i-sim00002", json!([refused, refused])).await;
    // So that the pause lasts until the test has seen it.
    stage.sim.faults(json!([{"fault": refused, "operations": ["list"]}])).await;
    stage.wake("i-sim00002").await;
    stage.daemon.paused("clock", &["RequestExpired, too late"]).await;
    stage.sim.faults(json!([])).await;
    is_started(&stage.outcome().await);
    assert_eq!(stage.sim.operations("i-sim00002").await, ["start"; 3]);
    assert_eq!(stage.daemon.metric(r#"reveille_jobs_parked_total{cause="paused",lane="prod"}"#).await, 1.0);
    assert_eq!(stage.daemon.metric(PAUSED).await, 0.0);
}

#[tokio::test]
async fn a_date_more_than_a_day_off_is_not_followed() {
    let sim = ["--clock-offset", "25h", "--clock-tolerance", TIGHT];
    let mut stage = Stage::with(Wishes { sim: &sim, ..Wishes::default() }).await;
    stage.wake("i-sim00001").await;
    eventually("the fault is seen", async || (stage.daemon.metric(PAUSED).await == 1.0).then_some(())).await;
    offset_is(&stage, 0.0).await;
    stage.sim.control("PUT", "clock", json!({"tolerance": TIGHT})).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)));
}

/// A repeated call needs a permit like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_signed_again_keep_to_the_rate() {
    let wishes = Wishes { lane: "rate = 20\nburst = 2", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let lateness = Lateness::measure(&stage.sim);
    let refused = json!({"status": 400, "code": "RequestExpired"});
    for number in 1..=20 {
        stage.sim.script(&instance(number), json!([refused])).await;
    }
    for number in 1..=20 {
        stage.wake(&instance(number)).await;
    }
    stage.outcomes(20).await;
    let calls = stage.sim.log().await;
    assert_eq!(calls.len(), 40);
    lateness.assert_pace(&stage.sim.wire().await, 20.0, 2);
}

/// The deadline is checked again before a refused call is repeated.
#[tokio::test]
async fn a_deadline_that_passes_before_the_second_call_is_kept() {
    let mut stage = Stage::with(Wishes { lane: "timeout = \"30s\"", ..Wishes::default() }).await;
    // The first call is in time, and its answer comes after the deadline, however late the call is made.
    stage.sim.script("i-sim00001", json!([{"status": 400, "code": "RequestExpired", "delay": "16s"}])).await;
    let deadline = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(15);
    stage.job("late", json!({"instance_id": "i-sim00001", "deadline": deadline})).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("expired"), &json!(false)), "it was refused");
    stage.daemon.never_paused().await;
    let operations = stage.sim.operations("i-sim00001").await;
    let starts = operations.iter().filter(|operation| *operation == "start").count();
    assert_eq!(starts, 1, "called once, and not once more: {operations:?}");
    stage.sim.every_machine_started_once(0).await;
}
