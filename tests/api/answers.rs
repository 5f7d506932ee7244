//! Undocumented error codes: each concerns its job only, unless a rule or the built-in table gives it a meaning.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::calls::Call;
use crate::support::queues::header;
use crate::support::stage::{Stage, Wishes};
use crate::support::{PATIENCE, eventually, instance};

const SINGLY: &str = "batch = 1";
const TOGETHER: &str = "batch = 20\nrate = 50\nburst = 1";
/// A code without any known meaning.
const UNHEARD: &str = "Bcc.ZoneClosed";
const NO_STOCK: &str = r#"
[[answer]]
code = "bcc.zone*"
meaning = "no_capacity"
reason = "no_stock"
"#;

fn ids(numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
    numbers.map(instance).collect()
}

fn refusal(code: &str) -> Value {
    json!({"status": 403, "code": code, "message": "not just now"})
}

/// A lane with these lines, and with rules.
async fn stage(fleet: &str, lane: &str, rules: &str, give_up_after: &str) -> (Stage, Account) {
    let lane = format!("{lane}\n{rules}");
    let retry = format!("initial = \"200ms\"\nmax = \"1s\"\ngive_up_after = {give_up_after:?}");
    let stage = Stage::with(Wishes { lane: &lane, fleet, retry: &retry, ..Wishes::default() }).await;
    let account = Account::open(&stage.vhost.url).await;
    (stage, account)
}

/// Makes starts of these instances fail with this code.
async fn refuse(stage: &Stage, instances: &[String], code: &str) {
    let operations = ["start", "batch_start"];
    stage.sim.faults(json!([{"fault": refusal(code), "instances": instances, "operations": operations}])).await;
}

async fn parked(stage: &Stage, cause: &str) -> f64 {
    stage.daemon.metric(&format!(r#"reveille_jobs_parked_total{{cause="{cause}",lane="prod"}}"#)).await
}

fn ends<const COUNT: usize>(ends: [(&str, usize); COUNT]) -> BTreeMap<String, usize> {
    ends.map(|(end, count)| (end.to_owned(), count)).into()
}

/// They come first, one after the other: as many denials would pause the lane.
#[tokio::test]
async fn six_machines_with_a_code_of_their_own_do_not_pause_the_lane_for_fifty_others() {
    for lane in [SINGLY, TOGETHER] {
        let (mut stage, mut account) = stage("Stopped=56", lane, "", "30m").await;
        refuse(&stage, &ids(1..=6), UNHEARD).await;
        account.submit(ids(1..=6), json!({})).await;
        account.submit(ids(7..=56), json!({})).await;
        assert_eq!(account.close(PATIENCE).await, ends([("failed refused", 6), ("started", 50)]), "{lane}");
        let outcomes = stage.outcomes(56).await;
        for instance in ids(1..=6) {
            assert_eq!(outcomes[&instance]["error_code"], UNHEARD, "{lane}");
            assert_eq!(
                (&outcomes[&instance]["attempts"], &outcomes[&instance]["ambiguous"]),
                (&json!(1), &json!(false))
            );
        }
        stage.daemon.never_paused().await;
    }
}

/// With a rule they are retried, and end with its reason.
#[tokio::test]
async fn six_machines_out_of_stock_wait_beside_fifty_others_and_end_with_the_reason_of_the_rule() {
    for lane in [SINGLY, TOGETHER] {
        let (mut stage, mut account) = stage("Stopped=57", lane, NO_STOCK, "3s").await;
        refuse(&stage, &[ids(1..=6), ids(57..=57)].concat(), UNHEARD).await;
        account.submit(ids(1..=6), json!({})).await;
        account.submit(ids(7..=56), json!({})).await;
        let outcomes = stage.outcomes(56).await;
        for instance in ids(1..=6) {
            let outcome = &outcomes[&instance];
            assert_eq!((&outcome["outcome"], &outcome["reason"]), (&json!("failed"), &json!("no_stock")), "{lane}");
            assert_eq!((&outcome["http_status"], &outcome["error_code"]), (&json!(403), &json!(UNHEARD)));
            assert_eq!((&outcome["attempts"], &outcome["ambiguous"]), (&json!(1), &json!(false)), "{outcome}");
            assert!(outcome["duration_ms"].as_i64().unwrap() >= 3000, "as long as give_up_after: {outcome}");
        }
        stage.all_acked().await;
        let ended = r#"reveille_jobs_total{lane="prod",outcome="failed",reason="no_stock"}"#;
        assert_eq!((stage.daemon.metric(ended).await, stage.daemon.charged().await), (6.0, 0.0), "{lane}");
        assert_eq!(parked(&stage, "no_capacity").await, 6.0, "they are called again as their time is up: {lane}");
        for dead in stage.dead().await {
            assert_eq!(header(&dead.properties, "x-reveille-reason"), "no_stock");
            assert_eq!(header(&dead.properties, "x-reveille-error-code"), UNHEARD);
        }
        stage.daemon.never_paused().await;

        let submitted =
            stage.daemon.config.command(&["submit", "--lane", "prod", "--wait", &instance(57)]).output().unwrap();
        let report = String::from_utf8_lossy(&submitted.stdout).into_owned();
        assert_eq!(submitted.status.code(), Some(1), "{report}");
        assert!(report.contains(&format!("{}  no_stock, HTTP 403 {UNHEARD}", instance(57))), "{report}");
    }
}

/// With a code from the built-in table, and its backoff, which is 15 s at least.
#[tokio::test]
async fn a_machine_that_is_out_of_stock_for_a_while_is_started_once_there_is_one() {
    let (mut stage, mut account) = stage("Stopped=1", SINGLY, "", "30m").await;
    stage.sim.script(&instance(1), json!([refusal("Instance.OutOfStock"), "normal"])).await;
    account.submit(ids(1..=1), json!({})).await;
    let outcome = stage.outcome().await;
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)), "{outcome}");
    let calls = stage.sim.log().await;
    assert_eq!(calls.iter().map(|call| call.operation.as_str()).collect::<Vec<_>>(), ["start"; 2]);
    let apart = calls[1].unix_micros - calls[0].unix_micros;
    assert!((14_900_000..=40_000_000).contains(&apart), "{apart} microseconds apart");
    assert_eq!((parked(&stage, "no_capacity").await, stage.daemon.charged().await), (1.0, 0.0));
}

#[tokio::test]
async fn a_deadline_ends_the_wait_for_stock() {
    let (mut stage, mut account) = stage("Stopped=1", SINGLY, NO_STOCK, "30m").await;
    refuse(&stage, &ids(1..=1), UNHEARD).await;
    let deadline = Timestamp::now() + 4.seconds();
    account.submit(ids(1..=1), json!({ "deadline": deadline })).await;
    let outcome = stage.outcome().await;
    assert_eq!(outcome["outcome"], "expired", "{outcome}");
    let finished: Timestamp = outcome["finished_at"].as_str().unwrap().parse().unwrap();
    assert!(finished > deadline && finished < deadline + 10.seconds(), "{outcome}");
    // The last call checks whether the first one started it all the same.
    assert_eq!(stage.sim.operations(&instance(1)).await, ["start", "describe"]);
}

/// Each is called once, since its state is unknown before; retries take a tenth of the rate, not four fifths, until the
/// others are done.
#[tokio::test]
async fn hundreds_that_are_out_of_stock_do_not_hold_up_hundreds_that_are_not() {
    const NONE: usize = 200;
    const ALL: usize = NONE + 1200;
    let lane = "batch = 1\nrate = 40\nburst = 5";
    let (stage, mut account) = stage(&format!("Stopped={ALL}"), lane, NO_STOCK, "45s").await;
    refuse(&stage, &ids(1..=NONE), UNHEARD).await;
    account.submit(ids(1..=NONE), json!({})).await;
    account.submit(ids(NONE + 1..=ALL), json!({})).await;
    let is_well = |call: &Call| call.instance > instance(NONE);
    let healthy = async || stage.sim.log().await.iter().filter(|call| is_well(call)).count();
    eventually("all others are called", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        (healthy().await == ALL - NONE).then_some(())
    })
    .await;
    let calls = stage.sim.log().await;
    let last = calls.iter().rposition(is_well).unwrap();
    let again = calls[..last].iter().filter(|call| !is_well(call)).count() - NONE;
    let took = calls[last].unix_micros - calls[0].unix_micros;
    println!("{again} second calls for machines that are out of stock, in {took} microseconds");
    assert!(again <= 110, "{again} second calls for machines that are out of stock");
    assert!(took < 45_000_000, "{took} microseconds");
    assert!(parked(&stage, "gave_way").await > 0.0);
    assert_eq!(account.close(PATIENCE).await, ends([("failed no_stock", NONE), ("started", ALL - NONE)]));
    assert_eq!(stage.daemon.charged().await, 0.0);
}

/// Known from the table, or by a rule: nothing can be started then, and no key is at fault.
#[tokio::test]
async fn an_account_that_cannot_pay_pauses_the_lane_and_says_what_to_do() {
    let rule = "[[answer]]\ncode = \"Bcc.ZoneClosed\"\nmeaning = \"lane_fault\"\nlane = \"prod\"";
    for code in ["InsufficientBalance", UNHEARD] {
        let (stage, mut account) = stage("Stopped=20", SINGLY, rule, "30m").await;
        stage.sim.faults(json!([{ "fault": refusal(code) }])).await;
        account.submit(ids(1..=20), json!({})).await;
        stage.daemon.paused("account", &[code, "[[answer]]"]).await;
        stage.sim.faults(json!([])).await;
        assert_eq!(account.close(PATIENCE).await, ends([("started", 20)]));
        assert_eq!(stage.daemon.charged().await, 0.0);
        stage.daemon.works_again().await;
    }
}

#[tokio::test]
async fn a_rule_has_a_code_retried_throttled_or_failed() {
    let rules = "[[answer]]\ncode = \"Own.Busy\"\nmeaning = \"retry\"\n\
                 [[answer]]\ncode = \"Own.Slow\"\nmeaning = \"throttled\"\n\
                 [[answer]]\ncode = \"Own.*\"\nmeaning = \"failed\"\nreason = \"own_end\"\n\
                 [[answer]]\ncode = \"InternalError\"\nmeaning = \"failed\"";
    let (mut stage, _) = stage("Stopped=5", SINGLY, rules, "30m").await;
    let failed = json!({"status": 500, "code": "InternalError"});
    for (number, answer) in [
        (1, refusal("Own.Busy")),
        (2, refusal("Own.Slow")),
        (3, refusal("Own.Other")),
        (4, failed),
        (5, json!("normal")),
    ] {
        stage.sim.script(&instance(number), json!([answer])).await;
        stage.wake(&instance(number)).await;
    }
    let outcomes = stage.outcomes(5).await;
    let told = |number| {
        let outcome = &outcomes[&instance(number)];
        (outcome["outcome"].as_str().unwrap(), outcome["reason"].as_str(), outcome["attempts"].as_u64().unwrap())
    };
    assert_eq!(told(1), ("started", None, 2));
    assert_eq!(told(2), ("started", None, 1));
    assert_eq!(told(3), ("failed", Some("own_end"), 1));
    assert_eq!(told(4), ("failed", Some("refused"), 1));
    assert_eq!(told(5), ("started", None, 1));
    assert_eq!((parked(&stage, "transient").await, parked(&stage, "throttled").await), (1.0, 1.0));
}
