//! The network between daemon and broker fails in every possible way, and no job is lost.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::PATIENCE;
use crate::support::broker::Node;
use crate::support::pace::Lateness;
use crate::support::proxy::{Flow, Proxy};
use crate::support::scene::Scene;
use crate::support::stage::Wishes;

const STEADY: Wishes<'_> = Wishes { lane: "rate = 100\nburst = 1\nconcurrency = 8", retry: "", fleet: "", sim: &[] };

async fn set(jobs: usize) -> (Proxy, Scene) {
    let node = Node::start(&[]);
    let proxy = Proxy::before(&[&node.url]).await;
    let url = proxy.url.clone();
    (proxy, Scene::on(node, &url, jobs, STEADY).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_is_made_again() {
    let (proxy, mut scene) = set(1000).await;
    scene.submit(1..1001, json!({})).await;
    for round in 1..=5 {
        scene.calls(round * 80).await;
        assert!(scene.sim.log().await.len() < 1000, "the cuts come under load");
        proxy.cut();
    }
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 1000)].into());
    scene.sim.every_machine_started_once(1000).await;
    scene.daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_falls_silent_is_noticed_within_fifteen_seconds() {
    let (proxy, mut scene) = set(1000).await;
    let lateness = Lateness::measure(&scene.sim);
    scene.submit(1..1001, json!({})).await;
    scene.calls(100).await;
    let silent = Instant::now();
    proxy.flow(Flow::Stalled);
    assert_eq!(scene.readiness(r#""broker":"lost: "#).await, 503);
    let noticed = silent.elapsed();
    println!("noticed after {noticed:.1?}");
    // Delays by this machine are not counted.
    assert!(noticed < Duration::from_secs(15) + lateness.longest(), "noticed after {noticed:?}");
    assert!(!scene.daemon.holds_the_lane().await);
    // A connection without any answer is given up as well.
    scene.readiness("no answer within").await;

    assert!(scene.account.ended().await < 1000, "the silence came under load");
    proxy.flow(Flow::Swift);
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 1000)].into());
    scene.sim.every_machine_started_once(1000).await;
    scene.daemon.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_trickles_is_slow_and_loses_nothing() {
    let (proxy, mut scene) = set(60).await;
    proxy.flow(Flow::Trickle);
    scene.submit(1..61, json!({})).await;
    scene.calls(10).await;
    assert!(scene.sim.log().await.len() < 60, "it trickles under load");
    // The handshake and all declarations of the next connection are slowed down too.
    proxy.cut();
    scene.readiness(r#""broker":"lost: "#).await;
    scene.daemon.ready().await;
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), 60)].into());
    scene.sim.every_machine_started_once(60).await;
}
