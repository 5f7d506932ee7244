//! Answers of a gateway, a proxy or a captive portal instead of the API decide nothing about a job.

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::eventually;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes};
use crate::support::{PATIENCE, instance};

const JOBS: usize = 30;
const SINGLY: &str = "batch = 1";
const TOGETHER: &str = "batch = 20\nrate = 50\nburst = 1";
/// The cause in the log and in `/readyz`.
const WORDS: &str = "something else answers in the API's place";
const SETTING: &str = "the lane's setting request_id";

fn instances(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(instance)
}

/// An answer that is not the API's: no request id, and this body.
fn gateway(status: u16, body: &str) -> Value {
    json!({"status": status, "gateway": true, "body": body})
}

async fn stage(fleet: &str, lane: &str) -> (Stage, Account) {
    let stage = Stage::with(Wishes { lane, fleet, ..Wishes::default() }).await;
    let account = Account::open(&stage.vhost.url).await;
    (stage, account)
}

/// Answers calls with the fault, all of them if no `operations` are named, until the lane has been paused for a while.
/// No job ends before that; then each ends well, without having lost an attempt.
async fn is_an_outage(fault: &Value, operations: &[&str], fleet: &str, lane: &str) {
    let (mut stage, mut account) = stage(fleet, lane).await;
    stage.sim.faults(json!([{"fault": fault, "operations": operations}])).await;
    account.submit(instances(JOBS), json!({})).await;
    stage.daemon.paused("outage", &[WORDS, &format!("HTTP {}", fault["status"]), SETTING]).await;
    let probes = async || stage.sim.wire().await.iter().filter(|call| call.operation == "list").count();
    let before = probes().await;
    eventually("probes are made", async || (probes().await >= before + 2).then_some(())).await;
    assert_eq!(account.ended().await, 0, "{fault}: no job ends");
    assert_eq!(stage.daemon.metric(r#"reveille_lane_clock_offset_seconds{lane="prod"}"#).await, 0.0, "{fault}");
    stage.sim.faults(json!([])).await;
    account.close(PATIENCE).await;
    for outcome in stage.outcomes(JOBS).await.values() {
        // Instances that ran before were found running, or may have been started by a call whose answer proved nothing.
        let is_well =
            outcome["outcome"] == "started" || fleet.starts_with("Running") && outcome["outcome"] == "already_done";
        assert!(is_well && outcome["attempts"] == 1, "{fault}: {outcome}");
    }
    stage.daemon.works_again().await;
}

/// One after the other: each has its own vhost, simulator and daemon.
async fn is_an_outage_each(faults: &[Value], lane: &str) {
    for fault in faults {
        is_an_outage(fault, &[], &format!("Stopped={JOBS}"), lane).await;
    }
}

#[tokio::test]
async fn an_empty_404_ends_no_job() {
    is_an_outage_each(&[gateway(404, "")], SINGLY).await;
}

#[tokio::test]
async fn an_empty_404_to_a_call_for_many_ends_no_job() {
    is_an_outage_each(&[gateway(404, "")], TOGETHER).await;
}

#[tokio::test]
async fn a_captive_portals_200_starts_nothing() {
    is_an_outage_each(&[json!({"status": 200, "html": true}), gateway(200, ""), gateway(200, "{}")], SINGLY).await;
}

#[tokio::test]
async fn a_captive_portals_200_to_a_call_for_many_starts_nothing() {
    is_an_outage_each(&[gateway(200, ""), gateway(200, r#"{"failedInstanceIdList":[]}"#)], TOGETHER).await;
}

#[tokio::test]
async fn a_gateways_400_413_and_409_refuse_nothing() {
    // The code is one of the API's, and the date would change the clock's offset.
    let skewed = json!({"status": 400, "gateway": true, "body": r#"{"code":"RequestExpired","message":"expired"}"#,
        "headers": {"date": "Tue, 24 Nov 2026 16:42:43 GMT"}});
    is_an_outage_each(&[skewed, gateway(413, "Request Entity Too Large"), gateway(409, "")], SINGLY).await;
}

#[tokio::test]
async fn a_gateways_409_and_400_to_a_call_for_many_refuse_nothing() {
    is_an_outage_each(&[gateway(409, ""), gateway(400, r#"{"error":"bad request"}"#)], TOGETHER).await;
}

#[tokio::test]
async fn a_gateways_401_is_no_fault_of_the_keys() {
    is_an_outage_each(&[gateway(401, r#"{"error":"log in"}"#), gateway(403, "")], SINGLY).await;
}

/// The 409 is the API's, but the answer that should show the state is not.
#[tokio::test]
async fn what_a_gateway_says_of_a_state_is_not_believed() {
    let gone = r#"{"instance":{"id":"i-sim00001","status":"Deleted"}}"#;
    for fault in [gateway(404, ""), gateway(403, ""), gateway(200, gone)] {
        is_an_outage(&fault, &["describe", "list"], &format!("Running={JOBS}"), SINGLY).await;
    }
}

#[tokio::test]
async fn what_a_gateway_lists_is_not_believed() {
    let (mut stage, mut account) = stage("Stopped=3", SINGLY).await;
    let shown: Vec<Value> = instances(3).map(|id| json!({"id": id, "status": "Expired"})).collect();
    let list = json!({"isTruncated": false, "instances": shown}).to_string();
    stage.sim.faults(json!([{"fault": gateway(200, &list), "operations": ["list_by_ids"]}])).await;
    account.submit(instances(3), json!({"confirm": "running"})).await;
    // They are parked first when their start was accepted, and again when a list was read.
    let parked = r#"reveille_jobs_parked_total{cause="confirm",lane="prod"}"#;
    eventually("a list was read", async || (stage.daemon.metric(parked).await >= 6.0).then_some(())).await;
    stage.sim.faults(json!([])).await;
    for outcome in stage.outcomes(3).await.values() {
        assert_eq!(outcome["outcome"], "running", "{outcome}");
    }
    assert_eq!(account.close(PATIENCE).await, [("running".to_owned(), 3)].into());
}

/// The API does not throttle here, but calling less is what was asked for. And it does not show that the API is up.
#[tokio::test]
async fn a_gateways_429_throttles_and_ends_no_outage() {
    let (mut stage, mut account) = stage("Stopped=10", SINGLY).await;
    let throttled = json!({"status": 429, "gateway": true, "retry_after": 1});
    stage.sim.faults(json!([{"fault": throttled, "operations": ["start"]}])).await;
    account.submit(instances(10), json!({})).await;
    let parked = r#"reveille_jobs_parked_total{cause="throttled",lane="prod"}"#;
    eventually("jobs are put back", async || (stage.daemon.metric(parked).await >= 20.0).then_some(())).await;
    stage.daemon.never_paused().await;

    stage.sim.faults(json!([{"fault": gateway(404, "")}])).await;
    stage.daemon.paused("outage", &[WORDS]).await;
    stage.sim.faults(json!([{"fault": throttled}])).await;
    let calls = stage.sim.calls_made().await;
    eventually("probes are made", async || (stage.sim.calls_made().await >= calls + 2).then_some(())).await;
    let since = stage.sim.wire().await.split_off(calls);
    assert!(since.iter().all(|call| call.operation == "list"), "no start meanwhile: {since:?}");
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 10)].into());
    for outcome in stage.outcomes(10).await.values() {
        assert_eq!(outcome["attempts"], 1, "{outcome}");
    }
}

#[tokio::test]
async fn a_request_id_in_the_body_alone_is_enough() {
    let (stage, mut account) = stage("Stopped=4", SINGLY).await;
    let mut started = gateway(200, r#"{"requestId":"0b1c"}"#);
    started["when"] = json!("after");
    let refused = gateway(404, r#"{"requestId":"0b1d","code":"NoSuchObject","message":"gone"}"#);
    stage.sim.faults(json!([{"fault": refused, "instances": ["i-sim00004"]}, {"fault": started}])).await;
    account.submit(instances(4), json!({})).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 3), ("failed not_found".to_owned(), 1)].into());
}

/// Behind a proxy that strips the header of every answer: with the setting the status decides, unless the body is a
/// page.
#[tokio::test]
async fn where_a_proxy_strips_the_header_there_is_a_setting() {
    for lane in [SINGLY, TOGETHER] {
        let lane = format!("{lane}\nrequest_id = \"optional\"");
        let (stage, mut account) = stage("Stopped=22", &lane).await;
        let mut started = gateway(200, "");
        started["when"] = json!("after");
        let gone = json!({"fault": gateway(404, ""), "instances": ["i-sim00001"]});
        stage.sim.faults(json!([gone, {"fault": started, "operations": ["start", "batch_start"]}])).await;
        account.submit(instances(20), json!({})).await;
        assert_eq!(
            account.close(PATIENCE).await,
            [("started".to_owned(), 19), ("failed not_found".to_owned(), 1)].into()
        );
        // A page is still foreign.
        stage.sim.faults(json!([{"fault": {"status": 404, "html": true}}])).await;
        let mut account = Account::open(&stage.vhost.url).await;
        account.submit(["i-sim00021".to_owned()], json!({})).await;
        stage.daemon.paused("outage", &[WORDS]).await;
        stage.sim.faults(json!([])).await;
        assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 1)].into());
    }
}

/// Without the setting the same answers are an outage, as long as the proxy is there.
#[tokio::test]
async fn without_the_setting_a_proxy_that_strips_the_header_is_an_outage() {
    let (stage, mut account) = stage("Stopped=20", SINGLY).await;
    let mut started = gateway(200, "");
    started["when"] = json!("after");
    stage.sim.faults(json!([{"fault": started}])).await;
    account.submit(instances(20), json!({})).await;
    stage.daemon.paused("outage", &[WORDS, SETTING]).await;
    assert_eq!(account.ended().await, 0);
    stage.sim.faults(json!([])).await;
    // They had been started by calls whose answers proved nothing, or were not started yet.
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 20)].into());
}

/// Checks the fault of the tests above: the simulator answers so instead of the API.
#[tokio::test]
async fn a_gateways_answer_has_no_request_id() {
    let sim = Sim::start(&["--fault", "gateway-404=1"]);
    let answer = sim.start_instance("i-sim00001").await;
    assert_eq!((answer.status, answer.body.as_str(), answer.header("x-bce-request-id")), (404, "", None));
}
