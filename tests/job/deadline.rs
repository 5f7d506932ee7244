//! After its deadline a job starts no machine, and a machine started before does not make it `expired`.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use serde_json::json;

use crate::support::instance;
use crate::support::pace::Lateness;
use crate::support::stage::{Stage, Wishes};

/// If its first call hangs, it times out after the job's deadline, however late that call is made. Each job's faults
/// are in its own script.
const PATIENT: Wishes<'_> = Wishes { lane: "timeout = \"10s\"\nbatch = 1", retry: "", fleet: "", sim: &[] };
/// Time enough to make the first call.
const BEFORE_ITS_TIMEOUT: Duration = Duration::from_secs(9);

#[tokio::test]
async fn a_machine_that_our_own_call_started_is_not_expired() {
    let mut stage = Stage::with(PATIENT).await;
    // The call succeeds without an answer for one and fails for the other, and the deadline passes meanwhile.
    stage.sim.script("i-sim00001", json!([{"hang": "after"}])).await;
    stage.sim.script("i-sim00002", json!([{"hang": "before"}])).await;
    let deadline = Timestamp::now() + BEFORE_ITS_TIMEOUT;
    for instance in ["i-sim00001", "i-sim00002"] {
        stage.job(instance, json!({"instance_id": instance, "deadline": deadline})).await;
    }
    let outcomes = stage.outcomes(2).await;
    let (started, expired) = (&outcomes["i-sim00001"], &outcomes["i-sim00002"]);
    assert_eq!((&started["outcome"], &started["ambiguous"]), (&json!("started"), &json!(true)));
    // That it is stopped, so soon after the call, may be an outdated read.
    assert_eq!((&expired["outcome"], &expired["ambiguous"]), (&json!("expired"), &json!(true)));
    for instance in ["i-sim00001", "i-sim00002"] {
        assert_eq!(stage.sim.operations(instance).await, ["start", "describe"]);
    }
}

#[tokio::test]
async fn a_deadline_that_passes_while_a_job_waits_for_its_turn_is_kept() {
    // In a shared call all would be in time. At one call in two seconds, between one and six are.
    let lane = "rate = 0.5\nburst = 1\nbatch = 1";
    let mut stage = Stage::with(Wishes { lane, ..Wishes::default() }).await;
    let lateness = Lateness::measure(&stage.sim);
    let deadline = Timestamp::now() + 10.seconds();
    for number in 1..=10 {
        let instance = instance(number);
        stage.job(&instance, json!({"instance_id": instance, "deadline": deadline})).await;
    }
    let outcomes = stage.outcomes(10).await;
    let (started, expired): (Vec<_>, Vec<_>) =
        outcomes.into_iter().partition(|(_, outcome)| outcome["outcome"] == "started");
    assert!(!started.is_empty(), "who has a turn in time is called");
    assert!(!expired.is_empty(), "not all could have their turn");
    let (calls, last) = (stage.sim.log().await, deadline + lateness.longest());
    for (instance, outcome) in started {
        let made: Vec<_> = calls.iter().filter(|call| call.instance == instance).collect();
        assert_eq!(made.len(), 1, "{instance}: {outcome}");
        assert!(made[0].unix_micros <= last.as_microsecond(), "{instance} was called past {deadline}: {made:?}");
    }
    for (instance, outcome) in expired {
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("expired"), &json!(false)), "{outcome}");
        assert!(!calls.iter().any(|call| call.instance == instance), "{instance} was called: {outcome}");
    }
}

/// One failed describe says nothing of the machine.
#[tokio::test]
async fn a_describe_that_fails_once_does_not_make_a_started_machine_expired() {
    let mut stage = Stage::with(PATIENT).await;
    let answers = [json!({"status": 503}), json!({"status": 429}), json!({"status": 403, "code": "AccessDenied"})];
    let deadline = Timestamp::now() + BEFORE_ITS_TIMEOUT;
    for (number, answer) in (1..).zip(&answers) {
        let instance = instance(number);
        stage.sim.script(&instance, json!([{"hang": "after"}, answer])).await;
        stage.job(&instance, json!({"instance_id": instance, "deadline": deadline})).await;
    }
    let outcomes = stage.outcomes(answers.len()).await;
    for instance in ["i-sim00001", "i-sim00002"] {
        let outcome = &outcomes[instance];
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(true)), "{outcome}");
        assert_eq!(stage.sim.operations(instance).await, ["start", "describe", "describe"]);
    }
    // Without permission to describe, the state stays unknown.
    let outcome = &outcomes["i-sim00003"];
    assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("expired"), &json!(true)), "{outcome}");
}
