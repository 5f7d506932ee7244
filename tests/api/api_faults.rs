//! The API fails in many ways, under load. Every job still ends once, and every machine is started once.
//!
//! About every other call succeeds, so that the lane is not just paused: `pause.rs` tests that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::calls::Call;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, in_batches};
use crate::support::{PATIENCE, eventually_within, instance};

/// Jobs of each test, for load.
const JOBS: usize = 300;
/// For faults without timeouts.
const PLAIN: &str = "conflict = \"fail\"\nconcurrency = 64";
/// No job gives up while a test's faults last.
const PATIENT: &str = "max_attempts = 100\ninitial = \"200ms\"\nmax = \"1s\"";
/// How long faults may last. Chance brings five failures in a row, which pause the lane. On trial it makes a call in
/// ten seconds or so, and every other of these fails too.
const LONGEST_DAY: Duration = Duration::from_secs(300);

/// The answer to a call comes within `timeout`, or not at all. Only for faults that suppress answers: on a busy machine
/// other answers can take a second.
fn within(timeout: &str) -> String {
    format!("{PLAIN}\ntimeout = {timeout:?}")
}

/// The calls and outcomes, after all faults are lifted and every job has ended.
struct Day {
    stage: Stage,
    outcomes: BTreeMap<String, Value>,
    /// The calls, by instance.
    calls: BTreeMap<String, Vec<Call>>,
}

/// The faults that have to occur before they are lifted.
struct Met<'a> {
    /// Faults in all. A shared call counts once for each of them.
    faults: usize,
    /// Each of these, in `calls` calls at least.
    each: &'a [&'a str],
    calls: usize,
}

impl<'a> Met<'a> {
    /// Each several times, or once with shared calls.
    fn often(faults: usize, each: &'a [&'a str]) -> Self {
        Self { calls: if in_batches() { 1 } else { 10 }, ..Self::once(faults, each) }
    }

    fn once(faults: usize, each: &'a [&'a str]) -> Self {
        Self { faults, each, calls: 1 }
    }

    fn is_reached(&self, log: &[Call]) -> bool {
        let faults: Vec<(&str, usize)> =
            log.iter().filter_map(|call| Some((call.fault.as_deref()?, call.number))).collect();
        let calls = |each: &str| {
            faults.iter().filter(|(fault, _)| *fault == each).map(|(_, call)| call).collect::<BTreeSet<_>>().len()
        };
        faults.len() >= self.faults && self.each.iter().all(|each| calls(each) >= self.calls)
    }
}

/// Wakes `JOBS` stopped machines while calls meet `rules`, lifts those once they were `met`, and waits for the end of
/// every job.
async fn bad_day(lane: &str, rules: Value, met: Met<'_>) -> Day {
    let fleet = format!("Stopped={JOBS}");
    let wishes = Wishes { fleet: &fleet, lane, retry: PATIENT, ..Wishes::default() };
    day(Stage::with(wishes).await, rules, met, json!([])).await
}

/// `then`: the state of the fleet when the rules are lifted.
async fn day(mut stage: Stage, rules: Value, met: Met<'_>, then: Value) -> Day {
    let mut account = Account::open(&stage.vhost.url).await;
    stage.sim.faults(rules).await;
    account.submit((1..=JOBS).map(instance), json!({})).await;
    let felt = async || met.is_reached(&stage.sim.log().await).then_some(());
    eventually_within(LONGEST_DAY, "the bad day is felt", felt).await;
    stage.sim.control("PUT", "instances", then).await;
    stage.sim.faults(json!([])).await;
    let counts = account.close(PATIENCE).await;
    assert_eq!(counts.values().sum::<usize>(), JOBS, "{counts:?}");
    let outcomes = stage.outcomes(JOBS).await;
    let mut calls: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in stage.sim.log().await {
        calls.entry(call.instance.clone()).or_default().push(call);
    }
    Day { stage, outcomes, calls }
}

impl Day {
    /// Every machine was started by one call; if its answer was `lost`, the outcome is ambiguous.
    async fn is_unharmed(&self, lost: impl Fn(&str) -> bool) {
        self.stage.sim.every_machine_started_once(JOBS).await;
        for (instance, outcome) in &self.outcomes {
            let calls = &self.calls[instance];
            let starts: Vec<&Call> = calls.iter().filter(|call| call.operation == "start").collect();
            let effective = starts.iter().position(|call| call.took_effect).expect("one call started it");
            // In a shared call the body names failed instances: without it each has to be described.
            let for_many = starts[effective].instances.len() > 1;
            let was_lost = starts[effective]
                .fault
                .as_deref()
                .is_some_and(|fault| lost(fault) || for_many && fault.starts_with("status-200"));
            // Some faults answer 200 to any call, so to a second one too.
            let unseen = was_lost && !starts[effective + 1..].iter().any(|call| call.status == Some(200));
            assert_eq!(outcome["outcome"], "started", "{instance}: {calls:?}");
            assert_eq!(outcome["ambiguous"], unseen, "{instance}: {calls:?}");
            // No call follows one whose success was seen.
            if !was_lost {
                assert_eq!(effective + 1, starts.len(), "{instance}: {calls:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_5xx_passes() {
    let rule = |status: u16| json!({"fault": {"status": status}, "share": 0.12});
    let met = Met::often(JOBS / 2, &["status-500", "status-502", "status-503", "status-504"]);
    let day = bad_day(PLAIN, json!([rule(500), rule(502), rule(503), rule(504)]), met).await;
    day.is_unharmed(|_| false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_hangs_for_a_while_is_waited_for() {
    let rules = json!([{"fault": {"hang": "before"}, "share": 0.25}, {"fault": {"hang": "after"}, "share": 0.25}]);
    let day = bad_day(&within("4s"), rules, Met::often(JOBS / 5, &["hang-before", "hang-after"])).await;
    day.is_unharmed(|fault| fault == "hang-after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_reset_before_and_after_the_call_took_effect_cost_no_job() {
    let rules = json!([{"fault": {"reset": "before"}, "share": 0.25}, {"fault": {"reset": "after"}, "share": 0.25}]);
    let day = bad_day(PLAIN, rules, Met::often(JOBS / 3, &["reset-before", "reset-after"])).await;
    day.is_unharmed(|fault| fault == "reset-after").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_after_the_time_out_was_a_success_all_the_same() {
    let rules = json!([{"fault": {"delay": "8s"}, "share": 0.5}]);
    let day = bad_day(&within("4s"), rules, Met::often(JOBS / 5, &["delay-8s"])).await;
    day.is_unharmed(|fault| fault == "delay-8s").await;
}

/// A start's result is its status. So a body that does not end in time, or breaks off, changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_is_believed_whose_body_trickles_or_breaks_off() {
    let body = r#"{"requestId":"0b1c"}"#;
    let rules = json!([
        {"fault": {"status": 200, "body": body, "when": "after", "trickle": "1s"}, "share": 0.2},
        {"fault": {"status": 200, "body": body, "when": "after", "cut": true}, "share": 0.2},
        {"fault": {"status": 503, "trickle": "1s"}, "share": 0.2},
        {"fault": {"status": 503, "cut": true}, "share": 0.2},
    ]);
    let day = bad_day(&within("4s"), rules, Met::often(JOBS, &["status-200-after", "status-503"])).await;
    day.is_unharmed(|_| false).await;
}

/// 300 bodies of 100 MB, 64 at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_100_megabytes_are_not_read() {
    let rules = json!([
        {"fault": {"status": 503, "pad": 100_000_000}, "share": 0.5},
        {"fault": {"pad": 100_000_000}, "share": 0.5},
    ]);
    let day = bad_day(PLAIN, rules, Met::often(JOBS, &["status-503", "pad-100000000"])).await;
    day.is_unharmed(|_| false).await;
    // Peak resident memory.
    let peak = day.stage.daemon.child.memory("VmHWM") / 1024;
    println!("peak of resident memory: {peak} MiB");
    assert!(peak < 60, "{peak} MiB at the peak");
}

/// A proxy's page says nothing of an instance, whatever its status: neither that it is started, nor that it is unknown.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxys_page_ends_no_job() {
    let page = |status: u16, share: f64| json!({"fault": {"status": status, "html": true}, "share": share});
    let rules =
        json!([page(200, 0.08), page(400, 0.08), page(403, 0.08), page(404, 0.08), page(409, 0.08), page(502, 0.08)]);
    let each = ["html-200", "html-400", "html-403", "html-404", "html-409", "html-502"];
    let day = bad_day(PLAIN, rules, Met::often(JOBS / 2, &each)).await;
    day.is_unharmed(|_| false).await;
    assert!(day.stage.dead().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_409_that_is_cut_off_is_no_conflict() {
    let fleet = format!("Creating={JOBS}");
    let sim = ["--boot-time", "1h"];
    let wishes = Wishes { fleet: &fleet, lane: &within("4s"), retry: PATIENT, sim: &sim };
    let stage = Stage::with(wishes).await;
    let rules = json!([{"fault": {"cut": true}, "share": 0.5}, {"fault": {"trickle": "1s"}}]);
    let created = (1..=JOBS).map(|number| json!({"id": instance(number), "status": "Stopped"}));
    let day = day(stage, rules, Met::often(JOBS, &["cut", "trickle-1s"]), created.collect()).await;
    // None of the 409s was taken as final.
    day.is_unharmed(|_| false).await;
}

/// Neither job nor key is sent to a redirect's target.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_take_no_credentials_anywhere_and_cost_no_job() {
    let other = Sim::start(&["--fleet", &format!("Stopped={JOBS}")]);
    let target = format!("{}/v2/instance/i-sim00001?start", other.url());
    let rule = |status: u16| json!({"fault": {"status": status, "location": target}, "share": 0.1});
    // Each pauses the lane.
    let met = Met::once(20, &["status-301", "status-302", "status-303", "status-307", "status-308"]);
    let day = bad_day(PLAIN, json!([rule(301), rule(302), rule(303), rule(307), rule(308)]), met).await;
    day.is_unharmed(|_| false).await;
    for outcome in day.outcomes.values() {
        assert_eq!(outcome["attempts"], 1, "a fault of the lane costs a job nothing: {outcome}");
    }
    assert!(other.log().await.is_empty());
}

/// Every fault above affects the second call, which shows whether we started a running machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_describe_that_goes_wrong_is_made_again_whatever_went_wrong() {
    let other = Sim::start(&[]);
    let faults = [
        ("status-500", json!({"status": 500})),
        ("status-503", json!({"status": 503, "cut": true})),
        ("hang-before", json!({"hang": "before"})),
        ("reset-before", json!({"reset": "before"})),
        ("reset-after", json!({"reset": "after"})),
        ("delay-2s", json!({"delay": "2s"})),
        ("trickle-1s", json!({"trickle": "1s"})),
        ("cut", json!({"cut": true})),
        ("html-200", json!({"status": 200, "html": true})),
        ("html-404", json!({"status": 404, "html": true})),
        ("html-409", json!({"status": 409, "html": true})),
        ("html-502", json!({"status": 502, "html": true})),
        ("status-200", json!({"status": 200, "body": "{}"})),
        ("status-307", json!({"status": 307, "location": format!("{}/v2/instance/i-sim00001", other.url())})),
        ("status-429", json!({"status": 429, "retry_after": 1})),
    ];
    let names = faults.each_ref().map(|(name, _)| *name);
    let group = JOBS / faults.len();
    let rules: Vec<Value> = (faults.iter().enumerate())
        .map(|(index, (_, fault))| {
            let instances: Vec<String> = (1..=group).map(|number| instance(index * group + number)).collect();
            json!({"fault": fault, "instances": instances, "operations": ["describe"], "share": 0.4})
        })
        .collect();
    let fleet = format!("Running={JOBS}");
    let lane = &within("1s").replace("fail", "verify");
    let stage = Stage::with(Wishes { fleet: &fleet, lane, retry: PATIENT, ..Wishes::default() }).await;
    let day = day(stage, json!(rules), Met::once(JOBS / 4, &names), json!([])).await;
    for (instance, outcome) in &day.outcomes {
        let told = (&outcome["outcome"], &outcome["ambiguous"]);
        let starts = day.calls[instance].iter().filter(|call| call.operation == "start" && !call.refused_all()).count();
        // It ran before, but if the job may have been called before, that can no longer be known. That includes a job
        // that was on its way to the lane as it paused, and was redelivered.
        let ambiguous = told == (&json!("started"), &json!(true));
        let clean = starts == 1 && told == (&json!("already_done"), &json!(false));
        assert!(ambiguous || clean, "{instance}: {told:?} after {:?}", day.calls[instance]);
        assert!(day.calls[instance].iter().all(|call| !call.took_effect || call.operation == "describe"));
    }
    assert!(other.log().await.is_empty());
}
