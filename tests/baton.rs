//! Whatever becomes of a lane's batons, it has one holder, and never two.

use lapin::BasicProperties;
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use serde_json::json;

use crate::support::account::Account;
use crate::support::daemon::Daemon;
use crate::support::pace::Lateness;
use crate::support::stage::{Stage, Wishes};
use crate::support::{GLANCE, PATIENCE, eventually};

const HELD: &str = r#"reveille_lane_held{lane="prod"}"#;
const BATON: &str = "reveille.baton.prod";
const RATE: f64 = 50.0;
/// Jobs for each time it is seen to go on; some last until the next fault.
const JOBS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_has_one_holder_whatever_becomes_of_its_batons() {
    let lane = format!("rate = {RATE}\nburst = 1\nconcurrency = 8");
    let fleet = format!("Stopped={}", 4 * JOBS);
    let stage = Stage::with(Wishes { fleet: &fleet, lane: &lane, ..Wishes::default() }).await;
    let second = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    second.ready().await;
    let daemons = [&stage.daemon, &second];
    let mut account = Account::open(&stage.vhost.url).await;
    let lateness = Lateness::measure(&stage.sim);

    let faults = async {
        let channel = stage.queues.connection.create_channel().await.unwrap();
        for _ in 0..10 {
            stage.queues.publish("", BATON, BasicProperties::default(), b"baton").await;
        }
        goes_on(&stage, &daemons, &mut account, 0).await;
        assert_eq!(stage.queues.count(BATON).await.0, 0, "the holder keeps one, and the others are gone");

        channel.queue_purge(BATON.into(), QueuePurgeOptions::default()).await.unwrap();
        goes_on(&stage, &daemons, &mut account, 1).await;

        for losses in 1..=2 {
            channel.queue_delete(BATON.into(), QueueDeleteOptions::default()).await.unwrap();
            eventually("the loss is noticed", async || {
                let lost = |daemon: &Daemon| {
                    daemon.child.output().matches("the broker ended the subscription to reveille.baton").count()
                        >= losses
                };
                daemons.into_iter().all(lost).then_some(())
            })
            .await;
            goes_on(&stage, &daemons, &mut account, 1 + losses).await;
        }
    };
    tokio::select! {
        () = faults => {}
        () = two_holders(daemons) => panic!("two replicas held the lane at once"),
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 4 * JOBS)].into());
    lateness.assert_pace(&stage.sim.log().await, RATE, 1);
}

/// Waits until both are ready, one holds the lane, and calls are made for jobs submitted now.
async fn goes_on(stage: &Stage, daemons: &[&Daemon; 2], account: &mut Account, time: usize) {
    for daemon in daemons {
        daemon.ready().await;
    }
    eventually("one holds the lane", async || {
        (daemons[0].metric(HELD).await + daemons[1].metric(HELD).await == 1.0).then_some(())
    })
    .await;
    let called = stage.sim.log().await.len();
    account.submit((time * JOBS + 1..=(time + 1) * JOBS).map(|number| format!("i-sim{number:05}")), json!({})).await;
    eventually("calls are made", async || (stage.sim.log().await.len() > called + JOBS / 2).then_some(())).await;
}

/// Looks for two holders, until there are: the first is asked before and after the second.
async fn two_holders([first, second]: [&Daemon; 2]) {
    loop {
        let held = [first.metric(HELD).await, second.metric(HELD).await, first.metric(HELD).await];
        if held == [1.0; 3] {
            return;
        }
        tokio::time::sleep(GLANCE).await;
    }
}
