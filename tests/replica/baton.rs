//! Whatever happens to a lane's batons, it has one holder, and two only until that is noticed.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::{self, Vhost};
use crate::support::daemon::Daemon;
use crate::support::lossy::Lossy;
use crate::support::pace::{HEARTBEAT, Lateness};
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{GLANCE, PATIENCE, eventually, instance};

const BATON: &str = "reveille.baton.prod";
const RATE: f64 = 50.0;
/// Jobs for each check that it goes on; some last until the next fault.
const JOBS: usize = 100;
/// How often the batons' queue is deleted.
const DELETIONS: usize = 2;

/// How long a deleted queue is left alone.
const SETTLE: Duration = Duration::from_millis(500);

/// Logged by a replica that was told that its subscription has ended, and by one that was not.
const LOST: &str = "the subscription to reveille.baton.prod";
const FORGOTTEN: &str = "the broker forgot the subscription to reveille.baton.prod";
/// RabbitMQ closes the connection over a baton that is being published to the queue as it is deleted.
const UNCONNECTED: &str = "the connection to RabbitMQ is lost";

/// A replica that holds the lane and one that stands by, each behind a proxy that can drop the broker's frames.
struct Pair {
    daemons: [Daemon; 2],
    brokers: [Lossy; 2],
    queues: Queues,
    /// Dropped before the simulator, which it calls.
    lateness: Lateness,
    sim: Sim,
    vhost: Vhost,
}

impl Pair {
    async fn start(jobs: usize) -> Self {
        Self::at(RATE, jobs).await
    }

    /// With a lane of this rate.
    async fn at(rate: f64, jobs: usize) -> Self {
        let vhost = broker::vhost();
        let sim = Sim::start(&["--fleet", &format!("Stopped={jobs}")]);
        let lane = format!("rate = {rate}\nburst = 1\nconcurrency = 8");
        let brokers = [Lossy::before(&vhost.url).await, Lossy::before(&vhost.url).await];
        let start = async |broker: &Lossy| {
            let daemon = Daemon::start(&config(&broker.url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() }));
            daemon.ready().await;
            daemon
        };
        let daemons = [start(&brokers[0]).await, start(&brokers[1]).await];
        let (queues, lateness) = (Queues::connect(&vhost.url).await, Lateness::measure(&sim));
        Self { daemons, brokers, queues, lateness, sim, vhost }
    }

    async fn delete(&self, queue: &str) {
        let channel = self.queues.connection.create_channel().await.unwrap();
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }

    /// Waits for a moment when the holder `who` added a baton a while ago and adds none for a while: one published to
    /// the queue as it is deleted costs the connection.
    async fn between_batons(&self, who: usize) {
        let before = self.brokers[who].batons.forwarded();
        eventually("a baton is added", async || (self.brokers[who].batons.forwarded() > before).then_some(())).await;
        // Two per heartbeat.
        tokio::time::sleep(HEARTBEAT / 8).await;
    }

    /// How often each has lost its subscription, or the connection with it.
    fn losses(&self) -> [usize; 2] {
        let (lost, unconnected) = (self.each_said(LOST), self.each_said(UNCONNECTED));
        [lost[0] + unconnected[0], lost[1] + unconnected[1]]
    }

    /// Waits until this one has lost its subscription once more.
    async fn noticed(&self, who: usize, before: [usize; 2]) {
        eventually("the loss is noticed", async || (self.losses()[who] > before[who]).then_some(())).await;
    }

    /// How often each logged this.
    fn each_said(&self, words: &str) -> [usize; 2] {
        self.daemons.each_ref().map(|daemon| daemon.child.output().matches(words).count())
    }

    /// Waits until both are ready and one holds the lane, and returns which.
    async fn holder(&self) -> usize {
        for daemon in &self.daemons {
            daemon.ready().await;
        }
        eventually("one holds the lane", async || {
            match [self.daemons[0].holds_the_lane().await, self.daemons[1].holds_the_lane().await] {
                [true, false] => Some(0),
                [false, true] => Some(1),
                _ => None,
            }
        })
        .await
    }

    /// Waits until calls are made for jobs submitted now.
    async fn goes_on(&self, account: &mut Account, time: usize) {
        let called = self.sim.log().await.len();
        account.submit((time * JOBS + 1..=(time + 1) * JOBS).map(instance), json!({})).await;
        eventually("calls are made", async || (self.sim.log().await.len() > called + JOBS / 2).then_some(())).await;
    }

    /// How often each logged that the broker forgot its subscription.
    fn forgotten(&self) -> [usize; 2] {
        self.each_said(FORGOTTEN)
    }

    /// Checks for two holders: the first is asked before and after the second. Now and then RabbitMQ does not report a
    /// cancelled subscription, and only then may there be two, until the replica that was not told has noticed.
    async fn never_two_holders(&self) -> Infallible {
        let [first, second] = &self.daemons;
        loop {
            let held = [first.holds_the_lane().await, second.holds_the_lane().await, first.holds_the_lane().await];
            if held == [true; 3] {
                eventually("two hold the lane, and one was not told", async || {
                    (self.forgotten() != [0; 2]).then_some(())
                })
                .await;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_has_one_holder_whatever_becomes_of_its_batons() {
    let pair = Pair::start(4 * JOBS).await;
    let mut account = Account::open(&pair.vhost.url).await;
    let faults = async {
        let channel = pair.queues.connection.create_channel().await.unwrap();
        for _ in 0..10 {
            pair.queues.publish("", BATON, BasicProperties::default(), b"baton").await;
        }
        pair.holder().await;
        pair.goes_on(&mut account, 0).await;
        eventually("the holder keeps one, and the others are gone", async || {
            let (ready, consumers) = pair.queues.count(BATON).await;
            (ready == 0 && consumers > 0).then_some(())
        })
        .await;

        channel.queue_purge(BATON.into(), QueuePurgeOptions::default()).await.unwrap();
        pair.holder().await;
        pair.goes_on(&mut account, 1).await;

        for deletion in 1..=DELETIONS {
            let before = pair.losses();
            pair.delete(BATON).await;
            pair.noticed(0, before).await;
            pair.noticed(1, before).await;
            pair.holder().await;
            pair.goes_on(&mut account, 1 + deletion).await;
        }
    };
    tokio::select! {
        () = faults => {}
        never = pair.never_two_holders() => match never {},
    }
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 4 * JOBS)].into());
    let (noticed, forgotten, unconnected) = (pair.each_said(LOST), pair.forgotten(), pair.each_said(UNCONNECTED));
    for (who, broker) in pair.brokers.iter().enumerate() {
        // A replica that checks just before it is told logs that the broker forgot it, and is told all the same.
        let (told, noticed, unconnected) = (broker.cancels.times(), noticed[who], unconnected[who]);
        println!("{who} was told {} times, noticed {noticed} times, and lost {unconnected} connections", told.len());
        assert!((DELETIONS.saturating_sub(unconnected)..=DELETIONS).contains(&noticed));
        // A replica that reconnected need not leave the queue alone.
        if unconnected == 0 {
            told.into_iter().for_each(|told| left_alone(broker, told));
        }
    }
    if forgotten == [0; 2] {
        pair.lateness.assert_pace(&pair.sim.wire().await, RATE, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_that_are_not_told_of_the_loss_notice_it() {
    not_told(&[0, 1]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_not_told_of_the_loss_gives_way() {
    not_told(&[0]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stands_by_and_is_not_told_of_the_loss_takes_over_all_the_same() {
    not_told(&[1]).await;
}

/// It gets jobs for as long as it does not notice, which is longer than its lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_is_not_told_of_the_loss_calls_no_longer_than_its_lease() {
    const SLOW: f64 = 10.0;
    let pair = Pair::at(SLOW, 300).await;
    let mut account = Account::open(&pair.vhost.url).await;
    assert_eq!(pair.holder().await, 0);
    account.submit((1..=300).map(instance), json!({})).await;
    eventually("calls are made", async || (pair.sim.log().await.len() > 10).then_some(())).await;
    pair.brokers[0].cancels.begin();
    pair.between_batons(0).await;
    let before = pair.losses();
    pair.delete(BATON).await;
    let deleted = Timestamp::now().as_microsecond();
    pair.noticed(1, before).await;
    pair.noticed(0, before).await;
    let noticed = Timestamp::now().as_microsecond();
    // The other may have checked just before it was told.
    assert_eq!(pair.forgotten()[0], 1);

    let lasted = pair.lateness.lease_over(deleted);
    let mut calls = pair.sim.wire().await;
    let before = calls.len();
    calls.retain(|call| (lasted..noticed).contains(&call.unix_micros));
    println!("{before} calls until the loss was noticed, {} of them after the lease", calls.len());
    assert!(!calls.is_empty(), "the other calls meanwhile");
    pair.lateness.assert_pace(&calls, SLOW, 1);
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 300)].into());
}

/// RabbitMQ confirms the cancel of a consumer twice if its queue was just deleted, over which lapin ends the
/// connection: so no replica cancels one then.
#[tokio::test]
async fn a_lane_that_is_run_anew_cancels_no_subscription() {
    let pair = Pair::start(2 * JOBS).await;
    let mut account = Account::open(&pair.vhost.url).await;
    assert_eq!(pair.holder().await, 0);
    pair.goes_on(&mut account, 0).await;
    pair.delete("reveille.urgent.prod").await;
    let missed = async || (pair.daemons[0].metric("reveille_queues_lost_total").await >= 1.0).then_some(());
    eventually("the queue is missed", missed).await;
    pair.holder().await;
    pair.goes_on(&mut account, 1).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 2 * JOBS)].into());
    // Not only by the one that was told: the baton stays with it meanwhile.
    let [told] = pair.brokers[0].cancels.times()[..] else { panic!("the queue was deleted once") };
    pair.brokers.iter().for_each(|broker| left_alone(broker, told));
    assert_eq!(pair.brokers.each_ref().map(|broker| broker.own_cancels.forwarded()), [0, 0]);
}

/// No replica subscribed for as long as RabbitMQ needs to forget a queue after reporting its deletion.
fn left_alone(broker: &Lossy, told: Instant) {
    let early: Vec<Duration> =
        broker.subscriptions.times().into_iter().filter_map(|time| time.checked_duration_since(told)).collect();
    assert!(early.iter().all(|after| *after >= SETTLE), "subscribed {early:?} after");
}

/// The batons' queue is deleted, and these are not told: 0 is the holder, 1 stands by.
async fn not_told(these: &[usize]) {
    let pair = Pair::start(3 * JOBS).await;
    let mut account = Account::open(&pair.vhost.url).await;
    assert_eq!(pair.holder().await, 0);
    pair.goes_on(&mut account, 0).await;
    for one in these {
        pair.brokers[*one].cancels.begin();
    }
    pair.between_batons(0).await;
    let before = pair.losses();
    pair.delete(BATON).await;
    pair.noticed(0, before).await;
    // The holder may be back before the other one checks: then that one notices when no replica holds the lane.
    if !these.contains(&1) {
        pair.noticed(1, before).await;
    }
    let holder = pair.holder().await;
    pair.goes_on(&mut account, 1).await;

    pair.daemons[holder].child.signal("KILL");
    let other = &pair.daemons[1 - holder];
    other.takes_the_lane().await;
    pair.goes_on(&mut account, 2).await;
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), 3 * JOBS)].into());
    let kept: Vec<usize> = pair.brokers.iter().map(|broker| broker.cancels.count()).collect();
    println!("the broker's word was kept from the two {kept:?} times");
}
