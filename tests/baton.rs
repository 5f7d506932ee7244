//! Whatever becomes of a lane's batons, it has one holder, and never two.

mod support;

use lapin::BasicProperties;
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use serde_json::json;
use support::account::Account;
use support::daemon::Daemon;
use support::stage::{Stage, Wishes};
use support::{GLANCE, PATIENCE, eventually};

const HELD: &str = r#"reveille_lane_held{lane="prod"}"#;
const BATON: &str = "reveille.baton.prod";
const RATE: usize = 50;
const JOBS: usize = 600;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_has_one_holder_whatever_becomes_of_its_batons() {
    let lane = format!("rate = {RATE}\nburst = 1\nconcurrency = 8");
    let stage = Stage::with(Wishes { fleet: &format!("Stopped={JOBS}"), lane: &lane, ..Wishes::default() }).await;
    let second = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    second.ready().await;
    let daemons = [&stage.daemon, &second];
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=JOBS).map(|number| format!("i-sim{number:05}")), json!({})).await;

    let faults = async {
        let channel = stage.queues.connection.create_channel().await.unwrap();
        for _ in 0..10 {
            stage.queues.publish("", BATON, BasicProperties::default(), b"baton").await;
        }
        goes_on(&stage, &daemons).await;
        assert_eq!(stage.queues.count(BATON).await.0, 0, "the holder keeps one, and the others are gone");

        channel.queue_purge(BATON.into(), QueuePurgeOptions::default()).await.unwrap();
        goes_on(&stage, &daemons).await;

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
            goes_on(&stage, &daemons).await;
        }
    };
    tokio::select! {
        () = faults => {}
        () = two_holders(daemons) => panic!("two replicas held the lane at once"),
    }
    assert!(account.ended().await < JOBS, "all came under load");
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    let calls: Vec<i64> = stage.sim.log().await.iter().map(|call| call.unix_micros).collect();
    let busiest =
        calls.iter().map(|from| calls.iter().filter(|at| (*from..from + 1_000_000).contains(at)).count()).max();
    println!("{} calls, {} in the busiest second", calls.len(), busiest.unwrap());
    // One limiter makes 51 of them, give or take those that a busy machine bunches.
    assert!(busiest < Some(RATE * 3 / 2), "{busiest:?} calls in one second: two limiters were at work");
}

/// Waits until both are ready, one holds the lane, and calls are made.
async fn goes_on(stage: &Stage, daemons: &[&Daemon; 2]) {
    for daemon in daemons {
        daemon.ready().await;
    }
    eventually("one holds the lane", async || {
        (daemons[0].metric(HELD).await + daemons[1].metric(HELD).await == 1.0).then_some(())
    })
    .await;
    let called = stage.sim.log().await.len();
    eventually("calls are made", async || (stage.sim.log().await.len() > called + RATE / 2).then_some(())).await;
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
