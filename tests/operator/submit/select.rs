//! Instances chosen by the API's list, and what a submission would do.

use serde_json::{Value, json};

use crate::support::child::{Ran, run};
use crate::support::daemon::Config;
use crate::support::files::Folder;
use crate::support::stage::{LANE, Stage, Wishes, config};

/// Instances with names, zones and tags of their own, beside a fleet without.
async fn stage() -> Stage {
    let stage = Stage::with(Wishes { fleet: "Stopped=1200", ..Wishes::default() }).await;
    for (instance, name, zone, tags, status) in [
        ("i-web1", "web-1", "cn-bj-a", json!({"wake": "morning"}), "Stopped"),
        ("i-web2", "web-2", "cn-bj-a", json!({"wake": "morning", "team": "search"}), "Running"),
        ("i-web3", "web-3", "cn-bj-b", json!({"wake": "morning"}), "Stopped"),
        ("i-web4", "web-4", "cn-bj-a", json!({"wake": "evening"}), "Stopped"),
        // On a later page than the others: the list goes by the id.
        ("i-xdb1", "db-1", "cn-bj-a", json!({"wake": "morning"}), "Stopped"),
    ] {
        stage.sim.set_instance(instance, json!({"status": status, "name": name, "zone": zone, "tags": tags})).await;
    }
    stage
}

async fn submit(stage: &Stage, arguments: &[&str]) -> Ran {
    run(stage.daemon.config.command(&[&["submit"], arguments].concat()), "").await
}

async fn lists(stage: &Stage) -> usize {
    stage.sim.calls().await.iter().filter(|call| call["operation"] == "list").count()
}

#[tokio::test]
async fn instances_are_selected_by_tag_zone_and_name() {
    let mut stage = stage().await;
    // The daemon has checked its keys.
    let before = lists(&stage).await;
    let ran = submit(&stage, &["--select", "tag=wake:morning,zone=cn-bj-a,name=web-*", "--batch", "morning"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("2 jobs submitted to lane prod as batch morning"), "{}", ran.errors);
    let outcomes = stage.outcomes(2).await;
    let mut ended: Vec<String> = outcomes.values().map(|outcome| outcome["instance_id"].to_string()).collect();
    ended.sort();
    assert_eq!(ended, ["\"i-web1\"", "\"i-web2\""]);
    assert_eq!(lists(&stage).await, before + 1, "the API leaves out the others itself");

    let ran = submit(&stage, &["--select", "name=*b-1", "--wait"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("2 jobs submitted"), "{}", ran.errors);
    assert_eq!(lists(&stage).await, before + 3, "the names are compared here, on two pages");
}

#[tokio::test]
async fn what_cannot_be_selected_is_told_and_nothing_is_submitted() {
    let stage = stage().await;
    for (arguments, told) in [
        (&["--select", "tags=wake"][..], "there is no condition \"tags\"; did you mean tag?"),
        (&["--select", "name=web-*", "i-web1"], "cannot be used with"),
        (&["--select", "name=web-*", "--file", "fleet.txt"], "cannot be used with"),
        (&["--select", "name=nothing-*"], "no instance of lane prod meets --select name=nothing-*"),
        (&["--select", "name=web-*", "--lane", "other"], "there is no lane other at "),
    ] {
        let ran = submit(&stage, arguments).await;
        assert_eq!(ran.code, Some(2), "{}", ran.errors);
        assert!(ran.errors.contains(told), "{}", ran.errors);
    }
    let mut wrong = stage.daemon.config.command(&["submit", "--select", "name=web-*"]);
    wrong.env("BCE_SECRET_ACCESS_KEY", "wrong-secret");
    let ran = run(wrong, "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("cannot list instances of lane prod: the API answers HTTP 4"), "{}", ran.errors);
    assert!(!ran.errors.contains("wrong-secret"), "{}", ran.errors);
    assert_eq!(stage.queues.count("reveille.jobs.prod").await.0, 0);
}

#[tokio::test]
async fn an_api_that_fails_now_and_then_is_asked_again() {
    let stage = stage().await;
    stage.sim.script("*", json!([{"status": 500}, {"status": 429}])).await;
    let ran = submit(&stage, &["--select", "name=web-1", "--dry-run"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.output.lines().any(|line| line.split_whitespace().eq(["stopped", "1"])), "{}", ran.output);
}

#[tokio::test]
async fn a_dry_run_says_states_calls_and_time_and_submits_nothing() {
    let slow = Wishes { lane: "rate = 2\nbatch = 2\nconfirm_share = 1", ..Wishes::default() };
    let stage = Stage::with(slow).await;
    stage.sim.set_status("i-sim00002", "Running").await;
    let folder = Folder::new();
    let fleet = folder
        .put("fleet", "i-sim00001\ni-sim00002\n{\"instance_id\":\"i-sim00003\",\"batch_id\":\"own\"}\ni-gone0001\n");
    let arguments = ["submit", "--dry-run", "--batch", "morning", "--file", &fleet, "i-sim00004"];
    let ran = run(stage.daemon.config.command(&arguments), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let lines: Vec<Vec<&str>> = ran.output.lines().map(|line| line.split_whitespace().collect()).collect();
    for expected in [
        &["morning", LANE, "4"][..],
        &["own", LANE, "1"],
        &["STATE", "INSTANCES"],
        &["not_found", "1"],
        &["running", "1"],
        &["stopped", "3"],
        &["1", "runs", "already"],
        &["nothing", "was", "submitted"],
    ] {
        assert!(lines.iter().any(|line| line == expected), "{expected:?}: {}", ran.output);
    }
    assert!(
        ran.output.contains("\n3 start calls: 2s at least, with 2 calls a second of up to 2 jobs\n"),
        "{}",
        ran.output
    );

    let as_json = run(stage.daemon.config.command(&[&arguments[..], &["--output", "json"]].concat()), "").await;
    let plan: Value = serde_json::from_str(&as_json.output).unwrap();
    assert_eq!(plan["batches"], json!({"morning": 4, "own": 1}));
    assert_eq!((&plan["jobs"], &plan["lane"], &plan["not_before"]), (&json!(5), &json!(LANE), &Value::Null));
    assert_eq!(plan["states"], json!({"not_found": 1, "running": 1, "stopped": 3}));
    assert_eq!(plan["cost"], json!({"calls": 3, "batch": 2, "rate": 2.0, "seconds": 2}));
    assert_eq!(plan["instances"][0], json!({"instance_id": "i-gone0001", "state": "not_found"}));

    // Neither keys nor a broker are needed.
    let nowhere = Config::write(&config("amqp://guest:guest@127.0.0.1:9", "http://127.0.0.1:9", &Wishes::default()));
    let mut without_keys = nowhere.command(&["submit", "--dry-run", "--output", "json", "i-sim00001"]);
    without_keys.env_remove("BCE_ACCESS_KEY_ID");
    let ran = run(without_keys, "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("without states of the instances: the API cannot be asked"), "{}", ran.errors);
    let plan: Value = serde_json::from_str(&ran.output).unwrap();
    assert_eq!((&plan["jobs"], &plan["states"], &plan["instances"]), (&json!(1), &Value::Null, &Value::Null));
    assert_eq!(plan["cost"]["calls"], 1);
    assert_eq!(stage.queues.count("reveille.jobs.prod").await.0, 0);
    // But for the daemon's check of its keys.
    let calls = stage.sim.log().await;
    assert!(!calls.is_empty() && calls.iter().all(|call| call.operation == "list_by_ids"), "{calls:?}");
}
