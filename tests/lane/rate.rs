//! An API that throttles: the lane slows down to a bearable rate, wastes few calls, and is back at its rate in time.

use serde_json::json;

use crate::support::calls::Call;
use crate::support::eventually;
use crate::support::stage::{Stage, Wishes};

const RATE: f64 = 100.0;
const PRESENT: &str = r#"reveille_lane_rate{lane="prod"}"#;
const SLOWS_DOWN: &str = "the lane slows down";
const IS_BACK: &str = "the lane is back at its configured rate";

fn seconds(calls: &[Call]) -> f64 {
    (calls[calls.len() - 1].unix_micros - calls[0].unix_micros) as f64 / 1e6
}

fn is_throttled(call: &Call) -> bool {
    call.status == Some(429)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_is_throttled_wastes_few_calls_and_climbs_back() {
    const SETTLED: f64 = 5.0;
    let wishes =
        Wishes { fleet: "Stopped=5000", lane: "rate = 100\nburst = 5", sim: &["--rate", "50"], ..Wishes::default() };
    let stage = Stage::with(wishes).await;
    stage.wake_all(1..=2000).await;
    eventually("it slows down", async || (stage.daemon.metric(PRESENT).await < RATE).then_some(())).await;
    // It cannot settle before it is throttled, and on a busy machine that may come late.
    let calls = eventually("calls are made for half a minute", async || {
        let calls = stage.sim.log().await;
        let first = calls.iter().position(is_throttled).expect("a lane slows down when it is throttled");
        (seconds(&calls[first..]) >= SETTLED + 25.0).then(|| calls[first..].to_vec())
    })
    .await;
    let settled: Vec<&Call> =
        calls.iter().filter(|call| (call.unix_micros - calls[0].unix_micros) as f64 / 1e6 > SETTLED).collect();
    let throttled = settled.iter().filter(|call| is_throttled(call)).count();
    println!("{throttled} of {} calls throttled after settling", settled.len());
    assert!(throttled * 20 < settled.len(), "{throttled} of {} calls wasted", settled.len());
    assert!(settled.len() > 500, "{} calls in 25 s, where the API takes 50 a second", settled.len());

    stage.sim.control("PUT", "limit", json!({ "rate": null })).await;
    let lifted = stage.sim.log().await.len();
    stage.wake_all(2001..=5000).await;
    eventually("the lane is back at its rate", async || (stage.daemon.metric(PRESENT).await == RATE).then_some(()))
        .await;
    let back = stage.sim.log().await;
    println!("back after {:.1} s and {} calls", seconds(&back[lifted..]), back.len() - lifted);
    // On any machine: at its rate for all these thirty seconds it would have made 3,000.
    assert!(!back[lifted..].iter().any(is_throttled));
    eventually("calls are made at the whole rate", async || {
        let calls = stage.sim.log().await;
        let last = &calls[calls.len().saturating_sub(200)..];
        (last.len() == 200 && seconds(last) < 199.0 / (0.9 * RATE)).then_some(())
    })
    .await;
    let log = stage.daemon.child.output();
    assert_eq!((log.matches(SLOWS_DOWN).count(), log.matches(IS_BACK).count()), (1, 1), "{log}");
}

/// A used-up quota: every call before its renewal is wasted.
#[tokio::test]
async fn a_lane_that_is_throttled_keeps_to_the_retry_after() {
    let wishes = Wishes { fleet: "Stopped=20", lane: "rate = 10\nburst = 1\nconcurrency = 1", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let throttled = json!({"status": 429, "retry_after": 5});
    stage.sim.script("*", json!([throttled, throttled])).await;
    stage.wake_all(1..=20).await;
    stage.outcomes(20).await;
    let calls = stage.sim.log().await;
    assert_eq!(calls.len(), 22);
    // The whole lane waits, not only the two jobs. A third call may have been in flight.
    let longest = calls.windows(2).map(|pair| pair[1].unix_micros - pair[0].unix_micros).max().expect("calls");
    assert!(longest >= 4_000_000, "{calls:?}");
}

#[tokio::test]
async fn one_throttled_call_in_thirty_does_not_slow_a_lane() {
    let wishes = Wishes { fleet: "Stopped=300", lane: "rate = 100\nburst = 1", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let script: Vec<_> =
        (0..300).map(|call| if call % 30 == 29 { json!({"status": 429}) } else { json!("normal") }).collect();
    stage.sim.script("*", json!(script)).await;
    stage.wake_all(1..=300).await;
    stage.outcomes(300).await;
    assert_eq!(stage.sim.log().await.iter().filter(|call| is_throttled(call)).count(), 10);
    assert!(!stage.daemon.child.output().contains(SLOWS_DOWN));
    assert_eq!(stage.daemon.metric(PRESENT).await, RATE);
}
