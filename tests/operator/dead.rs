//! `reveille dead`: list, show, replay, discard.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};

use futures_util::{StreamExt, stream};
use jiff::{Timestamp, ToSpan};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::broker::Vhost;
use crate::support::child::{Child, Ran, run};
use crate::support::daemon::Config;
use crate::support::proxy::{Flow, Proxy};
use crate::support::python::on_a_terminal;
use crate::support::queues::Queues;
use crate::support::stage::{LANE, Stage, Wishes, config};
use crate::support::{eventually, instance};

pub(super) const DEAD: &str = "reveille.dead";

async fn dead(config: &Config, arguments: &[&str]) -> Ran {
    run(config.command(&[&["dead"], arguments].concat()), "").await
}

/// The letters that `list` lists, as JSON.
async fn listed(config: &Config, arguments: &[&str]) -> Vec<Value> {
    let ran = dead(config, &[&["list", "--output", "json", "-n", "0"], arguments].concat()).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    ran.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(super) async fn jobs_listed(config: &Config, arguments: &[&str]) -> Vec<String> {
    listed(config, arguments).await.iter().map(|letter| letter["job_id"].as_str().unwrap().to_owned()).collect()
}

fn text(delivery: &Delivery, header: &str) -> Option<String> {
    match delivery.properties.headers().as_ref()?.inner().get(header)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        other => panic!("{header}: {other:?}"),
    }
}

pub(super) fn id(delivery: &Delivery) -> String {
    delivery.properties.message_id().as_ref().expect("an id").to_string()
}

/// Puts letters among the dead ones, as the daemon does: job `j-NUMBER` for the instance of this number, with `more` in its body.
pub(super) async fn put(
    queues: &Queues,
    numbers: impl Iterator<Item = usize>,
    reason: &str,
    dead_at: Timestamp,
    more: &Value,
) {
    let letters = numbers.map(async |number| {
        let mut headers = FieldTable::default();
        for (name, value) in
            [("outcome", "failed"), ("reason", reason), ("lane", LANE), ("dead-at", &dead_at.to_string())]
        {
            headers.insert(format!("x-reveille-{name}").into(), AMQPValue::LongString(value.into()));
        }
        let mut body = json!({ "instance_id": instance(number) });
        body.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        let properties =
            BasicProperties::default().with_message_id(format!("j-{number:05}").into()).with_headers(headers);
        queues.publish("", DEAD, properties, body.to_string().as_bytes()).await;
    });
    // In order, so that the order can be asserted.
    stream::iter(letters).buffered(1).collect::<()>().await;
}

/// A stage whose daemon has stopped, so that replays stay in the lane's queue.
pub(super) async fn at_rest(vhost: Option<Vhost>) -> Stage {
    let mut stage = match vhost {
        Some(vhost) => Stage::on(vhost, Wishes::default()).await,
        None => Stage::set().await,
    };
    stage.daemon.stop().await;
    stage
}

#[tokio::test]
async fn letters_are_listed_and_shown_by_what_they_say_and_stay() {
    let mut stage = Stage::set().await;
    let batch = json!({"instance_id": "i-gone0001", "batch_id": "morning"});
    stage.job("first", batch).await;
    assert_eq!(stage.outcome().await["reason"], "not_found");
    stage.job("second", json!({"instance_id": "i-gone0002", "labels": {"evil": "\u{1b}[2J"}})).await;
    stage.outcome().await;
    stage.job("third", json!({"instance_id": "web-1"})).await;
    assert_eq!(stage.outcome().await["outcome"], "rejected");
    let properties = BasicProperties::default().with_message_id("fourth".into());
    stage.queues.publish("reveille.jobs", "porud", properties, br#"{"instance_id":"i-sim00001"}"#).await;
    let config = &stage.daemon.config;

    let ids = ["first", "second", "third", "fourth"];
    for _ in 0..3 {
        assert_eq!(jobs_listed(config, &[]).await, ids, "the oldest first, as often as they are looked at");
    }
    for (filter, expected) in [
        (&["--lane", "prod"][..], &ids[..3]),
        (&["--lane", "porud"], &ids[3..]),
        (&["--reason", "not_found", "--reason", "unroutable"], &["first", "second", "fourth"]),
        (&["--reason", "unreadable"], &ids[2..3]),
        (&["--batch", "morning"], &ids[..1]),
        (&["--instance", "i-gone0002"], &ids[1..2]),
        (&["--code", "NoSuchObject", "--batch", "morning"], &ids[..1]),
        (&["--newer-than", "1h"], &ids[..3]),
        (&["--older-than", "1h"], &[]),
        (&["--reason", "not_fuond"], &[]),
    ] {
        assert_eq!(jobs_listed(config, filter).await, expected, "{filter:?}");
    }
    let first = &listed(config, &["--batch", "morning"]).await[0];
    assert_eq!(
        (&first["outcome"], &first["http_status"], &first["error_code"]),
        (&json!("failed"), &json!(404), &json!("NoSuchObject"))
    );

    let table = dead(config, &["list", "-n", "2"]).await;
    let lines: Vec<&str> = table.output.lines().collect();
    assert_eq!((lines.len(), table.code), (3, Some(0)), "{}", table.output);
    assert!(
        lines[0].starts_with("DEAD SINCE") && lines[1].contains("  i-gone0001     prod          morning"),
        "{}",
        table.output
    );
    assert!(lines[2].contains("not_found, HTTP 404 NoSuchObject: "), "{}", table.output);
    assert_eq!(table.errors, "there are more: --limit 0 lists all of them\n");
    let none = dead(config, &["list", "--reason", "not_fuond", "--lane", "prd"]).await;
    assert_eq!((none.code, none.output.as_str()), (Some(0), ""));
    assert!(
        none.errors.contains("no letter matches, of 4 dead letters") && none.errors.contains("did you mean not_found?"),
        "{}",
        none.errors
    );
    assert!(none.errors.contains("no lane prd; did you mean prod?"), "{}", none.errors);

    let page = dead(config, &["show", "second"]).await;
    assert_eq!(page.code, Some(0), "{}", page.errors);
    for line in [
        "instance    i-gone0002",
        "to replay   reveille dead replay second",
        "  x-reveille-reason: not_found",
        r#"{"instance_id":"i-gone0002","labels":{"evil":"\u001b[2J"}}"#,
    ] {
        assert!(page.output.lines().any(|there| there == line), "{line}: {}", page.output);
    }
    let page = dead(config, &["show", "--reason", "unreadable", "--output", "json"]).await;
    let object: Value = serde_json::from_str(&page.output).unwrap();
    assert_eq!((&object["letter"]["job_id"], &object["body"]), (&json!("third"), &json!(r#"{"instance_id":"web-1"}"#)));
    assert!(object["problem"].as_str().unwrap().contains("is no instance id"), "{object}");
    let page = dead(config, &["show", "fifth"]).await;
    assert_eq!((page.code, page.output.as_str()), (Some(1), ""), "{}", page.errors);

    let left: Vec<String> = stage.dead().await.iter().map(id).collect();
    assert_eq!(left, ids, "none was taken out, and each is where it was");
}

#[tokio::test]
async fn a_replay_is_a_new_job_that_names_the_old_one_and_ends_for_itself() {
    let mut stage = Stage::set().await;
    stage.job("old", json!({"instance_id": "i-gone0001", "batch_id": "morning", "labels": {"team": "ops"}})).await;
    stage.outcome().await;
    let try_it = dead(&stage.daemon.config, &["replay", "--dry-run"]).await;
    assert_eq!(try_it.code, Some(0), "{}", try_it.errors);
    assert_eq!(try_it.errors, "1 dead letter would be replayed, of 1\n");
    let ran = dead(&stage.daemon.config, &["replay", "old"]).await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), "1 dead letter replayed, of 1\n"));
    assert_eq!(ran.output, try_it.output, "the new id is told beforehand");
    let words: Vec<&str> = ran.output.split_whitespace().collect();
    assert_eq!((words[0], words[1], words[3]), ("old", "as", "i-gone0001"));
    let again = stage.outcome().await;
    assert_eq!(
        (&again["job_id"], &again["reason"], &again["batch_id"]),
        (&json!(words[2]), &json!("not_found"), &json!("morning"))
    );
    assert_eq!((&again["attempts"], &again["labels"]), (&json!(1), &json!({"team": "ops"})));

    // It failed again: its letter names the job that it was a replay of, and the next replay names that one.
    let letters = listed(&stage.daemon.config, &[]).await;
    assert_eq!((letters.len(), &letters[0]["job_id"], &letters[0]["replay_of"]), (1, &json!(words[2]), &json!("old")));
    assert_eq!(dead(&stage.daemon.config, &["replay"]).await.code, Some(0));
    stage.outcome().await;
    let letters = stage.dead().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(text(&letters[0], "x-reveille-replay-of").as_deref(), Some(words[2]));
}

#[tokio::test]
async fn what_cannot_be_replayed_is_said_and_stays() {
    let stage = at_rest(None).await;
    let (now, config) = (Timestamp::now(), &stage.daemon.config);
    put(&stage.queues, 1..=1, "exhausted", now, &json!({"deadline": now - 1.hour()})).await;
    put(&stage.queues, 2..=2, "exhausted", now, &json!({"priority": "urgent", "extra": 1})).await;
    stage
        .queues
        .publish("reveille.jobs", "other", BasicProperties::default(), br#"{"instance_id":"i-sim00003"}"#)
        .await;
    stage.queues.publish("", DEAD, BasicProperties::default(), b"noise").await;
    let ran = dead(config, &["replay"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    for line in [
        "1 dead letter replayed, of 4",
        "1 dead letter, j-00001 for one, not replayed: their deadline has passed; give them another one with --deadline",
        "1 dead letter, not replayed: their lane has no queues",
        "1 dead letter, not replayed: they are no jobs, and would be rejected again",
    ] {
        assert!(ran.errors.lines().any(|there| there.starts_with(line)), "{line}: {}", ran.errors);
    }
    assert_eq!(listed(config, &[]).await.len(), 3);
    let urgent = stage.queues.take_all("reveille.urgent.prod").await;
    assert_eq!((urgent.len(), text(&urgent[0], "x-reveille-replay-of").as_deref()), (1, Some("j-00002")));
    assert_eq!(text(&urgent[0], "x-reveille-outcome"), None, "it is no dead letter any more");

    for (deadline, problem) in [("soon", "is no time"), ("07:30", "add --tz"), ("2020-01-01T00:00:00Z", "is past")] {
        let ran = dead(config, &["replay", "--deadline", deadline]).await;
        assert_eq!(ran.code, Some(2));
        assert!(ran.errors.contains(problem), "{}", ran.errors);
    }
    let ran = dead(config, &["replay", "j-00001", "--deadline", "30m"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let jobs = stage.queues.take_all("reveille.jobs.prod").await;
    let body: Value = serde_json::from_slice(&jobs[0].data).unwrap();
    let deadline: Timestamp = body["deadline"].as_str().unwrap().parse().unwrap();
    assert!(deadline > now + 29.minutes() && deadline < now + 1.hour(), "{deadline}");
    assert_eq!(listed(config, &[]).await.len(), 2);
}

/// Answers a question on a terminal.
async fn answer(config: &Config, arguments: &[&str], answer: &str) -> Ran {
    let mut terminal = on_a_terminal(&config.command(&[&["dead"], arguments].concat()));
    let answer = format!("{answer}\n");
    tokio::task::spawn_blocking(move || {
        let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
        child.stdin.as_mut().expect("a pipe").write_all(answer.as_bytes()).expect("it reads");
        let ran = child.wait_with_output().expect("it ends");
        Ran { code: ran.status.code(), output: String::from_utf8(ran.stdout).expect("UTF-8"), errors: String::new() }
    })
    .await
    .expect("no panic")
}

#[tokio::test]
async fn only_what_is_meant_is_discarded_and_only_once_that_is_confirmed() {
    let stage = at_rest(None).await;
    let (now, config) = (Timestamp::now(), &stage.daemon.config);
    // Of many windows: the others keep their order around them.
    put(&stage.queues, 0..300, "not_found", now, &json!({})).await;
    put(&stage.queues, 300..400, "exhausted", now - 3.hours(), &json!({})).await;
    put(&stage.queues, 400..500, "not_found", now, &json!({})).await;
    let left = |without: &[(usize, usize)]| -> Vec<String> {
        let is_left = |number: &usize| !without.iter().any(|(from, to)| (from..to).contains(&number));
        (0..500).filter(is_left).map(|number| format!("j-{number:05}")).collect()
    };

    let ran = dead(config, &["discard", "--older-than", "1h"]).await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.errors.contains("--yes discards, --dry-run counts"), "{}", ran.errors);
    let ran = dead(config, &["discard", "--older-than", "1h", "--dry-run"]).await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), "100 dead letters would be discarded, of 500\n"));
    assert_eq!(jobs_listed(config, &[]).await, left(&[]));
    let ran = dead(config, &["discard", "--older-than", "1h", "--yes"]).await;
    assert_eq!((ran.code, ran.errors.as_str()), (Some(0), "100 dead letters discarded, of 500\n"));
    assert_eq!(jobs_listed(config, &[]).await, left(&[(300, 400)]));

    let filter = ["discard", "--reason", "not_found", "j-00007", "j-00009"];
    let ran = answer(config, &filter, "no").await;
    assert!(ran.output.contains("2 dead letters of 400 would be deleted for good"), "{}", ran.output);
    assert!(ran.code == Some(1) && ran.output.contains("nothing was discarded"), "{}", ran.output);
    assert_eq!(jobs_listed(config, &[]).await, left(&[(300, 400)]));
    let ran = answer(config, &filter, "yes").await;
    assert!(ran.code == Some(0) && ran.output.contains("2 dead letters discarded, of 400"), "{}", ran.output);
    let rest: Vec<String> = stage.dead().await.iter().map(id).collect();
    assert_eq!(rest, left(&[(300, 400), (7, 8), (9, 10)]));
}

#[tokio::test]
async fn a_second_terminal_is_told_of_the_first() {
    let stage = at_rest(None).await;
    put(&stage.queues, 1..=3, "not_found", Timestamp::now(), &json!({})).await;
    let other = Queues::connect(&stage.vhost.url).await;
    let channel = other.connection.create_channel().await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("reveille.dead.lock".into(), exclusive, FieldTable::default()).await.unwrap();
    for arguments in [&["list"][..], &["show"], &["replay"], &["discard", "--yes"]] {
        let ran = dead(&stage.daemon.config, arguments).await;
        assert_eq!((ran.code, ran.output.as_str()), (Some(1), ""), "{}", ran.errors);
        assert!(ran.errors.contains("are being read by another `reveille dead` just now"), "{}", ran.errors);
    }
    other.connection.close(200, "done".into()).await.unwrap();
    eventually("the lock is gone with its connection", async || {
        (dead(&stage.daemon.config, &["list"]).await.code == Some(0)).then_some(())
    })
    .await;
    assert_eq!(stage.dead().await.len(), 3);
}

/// The replays that wait to be taken: the old id of each, and its own.
async fn replayed(queues: &Queues) -> Vec<(String, String)> {
    let old = |job: &Delivery| text(job, "x-reveille-replay-of").expect("a replay");
    queues.take_all("reveille.jobs.prod").await.iter().map(|job| (old(job), id(job))).collect()
}

/// How often each letter was replayed, by its old id, and under how many ids; and the ids of the letters that are left.
async fn account(queues: &Queues) -> (BTreeMap<String, usize>, BTreeSet<(String, String)>, Vec<String>) {
    let mut replays: BTreeMap<String, usize> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for (old, new) in replayed(queues).await {
        *replays.entry(old.clone()).or_default() += 1;
        ids.insert((old, new));
    }
    (replays, ids, queues.take_all(DEAD).await.iter().map(id).collect())
}

const MANY: usize = 1500;

/// Asserts that every letter was replayed once or twice, always under the same id, and none is left.
async fn all_replayed(queues: &Queues) {
    let (replays, ids, left) = account(queues).await;
    assert_eq!((replays.len(), ids.len(), left.len()), (MANY, MANY, 0));
    assert!(replays.values().all(|times| *times <= 2), "{replays:?}");
}

/// Waits until a replay has begun, and is not done.
async fn begun(replaying: &Child) {
    eventually("some are replayed", async || (replaying.output().lines().count() > 20).then_some(())).await;
}

#[tokio::test]
async fn a_replay_that_loses_the_broker_loses_no_job_and_is_repeated_under_the_same_ids() {
    let mut stage = at_rest(Some(Vhost::alone())).await;
    put(&stage.queues, 0..MANY, "exhausted", Timestamp::now(), &json!({})).await;
    let node = stage.vhost.url.rsplit_once('/').unwrap().0.to_owned();
    let proxy = Proxy::before(&[&node]).await;
    let wishes = Wishes::default();
    let through = Config::write(&config(&format!("{}/{}", proxy.url, stage.vhost.name), &stage.sim.url(), &wishes));
    proxy.flow(Flow::Swift);
    let mut replaying = Child::start(through.command(&["dead", "replay"]));
    begun(&replaying).await;
    proxy.cut();
    let code = replaying.ended().await.code();
    let output = replaying.output();
    // On a quick machine it is done already; then nothing was cut.
    if code == Some(69) {
        assert!(output.contains("the connection to RabbitMQ is lost"), "{output}");
    } else {
        assert_eq!(code, Some(0), "{output}");
    }
    // The same once more, with the broker itself killed.
    let mut replaying = Child::start(stage.daemon.config.command(&["dead", "replay"]));
    if code == Some(69) {
        eventually("it goes on", async || (!replaying.output().is_empty()).then_some(())).await;
    }
    let node = std::sync::Arc::get_mut(&mut stage.vhost.node).expect("the node is this test's alone");
    node.kill();
    node.restart();
    replaying.ended().await;
    let queues = Queues::connect(&stage.vhost.url).await;
    let mut ids = BTreeSet::new();
    // A node that was killed puts back what was held a while after it runs again, and does not show it until then. So the first
    // replay may see but some of the letters; none is lost.
    eventually("all are replayed", async || {
        let ran = dead(&stage.daemon.config, &["replay"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.errors);
        ids.extend(replayed(&queues).await);
        let old: BTreeSet<&String> = ids.iter().map(|(old, _)| old).collect();
        (old.len() == MANY).then_some(())
    })
    .await;
    assert_eq!(ids.len(), MANY, "each under one id: {output}");
    assert_eq!(dead(&stage.daemon.config, &["replay"]).await.code, Some(0));
    queues.has(DEAD, 0, 0).await;
}

#[tokio::test]
async fn a_replay_that_is_left_or_killed_loses_no_job_and_goes_on_with_the_next() {
    let stage = at_rest(None).await;
    put(&stage.queues, 0..MANY, "exhausted", Timestamp::now(), &json!({})).await;
    let mut replaying = Child::start(stage.daemon.config.command(&["dead", "replay"]));
    begun(&replaying).await;
    replaying.signal("INT");
    let code = replaying.ended().await.code();
    let output = replaying.output();
    assert!(code == Some(0) || (code == Some(130) && output.contains("those that were not replayed stay")), "{output}");
    let (left, _) = stage.queues.count(DEAD).await;
    let replayed = output.lines().filter(|line| line.contains(" as ")).count();
    assert_eq!(left as usize + replayed, MANY, "what was left is in the queue, and nothing twice: {output}");

    let mut replaying = Child::start(stage.daemon.config.command(&["dead", "replay"]));
    eventually("it goes on", async || (!replaying.output().is_empty()).then_some(())).await;
    replaying.signal("KILL");
    replaying.ended().await;
    eventually("the lock is gone", async || {
        (dead(&stage.daemon.config, &["replay"]).await.code == Some(0)).then_some(())
    })
    .await;
    all_replayed(&stage.queues).await;
}

#[tokio::test]
async fn a_long_queue_is_walked_in_bounded_memory_and_keeps_its_order() {
    let stage = at_rest(None).await;
    put(&stage.queues, 0..4000, "not_found", Timestamp::now(), &json!({})).await;
    let all: Vec<String> = (0..4000).map(|number| format!("j-{number:05}")).collect();
    for _ in 0..2 {
        let listed = jobs_listed(&stage.daemon.config, &[]).await;
        assert!(listed == all, "{} of {}, from {:?} on", listed.len(), all.len(), listed.first());
    }
    // Left in its middle, too.
    assert_eq!(jobs_listed(&stage.daemon.config, &["--instance", &instance(3500)]).await, [all[3500].clone()]);
    assert_eq!(dead(&stage.daemon.config, &["show", "j-02000"]).await.code, Some(0));
    let mut listing: Command = stage.daemon.config.command(&["dead", "list", "-n", "0"]);
    let mut listing = listing.stdout(Stdio::piped()).spawn().unwrap();
    // A reader that goes away ends it.
    drop(listing.stdout.take());
    tokio::task::spawn_blocking(move || listing.wait()).await.unwrap().unwrap();
    let left: Vec<String> = stage.dead().await.iter().map(id).collect();
    assert!(left == all, "{} of {}, from {:?} on", left.len(), all.len(), left.first());
}

#[tokio::test]
async fn without_a_queue_of_dead_letters_or_a_broker_that_is_said() {
    let (vhost, sim) = (crate::support::broker::vhost(), "http://127.0.0.1:1");
    let nothing = Config::write(&config(&vhost.url, sim, &Wishes::default()));
    let ran = dead(&nothing, &["list"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("it exists once `reveille run` has run there"), "{}", ran.errors);
    let nowhere = Config::write(&config("amqp://guest:guest@127.0.0.1:1/%2f", sim, &Wishes::default()));
    let ran = dead(&nowhere, &["list"]).await;
    assert_eq!(ran.code, Some(69), "{}", ran.errors);
    let ran = dead(&nothing, &["list", "--lane", "Prod"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
}
