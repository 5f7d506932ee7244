//! What is no job's fault pauses the lane: few calls find it out, no job pays for it, and the lane goes on by itself.

use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::stage::{Stage, Wishes, in_batches};
use crate::support::{PATIENCE, eventually};

const JOBS: usize = 500;
const RATE: &str = r#"reveille_lane_rate{lane="prod"}"#;
const CONCURRENCY: usize = 16;
/// Calls beyond those in flight that finding out may cost.
const MORE: usize = 5;
const STARTS: [&str; 2] = ["start", "batch_start"];

async fn stage() -> (Stage, Account) {
    let lane = format!("rate = 200\nburst = 5\nconcurrency = {CONCURRENCY}\ntimeout = \"2s\"");
    let fleet = format!("Stopped={JOBS}");
    let stage = Stage::with(Wishes { lane: &lane, fleet: &fleet, ..Wishes::default() }).await;
    let account = Account::open(&stage.vhost.url).await;
    (stage, account)
}

fn instances() -> impl Iterator<Item = String> {
    (1..=JOBS).map(|number| format!("i-sim{number:05}"))
}

async fn paused(stage: &Stage, reason: &str) {
    let metric = format!(r#"reveille_lane_paused{{lane="prod",reason="{reason}"}}"#);
    eventually("the lane is paused", async || (stage.daemon.metric(&metric).await == 1.0).then_some(())).await;
    eventually("nothing is in flight", async || {
        (stage.daemon.metric(r#"reveille_jobs_in_flight{lane="prod"}"#).await == 0.0).then_some(())
    })
    .await;
    let (status, body) = stage.daemon.get("/readyz").await;
    assert!(status == 200 && body.contains(r#""prod":"paused: "#), "no other replica would fare better: {body}");
}

/// Calls that were to start an instance, or many.
async fn starts(stage: &Stage) -> usize {
    stage.sim.wire().await.iter().filter(|call| STARTS.contains(&call.operation.as_str())).count()
}

async fn probes(stage: &Stage) -> usize {
    stage.sim.wire().await.iter().filter(|call| call.operation == "list").count()
}

/// Nobody is allowed to start anything.
async fn deny(stage: &Stage) {
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "AccessDenied"}, "operations": STARTS}])).await;
}

/// Sets the fault before anything is called, and takes it back once the lane has been paused for a while.
async fn pauses_and_goes_on(faults: Value, reason: &str) {
    let (stage, mut account) = stage().await;
    stage.sim.faults(faults).await;
    account.submit(instances(), json!({})).await;
    paused(&stage, reason).await;
    let spent = starts(&stage).await;
    assert!(spent <= CONCURRENCY + MORE, "{spent} calls to find out");
    let before = probes(&stage).await;
    eventually("probes are made", async || (probes(&stage).await >= before + 2).then_some(())).await;
    assert_eq!(starts(&stage).await, spent, "and no other calls");

    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    let charged = stage.daemon.metric(r#"reveille_jobs_parked_total{cause="transient",lane="prod"}"#).await;
    assert_eq!(charged, 0.0, "no job lost an attempt");
    works_again(&stage).await;
}

/// What was said of the pause, when it is over.
async fn works_again(stage: &Stage) {
    let output = stage.daemon.child.output();
    assert_eq!(output.matches("lane paused").count(), 1, "{output}");
    assert_eq!(output.matches("the lane works again").count(), 1, "{output}");
    assert_eq!(stage.daemon.get("/readyz").await.1, r#"{"ready":true,"broker":"connected","lanes":{"prod":"held"}}"#);
    assert!(
        !stage
            .daemon
            .get("/metrics")
            .await
            .1
            .lines()
            .any(|line| line.starts_with("reveille_lane_paused") && line.ends_with(" 1"))
    );
}

#[tokio::test]
async fn keys_that_are_refused_pause_the_lane() {
    pauses_and_goes_on(json!([{"fault": {"status": 403, "code": "InvalidAccessKeyId"}}]), "keys").await;
}

#[tokio::test]
async fn an_endpoint_that_redirects_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": {"status": 302, "location": "http://127.0.0.1:9/"}}]), "endpoint").await;
}

#[tokio::test]
async fn an_api_that_fails_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": {"status": 503}}]), "outage").await;
}

#[tokio::test]
async fn an_api_that_hangs_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": "hang-before"}]), "outage").await;
}

#[tokio::test]
async fn an_api_that_hangs_up_pauses_the_lane() {
    pauses_and_goes_on(json!([{"fault": "reset-before"}]), "outage").await;
}

#[tokio::test]
async fn an_outage_in_the_middle_of_a_batch_costs_no_job() {
    let (stage, mut account) = stage().await;
    account.submit(instances(), json!({})).await;
    eventually("calls are made", async || (stage.sim.log().await.len() >= 100).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 500}}])).await;
    assert!(stage.sim.log().await.len() < JOBS, "it comes under load");
    paused(&stage, "outage").await;
    // Those made between the fault and the look, and those that were needed.
    let calls = stage.sim.wire().await;
    let failed = calls.iter().filter(|call| call.operation != "list" && call.status == Some(500)).count();
    assert!(failed <= CONCURRENCY + MORE, "{failed} calls to find out");
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
}

/// A list shows nothing about it, so one job after the other has to be tried.
#[tokio::test]
async fn a_permission_that_is_gone_pauses_the_lane_and_fails_no_job() {
    let (stage, mut account) = stage().await;
    deny(&stage).await;
    account.submit(instances(), json!({})).await;
    paused(&stage, "access_denied").await;
    eventually("probes are made", async || (probes(&stage).await >= 3).then_some(())).await;
    let (spent, tries) = (starts(&stage).await, probes(&stage).await);
    assert!(spent <= CONCURRENCY + MORE + tries, "{spent} calls, {tries} of them to try it again");
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    works_again(&stage).await;
}

/// All of its jobs are in hand as it pauses, and so none is there to be tried after the first probe, which is at once.
#[tokio::test]
async fn a_permission_that_is_gone_fails_no_job_of_a_small_fleet() {
    let (stage, _) = stage().await;
    let mut account = Account::open(&stage.vhost.url).await;
    deny(&stage).await;
    account.submit(instances().take(20), json!({})).await;
    paused(&stage, "access_denied").await;
    eventually("probes are made", async || (probes(&stage).await >= 4).then_some(())).await;
    stage.sim.faults(json!([])).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 20)].into());
    works_again(&stage).await;
}

/// Its only job is withdrawn meanwhile, so nothing but the probe can tell.
#[tokio::test]
async fn a_lane_without_jobs_comes_out_of_its_pause_as_well() {
    let (stage, _) = stage().await;
    stage.sim.faults(json!([{"fault": {"status": 401}}])).await;
    stage.wake("i-sim00001").await;
    paused(&stage, "keys").await;
    eventually("the job is in its queue", async || {
        (!stage.queues.take_all("reveille.due.prod").await.is_empty()).then_some(())
    })
    .await;
    stage.sim.faults(json!([])).await;
    eventually("it is over", async || stage.daemon.child.output().contains("works again").then_some(())).await;
    eventually("it is shown", async || stage.daemon.get("/readyz").await.1.contains(r#""prod":"held""#).then_some(()))
        .await;
    works_again(&stage).await;
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
    assert!(!stage.daemon.child.output().contains("lane paused"));
}

/// One answer that is a lane fault, in the middle of good ones, costs no more than a probe.
#[tokio::test]
async fn a_hiccup_does_not_slow_the_lane_down() {
    let (stage, mut account) = stage().await;
    let rate = stage.daemon.metric(RATE).await;
    assert!(rate > 0.0, "it has not been slowed down yet");
    stage.sim.script("i-sim00050", json!([{"status": 401}])).await;
    account.submit(instances(), json!({})).await;
    let says = "the lane works again";
    eventually("it is over", async || stage.daemon.child.output().contains(says).then_some(())).await;
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(stage.daemon.metric(RATE).await, rate);
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    assert_eq!(probes(&stage).await, 1);
    assert!(starts(&stage).await == JOBS + 1 || in_batches());
    works_again(&stage).await;
}
