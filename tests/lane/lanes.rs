//! Several lanes in one daemon: trouble in one does not affect another, and idle ones cost little.

use std::fmt::Write;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::trouble::{Cost, Trouble};
use crate::support::{broker, eventually};

/// Windows with trouble.
const ROUNDS: usize = 3;

/// Only checks that it does not wait for the other lane, whose calls take four seconds to fail. The aim, 10 %, is for a
/// quiet machine: `benches/lanes.rs` asserts it.
async fn does_not_slow_another(trouble: Trouble) {
    let cost = Cost::of(trouble, ROUNDS).await;
    for percent in [50, 90] {
        let (alone, beside) = cost.within(percent);
        #[expect(clippy::cast_precision_loss, reason = "some seconds")]
        let ratio = beside as f64 / alone as f64;
        println!("{trouble:?}: {percent} in 100 ended within {alone} µs alone, {beside} µs beside: {ratio:.2}");
        // Delays by the machine affect both, and are not counted.
        assert!(beside < 4 * alone + 200_000, "{beside} µs against {alone} µs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_api_hangs_does_not_slow_another() {
    does_not_slow_another(Trouble::Hangs).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_is_flooded_and_throttled_does_not_slow_another() {
    does_not_slow_another(Trouble::Throttles).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_whose_outcomes_are_refused_does_not_slow_another() {
    does_not_slow_another(Trouble::Refuses).await;
}

#[tokio::test]
async fn fifty_idle_lanes_take_less_than_fifty_mebibytes() {
    let vhost = broker::vhost();
    let mut config = format!("[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n", vhost.url);
    for number in 0..50 {
        // As in production, with TLS; nothing is called without a job.
        write!(config, "[[lane]]\nname = \"lane-{number}\"\nregion = \"bj\"\n").unwrap();
    }
    let daemon = Daemon::start(&config);
    daemon.ready().await;
    let held = || async { daemon.get("/readyz").await.1.matches(r#":"held""#).count() };
    eventually("all are held", async || (held().await == 50).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Without the pages of the program itself: unoptimised, as here, it has some ten MiB more of them than when it is released.
    let resident = daemon.child.memory("RssAnon");
    println!("fifty idle lanes: {resident} KiB");
    assert!(resident < 36 * 1024, "{resident} KiB");
}
