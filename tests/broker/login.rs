//! The broker's login: wrong, changed and hidden passwords; and the names of connections.

use futures_util::StreamExt;
use serde_json::json;

use crate::support::broker::{self, Vhost};
use crate::support::child::{Child, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::files::Folder;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{PATIENCE, eventually};

const SUBMIT: [&str; 4] = ["submit", "--lane", "prod", "i-sim00001"];

/// A daemon that reads the password of a user of its own from a file.
struct Scene {
    vhost: Vhost,
    _sim: Sim,
    folder: Folder,
    user: String,
    daemon: Daemon,
}

impl Scene {
    /// `password` is the right one, `text` the file's first contents.
    async fn set(password: &str, text: &str) -> Self {
        let (vhost, sim, folder) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=3"]), Folder::new());
        let user = format!("keeper-{}", vhost.name);
        vhost.node.ctl(&["add_user", &user, password]);
        vhost.node.ctl(&["set_permissions", "-p", &vhost.name, &user, ".*", ".*", ".*"]);
        let url = vhost.url.replace("guest:guest", &user);
        let file = folder.put("password", text);
        let config = config(&url, &sim.url(), &Wishes::default());
        let config = config.replace("[http]", &format!("password_file = {file:?}\n[http]"));
        let daemon = Daemon::start(&config);
        Self { vhost, _sim: sim, folder, user, daemon }
    }

    fn cut(&self) {
        self.vhost.node.ctl(&["close_all_connections", "--vhost", &self.vhost.name, "a test"]);
    }

    /// Waits until readiness shows all of this, and asserts that `submit` says it and exits with 2.
    async fn fails_with(&self, words: &[&str]) {
        eventually("readiness says so", async || {
            let (status, body) = self.daemon.get("/readyz").await;
            (status == 503 && words.iter().all(|word| body.contains(word))).then_some(())
        })
        .await;
        let ran = run(self.daemon.config.command(&SUBMIT), "").await;
        assert_eq!(ran.code, Some(2), "{}", ran.errors);
        for word in words {
            assert!(ran.errors.contains(word), "{word} in {}", ran.errors);
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_told_with_the_remedy_and_the_right_one_is_found_in_its_file() {
    let scene = Scene::set("right-4711", "wrong-4712\n").await;
    let file = scene.folder.path("password");
    scene.fails_with(&["ACCESS_REFUSED", "check the user, its password", &file, "read again at each try"]).await;
    scene.folder.put("password", "right-4711\r\n");
    scene.daemon.takes_the_lane().await;
    let output = scene.daemon.child.output();
    assert!(!output.contains("4711") && !output.contains("4712"), "{output}");
}

#[tokio::test]
async fn a_password_that_is_rotated_is_read_again_for_every_connection() {
    let mut scene = Scene::set("old-4711", "old-4711\n").await;
    scene.daemon.takes_the_lane().await;
    // The connection for replies is not open yet, and is opened with the new password.
    scene.vhost.node.ctl(&["change_password", &scene.user, "new-4712"]);
    scene.folder.put("password", "new-4712\n");
    let queues = Queues::connect(&scene.vhost.url).await;
    let mut replies = queues.listen("reveille.outcomes", "nothing").await;
    let job = lapin::BasicProperties::default().with_reply_to(replies.queue()).with_message_id("a".into());
    let body = json!({"instance_id": "i-sim00001"}).to_string();
    queues.publish("reveille.jobs", "prod", job, body.as_bytes()).await;
    let reply = tokio::time::timeout(PATIENCE, replies.next()).await.expect("a reply in time");
    assert!(String::from_utf8_lossy(&reply.unwrap().unwrap().data).contains("started"));

    // As while a secret is being replaced.
    scene.folder.remove("password");
    scene.cut();
    scene.fails_with(&["broker.password_file: cannot read", "No such file", "expected a file with the password"]).await;
    scene.folder.put("password", "");
    eventually("an empty file is named", async || {
        scene.daemon.get("/readyz").await.1.contains("it is empty").then_some(())
    })
    .await;
    scene.folder.put("password", "new-4712");
    scene.daemon.takes_the_lane().await;
    let output = scene.daemon.child.output();
    assert!(!output.contains("4711") && !output.contains("4712"), "{output}");
    // The log of outcomes is read over a connection of its own.
    assert!(!output.contains("cannot read the last events back"), "{output}");
    scene.daemon.stop().await;
}

#[tokio::test]
async fn newlines_behind_secrets_of_the_environment_do_not_count_and_those_within_are_named() {
    let (vhost, sim) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=1"]));
    let url = vhost.url.replace("guest:guest", "guest");
    let text = config(&url, &sim.url(), &Wishes::default());
    let secrets = [
        ("REVEILLE_BROKER__PASSWORD", "guest\n"),
        ("BCE_ACCESS_KEY_ID", "sim-access-key\n"),
        ("BCE_SECRET_ACCESS_KEY", "sim-secret-key\r\n"),
    ];
    let daemon = Daemon::start_in(&text, &secrets);
    daemon.takes_the_lane().await;
    let mut submit = daemon.config.command(&["submit", "--lane", "prod", "--wait", "i-sim00001"]);
    submit.env("REVEILLE_BROKER__PASSWORD", "guest\n");
    let ran = run(submit, "").await;
    assert_eq!(ran.code, Some(0), "{}\n{}", ran.errors, daemon.child.output());

    let within = secrets.map(|(name, _)| (name, "hush\nhush"));
    let config = Config::write(&text);
    let mut command = config.command(&["run"]);
    command.envs(within);
    let ran = run(command, "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    for fault in [
        "environment REVEILLE_BROKER__PASSWORD: it has the control character U+000A within; expected a password of one line",
        "BCE_ACCESS_KEY_ID has the control character U+000A in it",
    ] {
        assert!(ran.errors.contains(fault), "{}", ran.errors);
    }
    assert!(!ran.errors.contains("hush"), "{}", ran.errors);
}

#[tokio::test]
async fn a_url_that_is_not_read_as_it_was_meant_is_refused_and_no_part_of_its_password_is_shown() {
    for (url, problem) in [
        ("amqp://u:47/11hush@127.0.0.1:9/v", "has a / or ? before an @"),
        ("amqp://u:47?11hush@127.0.0.1:9/v", "has a / or ? before an @"),
        ("amqp://u:47#11hush@127.0.0.1:9/v", "has a # in it"),
        ("amqp://u:4711@hush@127.0.0.1:9/v", "has more than one @"),
        ("amqp://u:4711hush@127.0.0.1:9,amqp://u:4711hush@127.0.0.2:9", "is a list"),
        ("amqp://u:4711hush@127.0.0.1,127.0.0.2:9/v", "is a list"),
        ("amqp://u:4711hush@127.0.0.1:9/v?cacertfile=/hush", "set broker.ca_file"),
        ("amqp://u:4711hush@127.0.0.1:9/v?hartbeat=5", "did you mean heartbeat?"),
        ("amqp://u:4711hush@127.0.0.1:9/v?heartbeat=0", "has a heartbeat of 0: expected 1 to 65535"),
    ] {
        let config = Config::write(&config(url, "http://127.0.0.1:9", &Wishes::default()));
        for arguments in [&["run"][..], &SUBMIT, &["topology"], &["topology", "--output", "json"]] {
            let mut command = config.command(arguments);
            command.env("RUST_LOG", "trace");
            let ran = run(command, "").await;
            assert_eq!(ran.code, Some(2), "{url}: {}", ran.errors);
            assert!(ran.errors.contains("broker.url: ") && ran.errors.contains(problem), "{url}: {}", ran.errors);
            for part in ["hush", "47", "11"] {
                let shown = ran.errors.replace(&config.path.display().to_string(), "") + &ran.output;
                assert!(!shown.contains(part), "{url}: {shown}");
            }
        }
    }
}

#[tokio::test]
async fn connections_are_named_after_what_they_are_for_host_process_and_version() {
    let (vhost, sim) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=3"]));
    let daemon = Daemon::start(&config(&vhost.url, &sim.url(), &Wishes::default()));
    daemon.takes_the_lane().await;
    let queues = Queues::connect(&vhost.url).await;
    let mut replies = queues.listen("reveille.outcomes", "nothing").await;
    let job = lapin::BasicProperties::default().with_reply_to(replies.queue()).with_message_id("a".into());
    queues.publish("reveille.jobs", "prod", job, json!({"instance_id": "i-sim00001"}).to_string().as_bytes()).await;
    tokio::time::timeout(PATIENCE, replies.next()).await.expect("a reply in time");
    let later = json!({"instance_id": "i-sim00002", "not_before": "9999-12-31T23:59:59Z"}).to_string();
    let jobs = Folder::new();
    let file = jobs.put("jobs", &later);
    let waiting = Child::start(daemon.config.command(&["submit", "--lane", "prod", "--wait", "--file", &file]));
    eventually("it waits", async || waiting.output().contains("1 job submitted").then_some(())).await;

    let is_followed = || daemon.child.output().contains("the log is read back");
    eventually("the scheduler follows the log", async || is_followed().then_some(())).await;

    let listed = vhost.node.ctl(&["list_connections", "vhost", "client_properties"]);
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let (host, version) = (host.trim(), env!("CARGO_PKG_VERSION"));
    let pid = daemon.child.pid();
    for (kind, pid) in [("run", pid), ("replies", pid), ("scheduler", pid), ("submit", waiting.pid())] {
        let name = format!("\"reveille {kind} {host} pid {pid} v{version}\"");
        let line = listed.lines().find(|line| line.contains(&name)).unwrap_or_else(|| panic!("{name} in {listed}"));
        for property in [r#"{"product","reveille"}"#, &format!(r#"{{"version","{version}"}}"#)] {
            assert!(line.contains(property), "{property} in {line}");
        }
    }
}
