//! Starting: every error is reported, and missing services are waited for.

use std::process::{Command, Output};

use lapin::options::{BasicGetOptions, BasicRejectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::json;

use crate::support::child::unread;
use crate::support::daemon::{Config, Daemon};
use crate::support::eventually;
use crate::support::hosts::Refusing;
use crate::support::proxy::Proxy;
use crate::support::queues::{Queues, header};
use crate::support::stage::{Stage, Wishes, config};

fn run(mut command: Command) -> (Output, String) {
    let output = command.output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, errors)
}

#[test]
fn every_fault_of_the_configuration_is_listed_and_the_exit_code_is_2() {
    let config = Config::write(
        "[broker]\nurl = \"http://user:hush@host\"\nprefx = \"r\"\n[[lane]]\nname = \"Prod\"\nrate = -1\nconcurrency = \"many\"\n\
         endpoint = \"https://host/path\"\ncredentials_file = \"/does/not/exist\"\n[retry]\nmax = \"1 fortnight\"\n",
    );
    let mut command = config.command(&["run"]);
    command.env("REVEILLE_HTTP__LISTEN", "everywhere");
    let (output, errors) = run(command);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    let key = |key: &str| format!("{}: {key}", config.path.display());
    for place in [
        key("broker.url"),
        key("broker.prefx"),
        key("lane[0].name"),
        key("lane[0].rate"),
        key("lane[0].concurrency"),
        key("lane[0].endpoint"),
        key("lane[0].credentials_file"),
        key("retry.max"),
        "environment REVEILLE_HTTP__LISTEN".to_owned(),
    ] {
        assert!(errors.contains(&place), "{place} in {errors}");
    }
    assert!(errors.contains("9 faults") && errors.contains("did you mean prefix?"), "{errors}");
    assert!(!errors.contains("hush"), "{errors}");
}

#[test]
fn a_vhost_whose_name_is_too_long_is_a_fault_of_the_configuration() {
    let config = Config::write(&format!("[broker]\nurl = \"amqp://user:hush@127.0.0.1:9/{}\"", "v".repeat(300)));
    for arguments in [&["submit", "i-sim00001"][..], &["run"], &["topology"]] {
        let (output, errors) = run(config.command(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains("broker.url: names a vhost of 300 bytes: expected 255 at most"), "{errors}");
        assert!(!errors.contains("hush"), "{errors}");
    }
}

#[test]
fn wrong_usage_has_the_exit_code_2() {
    let config = Config::write("");
    for arguments in [&["run", "--fast"][..], &["submit"], &["rum"], &["topology", "--output", "xml"]] {
        assert_eq!(run(config.command(arguments)).0.status.code(), Some(2), "{arguments:?}");
    }
    let mut command = config.command(&["run"]);
    command.env("RUST_LOG", "reveille=loud");
    let (output, errors) = run(command);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("RUST_LOG"), "{errors}");
}

#[test]
fn a_rust_log_that_would_silence_the_daemon_is_refused_with_an_example() {
    use std::os::unix::ffi::OsStrExt;

    // It exits because its port is taken, at the point where it would start.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config::write(&format!("[http]\nlisten = \"{}\"", listener.local_addr().unwrap()));
    for (value, named) in [
        ("verbose", r#"RUST_LOG "verbose": verbose is no level"#),
        ("reveille:debug", "did you mean reveille?"),
        ("revielle=debug", "did you mean reveille?"),
        ("hyper=debug", "it names nothing that logs here"),
    ] {
        let mut command = config.command(&["run"]);
        command.env("RUST_LOG", value);
        let (output, errors) = run(command);
        assert_eq!(output.status.code(), Some(2), "{errors}");
        assert!(errors.contains(named) && errors.contains("reveille=debug or info,lapin=warn"), "{value}: {errors}");
    }
    let mut command = config.command(&["run"]);
    command.env("RUST_LOG", std::ffi::OsStr::from_bytes(b"d\xffbug"));
    let (output, errors) = run(command);
    assert!(output.status.code() == Some(2) && errors.contains("RUST_LOG is not UTF-8"), "{errors}");
}

#[test]
fn a_variable_that_only_looks_like_a_setting_is_warned_about_with_the_right_name() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = Config::write(&format!("[http]\nlisten = \"{}\"", listener.local_addr().unwrap()));
    let with = |arguments: &[&str], more: Option<(&str, &str)>| {
        let mut command = config.command(arguments);
        command
            .env("REVEILLE_BROKER_URL", "amqp://u:hush@h")
            .env("REVEILLE_PORT_9464_TCP", "tcp://10.0.0.7")
            .envs(more);
        run(command)
    };
    let warning = "environment REVEILLE_BROKER_URL: is not read; did you mean REVEILLE_BROKER__URL?";
    let (output, errors) = with(&["topology"], None);
    assert!(output.status.success());
    assert_eq!(errors, format!("reveille: warning: {warning}\n"));
    // It exits because its port is taken.
    let (output, errors) = with(&["run"], None);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.lines().any(|line| line.contains("WARN") && line.ends_with(warning)), "{errors}");
    let (output, errors) = with(&["run"], Some(("REVEILLE_LANE__0__RATE", "0")));
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("has 2 faults") && errors.ends_with(&format!("\n  warning: {warning}\n")), "{errors}");
    assert!(!errors.contains("hush") && !errors.contains("9464"), "{errors}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (output, errors) = run(Config::write(&format!("[http]\nlisten = \"{address}\"")).command(&["run"]));
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains(&address.to_string()) && errors.contains("http.listen"), "{errors}");
}

#[tokio::test]
async fn a_broker_that_is_not_there_yet_is_waited_for() {
    let (vhost, nobody) = (crate::support::broker::vhost(), Refusing::at("127.0.0.1:0"));
    let url = format!("amqp://guest:guest@{}/{}", nobody.address, vhost.name);
    let mut daemon = Daemon::start(&config(&url, "http://127.0.0.1:9", &Wishes::default()));
    let (status, body) = eventually("readiness says so", async || {
        let (status, body) = daemon.get("/readyz").await;
        body.contains("cannot connect").then_some((status, body))
    })
    .await;
    assert_eq!(status, 503);
    assert!(body.contains(r#""prod":"waiting""#), "{body}");
    assert_eq!(daemon.get("/livez").await.0, 200);
    assert_eq!(daemon.metric("reveille_broker_connected").await, 0.0);
    assert!(!body.contains("guest") && !daemon.child.output().contains("guest"), "no password is shown");
    let _broker = Proxy::at(&nobody.address.to_string(), &[&vhost.node.url]).await;
    daemon.takes_the_lane().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named_with_the_remedy() {
    let vhost = crate::support::broker::vhost();
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    let durable = QueueDeclareOptions::durable();
    channel.queue_declare("reveille.delay.03".into(), durable, FieldTable::default()).await.unwrap();
    let mut daemon = Daemon::start(&config(&vhost.url, "http://127.0.0.1:9", &Wishes::default()));
    assert_eq!(daemon.child.ended().await.code(), Some(2));
    let output = daemon.child.output();
    assert!(output.contains("reveille.delay.03") && output.contains("x-message-ttl"), "{output}");
    assert!(output.contains("delete it, or set another broker.prefix"), "{output}");
}

#[tokio::test]
async fn more_queues_than_the_vhost_may_have_are_refused_and_nothing_is_to_be_deleted() {
    let vhost = crate::support::broker::vhost();
    vhost.node.ctl(&["set_vhost_limits", "-p", &vhost.name, r#"{"max-queues": 10}"#]);
    let mut daemon = Daemon::start(&config(&vhost.url, "http://127.0.0.1:9", &Wishes::default()));
    assert_eq!(daemon.child.ended().await.code(), Some(2));
    let output = daemon.child.output();
    assert!(output.contains("these lanes need 27 queues: raise the limit"), "{output}");
    assert!(output.contains("set_vhost_limits") && !output.contains("delete"), "{output}");
}

#[tokio::test]
async fn a_broker_whose_connections_have_too_few_channels_for_a_lane_is_refused() {
    let node = crate::support::broker::Node::start(&["--conf", "channel_max = 3"]);
    let mut daemon = Daemon::start(&config(&node.url, "http://127.0.0.1:9", &Wishes::default()));
    assert_eq!(daemon.child.ended().await.code(), Some(2));
    let output = daemon.child.output();
    assert!(output.contains("3 channels, and a lane needs 5: raise its channel_max"), "{output}");
}

#[tokio::test]
async fn a_missing_permission_is_refused_at_first_and_waited_for_once_everything_was_there() {
    let mut stage = Stage::set().await;
    let ctl = |arguments: &[&str]| stage.vhost.node.ctl(arguments);
    let vhost = stage.vhost.name.as_str();
    let other = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    other.ready().await;
    // Set up anew: the vhost, the user's right to enter it, and the rest.
    ctl(&["delete_vhost", vhost]);
    let waits = async |daemon: &Daemon, words: &str| {
        eventually(words, async || daemon.get("/readyz").await.1.contains(words).then_some(())).await;
        assert_eq!(daemon.get("/readyz").await.0, 503);
    };
    waits(&stage.daemon, "NOT_ALLOWED").await;
    ctl(&["add_vhost", vhost]);
    ctl(&["set_permissions", "-p", vhost, "guest", "^$", "^$", "^$"]);
    for daemon in [&stage.daemon, &other] {
        waits(daemon, "ACCESS_REFUSED").await;
    }
    let mut third = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    assert_eq!(third.child.ended().await.code(), Some(2), "it never had what it needs: {}", third.child.output());
    assert!(third.child.output().contains("give the user permission"), "{}", third.child.output());

    ctl(&["set_permissions", "-p", vhost, "guest", ".*", ".*", ".*"]);
    for daemon in [&stage.daemon, &other] {
        daemon.ready().await;
    }
    stage.daemon.stop().await;
    other.takes_the_lane().await;
}

#[tokio::test]
async fn the_topology_that_is_printed_is_the_one_that_is_declared() {
    let stage = Stage::set().await;
    let (output, errors) = run(stage.daemon.config.command(&["topology", "--output", "json"]));
    assert!(output.status.success(), "{errors}");
    let definitions: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for queue in definitions["queues"].as_array().unwrap() {
        stage.queues.count(queue["name"].as_str().unwrap()).await;
    }
    assert_eq!(definitions["queues"].as_array().unwrap().len(), 27);
    let (output, _) = run(stage.daemon.config.command(&["topology"]));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.lines().any(|line| line.starts_with("queue     reveille.due.prod")), "{table}");
}

#[test]
fn a_reader_who_has_read_enough_is_no_failure() {
    let config = Config::write("");
    for arguments in [&["topology"][..], &["topology", "--output", "json"]] {
        let mut command = config.command(arguments);
        command.stdout(unread());
        let (output, errors) = run(command);
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{arguments:?}");
    }
    // If no output can be read, the exit code shows the error.
    let mut command = config.command(&["submit", "--lane", "Prod", "i-sim00001"]);
    command.stdout(unread()).stderr(unread());
    assert_eq!(run(command).0.status.code(), Some(2));
    // A full disk is different: the requested output is missing.
    let mut command = config.command(&["topology"]);
    command.stdout(std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it"));
    let (output, errors) = run(command);
    assert_eq!(output.status.code(), Some(1));
    assert!(errors.contains("cannot write to standard output: No space left"), "{errors}");
}

#[tokio::test]
async fn a_job_for_a_lane_there_is_not_ends_among_the_dead_letters() {
    let stage = Stage::set().await;
    stage.queues.publish("reveille.jobs", "nowhere", lapin::BasicProperties::default(), b"{}").await;
    assert_eq!(stage.dead().await.len(), 1);
}

#[tokio::test]
async fn a_message_delivered_too_often_is_poisoned_before_it_is_touched() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    stage.wake("i-sim00001").await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    for _ in 0..20 {
        let queue = "reveille.jobs.prod".into();
        let got = channel.basic_get(queue, BasicGetOptions::default()).await.unwrap().expect("it is there again");
        // RabbitMQ 4.3 does not count returns by `basic.nack`.
        got.delivery.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
    }
    stage.wake("i-sim00002").await;
    stage.daemon.start_again();
    let outcomes = stage.outcomes(2).await;
    assert_eq!(outcomes["i-sim00001"]["reason"], "poisoned");
    assert_eq!(outcomes["i-sim00002"]["outcome"], "started");
    assert!(stage.sim.operations("i-sim00001").await.is_empty());
    let dead = stage.dead().await;
    assert_eq!(header(&dead[0].properties, "x-reveille-reason"), "poisoned");
    assert_eq!(dead[0].data, json!({"instance_id": "i-sim00001"}).to_string().into_bytes());
}
