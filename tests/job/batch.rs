//! Jobs that share a call, which names all their instances: each ends as it would have alone.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::calls::{Call, LIST};
use crate::support::pace::Lateness;
use crate::support::stage::{Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

/// A lane slow enough for jobs to be coalesced, with retries within seconds.
const LANE: &str = "batch = 20\nrate = 20\nburst = 1";

async fn stage(fleet: &str, lane: &str) -> Stage {
    Stage::with(Wishes {
        fleet,
        lane,
        retry: "max_attempts = 100\ninitial = \"200ms\"\nmax = \"1s\"",
        ..Wishes::default()
    })
    .await
}

/// Submits jobs for the instances of these numbers, all at once, and returns their outcomes.
async fn ends(stage: &Stage, numbers: std::ops::RangeInclusive<usize>) -> BTreeMap<String, usize> {
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit(numbers.map(instance), json!({})).await;
    account.close(PATIENCE).await
}

fn count(calls: &[Call], operation: &str) -> usize {
    calls.iter().filter(|call| call.operation == operation).count()
}

/// Whether a shared call named this job's instance: a job that comes a while before the others is called alone.
fn had_company(calls: &[Call], job: &str) -> bool {
    let mut together = calls.iter().filter(|call| call.operation == "batch_start");
    together.any(|call| call.instances.iter().any(|instance| instance == job))
}

#[tokio::test]
async fn a_fleet_that_is_asleep_wakes_in_few_calls() {
    let mut stage = stage("Stopped=400", LANE).await;
    assert_eq!(ends(&stage, 1..=400).await, [("started".to_owned(), 400)].into());
    stage.sim.every_machine_started_once(400).await;
    let calls = stage.sim.wire().await;
    println!("{} calls for 400 jobs", calls.len());
    assert!(calls.iter().all(|call| call.status == Some(200) && call.instances.len() <= 20), "{calls:?}");
    assert!(calls.len() < 80, "{} calls for 400 jobs", calls.len());
    for outcome in stage.outcomes(400).await.values() {
        assert_eq!((&outcome["ambiguous"], &outcome["attempts"]), (&json!(false), &json!(1)), "{outcome}");
    }
}

/// One instance that is not stopped refuses all: the others are started all the same, and each has its own answer.
#[tokio::test]
async fn a_batch_that_is_refused_ends_each_job_with_its_own_verdict() {
    let mut stage = stage("Stopped=14,Running=3,Expired=2", LANE).await;
    let jobs: Vec<String> = (1..=19).map(instance).chain(["i-gone00001".to_owned()]).collect();
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit(jobs, json!({})).await;
    let expected = [("started", 14), ("already_done", 3), ("failed instance_expired", 2), ("failed not_found", 1)];
    assert_eq!(account.close(PATIENCE).await, expected.map(|(end, count)| (end.to_owned(), count)).into());
    let outcomes = stage.outcomes(20).await;
    assert!(
        outcomes.values().all(|outcome| outcome["ambiguous"] == false),
        "a 409 to all started nobody: {outcomes:?}"
    );
    assert_eq!(outcomes["i-sim00018"]["error_code"], "Instance.StartExpiredInstance");
    assert!(stage.sim.wire().await.iter().any(|call| call.operation == "batch_start"));
}

/// With one in ten running, a batch of twenty is refused nine times out of ten. So the lane lists states first.
#[tokio::test]
async fn a_lane_that_meets_conflicts_asks_for_states_first_and_returns_to_batches() {
    let stage = stage("Stopped=1301", LANE).await;
    let running: Vec<Value> =
        (1..=30).map(|number| json!({"id": instance(number * 10), "status": "Running"})).collect();
    stage.sim.control("PUT", "instances", json!(running)).await;
    let expected = [("started".to_owned(), 270), ("already_done".to_owned(), 30)];
    assert_eq!(ends(&stage, 2..=301).await, expected.into());
    let calls = stage.sim.wire().await;
    let lists = count(&calls, "list_by_ids");
    let refused = calls.iter().filter(|call| call.operation == "batch_start" && call.status == Some(409)).count();
    println!("{} calls for 300 jobs, {lists} of them lists, {refused} refused batches", calls.len());
    assert!(lists > 5 && refused <= 5 && calls.len() < 250, "{} calls", calls.len());

    // All of the others are stopped, and after one batch of them states are no longer listed.
    let before = calls.len();
    assert_eq!(ends(&stage, 302..=1301).await, [("started".to_owned(), 1000)].into());
    let calls = &stage.sim.wire().await[before..];
    assert!(count(calls, "list_by_ids") <= 1 && count(calls, "batch_start") >= 50, "{calls:?}");
}

/// One running instance in a fleet costs a refused call, a list and its own call, and not a call for each of its batch.
#[tokio::test]
async fn one_instance_that_refuses_a_batch_costs_a_list_and_not_a_call_for_each() {
    let stage = stage("Stopped=400", LANE).await;
    stage.sim.control("PUT", "instances", json!([{"id": instance(200), "status": "Running"}])).await;
    let expected = [("started".to_owned(), 399), ("already_done".to_owned(), 1)];
    assert_eq!(ends(&stage, 1..=400).await, expected.into());
    let calls = stage.sim.wire().await;
    let (lists, refused) = (count(&calls, "list_by_ids"), calls.iter().filter(|call| call.status == Some(409)).count());
    println!("{} calls for 400 jobs, {lists} of them lists, {refused} refused", calls.len());
    // One list after the refusal, and one for each batch that is called before a list shows that all are stopped.
    assert!((1..=5).contains(&lists) && refused == 2, "{calls:?}");
    assert!(count(&calls, "start") <= 3, "{calls:?}");
}

#[tokio::test]
async fn a_lane_that_finds_hardly_anything_stopped_calls_singly() {
    let lane = "batch = 20\nrate = 50\nburst = 1\nconflict = \"accept\"";
    let stage = stage("Running=300,Stopped=300", lane).await;
    // Until now each was found running: the estimate is at its maximum.
    assert_eq!(ends(&stage, 1..=300).await, [("already_done".to_owned(), 300)].into());
    let calls = stage.sim.wire().await;
    let last = &calls[calls.len() - 30..];
    assert_eq!(count(last, "start"), 30, "{last:?}");
    let before = calls.len();
    assert_eq!(ends(&stage, 301..=600).await, [("started".to_owned(), 300)].into());
    let calls = &stage.sim.wire().await[before..];
    println!("{} calls for 300 stopped ones after 300 running ones", calls.len());
    assert!(count(calls, "list_by_ids") <= 2 && calls.len() < 150, "it found back: {} calls", calls.len());
}

#[tokio::test]
async fn those_that_a_success_names_as_failed_are_called_singly() {
    let mut stage = stage("Stopped=20", LANE).await;
    let failed = ["i-sim00003", "i-sim00007"];
    let body = json!({"requestId": "0b1c", "failedInstanceIdList": failed}).to_string();
    let fault = json!({"status": 200, "body": body, "when": "after"});
    stage.sim.faults(json!([{"fault": fault, "operations": ["batch_start"], "instances": failed}])).await;
    ends(&stage, 1..=20).await;
    let calls = stage.sim.wire().await;
    assert!(failed.iter().any(|job| had_company(&calls, job)), "{calls:?}");
    for (job, outcome) in stage.outcomes(20).await {
        let (expected, single): (&str, &[&str]) = match (had_company(&calls, &job), failed.contains(&job.as_str())) {
            // The simulator started them all: the single call finds them running.
            (true, true) => ("already_done", &["start", "describe"]),
            (true, false) => ("started", &[]),
            (false, _) => ("started", &["start"]),
        };
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!(expected), &json!(false)), "{outcome}");
        let singly = calls.iter().filter(|call| call.instance == job).map(|call| call.operation.as_str());
        assert!(singly.eq(single.iter().copied()), "{job}: {calls:?}");
    }
}

/// The API may send no body with its 200: then it names no instance as failed, so all were started.
#[tokio::test]
async fn a_success_without_a_body_has_started_them_all() {
    let mut stage = stage("Stopped=100", LANE).await;
    let fault = json!({"status": 200, "body": "", "when": "after"});
    stage.sim.faults(json!([{"fault": fault, "operations": ["batch_start"]}])).await;
    assert_eq!(ends(&stage, 1..=100).await, [("started".to_owned(), 100)].into());
    stage.sim.every_machine_started_once(100).await;
    for outcome in stage.outcomes(100).await.values() {
        assert_eq!((&outcome["ambiguous"], &outcome["attempts"]), (&json!(false), &json!(1)), "{outcome}");
    }
    assert_eq!(stage.sim.log().await.len(), 100, "each is named once, and nobody is asked");
    let calls = stage.sim.wire().await;
    let bare = calls.iter().filter(|call| call.fault.is_some()).count();
    assert!(bare >= 4 && count(&calls, "batch_start") == bare, "{bare} of {} calls", calls.len());
}

/// The names of failed instances are lost: any of them may be up.
#[tokio::test]
async fn a_success_that_cannot_be_read_is_found_out_singly_whatever_the_policy() {
    let mut stage = stage("Stopped=20", &format!("{LANE}\nconflict = \"fail\"")).await;
    stage.sim.faults(json!([{"fault": {"cut": true}, "operations": ["batch_start"]}])).await;
    assert_eq!(ends(&stage, 1..=20).await, [("started".to_owned(), 20)].into());
    stage.sim.every_machine_started_once(20).await;
    let calls = stage.sim.wire().await;
    assert!(count(&calls, "batch_start") > 0, "{calls:?}");
    for (job, outcome) in stage.outcomes(20).await {
        assert_eq!(outcome["ambiguous"], had_company(&calls, &job), "{outcome}");
    }
}

#[tokio::test]
async fn a_batch_that_succeeded_and_then_hung_is_started_and_ambiguous_whatever_the_policy() {
    let mut stage = stage("Stopped=60", &format!("{LANE}\ntimeout = \"4s\"")).await;
    stage.sim.script("*", json!([{"hang": "after"}, {"status": 503, "when": "after"}, {"reset": "after"}])).await;
    let mut account = Account::open(&stage.vhost.url).await;
    for (index, policy) in ["fail", "accept", "verify"].iter().enumerate() {
        let instances = (1..=60).filter(|number| number % 3 == index).map(instance);
        account.submit(instances, json!({"conflict": policy})).await;
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 60)].into());
    stage.sim.every_machine_started_once(60).await;
    let calls = stage.sim.wire().await;
    let outcomes = stage.outcomes(60).await;
    let unseen =
        |job| calls.iter().any(|call| call.fault.is_some() && call.took_effect && call.instances.contains(job));
    for (job, outcome) in &outcomes {
        assert_eq!(outcome["ambiguous"], unseen(job), "{outcome}");
    }
    assert!(calls.iter().any(|call| call.operation == "batch_start" && call.fault.is_some()), "{calls:?}");
}

/// One call names an instance once. The second job for it is called singly, and finds it started.
#[tokio::test]
async fn two_jobs_for_one_instance_are_not_named_twice() {
    let mut stage = stage("Stopped=4", LANE).await;
    stage.sim.control("PUT", "faults", json!({"latency": "20ms"})).await;
    for (job, number) in [("a", 1), ("b", 2), ("c", 1), ("d", 3), ("e", 2)] {
        stage.job(job, json!({"instance_id": instance(number)})).await;
    }
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in stage.outcomes(5).await.values() {
        *ends.entry(outcome["outcome"].as_str().expect("a text").to_owned()).or_default() += 1;
    }
    assert_eq!(ends, [("started".to_owned(), 3), ("already_done".to_owned(), 2)].into());
    for call in stage.sim.wire().await {
        let mut names = call.instances.clone();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), call.instances.len(), "{call:?}");
    }
}

/// A job that failed in a shared call is called singly next, so that it cannot fail others again.
#[tokio::test]
async fn one_instance_that_fails_every_call_fails_no_other() {
    let mut stage = stage("Stopped=100", LANE).await;
    let lane = r#"{"fault": {"status": 500}, "instances": ["i-sim00050"]}"#;
    stage.sim.faults(json!([serde_json::from_str::<Value>(lane).expect("JSON")])).await;
    for number in 1..=100 {
        stage.wake(&instance(number)).await;
    }
    let outcomes = stage.outcomes(99).await;
    assert!(!outcomes.contains_key("i-sim00050"));
    for outcome in outcomes.values() {
        assert_eq!(outcome["outcome"], "started", "{outcome}");
        assert!(outcome["attempts"].as_u64().expect("a number") <= 2, "{outcome}");
    }
    stage.daemon.never_paused().await;
    stage.sim.faults(json!([])).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
}

#[tokio::test]
async fn batches_that_fail_pause_the_lane_as_single_calls_do_and_cost_no_job() {
    let (concurrency, more) = (4, 5);
    let mut stage =
        stage("Stopped=2000", &format!("batch = 20\nrate = 20\nburst = 5\nconcurrency = {concurrency}")).await;
    // More than the lane's prefetch, so that there are jobs to try after a pause.
    let faults = [(503, "outage", 1..=1000), (403, "access_denied", 1001..=2000)];
    for (status, reason, numbers) in faults {
        stage.sim.faults(json!([{"fault": {"status": status}, "operations": ["batch_start", "start"]}])).await;
        let before = stage.sim.wire().await.len();
        let mut account = Account::open(&stage.vhost.url).await;
        // All are there when it begins, so that the first one called is not called alone.
        stage.daemon.stop().await;
        account.submit(numbers.map(instance), json!({})).await;
        stage.daemon.start_again();
        let paused = format!(r#"reveille_lane_paused{{lane="prod",reason="{reason}"}}"#);
        eventually("the lane is paused", async || (stage.daemon.metric(&paused).await == 1.0).then_some(())).await;
        let calls = stage.sim.wire().await.split_off(before);
        // A check of the keys goes before them, and the first probe follows. A lane that has met an instance it may not start lists the states of the next ones
        // first: such a list is answered, and shows nothing.
        let of_jobs = calls.iter().skip_while(|call| call.operation == LIST).take_while(|call| call.operation != LIST);
        let spent = of_jobs.filter(|call| call.status != Some(200)).count();
        assert!(spent <= concurrency + more, "{spent} calls to find out: {calls:?}");
        stage.sim.faults(json!([])).await;
        assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 1000)].into());
    }
    for outcome in stage.outcomes(2000).await.values() {
        assert_eq!(outcome["attempts"], 1, "no job lost an attempt: {outcome}");
    }
    stage.sim.every_machine_started_once(2000).await;
}

/// Each of them may be the cause, and is called singly next; none is charged, so none needs attribution.
#[tokio::test]
async fn one_call_that_fails_is_not_followed_by_a_probe_for_each_of_its_jobs() {
    let stage = stage("Stopped=20", "batch = 20\nrate = 20").await;
    stage.sim.faults(json!([{"fault": {"status": 503}, "operations": ["batch_start"]}])).await;
    assert_eq!(ends(&stage, 1..=20).await, [("started".to_owned(), 20)].into());
    let calls = stage.sim.wire().await;
    assert!(count(&calls, "batch_start") >= 1, "{calls:?}");
    let failed = calls.iter().filter(|call| call.status == Some(503)).count();
    // One was to check the keys.
    assert!(count(&calls, LIST) <= failed + 1, "{failed} calls failed: {calls:?}");
}

/// Killed under load, with a fleet of which every tenth machine runs already.
#[tokio::test]
async fn a_daemon_with_batches_that_is_killed_loses_no_job_and_keeps_to_its_rate() {
    const PORTION: usize = 500;
    let (rate, burst) = (10.0, 5);
    let lane = "batch = 20\nrate = 10\nburst = 5\nconcurrency = 8";
    let mut stage = stage("Stopped=2000", lane).await;
    let lateness = Lateness::measure(&stage.sim);
    let running: Vec<Value> =
        (1..=66).map(|number| json!({"id": instance(number * 30), "status": "Running"})).collect();
    stage.sim.control("PUT", "instances", json!(running)).await;
    let mut account = Account::open(&stage.vhost.url).await;
    for round in 1..=4 {
        account.submit(((round - 1) * PORTION + 1..=round * PORTION).map(instance), json!({})).await;
        let calls = stage.sim.wire().await.len() + 8;
        eventually("calls are made", async || (stage.sim.wire().await.len() >= calls).then_some(())).await;
        let started: BTreeSet<String> = stage.sim.log().await.into_iter().map(|call| call.instance).collect();
        assert!(started.len() < round * PORTION, "the kills come under load");
        stage.daemon.kill().await;
        stage.daemon.start_again();
    }
    let ends = account.close(PATIENCE * 2).await;
    assert_eq!(ends.values().sum::<usize>(), 2000, "{ends:?}");
    assert!(ends.keys().all(|end| end == "started" || end == "already_done"), "{ends:?}");
    for instance in stage.sim.control("GET", "instances", Value::Null).await.as_array().expect("a list") {
        assert!(instance["starts"].as_u64().expect("a number") <= 1, "{instance}");
    }
    let calls = stage.sim.wire().await;
    println!("{} calls for 2000 jobs", calls.len());
    lateness.assert_pace(&calls, rate, burst);
}

/// A refused shared call started none of them, and those whose single calls the pause prevented were never called.
#[tokio::test]
async fn jobs_that_a_pause_keeps_from_their_own_call_stay_clean_first_touches() {
    let mut stage = stage("Running=20", "batch = 20\nrate = 2\nburst = 1\nconflict = \"accept\"").await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=20).map(instance), json!({})).await;
    eventually("some are called singly", async || (count(&stage.sim.wire().await, "start") >= 3).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    let paused = r#"reveille_lane_paused{lane="prod",reason="keys"}"#;
    eventually("the lane is paused", async || (stage.daemon.metric(paused).await == 1.0).then_some(())).await;
    stage.sim.faults(json!([])).await;
    account.close(PATIENCE).await;
    let calls = stage.sim.wire().await;
    for (job, outcome) in stage.outcomes(20).await {
        let was_called = calls.iter().any(|call| call.instance == job && call.status == Some(401));
        let expected = if was_called { "started" } else { "already_done" };
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!(expected), &json!(was_called)), "{outcome}");
    }
}

/// Seconds' worth of batches are minutes' worth of single calls: that many prefetched jobs must not stay.
#[tokio::test]
async fn a_lane_that_turns_to_single_calls_puts_back_what_it_has_too_much_of() {
    const STOPPED: usize = 1_000;
    const JOBS: usize = STOPPED + 1_000;
    let lane = "batch = 20\nrate = 100\nburst = 1\nconflict = \"accept\"";
    let mut stage = stage("Stopped=1000,Running=1000", lane).await;
    let mut account = Account::open(&stage.vhost.url).await;
    // All are there when it begins: while it starts the stopped ones in batches, its prefetch fills with the others.
    stage.daemon.stop().await;
    account.submit((1..=JOBS).map(instance), json!({})).await;
    stage.daemon.start_again();
    let ends = [("started".to_owned(), STOPPED), ("already_done".to_owned(), JOBS - STOPPED)];
    assert_eq!(account.close(PATIENCE).await, ends.into());
    let put_back = stage.daemon.metric(r#"reveille_jobs_parked_total{cause="put_back",lane="prod"}"#).await;
    println!("{put_back} of {JOBS} jobs were put back");
    // With single calls its prefetch is 128 of each queue.
    assert!(put_back > 256.0, "{put_back} of {JOBS} jobs were put back");
    let mut singly: BTreeMap<String, usize> = BTreeMap::new();
    for call in stage.sim.wire().await.into_iter().filter(|call| call.operation == "start") {
        *singly.entry(call.instance).or_default() += 1;
    }
    assert!(singly.values().all(|calls| *calls == 1), "none was called a second time: {singly:?}");
    for outcome in stage.outcomes(JOBS).await.values() {
        assert_eq!((&outcome["ambiguous"], &outcome["attempts"]), (&json!(false), &json!(1)), "{outcome}");
    }
}
