//! The main job, at the size of a fleet and with a failing API.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use serde_json::json;

use crate::support::calls::Call;
use crate::support::instance;
use crate::support::stage::{Stage, Wishes};

const STOPPED: usize = 1760;
const RUNNING: usize = 200;
const UNKNOWN: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_jobs_end_once_each_and_cost_no_call_too_many() {
    let mut stage = Stage::with(Wishes {
        fleet: &format!("Stopped={STOPPED},Running={RUNNING}"),
        lane: "rate = 500\nburst = 20",
        sim: &["--fault", "status-500=0.05", "--fault", "throttled=0.05"],
        ..Wishes::default()
    })
    .await;
    let known = (1..=STOPPED + RUNNING).map(instance);
    let unknown = (1..=UNKNOWN).map(|number| format!("i-gone{number:05}"));
    let instances: Vec<String> = known.chain(unknown).collect();
    assert_eq!(instances.len(), 2_000);
    stream::iter(&instances).for_each_concurrent(64, |instance| stage.wake(instance)).await;

    let outcomes = stage.outcomes(instances.len()).await;
    assert!(outcomes.keys().eq(&BTreeSet::from_iter(instances.iter().cloned())), "one end for each job");
    stage.all_acked().await;

    let mut calls: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in stage.sim.log().await {
        calls.entry(call.instance.clone()).or_default().push(call);
    }
    for (index, instance) in instances.iter().enumerate() {
        let (outcome, calls) = (&outcomes[instance], &calls[instance]);
        // A call that met a fault had to be repeated. Each of the others had to have a result.
        let told: Vec<(&str, u64)> = calls
            .iter()
            .filter(|call| call.fault.is_none() && !call.refused_all())
            .map(|call| (call.operation.as_str(), call.status.expect("an answer")))
            .collect();
        let disturbed = calls.iter().any(|call| call.operation == "start" && call.fault.is_some());
        if index < STOPPED {
            assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(false)), "{instance}");
            assert_eq!(told, [("start", 200)], "{instance}");
        } else if index < STOPPED + RUNNING {
            // After a call with an unknown result, a running instance may have been started by us.
            let ours = disturbed || calls.iter().any(|call| call.fault.is_some());
            let expected = if ours { "started" } else { "already_done" };
            assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!(expected), &json!(ours)), "{instance}");
            assert_eq!(told.last(), Some(&("describe", 200)), "{instance}");
            assert_eq!(told.iter().filter(|(operation, _)| *operation == "describe").count(), 1, "{instance}");
            let describes = calls.iter().filter(|call| call.operation == "describe").count();
            assert_eq!(told.iter().filter(|told| **told == ("start", 409)).count(), describes, "{instance}");
        } else {
            assert_eq!(outcome["reason"], "not_found", "{instance}");
            assert_eq!(told, [("start", 404)], "{instance}");
        }
    }

    let dead: BTreeSet<String> = stage
        .dead()
        .await
        .iter()
        .map(|message| message.properties.message_id().as_ref().unwrap().to_string())
        .collect();
    assert!(dead.iter().eq(&instances[STOPPED + RUNNING..]), "dead is what is unknown, and nothing else: {dead:?}");
    for level in 0..18 {
        assert!(stage.queues.take_all(&format!("reveille.delay.{level:02}")).await.is_empty());
    }
}
