//! `batch.completed`: once for each announced batch, whatever becomes of replicas and broker.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Consumer};
use serde_json::{Value, json};

use crate::support::broker::{self, Vhost};
use crate::support::child::run;
use crate::support::daemon::{Config, Daemon};
use crate::support::queues::Queues;
use crate::support::scene::Scene;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

const LOG: &str = "reveille.outcomes.log";
const MARKER: &[u8] = b"marker";
const HELD: &str = "reveille_scheduler_held";

async fn submit(config: &Config, batch: &str, instances: impl IntoIterator<Item = String>) {
    let command = config.command(&["submit", "--lane", "prod", "--batch", batch, "--file", "-"]);
    let lines: Vec<String> = instances.into_iter().collect();
    let ran = run(command, &lines.join("\n")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}

/// The log of outcomes, from its first message on.
struct Log {
    messages: Consumer,
    _queues: Queues,
    /// Bodies of completions by id, as often as they are in the log.
    completed: BTreeMap<String, Vec<Value>>,
    /// How often a holder wrote into it that it is one.
    held: usize,
}

impl Log {
    async fn read(url: &str) -> Self {
        let queues = Queues::connect(url).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
        let messages = eventually("a node that was killed has its streams again", async || {
            let channel = queues.connection.create_channel().await.unwrap();
            channel.basic_qos(1000, BasicQosOptions::default()).await.unwrap();
            channel.basic_consume(LOG.into(), "".into(), BasicConsumeOptions::default(), arguments.clone()).await.ok()
        });
        Self { messages: messages.await, _queues: queues, completed: BTreeMap::new(), held: 0 }
    }

    /// Takes the next message, and returns whether it is the marker.
    async fn next(&mut self) -> bool {
        let next = tokio::time::timeout(PATIENCE, self.messages.next()).await.expect("an event comes");
        let delivery = next.expect("subscribed").expect("open");
        delivery.ack(BasicAckOptions::default()).await.unwrap();
        match delivery.routing_key.as_str() {
            "prod.completed" => {
                let event: Value = serde_json::from_slice(&delivery.data).unwrap();
                if event["id"] == "forged" {
                    return false;
                }
                let id = event["id"].as_str().unwrap().to_owned();
                assert_eq!(event["type"], "io.reveille.batch.completed.v1");
                assert_eq!(delivery.properties.message_id().as_ref().unwrap().as_str(), id);
                self.completed.entry(id).or_default().push(event);
            }
            "_scheduler.held" => self.held += 1,
            _ => {}
        }
        delivery.data == MARKER
    }

    /// Reads until so many different completions were in it, and asserts that copies are equal. Returns what they say.
    async fn completions(&mut self, count: usize) -> Vec<Value> {
        while self.completed.len() < count {
            self.next().await;
        }
        assert_eq!(self.completed.len(), count);
        let all = self.completed.values();
        all.map(|copies| {
            assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:#?}");
            copies[0]["data"].clone()
        })
        .collect()
    }

    /// Reads on up to now, and asserts that there are no more completions than these.
    async fn ends_with(&mut self, url: &str, completions: usize) {
        Queues::connect(url).await.publish("", LOG, BasicProperties::default(), MARKER).await;
        while !self.next().await {}
        assert_eq!(self.completed.len(), completions, "{:#?}", self.completed);
    }
}

/// What a completion says without its times, which are there.
fn counts(mut completion: Value) -> Value {
    let said = completion.as_object_mut().unwrap();
    let times: Vec<Value> =
        ["submitted_at", "first_event_at", "last_event_at"].map(|time| said.remove(time).unwrap()).into();
    let times: Vec<&str> = times.iter().map(|time| time.as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    completion
}

async fn holder(daemons: &[&Daemon]) -> usize {
    eventually("one runs the scheduler", async || {
        let mut holders = Vec::new();
        for (number, daemon) in daemons.iter().enumerate() {
            if daemon.metric(HELD).await == 1.0 {
                holders.push(number);
            }
        }
        (holders.len() == 1).then(|| holders[0])
    })
    .await
}

/// Waits until the holder has read the log back, so often.
async fn read_back(daemon: &Daemon, times: usize) {
    let read = || daemon.child.output().matches("the log is read back").count();
    eventually("the log is read back", async || (read() >= times).then_some(())).await;
}

#[tokio::test]
async fn each_announced_batch_is_completed_once_with_what_came_of_its_jobs() {
    let stage = Stage::set().await;
    let config = &stage.daemon.config;
    submit(config, "morning", (1..=3).map(instance).chain(["i-gone0001".to_owned()])).await;
    submit(config, "evening", [instance(4)]).await;
    stage.job("alone", json!({"instance_id": instance(5), "batch_id": "unannounced"})).await;
    let mut log = Log::read(&stage.vhost.url).await;
    let said = log.completions(2).await.into_iter().map(|completion| {
        let completion = counts(completion);
        (completion["batch_id"].as_str().unwrap().to_owned(), completion)
    });
    let said: BTreeMap<String, Value> = said.collect();
    assert_eq!(
        said["morning"],
        json!({"batch_id": "morning", "lane": "prod", "size": 4, "ended": 4, "up": 3,
               "outcomes": {"started": 3, "failed": 1}, "reasons": {"not_found": 1}})
    );
    assert_eq!((&said["evening"]["size"], &said["evening"]["up"]), (&json!(1), &json!(1)));

    // The same name again, of other jobs, is a batch of its own.
    submit(config, "morning", [instance(6)]).await;
    let sizes: BTreeSet<u64> =
        log.completions(3).await.iter().map(|completion| completion["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [1, 4].into());
    eventually("all is counted", async || {
        let metrics = [HELD, "reveille_batches_completed_total", "reveille_batches_open"];
        let mut values = Vec::new();
        for metric in metrics {
            values.push(stage.daemon.metric(metric).await);
        }
        (values == [1.0, 3.0, 0.0]).then_some(())
    })
    .await;
    let ran = run(config.command(&["watch", "morning"]), "").await;
    assert_eq!(ran.code, Some(1), "a completion is nothing to a watch: {}", ran.errors);
    log.ends_with(&stage.vhost.url, 3).await;
}

#[tokio::test]
async fn what_anybody_may_write_into_the_log_completes_no_batch_early_and_ends_no_scheduler() {
    let stage = Stage::set().await;
    let never = json!({"instance_id": instance(1), "not_before": "9999-12-31T23:59:59Z"}).to_string();
    submit(&stage.daemon.config, "waiting", [never, instance(2)]).await;
    let event = |kind: &'static str, data: Value| {
        let event = json!({"specversion": "1.0", "id": "forged", "source": "", "type": format!("io.reveille.{kind}.v1"),
                           "time": "9999-12-30T22:00:00Z", "data": data});
        (kind, event.to_string().into_bytes())
    };
    let forged = [
        ("batch.submitted", b"noise".to_vec()),
        ("batch.submitted", Vec::new()),
        event("batch.submitted", json!({"batch_id": "huge", "size": u64::MAX, "lane": "prod"})),
        event("batch.submitted", json!({"batch_id": "none", "size": -1, "lane": "prod"})),
        event("batch.submitted", json!({"batch_id": "\u{1b}[2J", "size": 0, "lane": "prod"})),
        event("batch.completed", json!({"batch_id": "waiting"})),
        event("instance.started", json!({"batch_id": "waiting", "lane": "prod", "outcome": "started", "final": true})),
        event("scheduler.held", json!({"replica": {"host": "", "pid": 1, "version": ""}, "resume_from": u64::MAX})),
        event("scheduler.held", json!({"replica": 7, "resume_from": -1})),
    ];
    for (kind, message) in forged {
        let (of, what) = kind.split_once('.').unwrap();
        let key = if of == "scheduler" { format!("_{kind}") } else { format!("prod.{what}") };
        stage.queues.publish("reveille.outcomes", &key, BasicProperties::default(), &message).await;
    }
    submit(&stage.daemon.config, "after", [instance(3)]).await;
    let mut log = Log::read(&stage.vhost.url).await;
    let batches = |said: Vec<Value>| -> BTreeSet<String> {
        said.iter().map(|said| said["batch_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(batches(log.completions(2).await), ["\u{1b}[2J".to_owned(), "after".to_owned()].into());
    assert_eq!(stage.daemon.metric("reveille_batches_open").await, 2.0, "the one that waits, and the huge one");
    let output = stage.daemon.child.output();
    assert!(!output.contains("panicked") && !output.contains("the scheduler is run anew"), "{output}");
}

/// Several replicas, and batches.
struct Replicas {
    daemons: Vec<Daemon>,
    _sim: Sim,
    vhost: Vhost,
}

impl Replicas {
    async fn start(count: usize, fleet: usize) -> Self {
        let vhost = broker::vhost();
        let sim = Sim::start(&["--fleet", &format!("Stopped={fleet}")]);
        let config = config(&vhost.url, &sim.url(), &Wishes::default());
        let daemons: Vec<Daemon> = (0..count).map(|_| Daemon::start(&config)).collect();
        for daemon in &daemons {
            daemon.ready().await;
        }
        Self { daemons, _sim: sim, vhost }
    }

    async fn holder(&self) -> usize {
        holder(&self.daemons.iter().collect::<Vec<_>>()).await
    }
}

#[tokio::test]
async fn a_killed_holder_leaves_no_batch_out_and_the_next_one_publishes_copies_at_most() {
    const ROUNDS: usize = 8;
    const EACH: usize = 5;
    let mut replicas = Replicas::start(2, ROUNDS * EACH * 2).await;
    let mut log = Log::read(&replicas.vhost.url).await;
    let mut next = 1;
    for round in 0..ROUNDS {
        let holder = replicas.holder().await;
        let other = 1 - holder;
        // A batch that is done, at most just published, and one whose jobs end around the kill.
        for batch in ["before", "around"] {
            let batch = format!("{batch}-{round}");
            submit(&replicas.daemons[other].config, &batch, (next..next + EACH).map(instance)).await;
            next += EACH;
        }
        if round % 2 == 0 {
            log.completions(2 * round + 1).await;
        }
        replicas.daemons[holder].kill().await;
        eventually("the other runs it", async || (replicas.daemons[other].metric(HELD).await == 1.0).then_some(()))
            .await;
        log.completions(2 * round + 2).await;
        replicas.daemons[holder].start_again();
        replicas.daemons[holder].ready().await;
    }
    for said in log.completions(2 * ROUNDS).await {
        assert_eq!((&said["size"], &said["ended"], &said["up"]), (&json!(EACH), &json!(EACH), &json!(EACH)), "{said}");
    }
    let copies: usize = log.completed.values().map(|copies| copies.len() - 1).sum();
    println!("{copies} copies in {ROUNDS} kills");
    log.ends_with(&replicas.vhost.url, 2 * ROUNDS).await;
}

#[tokio::test]
async fn a_batch_that_ends_while_no_replica_follows_the_log_is_completed_by_the_next_holder() {
    let mut replicas = Replicas::start(1, 20).await;
    let url = replicas.vhost.url.clone();
    let mut log = Log::read(&url).await;
    submit(&replicas.daemons[0].config, "first", [instance(1)]).await;
    log.completions(1).await;
    replicas.daemons[0].stop().await;
    // As of a lane whose last job ended before the stop: its event is there, the completion is not.
    let queues = Queues::connect(&url).await;
    let announced = json!({"batch_id": "second", "size": 1, "lane": "prod"});
    let ended: Value = json!({
        "job_id": "j", "lane": "prod", "instance_id": instance(2), "batch_id": "second", "labels": null,
        "outcome": "started", "reason": null, "final": true, "attempts": 1, "http_status": 200, "error_code": null,
        "error_message": null, "bce_request_id": null, "ambiguous": false, "received_at": "2026-11-25T07:30:00Z",
        "finished_at": "2026-11-25T07:30:00Z", "duration_ms": 0
    });
    for (kind, key, data) in
        [("batch.submitted", "prod.submitted", announced), ("instance.started", "prod.started", ended)]
    {
        let event = json!({"specversion": "1.0", "id": kind, "source": "/reveille/lanes/prod",
                           "type": format!("io.reveille.{kind}.v1"), "time": "2026-11-25T07:30:00Z", "data": data});
        queues.publish("reveille.outcomes", key, BasicProperties::default(), event.to_string().as_bytes()).await;
    }
    replicas.daemons[0].start_again();
    assert_eq!(log.completions(2).await.len(), 2);
    read_back(&replicas.daemons[0], 1).await;
    assert!(
        log.completed.values().all(|copies| copies.len() == 1),
        "the first one is in the log: {:#?}",
        log.completed
    );
    log.ends_with(&url, 2).await;
}

#[tokio::test]
async fn a_batch_of_which_too_many_jobs_fail_has_the_command_to_cancel_its_rest_given_once() {
    let mut stage = Stage::set().await;
    let announced = json!({
        "specversion": "1.0", "id": "ours", "source": "/ours", "type": "io.reveille.batch.submitted.v1",
        "time": "2026-11-25T07:30:00Z",
        "data": {"batch_id": "morning", "size": 10, "lane": "prod", "max_failures": 2}
    });
    let body = announced.to_string().into_bytes();
    stage.queues.publish("reveille.outcomes", "prod.submitted", BasicProperties::default(), &body).await;
    let commands = async || {
        let all = stage.queues.read_stream("reveille.control.log", &mut 0).await.into_iter();
        let cancels = all.filter(|command| command.routing_key.as_str() == "command.batch.cancel");
        cancels.map(|command| serde_json::from_slice::<Value>(&command.data).unwrap()).collect::<Vec<Value>>()
    };
    for number in 0..3 {
        let instance = if number == 0 { instance(1) } else { format!("i-gone000{number}") };
        stage.job(&format!("j-{number}"), json!({"instance_id": instance, "batch_id": "morning"})).await;
    }
    eventually("three have ended", async || {
        (stage.daemon.metric(r#"reveille_jobs_total{lane="prod",outcome="failed",reason="not_found"}"#).await == 2.0)
            .then_some(())
    })
    .await;
    assert_eq!(stage.daemon.metric("reveille_batches_cancelled_total").await, 0.0, "two may fail");
    for number in 3..6 {
        let instance = format!("i-gone000{number}");
        stage.job(&format!("j-{number}"), json!({"instance_id": instance, "batch_id": "morning"})).await;
    }
    let given = eventually("it is given", async || Some(commands().await).filter(|given| !given.is_empty())).await;
    assert_eq!(given.len(), 1, "{given:#?}");
    assert_eq!(given[0]["type"], "io.reveille.batch.cancel.v1");
    let reason = "3 jobs have failed, and max_failures is 2";
    let said = json!({"batch_id": "morning", "lane": "prod", "by": "reveille scheduler", "reason": reason});
    assert_eq!(given[0]["data"], said);

    // The next holder does not know whether it was given.
    stage.daemon.kill().await;
    stage.daemon.start_again();
    let copies = eventually("a copy is given", async || Some(commands().await).filter(|given| given.len() > 1)).await;
    assert!(copies.iter().all(|copy| *copy == given[0]), "{copies:#?}");
}

#[tokio::test]
async fn a_broker_that_is_lost_midway_costs_no_completion() {
    const JOBS: usize = 60;
    let slow = Wishes { lane: "rate = 10\nburst = 1", ..Wishes::default() };
    let mut scene = Scene::set(JOBS, slow).await;
    submit(&scene.daemon.config, "morning", (1..=JOBS).map(instance)).await;
    scene.calls(JOBS / 3).await;
    scene.node.kill();
    scene.node.restart();
    let mut log = Log::read(&scene.node.url).await;
    let said = log.completions(1).await;
    assert_eq!((&said[0]["size"], &said[0]["up"]), (&json!(JOBS), &json!(JOBS)), "{said:?}");
    assert!(said[0]["ended"] == json!(JOBS));
}

#[tokio::test]
async fn a_next_holder_reads_the_log_only_from_the_oldest_open_batch_on() {
    const NOISE: usize = 6_000;
    let mut replicas = Replicas::start(1, 20).await;
    let url = replicas.vhost.url.clone();
    let queues = Queues::connect(&url).await;
    for _ in 0..NOISE {
        queues.publish("", LOG, BasicProperties::default(), b"noise").await;
    }
    submit(&replicas.daemons[0].config, "first", [instance(1)]).await;
    let mut log = Log::read(&url).await;
    log.completions(1).await;
    while log.held < 2 {
        log.next().await;
    }
    replicas.daemons[0].kill().await;
    replicas.daemons[0].start_again();
    read_back(&replicas.daemons[0], 1).await;
    let output = replicas.daemons[0].child.output();
    let from = output.split_once("the log is read back").and_then(|(_, rest)| rest.split_once(" from="));
    let from: usize = from.unwrap().1.split_whitespace().next().unwrap().parse().unwrap();
    assert!(from >= NOISE - 2_000, "{from}");
    submit(&replicas.daemons[0].config, "second", [instance(2)]).await;
    log.completions(2).await;
    log.ends_with(&url, 2).await;
}

#[tokio::test]
async fn where_too_many_jobs_of_a_batch_fail_the_rest_is_cancelled() {
    let mut stage = Stage::with(Wishes { lane: "rate = 2\nburst = 1", ..Wishes::default() }).await;
    read_back(&stage.daemon, 1).await;
    let gone = (1..=3).map(|number| format!("i-gone000{number}"));
    let lines: Vec<String> = gone.chain((1..=20).map(instance)).collect();
    let arguments = ["submit", "--batch", "morning", "--max-failures", "10%", "--file", "-"];
    let ran = run(stage.daemon.config.command(&arguments), &lines.join("\n")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let ended = stage.outcomes(23).await;
    let count = |outcome: &str| ended.values().filter(|job| job["outcome"] == outcome).count();
    assert_eq!((count("failed"), count("started") + count("cancelled")), (3, 20));
    let cancelled = ended.values().find(|job| job["outcome"] == "cancelled").expect("the lane is slow");
    let why = "cancelled by reveille scheduler: 3 jobs have failed, and max_failures is 10% of 23 jobs";
    assert_eq!((&cancelled["reason"], &cancelled["error_message"]), (&json!("by_command"), &json!(why)));
    let completed = Log::read(&stage.vhost.url).await.completions(1).await;
    assert_eq!(completed[0]["outcomes"]["cancelled"], count("cancelled"));
    assert_eq!(stage.daemon.metric("reveille_batches_cancelled_total").await, 1.0);
}
