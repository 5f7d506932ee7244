//! Lanes over as many connections as they need, and with few allowed channels.

use std::collections::BTreeSet;
use std::time::Duration;

use lapin::options::{QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use reveille::broker::{ConnectionKind, connect};
use reveille::config::Broker;
use serde_json::json;

use crate::support::account::Account;
use crate::support::broker::Vhost;
use crate::support::daemon::Daemon;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::{eventually, instance};

/// Enough for all jobs of a test to end.
const PATIENCE: Duration = Duration::from_secs(60);

fn name(lane: usize) -> String {
    format!("lane-{lane}")
}

fn config(url: &str, lanes: usize, sim: &Sim) -> String {
    let mut config = format!("[broker]\nurl = {url:?}\n[http]\nlisten = \"127.0.0.1:0\"\n");
    for lane in 0..lanes {
        config += &format!("[[lane]]\nname = {:?}\nendpoint = {:?}\nrate = 200\n", name(lane), sim.url());
    }
    config
}

/// The lanes that a daemon holds.
async fn held(daemon: &Daemon) -> BTreeSet<String> {
    let report: serde_json::Value = serde_json::from_str(&daemon.get("/readyz").await.1).expect("it is JSON");
    let lanes = report["lanes"].as_object().expect("they are listed");
    lanes.iter().filter(|(_, state)| *state == "held").map(|(lane, _)| lane.clone()).collect()
}

async fn all_held(daemon: &Daemon, lanes: usize) {
    eventually("all lanes are held", async || (held(daemon).await.len() == lanes).then_some(())).await;
}

/// The processes of the connections of the daemon's lanes, as the broker names them.
fn connections(vhost: &Vhost) -> Vec<String> {
    let listed = vhost.node.ctl(&["list_connections", "--no-table-headers", "pid", "vhost", "client_properties"]);
    let others = ["queries", "control", "scheduler"].map(|kind| format!("reveille {kind} "));
    let ours = |line: &&str| {
        line.contains(&format!("\t{}\t", vhost.name))
            && line.contains("reveille")
            && !others.iter().any(|other| line.contains(other))
    };
    listed.lines().filter(ours).map(|line| line.split('\t').next().expect("a pid").to_owned()).collect()
}

async fn wake_all(account: &mut Account, lanes: usize, each: usize, from: usize) {
    for lane in 0..lanes {
        let first = from + lane * each;
        let instances = (first..first + each).map(|number| instance(number + 1));
        account.submit_to(&name(lane), instances, json!({})).await;
    }
}

#[tokio::test]
async fn lanes_that_find_no_place_on_a_connection_are_run_over_another_and_a_lost_one_is_nothing_to_the_others() {
    const LANES: usize = 15;
    const EACH: usize = 4;
    // For five lanes.
    let vhost = Vhost::alone_with(&["--conf", "channel_max = 20"]);
    let sim = Sim::start(&["--fleet", &format!("Stopped={}", 2 * LANES * EACH)]);
    let daemon = Daemon::start(&config(&vhost.url, LANES, &sim));
    all_held(&daemon, LANES).await;
    eventually("nothing is read back any more", async || (connections(&vhost).len() == 3).then_some(())).await;
    let mut account = Account::of_the_log(&vhost.url);
    wake_all(&mut account, LANES, EACH, 0).await;
    account.close(PATIENCE).await;

    let lost = |daemon: &Daemon| daemon.child.output().matches("the connection to RabbitMQ is lost").count();
    vhost.node.ctl(&["close_connection", &connections(&vhost)[0], "as a test"]);
    eventually("it is noticed", async || (lost(&daemon) == 1).then_some(())).await;
    wake_all(&mut account, LANES, EACH, LANES * EACH).await;
    account.close(PATIENCE).await;
    all_held(&daemon, LANES).await;
    eventually("it is connected as before", async || (daemon.get("/readyz").await.0 == 200).then_some(())).await;
    eventually("there are as many connections", async || (connections(&vhost).len() == 3).then_some(())).await;
    assert_eq!(lost(&daemon), 1);
    let output = daemon.child.output();
    let taken: Vec<&str> = output.lines().filter(|line| line.contains("lane held")).collect();
    assert!(taken.len() <= LANES + 5, "only lanes of that connection were taken anew: {taken:#?}");
}

/// A vhost, and its URL for a user limited to so many channels.
fn limited(channels: usize) -> (Vhost, String) {
    let vhost = Vhost::alone();
    vhost.node.ctl(&["add_user", "limited", "limited"]);
    vhost.node.ctl(&["set_permissions", "-p", &vhost.name, "limited", ".*", ".*", ".*"]);
    vhost.node.ctl(&["set_user_limits", "limited", &format!(r#"{{"max-channels": {channels}}}"#)]);
    let url = vhost.url.replace("guest:guest", "limited:limited");
    (vhost, url)
}

#[tokio::test]
async fn five_channels_of_a_user_are_enough_for_a_lane_and_what_is_wrong_is_said() {
    const JOBS: usize = 5;
    let (vhost, url) = limited(5);
    let sim = Sim::start(&["--fleet", &format!("Stopped={JOBS}")]);
    let daemon = Daemon::start(&config(&url, 1, &sim));
    all_held(&daemon, 1).await;
    let mut account = Account::of_the_log(&vhost.url);
    wake_all(&mut account, 1, JOBS, 0).await;
    account.close(PATIENCE).await;
    let output = daemon.child.output();
    assert!(output.contains("RabbitMQ allows 5 channels in all: reveille makes do with 4"), "{output}");
    assert!(output.contains("rabbitmqctl set_user_limits"), "{output}");
    let queries = "are not answered for now: RabbitMQ allows too few channels";
    eventually("that of queries is left to others", async || daemon.child.output().contains(queries).then_some(()))
        .await;
    let lost = output.matches("the connection to RabbitMQ is lost").count();
    assert!(lost <= 2, "it makes do with those there are: lost {lost} times");
}

#[tokio::test]
async fn lanes_beyond_the_channels_of_a_user_wait_and_say_so() {
    let (_vhost, url) = limited(8);
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let daemon = Daemon::start(&config(&url, 4, &sim));
    let told = "RabbitMQ allows too few channels, which are enough for 2 of 4 lanes: raise max-channels of the user";
    eventually("readiness says so", async || {
        let (status, body) = daemon.get("/readyz").await;
        (status == 503 && body.contains(told) && held(&daemon).await.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_has_no_channel_left_is_given_up() {
    const CHANNELS: usize = 10;
    let vhost = Vhost::alone_with(&["--conf", &format!("channel_max = {CHANNELS}")]);
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, ConnectionKind::Run).await.unwrap();
    let mut opened = 0;
    // The broker closes each of them over a queue that does not exist.
    while let Ok(channel) = connection.channel().await {
        opened += 1;
        assert!(opened <= 10 * CHANNELS, "lapin can use their numbers again: then this need not be done any more");
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare("none".into(), passive, FieldTable::default()).await.unwrap_err();
    }
    assert!(opened >= CHANNELS, "{opened}");
    assert!(!connection.is_open(), "whoever uses it would wait for ever");
}

#[tokio::test]
async fn queues_that_are_missing_by_the_dozen_cost_the_lanes_no_channel() {
    const LANES: usize = 15;
    let vhost = Vhost::alone_with(&["--conf", "channel_max = 20"]);
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let mut daemon = Daemon::start(&config(&vhost.url, 1, &sim));
    all_held(&daemon, 1).await;
    daemon.stop().await;
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    for level in 0..18 {
        let level = format!("reveille.delay.{level:02}");
        channel.queue_delete(level.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
    }
    // Each new lane is checked too, by its baton.
    let daemon = Daemon::start(&config(&vhost.url, LANES, &sim));
    all_held(&daemon, LANES).await;
    assert_eq!(daemon.metric("reveille_queues_lost_total").await, 18.0);
    let output = daemon.child.output();
    assert!(!output.contains("the connection to RabbitMQ is lost"), "{output}");
}
