//! A fault that is no job's pauses the lane: few calls find it, no job is charged, and the lane recovers by itself.

use serde_json::{Value, json};
use tokio::net::TcpSocket;

use crate::support::account::Account;
use crate::support::calls::LIST;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::sim::{KEY, SECRET, Sim};
use crate::support::stage::{Stage, Wishes, in_batches};
use crate::support::{PATIENCE, eventually, instance};

const JOBS: usize = 500;
const RATE: &str = r#"reveille_lane_rate{lane="prod"}"#;
const CONCURRENCY: usize = 16;
/// Calls beyond those in flight that detection may cost.
const MORE: usize = 5;
const STARTS: [&str; 2] = ["start", "batch_start"];

/// The remedy that is shown with a pause.
const RENEW_KEYS: &str = "put valid keys where the lane takes them from";
const CHECK_ENDPOINT: &str =
    "redirects are not followed; check the lane's endpoint or region, and any proxy on the way";
const WAIT: &str = "it is asked again every few seconds";
const ALLOW: &str = "give the key's user permission to operate them";

async fn stage() -> (Stage, Account) {
    stage_with("").await
}

/// With further lines in the lane's table.
async fn stage_with(more: &str) -> (Stage, Account) {
    let lane = format!("rate = 200\nburst = 5\nconcurrency = {CONCURRENCY}\n{more}");
    let fleet = format!("Stopped={JOBS}");
    let stage = Stage::with(Wishes { lane: &lane, fleet: &fleet, ..Wishes::default() }).await;
    let account = Account::open(&stage.vhost.url).await;
    (stage, account)
}

fn instances() -> impl Iterator<Item = String> {
    (1..=JOBS).map(instance)
}

/// Start calls, single and shared.
async fn starts(stage: &Stage) -> usize {
    stage.sim.wire().await.iter().filter(|call| STARTS.contains(&call.operation.as_str())).count()
}

/// All lists but the first, which checks the keys.
async fn probes(stage: &Stage) -> usize {
    stage.sim.wire().await.iter().filter(|call| call.operation == LIST).skip(1).count()
}

/// Denies every start.
async fn deny(stage: &Stage) {
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "AccessDenied"}, "operations": STARTS}])).await;
}

/// Sets the fault before any call, and lifts it once the lane has been paused for a while.
async fn pauses_and_goes_on(faults: Value, reason: &str, words: &[&str]) {
    let (stage, account) = stage().await;
    stage.sim.faults(faults).await;
    pauses_until(&stage, account, reason, words, async || stage.sim.faults(json!([])).await).await;
}

/// Submits jobs while no call can succeed, and runs `mend` once the lane has been paused for a while.
async fn pauses_until(stage: &Stage, mut account: Account, reason: &str, words: &[&str], mend: impl AsyncFnOnce()) {
    account.submit(instances(), json!({})).await;
    stage.daemon.paused(reason, words).await;
    let spent = starts(stage).await;
    assert!(spent <= CONCURRENCY + MORE, "{spent} calls to find out");
    let before = probes(stage).await;
    eventually("probes are made", async || (probes(stage).await >= before + 2).then_some(())).await;
    assert_eq!(starts(stage).await, spent, "and no other calls");
    mend().await;
    goes_on(stage, account).await;
}

/// No job failed or lost an attempt, and all of them started their machines.
async fn goes_on(stage: &Stage, mut account: Account) {
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    assert_eq!(stage.daemon.charged().await, 0.0, "no job lost an attempt");
    stage.daemon.works_again().await;
}

#[tokio::test]
async fn keys_that_are_refused_pause_the_lane() {
    let faults = json!([{"fault": {"status": 403, "code": "InvalidAccessKeyId"}}]);
    pauses_and_goes_on(faults, "keys", &["HTTP 403, InvalidAccessKeyId", RENEW_KEYS]).await;
}

/// The right id with a wrong secret, until the file has the right one.
#[tokio::test]
async fn a_secret_that_is_wrong_pauses_the_lane() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, "a-wrong-secret"));
    let (stage, account) = stage_with(&format!("credentials_file = {:?}", folder.file())).await;
    let words = ["HTTP 400, SignatureDoesNotMatch", RENEW_KEYS];
    pauses_until(&stage, account, "keys", &words, async || folder.rename(&keys(KEY, SECRET))).await;
}

#[tokio::test]
async fn an_endpoint_that_redirects_pauses_the_lane() {
    let faults = json!([{"fault": {"status": 302, "location": "http://127.0.0.1:9/"}}]);
    pauses_and_goes_on(faults, "endpoint", &["HTTP 302", CHECK_ENDPOINT]).await;
}

#[tokio::test]
async fn an_api_that_fails_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": {"status": 503}}]), "outage", &["HTTP 503", WAIT]).await;
}

/// With the API's request id, so it is the API's answer: but we asked for no other protocol.
#[tokio::test]
async fn an_api_that_switches_protocols_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": {"status": 101}}]), "outage", &["HTTP 101", WAIT]).await;
}

#[tokio::test]
async fn an_api_that_hangs_pauses_the_lane() {
    let (stage, account) = stage_with("timeout = \"5s\"").await;
    stage.sim.faults(json!([{"fault": "hang-before"}])).await;
    let words = ["the API did not answer in time", WAIT];
    pauses_until(&stage, account, "outage", &words, async || stage.sim.faults(json!([])).await).await;
}

#[tokio::test]
async fn an_api_that_hangs_up_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": "reset-before"}]), "outage", &["the connection to the API broke", WAIT]).await;
}

/// Nothing listens at the API's address, and later it is back. Only the daemon knows of the calls meanwhile.
#[tokio::test]
async fn an_api_that_refuses_connections_pauses_the_lane() {
    let (mut stage, mut account) = stage().await;
    let address = stage.sim.address.clone();
    stage.sim.stop();
    // Keeps this port from being given out as a free one meanwhile.
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind(address.parse().unwrap()).unwrap();

    account.submit(instances(), json!({})).await;
    let words = ["no connection to the API", "Connection refused", WAIT];
    stage.daemon.paused("outage", &words).await;
    let refused = async |operation: &str| {
        let labels = format!(r#"lane="prod",operation="{operation}",status="unreachable""#);
        stage.daemon.metric(&format!("reveille_api_requests_total{{{labels}}}")).await as usize
    };
    let starts = async || refused("start").await + refused("start_batch").await;
    let spent = starts().await;
    assert!((1..=CONCURRENCY + MORE).contains(&spent), "{spent} calls to find out");
    let before = refused("probe").await;
    eventually("probes are made", async || (refused("probe").await >= before + 2).then_some(())).await;
    assert_eq!(starts().await, spent, "and no other calls");

    stage.sim = Sim::start_at(&address, &["--fleet", &format!("Stopped={JOBS}")]);
    drop(held);
    goes_on(&stage, account).await;
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_batch_costs_no_job() {
    let (stage, mut account) = stage().await;
    let (fault, later): (_, Vec<String>) = (json!({"status": 500}), instances().skip(100).collect());
    let rules = json!([{"fault": fault, "instances": &later}, {"fault": fault, "operations": ["list"]}]);
    stage.sim.faults(rules).await;
    account.submit(instances().take(100), json!({})).await;
    // A good answer that comes after a failed call begins the count anew.
    eventually("all goes well at first", async || (account.ended().await == 100).then_some(())).await;
    account.submit(later, json!({})).await;
    stage.daemon.paused("outage", &["HTTP 500", WAIT]).await;
    let calls = stage.sim.wire().await;
    let failed = calls.iter().filter(|call| call.operation != "list" && call.status == Some(500)).count();
    assert!(failed <= CONCURRENCY + MORE, "{failed} calls to find out");
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
}

/// A list shows nothing about it, so jobs have to be tried one after the other.
#[tokio::test]
async fn a_permission_that_is_gone_pauses_the_lane_and_fails_no_job() {
    let (stage, mut account) = stage().await;
    deny(&stage).await;
    account.submit(instances(), json!({})).await;
    stage.daemon.paused("access_denied", &["HTTP 403, AccessDenied", ALLOW]).await;
    eventually("probes are made", async || (probes(&stage).await >= 3).then_some(())).await;
    let (spent, tries) = (starts(&stage).await, probes(&stage).await);
    assert!(spent <= CONCURRENCY + MORE + tries, "{spent} calls, {tries} of them to try it again");
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    stage.daemon.works_again().await;
}

/// All of its jobs are in hand as it pauses, so none is there to try after the first probe, which is immediate.
#[tokio::test]
async fn a_permission_that_is_gone_fails_no_job_of_a_small_fleet() {
    let (stage, _) = stage().await;
    let mut account = Account::open(&stage.vhost.url).await;
    deny(&stage).await;
    account.submit(instances().take(20), json!({})).await;
    stage.daemon.paused("access_denied", &["HTTP 403, AccessDenied", ALLOW]).await;
    eventually("probes are made", async || (probes(&stage).await >= 4).then_some(())).await;
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 20)].into());
    stage.daemon.works_again().await;
}

/// Its only job is withdrawn meanwhile, so only the probe can show it.
#[tokio::test]
async fn a_lane_without_jobs_comes_out_of_its_pause_as_well() {
    let (stage, _) = stage().await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake("i-sim00001").await;
    stage.daemon.paused("keys", &["HTTP 401", RENEW_KEYS]).await;
    eventually("the job is in its queue", async || {
        (!stage.queues.take_all("reveille.due.prod").await.is_empty()).then_some(())
    })
    .await;
    stage.sim.faults(json!([])).await;
    stage.daemon.is_held().await;
    stage.daemon.works_again().await;
    assert_eq!(starts(&stage).await, 1);
}

#[tokio::test]
async fn an_instance_that_is_denied_fails_alone() {
    let (stage, mut account) = stage().await;
    let denied = ["i-sim00007", "i-sim00400"];
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "AccessDenied"}, "instances": denied}])).await;
    account.submit(instances(), json!({})).await;
    let ends = [("failed access_denied".to_owned(), denied.len()), ("started".to_owned(), JOBS - denied.len())];
    assert_eq!(account.close(PATIENCE).await, ends.into());
    let singly = starts(&stage).await == JOBS + denied.len();
    assert!(singly || in_batches(), "a second look each, and no more");
    stage.daemon.never_paused().await;
}

/// One lane fault in the middle of good answers costs no more than a probe.
#[tokio::test]
async fn a_hiccup_does_not_slow_the_lane_down() {
    let (stage, mut account) = stage().await;
    let rate = stage.daemon.metric(RATE).await;
    assert!(rate > 0.0, "it has not been slowed down yet");
    stage.sim.script("i-sim00050", json!([{"status": 401}])).await;
    account.submit(instances(), json!({})).await;
    let answered = r#"reveille_api_requests_total{lane="prod",operation="probe",status="200"}"#;
    eventually("it has begun", async || (stage.daemon.metric(answered).await >= 1.0).then_some(())).await;
    stage.daemon.is_held().await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(stage.daemon.metric(RATE).await, rate);
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    assert_eq!(probes(&stage).await, 1);
    assert!(starts(&stage).await == JOBS + 1 || in_batches());
    stage.daemon.works_again().await;
}
