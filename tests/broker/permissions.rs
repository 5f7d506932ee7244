//! The sets of permissions of docs/operations.md: each user can do its work with them, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};
use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions,
    QueueBindOptions, QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind};
use serde_json::{Value, json};

use crate::support::broker::{self, Vhost};
use crate::support::daemon::{Config, Daemon};
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{PATIENCE, eventually};

const PAGE: &str = include_str!("../../docs/operations.md");
/// As named on the page.
const USERS: [&str; 9] =
    ["consumer", "daemon", "dead", "operator", "producer", "status", "submit", "submit-wait", "watch"];
/// Those that have all topics of the exchanges they may use, if any.
const ALL_TOPICS: [&str; 4] = ["daemon", "dead", "operator", "watch"];

/// Of the commands' configuration.
const SCHEDULE: &str =
    "[[schedule]]\nname = \"leap\"\ncron = \"0 0 29 2 *\"\ntimezone = \"UTC\"\ninstances = [\"i-sim00001\"]";

const PERMISSIONS: &str = "set_permissions";

/// A vhost with the page's users, and a daemon that runs as one of them.
struct Scene {
    vhost: Vhost,
    sim: Sim,
    daemon: Daemon,
}

impl Scene {
    async fn set(sim: &[&str]) -> Self {
        let (vhost, sim) = (broker::vhost(), Sim::start(&[&["--fleet", "Stopped=20"], sim].concat()));
        grant(&vhost, PERMISSIONS);
        let daemon = Daemon::start(&config(&url(&vhost, "daemon"), &sim.url(), &Wishes::default()));
        daemon.takes_the_lane().await;
        // For existing exchanges, as RabbitMQ 4.3 requires.
        grant(&vhost, "set_topic_permissions");
        Self { vhost, sim, daemon }
    }

    async fn connect(&self, user: &str) -> Connection {
        Connection::connect(&url(&self.vhost, user), ConnectionProperties::default()).await.expect("it may log in")
    }

    /// `reveille submit` as this user.
    async fn submit(&self, user: &str, arguments: &[&str]) -> Output {
        self.run(user, &[&["submit", "--lane", "prod"], arguments].concat()).await
    }

    async fn run(&self, user: &str, arguments: &[&str]) -> Output {
        let wishes = Wishes { lane: SCHEDULE, ..Wishes::default() };
        let config = Config::write(&config(&url(&self.vhost, user), &self.sim.url(), &wishes));
        let mut command: Command = config.command(arguments);
        tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic")
    }
}

/// Runs this command of the page for the vhost, with user names of its own, as a node has its users for all vhosts.
fn grant(vhost: &Vhost, command: &str) {
    let mut users = BTreeSet::new();
    for line in PAGE.lines().filter(|line| line.starts_with(&format!("rabbitmqctl {command} "))) {
        let mut words: Vec<String> =
            line.split_whitespace().skip(1).map(|word| word.trim_matches('\'').to_owned()).collect();
        assert_eq!(words[1..3], ["-p", "VHOST"], "{line}");
        words[2].clone_from(&vhost.name);
        let user = format!("{}-{}", words[3], vhost.name);
        let is_new = users.insert(std::mem::replace(&mut words[3], user.clone()));
        if is_new && command == PERMISSIONS {
            vhost.node.ctl(&["add_user", &user, "hush"]);
        }
        let words: Vec<String> = words.iter().map(|word| word.replace("prod-bj", "prod")).collect();
        vhost.node.ctl(&words.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let all = USERS.iter().filter(|user| command == PERMISSIONS || !ALL_TOPICS.contains(user));
    assert_eq!(users.iter().map(String::as_str).collect::<Vec<_>>(), all.copied().collect::<Vec<_>>());
}

fn url(vhost: &Vhost, user: &str) -> String {
    vhost.url.replace("guest:guest", &format!("{user}-{}:hush", vhost.name))
}

/// The final events of the next `count` jobs that end.
async fn ends(events: &mut Consumer, count: usize) -> BTreeMap<String, String> {
    let mut ends = BTreeMap::new();
    while ends.len() < count {
        let next = tokio::time::timeout(PATIENCE, events.next()).await;
        let event = next.unwrap_or_else(|_| panic!("of {count} jobs these have ended: {ends:?}"));
        let event: Value = serde_json::from_slice(&event.expect("subscribed").expect("open").data).expect("JSON");
        let (data, text) = (&event["data"], |value: &Value| value.as_str().expect("a text").to_owned());
        if data["final"] == true {
            ends.insert(text(&data["job_id"]), text(&data["outcome"]));
        }
    }
    ends
}

#[tokio::test]
async fn each_of_the_users_can_do_its_work() {
    let mut scene = Scene::set(&["--fault", "status-503=0.3"]).await;
    let standing_by = Daemon::start(&config(&url(&scene.vhost, "daemon"), &scene.sim.url(), &Wishes::default()));
    standing_by.ready().await;

    let (durable, none) = (QueueDeclareOptions::durable(), FieldTable::default());
    let channel = scene.connect("consumer").await.create_channel().await.unwrap();
    for queue in ["ops.outcomes", "ops.replies"] {
        channel.queue_declare(queue.into(), durable, none.clone()).await.unwrap();
    }
    let (queue, exchange, options) = ("ops.outcomes", "reveille.outcomes", QueueBindOptions::default());
    channel.queue_bind(queue.into(), exchange.into(), "prod.*".into(), options, none.clone()).await.unwrap();
    let consume = async |queue: &str| {
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        channel.basic_consume(queue.into(), "".into(), options, none.clone()).await.unwrap()
    };
    let (mut events, mut replies) = (consume("ops.outcomes").await, consume("ops.replies").await);

    let producer = Queues::over(scene.connect("producer").await).await;
    let job = async |key: &str, id: &str, more: Value| {
        let mut body = json!({ "instance_id": id });
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let properties = BasicProperties::default().with_message_id(id.into()).with_reply_to("ops.replies".into());
        producer.publish("reveille.jobs", key, properties, body.to_string().as_bytes()).await;
    };
    // Retried, parked, polled, and dead-lettered.
    for number in 1..=8 {
        job("prod", &format!("i-sim0000{number}"), json!({})).await;
    }
    let later = (Timestamp::now() + Duration::from_secs(2)).to_string();
    job("prod.urgent", "i-sim00009", json!({ "not_before": later })).await;
    job("prod", "i-sim00010", json!({ "confirm": "running" })).await;
    job("prod", "i-gone0001", json!({})).await;
    let ended = ends(&mut events, 11).await;
    assert_eq!(ended, ends(&mut replies, 11).await);
    for (id, outcome) in ended {
        let expected = match id.as_str() {
            "i-gone0001" => "failed",
            "i-sim00010" => "running",
            _ => "started",
        };
        assert_eq!(outcome, expected, "{id}");
    }
    let parked = r#"reveille_jobs_parked_total{cause="transient",lane="prod"}"#;
    assert!(scene.daemon.metric(parked).await > 0.0, "the ladder is used");
    Queues::connect(&scene.vhost.url).await.has("reveille.dead", 1, 0).await;

    scene.daemon.kill().await;
    standing_by.takes_the_lane().await;
    let submitted = scene.submit("submit", &["i-sim00011"]).await;
    assert_eq!(submitted.status.code(), Some(0), "{submitted:?}");
    let (batch, watch) = (["--batch", "morning", "i-sim00014"], ["watch", "morning", "--timeout", "1m"]);
    assert_eq!(scene.submit("submit", &batch).await.status.code(), Some(0));
    let watched = scene.run("watch", &watch).await;
    assert_eq!(watched.status.code(), Some(0), "{watched:?}");
    let schedules = ["schedules", "list", "--output", "json"];
    for arguments in [&["pause", "prod"][..], &["resume", "prod"], &["cancel", "evening"], &schedules] {
        let given = scene.run("operator", arguments).await;
        assert_eq!(given.status.code(), Some(0), "{given:?}");
        let sees_pauses = String::from_utf8_lossy(&given.stdout).contains(r#""paused": false"#);
        assert_eq!(sees_pauses, arguments == schedules, "{given:?}");
    }
    let listed = scene.run("watch", &["batches"]).await;
    assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains("morning"), "{listed:?}");
    let shown = scene.run("status", &["status"]).await;
    assert_eq!(shown.status.code(), Some(0), "{shown:?}");
    let waited = scene.submit("submit-wait", &["--wait", "i-sim00012"]).await;
    assert_eq!(waited.status.code(), Some(0), "{waited:?}");
    let urgent = scene.submit("submit-wait", &["--wait", "--urgent", "i-sim00013"]).await;
    assert_eq!(urgent.status.code(), Some(0), "{urgent:?}");
    for command in ["list", "replay"] {
        let done = scene.run("dead", &["dead", command]).await;
        assert_eq!(done.status.code(), Some(0), "{done:?}");
    }
    for daemon in [&scene.daemon, &standing_by] {
        let output = daemon.child.output();
        assert!(!output.contains("ACCESS_REFUSED"), "{output}");
    }
}

/// An operation that is tried over a channel of its own.
enum Try {
    Publish(&'static str, &'static str),
    Read(&'static str),
    Purge(&'static str),
    Declare(&'static str),
    Bind(&'static str, &'static str, &'static str),
    BindExchange(&'static str, &'static str, &'static str),
}
use Try::{Bind, BindExchange, Declare, Publish, Purge, Read};

impl Try {
    async fn on(&self, channel: &Channel) -> lapin::Result<()> {
        let none = FieldTable::default();
        match *self {
            Publish(exchange, key) => {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
                channel.basic_publish(exchange.into(), key.into(), options, b"{}", properties).await?.await.map(drop)
            }
            Read(queue) => channel.basic_get(queue.into(), BasicGetOptions::default()).await.map(drop),
            Purge(queue) => channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await.map(drop),
            Declare(queue) => channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), none).await.map(drop),
            Bind(queue, exchange, key) => {
                channel.queue_bind(queue.into(), exchange.into(), key.into(), QueueBindOptions::default(), none).await
            }
            BindExchange(to, from, key) => {
                channel.exchange_bind(to.into(), from.into(), key.into(), ExchangeBindOptions::default(), none).await
            }
        }
    }
}

#[tokio::test]
async fn none_of_the_users_can_do_the_work_of_another() {
    let scene = Scene::set(&[]).await;
    let consumer = scene.connect("consumer").await;
    Declare("ops.outcomes").on(&consumer.create_channel().await.unwrap()).await.unwrap();
    // Only the daemon may write or read these.
    let own = || {
        [
            Publish("", "reveille.baton.prod"),
            Publish("", "reveille.delay.03"),
            Publish("", "reveille.due.prod"),
            Publish("reveille.delay.17", "1.x"),
            Publish("reveille.delay.return", "0.prod"),
            Publish("reveille.unroutable", ""),
            Publish("reveille.control", "command.lane.pause"),
            Read("reveille.control.log"),
            Publish("reveille.jobs", "other"),
            Publish("reveille.outcomes", "prod.started"),
            Publish("reveille.outcomes", "other.submitted"),
            Read("reveille.jobs.prod"),
            Read("reveille.dead"),
            Purge("reveille.baton.prod"),
            Declare("reveille.jobs.other"),
            Bind("reveille.due.prod", "amq.topic", "#"),
        ]
    };
    let tries = [
        ("daemon", vec![Declare("other"), Publish("amq.topic", "x"), Read("ops.outcomes")]),
        ("producer", vec![Publish("reveille.outcomes", "prod.submitted"), Declare("ops.mine"), Declare("")]),
        ("submit", vec![Declare("ops.mine"), Declare("")]),
        ("submit-wait", vec![Declare("ops.mine"), Declare(""), Read("ops.outcomes")]),
        ("watch", vec![Publish("reveille.jobs", "prod"), Declare("ops.mine"), Declare("")]),
        ("operator", vec![Publish("reveille.jobs", "prod"), Declare("ops.mine"), Declare("")]),
        (
            "status",
            vec![
                Publish("reveille.control", "command.lane.pause"),
                Publish("reveille.jobs", "prod"),
                Publish("reveille.delay.17", "1.x"),
                Purge("reveille.jobs.prod"),
                Bind("reveille.jobs.prod", "reveille.jobs", "prod"),
                Declare("ops.mine"),
                Declare(""),
            ],
        ),
        (
            "consumer",
            vec![
                Publish("reveille.jobs", "prod"),
                Publish("reveille.outcomes", "prod.submitted"),
                Bind("ops.outcomes", "reveille.jobs", "prod"),
                Bind("ops.outcomes", "reveille.outcomes", "other.*"),
                Bind("ops.outcomes", "reveille.outcomes", "#"),
                BindExchange("reveille.jobs", "reveille.outcomes", "prod.*"),
            ],
        ),
    ];
    for (user, mut tries) in tries {
        if user != "daemon" {
            tries.extend(own());
        }
        if user == "operator" {
            tries.retain(|attempt| !matches!(attempt, Publish("reveille.control", _) | Read("reveille.control.log")));
        }
        if !["daemon", "watch", "operator", "status", "submit-wait"].contains(&user) {
            tries.push(Read("reveille.outcomes.log"));
        }
        let connection = scene.connect(user).await;
        for (number, attempt) in tries.iter().enumerate() {
            let channel = connection.create_channel().await.unwrap();
            let error = attempt.on(&channel).await.expect_err(&format!("{user} can do number {number}"));
            let ErrorKind::ProtocolError(refused) = error.kind() else { panic!("{user} {number}: {error}") };
            let access_refused = &AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
            assert_eq!(refused.kind(), access_refused, "{user} {number}: {error}");
        }
    }
    // Anything they had published would come before this one.
    let producer = Queues::over(scene.connect("producer").await).await;
    let body = json!({"instance_id": "i-sim00001"}).to_string();
    producer.publish("reveille.jobs", "prod", BasicProperties::default(), body.as_bytes()).await;
    eventually("the last one is called", async || (!scene.sim.log().await.is_empty()).then_some(())).await;
    let called: Vec<String> = scene.sim.log().await.into_iter().map(|call| call.instance).collect();
    assert_eq!(called, ["i-sim00001"], "nothing came of the others");
    assert_eq!(scene.daemon.child.output().matches("lane held").count(), 1);
}
