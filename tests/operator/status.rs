//! `reveille status`, and the queries that it asks replicas with.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::broker::{self, Vhost};
use crate::support::child::{Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

/// Sets RabbitMQ's memory alarm.
const SHORT_OF_MEMORY: &str = "vm_memory_monitor:set_vm_memory_high_watermark(0.00001)";
/// A job that is parked, and never ends.
const NEVER: &str = "9999-12-31T23:59:59Z";

async fn ask(config: &Config, output: &str) -> Ran {
    run(config.command(&["status", "--output", output]), "").await
}

/// The exit code, and what is told.
async fn status(config: &Config) -> (Option<i32>, Value) {
    let ran = ask(config, "json").await;
    let told = serde_json::from_str(&ran.output);
    (ran.code, told.unwrap_or_else(|error| panic!("{error}: {}{}", ran.output, ran.errors)))
}

/// The status once it is `so`: queues are bound, and counts known, a moment after a lane is held.
async fn status_once(config: &Config, so: impl Fn(&Value) -> bool) -> (Option<i32>, Value) {
    let mut last = None;
    let found = eventually("the status is as expected", async || {
        let now = status(config).await;
        let is_so = so(&now.1);
        if last.as_ref() != Some(&now) {
            println!("{:#}", now.1);
        }
        last = Some(now);
        is_so.then_some(())
    });
    found.await;
    last.unwrap()
}

fn lane<'a>(status: &'a Value, name: &str) -> &'a Value {
    let lanes = status["lanes"].as_array().unwrap();
    lanes.iter().find(|lane| lane["lane"] == name).unwrap_or_else(|| panic!("no {name} in {status}"))
}

fn state(status: &Value) -> &Value {
    &lane(status, "prod")["state"]
}

#[tokio::test]
async fn a_lane_at_work_is_shown_with_its_holder_and_its_jobs() {
    let stage = Stage::with(Wishes { lane: "rate = 12.5", ..Wishes::default() }).await;
    stage.job("later", json!({"instance_id": instance(1), "not_before": NEVER})).await;
    let (code, told) = eventually("all of it is seen", async || {
        // The log is read back for a minute, so the jobs are new ones each time.
        stage.wake("i-gone0001").await;
        let (code, told) = status(&stage.daemon.config).await;
        let seen =
            told["lanes"][0]["last_minute"]["failed"].as_u64() >= Some(1) && told["dead_letters"].as_u64() >= Some(1);
        (seen && told["parked"] == 1 && told["silent_replicas"] == 0).then_some((code, told))
    })
    .await;
    let pid = stage.daemon.child.pid();
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let this = json!({"host": host.trim(), "pid": pid, "version": env!("CARGO_PKG_VERSION")});
    assert_eq!(code, Some(0), "{told:#}");
    let lane = lane(&told, "prod");
    assert_eq!((&lane["state"], &lane["cause"], &lane["holder"]), (&json!("held"), &Value::Null, &this));
    assert_eq!((&lane["rate"], &lane["rate_configured"]), (&json!(12.5), &json!(12.5)));
    assert_eq!((&told["problems"], &told["broker"]["reachable"]), (&json!([]), &json!(true)));
    let mut replica = this.clone();
    replica["holds"] = json!(["prod"]);
    assert_eq!(told["replicas"], json!([replica]));
    for count in ["new", "urgent", "due", "in_flight"] {
        assert!(lane[count].is_u64(), "{count}: {lane}");
    }

    let ran = ask(&stage.daemon.config, "table").await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), ""), "{}", ran.output);
    let holder = format!("{} pid {pid}", host.trim());
    let row = ran.output.lines().find(|line| line.starts_with("prod ")).unwrap();
    assert!(row.contains("  held  ") && row.contains(&holder) && row.contains("12/s of 12/s"), "{}", ran.output);
    assert!(ran.output.contains("\nparked jobs of all lanes: 1; dead letters: "), "{}", ran.output);
}

#[tokio::test]
async fn of_two_replicas_each_is_shown_and_a_killed_one_is_gone() {
    let mut stage = Stage::set().await;
    let text = std::fs::read_to_string(&stage.daemon.config.path).unwrap();
    let other = Daemon::start(&text);
    other.ready().await;
    let both = |told: &Value| told["replicas"].as_array().unwrap().len() == 2 && told["silent_replicas"] == 0;
    let (code, told) = status_once(&other.config, |told| both(told) && state(told) == "held").await;
    assert_eq!((code, &lane(&told, "prod")["holder"]["pid"]), (Some(0), &json!(stage.daemon.child.pid())));
    let holds: Vec<_> = told["replicas"].as_array().unwrap().iter().map(|row| (&row["pid"], &row["holds"])).collect();
    for replica in [(&json!(stage.daemon.child.pid()), &json!(["prod"])), (&json!(other.child.pid()), &json!([]))] {
        assert!(holds.contains(&replica), "{told:#}");
    }
    stage.daemon.kill().await;
    let taken = |told: &Value| state(told) == "held" && lane(told, "prod")["holder"]["pid"] == other.child.pid();
    let one = |told: &Value| told["replicas"].as_array().unwrap().len() == 1 && told["silent_replicas"] == 0;
    let (code, told) = status_once(&other.config, |told| taken(told) && one(told)).await;
    assert_eq!(code, Some(0), "{told:#}");
}

#[tokio::test]
async fn a_paused_lane_is_shown_with_its_cause_until_it_works_again() {
    let stage = Stage::set().await;
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "InvalidAccessKeyId"}}])).await;
    stage.wake(&instance(1)).await;
    stage.daemon.paused("keys", &[]).await;
    let (code, told) = status_once(&stage.daemon.config, |told| state(told) == "paused").await;
    let cause = lane(&told, "prod")["cause"].as_str().unwrap();
    assert!(cause.contains("HTTP 403, InvalidAccessKeyId"), "{told:#}");
    assert_eq!((code, &lane(&told, "prod")["holder"]["pid"]), (Some(1), &json!(stage.daemon.child.pid())), "{told:#}");
    let ran = ask(&stage.daemon.config, "table").await;
    assert_eq!(ran.code, Some(1), "{}{}", ran.output, ran.errors);
    assert!(ran.output.contains(&format!("\n! prod is paused, its jobs wait: {cause}\n")), "{}", ran.output);
    stage.sim.faults(json!([])).await;
    let (code, told) = status_once(&stage.daemon.config, |told| state(told) == "held").await;
    assert_eq!(code, Some(0), "{told:#}");
}

#[tokio::test]
async fn a_lane_that_no_replica_runs_is_told_from_one_that_is_not_set_up() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    stage.wake(&instance(1)).await;
    let text = std::fs::read_to_string(&stage.daemon.config.path).unwrap();
    let more = Config::write(&format!("{text}[[lane]]\nname = \"spare\"\nregion = \"bj\"\n"));
    let (code, told) = status_once(&more, |told| state(told) == "not_run" && lane(told, "prod")["new"] == 1).await;
    assert_eq!((code, &told["replicas"], &told["silent_replicas"]), (Some(1), &json!([]), &json!(0)), "{told:#}");
    assert_eq!(lane(&told, "spare")["state"], "not_set_up");
    let ran = ask(&more, "table").await;
    let output = &ran.output;
    assert!(
        output.contains("! no replica runs prod, its jobs wait: start `reveille run` with this lane\n"),
        "{output}"
    );
    assert!(output.contains("! spare has no queues: they exist once"), "{output}");
    let row: Vec<&str> = output.lines().find(|line| line.starts_with("prod ")).unwrap().split_whitespace().collect();
    assert_eq!(row[..8], ["prod", "not", "run", "-", "-", "1", "0", "0"], "{output}");

    let (vhost, nowhere) = (broker::vhost(), "http://127.0.0.1:9");
    let (code, told) = status(&Config::write(&config(&vhost.url, nowhere, &Wishes::default()))).await;
    assert_eq!((code, state(&told)), (Some(1), &json!("not_set_up")), "{told:#}");
    let problems = told["problems"].to_string();
    assert!(
        problems.contains("replicas cannot be asked") && problems.contains("there is no log of outcomes"),
        "{told:#}"
    );
}

#[tokio::test]
async fn a_broker_that_is_away_or_refuses_is_named_and_all_else_is_unknown() {
    let lane = "[[lane]]\nname = \"prod\"\nregion = \"bj\"";
    let away = Config::write(&format!("[broker]\nurl = \"amqp://guest:hush@127.0.0.1:9\"\n{lane}"));
    let ran = ask(&away, "json").await;
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    let told: Value = serde_json::from_str(&ran.output).unwrap();
    assert_eq!(
        (&told["broker"], state(&told)),
        (&json!({"address": "127.0.0.1:9, vhost /", "reachable": false}), &json!("unknown"))
    );
    assert!(told["problems"][0].as_str().unwrap().contains("127.0.0.1:9"), "{told:#}");
    assert!(ran.errors.contains("127.0.0.1:9") && !(ran.errors + &ran.output).contains("hush"));
    let ran = ask(&away, "table").await;
    assert_eq!(ran.code, Some(69));
    assert!(ran.output.starts_with("RabbitMQ at 127.0.0.1:9, vhost /: NOT reachable\n"), "{}", ran.output);

    let vhost = broker::vhost();
    let url = vhost.url.replace("guest:guest", "guest:hush");
    let refused = Config::write(&format!("[broker]\nurl = {url:?}\n{lane}"));
    let ran = ask(&refused, "json").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(!(ran.errors + &ran.output).contains("hush"));
}

/// Queries of every kind, far more than are answered.
async fn flood(stage: &Stage) {
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let direct = "amq.rabbitmq.reply-to";
    let garbage = [format!("{direct}.garbage"), format!("{direct}.g2dk.{}", "A".repeat(200)), format!("{direct}.")];
    let to: Vec<&str> =
        garbage.iter().map(String::as_str).chain(["reveille.baton.prod", "ops", "", "x\u{1b}"]).collect();
    for number in 0..3_000 {
        let mut properties =
            BasicProperties::default().with_correlation_id("\u{1b}[2J".repeat(number % 50).as_str().into());
        if let Some(to) = to.get(number % (to.len() + 1)) {
            properties = properties.with_reply_to((*to).into());
        }
        let key = ["ask.status", "ask.", "ask.status.status", "ask.\u{1b}"][number % 4];
        let body = vec![b'['; if number % 100 == 0 { 1_000_000 } else { number }];
        let options = BasicPublishOptions::default();
        channel.basic_publish("reveille.control".into(), key.into(), options, &body, properties).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_of_queries_holds_up_no_lane_and_has_nothing_published_to_a_queue() {
    const JOBS: usize = 100;
    let slow = Wishes { lane: "rate = 50\nburst = 1", fleet: "Stopped=100", ..Wishes::default() };
    let stage = Stage::on(Vhost::alone(), slow).await;
    status_once(&stage.daemon.config, |told| told["silent_replicas"] == 0 && state(told) == "held").await;
    let mut batons = stage.queues.listen("reveille.outcomes", "nothing").await;
    let mut account = Account::open(&stage.vhost.url).await;
    account.submit((1..=JOBS).map(instance), json!({})).await;
    tokio::join!(flood(&stage), async {
        assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    });
    let output = stage.daemon.child.output();
    assert_eq!(output.matches("lane held").count(), 1, "{output}");
    assert!(!output.contains("the connection to RabbitMQ is lost"), "{output}");
    let (code, told) = status_once(&stage.daemon.config, |told| told["silent_replicas"] == 0).await;
    assert_eq!((code, state(&told)), (Some(0), &json!("held")), "{told:#}");
    // A reply to a queue of the asker's own is no direct reply: it is given to none.
    let (queue, id) = (batons.queue(), BasicProperties::default().with_correlation_id("mine".into()));
    stage.queues.publish("reveille.control", "ask.status", id.with_reply_to(queue), b"").await;
    status_once(&stage.daemon.config, |told| told["silent_replicas"] == 0).await;
    let reply = tokio::time::timeout(Duration::from_millis(100), batons.next()).await;
    assert!(reply.is_err(), "{reply:?}");
}

#[tokio::test]
async fn a_broker_that_is_short_of_memory_is_named_and_its_queues_are_counted() {
    let stage = Stage::on(Vhost::alone(), Wishes::default()).await;
    status_once(&stage.daemon.config, |told| told["silent_replicas"] == 0 && state(told) == "held").await;
    stage.vhost.node.prepare(SHORT_OF_MEMORY).now();
    let blocked =
        |told: &Value| told["problems"].to_string().contains("RabbitMQ takes no messages, for want of memory");
    let (code, told) = status_once(&stage.daemon.config, blocked).await;
    assert_eq!(
        (code, state(&told), &lane(&told, "prod")["new"]),
        (Some(1), &json!("no_answer"), &json!(0)),
        "{told:#}"
    );
    stage.vhost.node.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    let (code, told) = status_once(&stage.daemon.config, |told| state(told) == "held").await;
    assert_eq!(code, Some(0), "{told:#}");
}

#[tokio::test]
async fn a_replica_without_permission_for_queries_runs_its_lane_and_says_so_once() {
    let stage = Stage::set().await;
    let (node, vhost) = (&stage.vhost.node, stage.vhost.name.as_str());
    let user = format!("deaf-{vhost}");
    node.ctl(&["add_user", &user, "hush"]);
    node.ctl(&["set_permissions", "-p", vhost, &user, r"^reveille\.(?!replica\.)", ".*", ".*"]);
    let text = std::fs::read_to_string(&stage.daemon.config.path).unwrap();
    let mut deaf = Daemon::start(&text.replace("guest:guest", &format!("{user}:hush")));
    deaf.ready().await;
    let said = "queries, as by `reveille status`, are not answered";
    eventually("it says so", async || deaf.child.output().contains(said).then_some(())).await;
    let Stage { mut daemon, queues, .. } = stage;
    daemon.stop().await;
    deaf.takes_the_lane().await;
    queues.has("reveille.jobs.prod", 0, 1).await;
    let (code, told) = status_once(&deaf.config, |told| told["silent_replicas"] == 1).await;
    assert_eq!((code, state(&told)), (Some(1), &json!("no_answer")), "{told:#}");
    let problems = told["problems"].to_string();
    assert!(problems.contains("0 of 1 replicas answered within 2s"), "{told:#}");
    eventually("it has tried again", async || deaf.child.output().contains("queries are not answered: ").then_some(()))
        .await;
    assert_eq!(deaf.child.output().matches(said).count(), 1, "{}", deaf.child.output());
    deaf.stop().await;
}
