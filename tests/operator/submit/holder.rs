//! `reveille submit --select` without keys: the replica that holds the lane lists the instances.

use std::process::Command;

use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::child::{Child, Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{eventually, instance};

/// A command that knows nothing but the broker's URL.
fn bare(url: &str) -> Config {
    Config::write(&format!("[broker]\nurl = {url:?}\n"))
}

fn command(config: &Config, arguments: &[&str]) -> Command {
    let mut command = config.command(&[&["submit"], arguments].concat());
    command.env_remove("BCE_ACCESS_KEY_ID").env_remove("BCE_SECRET_ACCESS_KEY");
    command
}

async fn submit(config: &Config, arguments: &[&str]) -> Ran {
    run(command(config, arguments), "").await
}

async fn with_tags(sim: &Sim) {
    for (instance, name, tags, status) in [
        ("i-web1", "web-1", json!({"wake": "morning"}), "Stopped"),
        ("i-web2", "web-2", json!({"wake": "morning", "team": "search"}), "Running"),
        ("i-web3", "web-3", json!({"wake": "evening"}), "Stopped"),
        // On a later page than the others: the list goes by the id.
        ("i-xdb1", "db-1", json!({"wake": "morning"}), "Stopped"),
    ] {
        sim.set_instance(instance, json!({"status": status, "name": name, "zone": "cn-bj-a", "tags": tags})).await;
    }
}

#[tokio::test]
async fn a_machine_that_knows_the_broker_alone_selects_by_tag_and_wakes() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=1200", ..Wishes::default() }).await;
    with_tags(&stage.sim).await;
    let bare = bare(&stage.vhost.url);
    let select = ["--lane", "prod", "--select", "tag=wake:morning,name=*-*", "--batch", "morning"];
    let ran = submit(&bare, &[&select[..], &["--dry-run"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let asked =
        "the replica that runs lane prod is asked for its instances, as the configuration does not have lane prod\n";
    assert!(ran.errors.contains(asked), "{}", ran.errors);
    for row in [["running", "1"], ["stopped", "2"]] {
        assert!(ran.output.lines().any(|line| line.split_whitespace().eq(row)), "{}", ran.output);
    }
    let lists = async || stage.sim.calls().await.iter().filter(|call| call["operation"] == "list").count();
    let before = lists().await;
    let ran = submit(&bare, &[&select[..], &["--wait"]].concat()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("3 jobs submitted to lane prod as batch morning"), "{}", ran.errors);
    assert_eq!(lists().await, before + 1, "the API leaves out what has another tag");
    let outcomes = stage.outcomes(3).await;
    let mut ended: Vec<&str> = outcomes.values().filter_map(|outcome| outcome["instance_id"].as_str()).collect();
    ended.sort_unstable();
    assert_eq!(ended, ["i-web1", "i-web2", "i-xdb1"]);
    assert!(
        stage.daemon.metric(r#"reveille_api_requests_total{lane="prod",operation="list",status="200"}"#).await > 1.0
    );

    let none = submit(&bare, &["--lane", "prod", "--select", "name=nothing-*"]).await;
    assert_eq!(none.code, Some(2), "{}", none.errors);
    assert!(none.errors.contains("no instance of lane prod meets --select name=nothing-*"), "{}", none.errors);
    // The lane's settings without its keys.
    let mut without_keys = stage.daemon.config.command(&["submit", "--select", "name=web-3"]);
    without_keys.env_remove("BCE_ACCESS_KEY_ID");
    let ran = run(without_keys, "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("is asked for its instances, as the API cannot be asked"), "{}", ran.errors);
    stage.outcome().await;
}

#[tokio::test]
async fn the_replica_that_holds_the_lane_answers_and_no_other() {
    let stage = Stage::set().await;
    with_tags(&stage.sim).await;
    let elsewhere = Sim::start(&["--fleet", "Stopped=1"]);
    elsewhere.set_instance("i-other1", json!({"status": "Stopped", "name": "web-1"})).await;
    let other = config(&stage.vhost.url, &elsewhere.url(), &Wishes::default()).replace("\"prod\"", "\"test-gz\"");
    let other = Daemon::start(&other);
    other.ready().await;
    let standing_by = Daemon::start(&config(&stage.vhost.url, &elsewhere.url(), &Wishes::default()));
    standing_by.ready().await;
    let bare = bare(&stage.vhost.url);
    for (lane, found) in [("prod", "i-web1"), ("test-gz", "i-other1")] {
        let arguments = ["--lane", lane, "--select", "name=web-1", "--dry-run", "--output", "json"];
        let ran = eventually("the lane is held", async || {
            let ran = submit(&bare, &arguments).await;
            (ran.code == Some(0)).then_some(ran)
        })
        .await;
        let plan: Value = serde_json::from_str(&ran.output).unwrap();
        assert_eq!(plan["instances"], json!([{"instance_id": found, "state": "stopped"}]), "{}", ran.errors);
    }
}

#[tokio::test]
async fn a_selection_that_gets_no_answer_ends_with_what_to_do_and_nothing_is_submitted() {
    let mut stage = Stage::set().await;
    let bare = bare(&stage.vhost.url);
    let select = ["--lane", "prod", "--select", "name=web-*"];
    for (arguments, told) in [
        (["--lane", "prdo", "--select", "name=web-*"], "there is no lane prdo at "),
        (["--lane", "prdo", "--select", "name=web-*"], "has run with it; did you mean prod?\n"),
    ] {
        let ran = submit(&bare, &arguments).await;
        assert!(ran.code == Some(2) && ran.errors.contains(told), "{}", ran.errors);
    }
    let pause = run(stage.daemon.config.command(&["pause", "prod", "--as", "ops"]), "").await;
    assert_eq!(pause.code, Some(0), "{}", pause.errors);
    let ran = submit(&bare, &select).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.errors.contains("lane prod is paused, so its API is not asked: by ops; until"), "{}", ran.errors);
    assert_eq!(run(stage.daemon.config.command(&["resume", "prod"]), "").await.code, Some(0));

    // What fails or is throttled is asked for again, and what is refused is not.
    stage.sim.script("*", json!([{"status": 500}, {"status": 429}])).await;
    let ran = submit(&bare, &select).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("no instance of lane prod meets --select name=web-*"), "{}", ran.errors);
    stage.sim.script("*", json!([{"status": 403}])).await;
    let ran = submit(&bare, &select).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let told = "says: cannot list instances of lane prod: the API answers HTTP 403";
    assert!(ran.errors.contains(told), "{}", ran.errors);
    stage.daemon.is_held().await;

    let (node, vhost) = (&stage.vhost.node, stage.vhost.name.as_str());
    let user = format!("select-{vhost}");
    node.ctl(&["add_user", &user, "hush"]);
    node.ctl(&["set_permissions", "-p", vhost, &user, "", "^reveille\\.(jobs|outcomes|baton.*)$", ""]);
    let lacking = self::bare(&stage.vhost.url.replace("guest:guest", &format!("{user}:hush")));
    let ran = submit(&lacking, &select).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    let told = "needs permission to write reveille.control with the routing key ask.select";
    assert!(ran.errors.contains(told) && !ran.errors.contains("hush"), "{}", ran.errors);

    stage.daemon.child.signal("STOP");
    let ran = submit(&bare, &select).await;
    stage.daemon.child.signal("CONT");
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    assert!(ran.errors.contains("the replica that runs lane prod has not answered within 5s"), "{}", ran.errors);
    stage.daemon.stop().await;
    let ran = submit(&bare, &select).await;
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    assert!(ran.errors.contains("no daemon runs lane prod at "), "{}", ran.errors);
    stage.queues.has("reveille.jobs.prod", 0, 0).await;
}

#[tokio::test]
async fn queries_that_are_forged_or_too_many_cost_no_lane_and_no_other_query_its_answer() {
    let slow = Wishes { lane: "rate = 0.01\nburst = 1", ..Wishes::default() };
    let stage = Stage::with(slow).await;
    let to = || BasicProperties::default().with_reply_to("reveille.jobs.prod".into());
    for body in [&b""[..], b"noise", &vec![b'x'; 60_000], br#"{"lane":"prod","select":"name=*"}"#] {
        for properties in [BasicProperties::default(), to()] {
            stage.queues.publish("reveille.control", "ask.select", properties, body).await;
        }
    }
    // Each waits for a token of the lane's.
    let bare = bare(&stage.vhost.url);
    let select = ["--lane", "prod", "--select", "name=*", "--dry-run"];
    let mut asking: Vec<Child> = (0..3).map(|_| Child::start(command(&bare, &select))).collect();
    let busy = "2 lists are read for other commands: try again in a moment";
    let is_refused = |child: &&Child| child.output().contains(busy);
    eventually("one is refused", async || asking.iter().any(|child| is_refused(&child)).then_some(())).await;
    assert_eq!(asking.iter().filter(is_refused).count(), 1);
    asking.clear();
    let is_ended = async || {
        let log = stage.daemon.child.output();
        (log.matches("an answer is ended: its asker is gone").count() == 2).then_some(())
    };
    eventually("what their askers do not wait for any more is not listed", is_ended).await;
    let status = run(bare.command(&["status"]), "").await;
    assert!(status.output.contains("held"), "{}{}", status.output, status.errors);
    assert_eq!(stage.queues.count("reveille.jobs.prod").await.0, 0, "no answer goes to a queue");
    assert_eq!(stage.sim.operations(&instance(1)).await, Vec::<String>::new());
}
