//! A job that is done only when its instance runs: `confirm = "running"`.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::{Timestamp, ToSpan};
use lapin::BasicProperties;
use lapin::options::{QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::calls::{Call, LIST};
use crate::support::daemon::Daemon;
use crate::support::lossy::Lossy;
use crate::support::queues::{Queues, header};
use crate::support::sim::Sim;
use crate::support::stage::{LANE, Stage, Wishes, config};
use crate::support::{PATIENCE, broker, eventually, instance};

const RUNNING: &str = "confirm = \"running\"";
const PARKED: &str = r#"reveille_jobs_parked_total{cause="confirm",lane="prod"}"#;

fn polls(calls: &[Call]) -> impl Iterator<Item = &Call> {
    calls.iter().filter(|call| call.operation == "list_by_ids")
}

/// Polls that asked for this instance.
fn polls_of(calls: &[Call], instance: &str) -> usize {
    polls(calls).filter(|call| call.instances.iter().any(|one| one == instance)).count()
}

fn end(outcome: &Value) -> (&str, &str) {
    (outcome["outcome"].as_str().unwrap(), outcome["reason"].as_str().unwrap_or_default())
}

/// The events so far, in order, as far as one read shows: it ends if the broker is slow.
async fn events(url: &str) -> Vec<Value> {
    let log = Queues::connect(url).await.read_stream("reveille.outcomes.log", &mut 0).await;
    let events = log.iter().map(|message| serde_json::from_slice::<Value>(&message.data).unwrap());
    events.filter(|event| event["type"].as_str().unwrap().starts_with("io.reveille.instance.")).collect()
}

/// Every event, in order, once so many final ones are there.
async fn all_events(url: &str, finals: usize) -> Vec<Value> {
    eventually("the events are in the log", async || {
        let events = events(url).await;
        (events.iter().filter(|event| event["data"]["final"] == true).count() >= finals).then_some(events)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_instances_are_confirmed_with_tens_of_calls() {
    const JOBS: usize = 1_000;
    // Its starts should last.
    let lane = format!("rate = 50\nburst = 1\nconcurrency = 64\nbatch = 1\n{RUNNING}");
    let wishes = Wishes { fleet: "Stopped=1000", lane: &lane, sim: &["--boot-time", "8s"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let instances: Vec<String> = (1..=JOBS).map(instance).collect();
    stream::iter(&instances).for_each_concurrent(64, |instance| stage.wake(instance)).await;

    let mut said: BTreeMap<String, Vec<(String, bool, String)>> = BTreeMap::new();
    let mut ended = 0;
    while ended < JOBS {
        let event = stage.event().await;
        let data = &event["data"];
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let is_final = data["final"] == true;
        ended += usize::from(is_final);
        let told = (text(&data["outcome"]), is_final, text(&event["id"]));
        said.entry(text(&data["job_id"])).or_default().push(told);
    }
    for (job, said) in &said {
        let started = ("started".to_owned(), false, format!("{job}/start"));
        let running = ("running".to_owned(), true, format!("{job}/confirm"));
        assert_eq!(said, &[started, running]);
    }
    stage.all_acked().await;
    assert_eq!(stage.daemon.metric(r#"reveille_confirm_duration_seconds_count{lane="prod"}"#).await, 1_000.0);

    let calls = stage.sim.log().await;
    let asked: usize = polls(&calls).map(|call| call.instances.len()).sum();
    let last_start = calls.iter().rposition(|call| call.operation == "start").unwrap();
    let (during, count) = (polls(&calls[..last_start]).count(), polls(&calls).count());
    println!("{JOBS} instances: {count} polls for {asked} ids; {during} of {last_start} calls while starts waited");
    assert!(count <= 60, "{count} polls");
    assert_eq!(calls.len(), JOBS + count, "one start each, and nothing but polls beside");
    assert!(during > 0, "starts do not starve polls");
    assert!(during * 10 <= last_start, "polls took more than their share of a tenth");
}

/// Two lanes with nothing but different shares.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_starts_wait_polls_have_the_share_that_the_lane_gives_them() {
    let (few, many) = tokio::join!(polled_while_starts_wait(0.01), polled_while_starts_wait(0.25));
    println!("polls of all calls while starts waited: {few:?} with a share of 0.01, {many:?} with 0.25");
    assert!(few.0 > 0, "starts do not starve polls");
    assert!(few.0 * 40 <= few.1, "far beyond a hundredth: {few:?}");
    assert!(many.0 * 4 <= many.1, "beyond a quarter: {many:?}");
    assert!(many.0 >= few.0 * 2, "{many:?} and {few:?}");
}

/// How many polls were made until the last start, and calls in all, by a lane with that share.
async fn polled_while_starts_wait(share: f64) -> (usize, usize) {
    const BOOTING: usize = 250;
    const WAITING: usize = 250;
    // A small prefetch, so that polls are for few jobs and there are many of them.
    let lane = format!("rate = 20\nburst = 1\nconcurrency = 4\nbatch = 1\nconfirm_share = {share}");
    let fleet = format!("Stopped={}", BOOTING + WAITING);
    let wishes = Wishes { fleet: &fleet, lane: &lane, sim: &["--boot-time", "1h"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    for (numbers, confirm) in [(1..=BOOTING, "running"), (BOOTING + 1..=BOOTING + WAITING, "accepted")] {
        let job = async |number| {
            stage.job(&instance(number), json!({"instance_id": instance(number), "confirm": confirm})).await
        };
        stream::iter(numbers).for_each_concurrent(64, job).await;
    }
    stage.outcomes(WAITING).await;
    let calls = stage.sim.log().await;
    let last_start = calls.iter().rposition(|call| call.operation == "start").unwrap();
    (polls(&calls[..last_start]).count(), last_start)
}

#[tokio::test]
async fn an_instance_that_falls_back_or_goes_is_reported_by_the_next_poll() {
    // Long after the first poll, so that each is seen starting.
    let wishes = Wishes { lane: RUNNING, sim: &["--boot-time", "20s"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    for (instance, end) in
        [(instance(1), "Stopped"), (instance(2), "Error"), (instance(3), "Running"), (instance(4), "Deleted")]
    {
        stage.sim.set_instance(&instance, json!({"status": "Stopped", "boots_into": end})).await;
        stage.wake(&instance).await;
    }
    let outcomes = stage.outcomes(4).await;
    assert_eq!(end(&outcomes[&instance(3)]), ("running", ""));
    let calls = stage.sim.log().await;
    for instance in [instance(1), instance(2), instance(4)] {
        let outcome = &outcomes[&instance];
        assert_eq!(end(outcome), ("failed", "not_running"), "{outcome}");
        assert!(outcome["error_message"].as_str().unwrap().contains("its start was accepted"), "{outcome}");
        let started = calls.iter().find(|call| call.instance == instance).unwrap().unix_micros;
        let fell = started + 20_000_000;
        let after: Vec<Call> = calls.iter().filter(|call| call.unix_micros >= fell).cloned().collect();
        assert_eq!(polls_of(&after, &instance), 1, "the first poll that could see it");
        assert!(polls_of(&calls, &instance) > 1, "it was seen starting before");
    }

    // Put back under a new id, with all headers, a dead letter is started, not polled where it was given up.
    stage.all_acked().await;
    let dead = stage.dead().await;
    assert_eq!(dead.len(), 3);
    stage.sim.set_status(&instance(2), "Stopped").await;
    let letter = dead.iter().find(|letter| header(&letter.properties, "x-reveille-error-message").contains("Error"));
    let letter = letter.expect("that of the one that went to Error");
    let properties = letter.properties.clone().with_message_id("again".into());
    stage.queues.publish("reveille.jobs", LANE, properties, &letter.data).await;
    assert_eq!(end(&stage.outcome().await), ("running", ""));
    assert_eq!(stage.sim.instance(&instance(2)).await["starts"], 2);
}

#[tokio::test]
async fn an_instance_that_takes_too_long_has_failed() {
    let lane = format!("{RUNNING}\nconfirm_timeout = \"7s\"");
    let mut stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    stage.sim.set_instance(&instance(1), json!({"status": "Stopped", "hold": true})).await;
    stage.wake(&instance(1)).await;
    let outcome = stage.outcome().await;
    assert_eq!(end(&outcome), ("failed", "not_running_in_time"), "{outcome}");
    assert_eq!(outcome["ambiguous"], false, "it was seen not to run");
    stage.all_acked().await;
    assert_eq!(stage.dead().await.len(), 1);
}

/// It may run: the state is unknown.
#[tokio::test]
async fn where_states_are_not_told_the_timeout_ends_the_job_and_says_why() {
    let lane = format!("{RUNNING}\nconfirm_timeout = \"7s\"");
    let mut stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "AccessDenied"}, "operations": ["list_by_ids"]}])).await;
    stage.wake(&instance(1)).await;
    let outcome = stage.outcome().await;
    assert_eq!(end(&outcome), ("failed", "not_running_in_time"), "{outcome}");
    assert_eq!((&outcome["ambiguous"], &outcome["http_status"]), (&json!(true), &json!(403)));
    assert!(stage.daemon.child.output().contains("states cannot be listed"), "and the log says so");
    stage.daemon.never_paused().await;
    let lists = stage.sim.wire().await.into_iter().filter(|call| call.operation == LIST).count();
    // That of the keys as the lane was taken.
    assert_eq!(lists, 1, "starts are allowed all the same, so none is made to end a pause");
}

#[tokio::test]
async fn polls_that_fail_decide_nothing() {
    let lane = format!("timeout = \"5s\"\n{RUNNING}");
    let mut stage = Stage::with(Wishes { fleet: "Stopped=3", lane: &lane, ..Wishes::default() }).await;
    let script = json!([{"status": 503}, {"status": 429}, "hang-before", "normal"]);
    for instance in [instance(1), instance(2), instance(3)] {
        stage.wake(&instance).await;
    }
    eventually("all are started", async || (stage.daemon.metric(PARKED).await >= 3.0).then_some(())).await;
    stage.sim.script("*", script).await;
    for outcome in stage.outcomes(3).await.into_values() {
        assert_eq!(end(&outcome), ("running", ""), "{outcome}");
    }
    let calls = stage.sim.log().await;
    let answers: Vec<_> = polls(&calls).map(|call| call.status).collect();
    assert!(answers[..3] == [Some(503), Some(429), None], "{answers:?}");
    assert_eq!(calls.iter().filter(|call| call.operation == "start").count(), 3, "nothing is started twice");
}

#[tokio::test]
async fn a_pause_ends_no_job_that_waits_for_its_instance() {
    let lane = format!("{RUNNING}\nconfirm_timeout = \"8s\"");
    let mut stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    for number in 1..=20 {
        stage.wake(&instance(number)).await;
    }
    eventually("all are started", async || (stage.daemon.metric(PARKED).await >= 20.0).then_some(())).await;
    stage.sim.faults(json!([{"fault": {"status": 403, "code": "InvalidAccessKeyId"}}])).await;
    eventually("a poll finds it out", async || {
        (stage.daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await == 1.0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    stage.sim.faults(json!([])).await;
    for outcome in stage.outcomes(20).await.into_values() {
        assert_eq!(end(&outcome), ("running", ""), "its time passed while nobody could look: {outcome}");
    }
}

/// Jobs for a fleet that takes long to boot, on a lane that can change hands meanwhile.
struct Booting {
    stage: Stage,
    account: Account,
    /// Polls so far.
    seen: usize,
}

impl Booting {
    const JOBS: usize = 200;

    async fn begin() -> Self {
        let lane = format!("rate = 100\n{RUNNING}");
        let fleet = format!("Stopped={}", Self::JOBS);
        let wishes = Wishes { fleet: &fleet, lane: &lane, sim: &["--boot-time", "25s"], ..Wishes::default() };
        let stage = Stage::with(wishes).await;
        let mut account = Account::open(&stage.vhost.url).await;
        account.submit((1..=Self::JOBS).map(instance), json!({})).await;
        Self { stage, account, seen: 0 }
    }

    /// Waits for further polls: the answer to the last of them is on its way, or was just read.
    async fn polled(&mut self) {
        self.seen = eventually("polls are made", async || {
            let count = polls(&self.stage.sim.log().await).count();
            (count > self.seen).then_some(count)
        })
        .await;
    }

    /// Waits until each job has ended, and each instance was started once.
    async fn end(&mut self) {
        assert_eq!(self.account.close(PATIENCE * 2).await, [("running".to_owned(), Self::JOBS)].into());
        self.stage.sim.every_machine_started_once(Self::JOBS).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_confirm_phase_loses_no_job_and_each_ends_once() {
    let mut booting = Booting::begin().await;
    for _ in 0..2 {
        booting.polled().await;
        booting.stage.daemon.kill().await;
        booting.stage.daemon.start_again();
    }
    booting.end().await;
}

/// One replica after the other is stopped while jobs wait for their instances, and the next goes on polling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_changes_hands_in_the_confirm_phase_starts_nothing_twice_and_each_job_ends_once() {
    let mut booting = Booting::begin().await;
    for _ in 0..2 {
        booting.polled().await;
        let next = Daemon::start(&std::fs::read_to_string(&booting.stage.daemon.config.path).unwrap());
        next.ready().await;
        let mut last = std::mem::replace(&mut booting.stage.daemon, next);
        last.stop().await;
    }
    booting.end().await;
    let calls = booting.stage.sim.log().await;
    let starts = calls.iter().filter(|call| call.operation == "start").count();
    assert_eq!(starts, Booting::JOBS, "{} polls", polls(&calls).count());
}

/// A kill between the confirm of the parked copy and the ack of the original: one is polled, and the other would be
/// started again if its start had not been published.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_job_that_was_started_end_as_one_and_say_so_alike() {
    const JOBS: usize = 10;
    let sim = Sim::start(&["--fleet", "Stopped=10", "--boot-time", "3s"]);
    let vhost = broker::vhost();
    let broker = Lossy::before(&vhost.url).await;
    let wishes = Wishes { lane: RUNNING, ..Wishes::default() };
    let mut daemon = Daemon::start(&config(&broker.url, &sim.url(), &wishes));
    daemon.ready().await;
    let mut account = Account::open(&vhost.url).await;
    broker.acks.begin();
    account.submit((1..=JOBS).map(instance), json!({})).await;
    eventually("every job is parked, and its ack lost", async || {
        (daemon.metric(PARKED).await >= JOBS as f64 && broker.acks.count() >= JOBS).then_some(())
    })
    .await;
    daemon.kill().await;
    broker.cut();
    daemon.start_again();
    eventually("both copies of each end", async || {
        account.ended().await;
        (account.events >= 2 * JOBS).then_some(())
    })
    .await;
    assert_eq!(account.close(PATIENCE).await, [("running".to_owned(), JOBS)].into());
    let starts = sim.log().await.iter().filter(|call| call.operation == "start").count();
    assert_eq!(starts, JOBS, "what was said is read back, and no second start made");
    for event in all_events(&vhost.url, 2 * JOBS).await {
        let data = &event["data"];
        let phase = if data["final"] == true { "confirm" } else { "start" };
        assert_eq!(event["id"], format!("{}/{phase}", data["job_id"].as_str().unwrap()));
        assert_eq!(data["ambiguous"], false, "{event}");
    }
}

#[tokio::test]
async fn the_job_says_when_it_is_done_and_the_lane_where_it_does_not() {
    let wishes = Wishes { sim: &["--boot-time", "10s"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    // The deadline is for the start, which comes before it; the instance runs after it.
    let deadline = Timestamp::now() + 9.seconds();
    stage.job("running", json!({"instance_id": instance(1), "confirm": "running", "deadline": deadline})).await;
    stage.job("accepted", json!({"instance_id": instance(2), "confirm": "accepted"})).await;
    stage.job("default", json!({"instance_id": instance(3)})).await;
    let outcomes = stage.outcomes(3).await;
    assert_eq!(end(&outcomes["running"]), ("running", ""));
    assert_eq!((end(&outcomes["accepted"]), end(&outcomes["default"])), (("started", ""), ("started", "")));
}

/// Forged headers of the second phase make a job that is only polled, and its outcome is true.
#[tokio::test]
async fn a_forged_phase_starts_nothing_and_says_nothing_untrue() {
    let mut stage = Stage::set().await;
    stage.sim.set_status(&instance(1), "Running").await;
    for instance in [instance(1), "i-gone00001".to_owned()] {
        let mut headers = FieldTable::default();
        headers.insert("x-reveille-phase".into(), AMQPValue::LongString("confirm".into()));
        headers.insert("x-reveille-started-at".into(), AMQPValue::LongString("1970-01-01T00:00:00Z".into()));
        headers.insert("x-reveille-polls".into(), AMQPValue::LongLongInt(i64::MAX));
        let properties = BasicProperties::default().with_message_id(instance.as_str().into()).with_headers(headers);
        stage.message(properties, json!({"instance_id": instance}).to_string().as_bytes()).await;
    }
    let outcomes = stage.outcomes(2).await;
    assert_eq!(end(&outcomes[&instance(1)]), ("running", ""));
    assert_eq!(end(&outcomes["i-gone00001"]), ("failed", "not_running"));
    let calls = stage.sim.log().await;
    assert_eq!(calls.len(), polls(&calls).count(), "nothing is started: {calls:?}");
}

#[tokio::test]
async fn a_409_is_not_taken_for_running_before_the_instance_was_seen_to() {
    let lane = "confirm = \"running\"\nbatch = 1";
    let wishes = Wishes { lane, sim: &["--boot-time", "4s"], ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    stage.sim.set_status(&instance(1), "Running").await;
    for number in [2, 3] {
        stage.sim.set_instance(&instance(number), json!({"status": "Starting", "hold": true})).await;
    }
    stage.wake(&instance(1)).await;
    stage.wake(&instance(2)).await;
    stage.job(&instance(3), json!({"instance_id": instance(3), "conflict": "accept"})).await;
    // A start that succeeded without an answer.
    stage.sim.script(&instance(4), json!([{"status": 503, "when": "after"}])).await;
    stage.wake(&instance(4)).await;
    // They run once their 409 was judged.
    for (number, last) in [(2, "describe"), (3, "start")] {
        eventually("it is called", async || {
            stage.sim.operations(&instance(number)).await.iter().any(|operation| operation == last).then_some(())
        })
        .await;
        stage.sim.set_status(&instance(number), "Running").await;
    }
    let outcomes = stage.outcomes(4).await;
    let ends: Vec<_> = outcomes.values().map(|outcome| (end(outcome).0, outcome["ambiguous"] == true)).collect();
    assert_eq!(ends, [("already_done", false), ("running", false), ("running", false), ("running", true)]);
    let said = all_events(&stage.vhost.url, 4).await;
    let started: Vec<_> = said.iter().filter(|event| event["data"]["final"] == false).collect();
    assert_eq!(started.len(), 1, "only one start was of our doing: {started:?}");
    assert_eq!((&started[0]["data"]["job_id"], &started[0]["data"]["ambiguous"]), (&json!(instance(4)), &json!(true)));
}

/// A crash in between must not leave a running instance without a `started` event.
#[tokio::test]
async fn the_job_goes_on_only_once_its_start_was_said() {
    let mut stage = Stage::with(Wishes { lane: RUNNING, ..Wishes::default() }).await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let log = "reveille.outcomes.log";
    // A foreign queue instead of the log, so that the daemon cannot declare and bind its own again.
    channel.queue_delete(log.into(), QueueDeleteOptions::default()).await.unwrap();
    channel.queue_declare(log.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let unbound = ("reveille.outcomes", "prod.*");
    let events = stage.events_queue();
    channel.queue_unbind(events.clone(), unbound.0.into(), unbound.1.into(), FieldTable::default()).await.unwrap();

    stage.wake(&instance(1)).await;
    eventually("the event is refused", async || {
        stage.daemon.child.output().contains("no queue takes messages").then_some(())
    })
    .await;
    assert_eq!(stage.daemon.metric(PARKED).await, 0.0, "it is not parked");
    assert_eq!(stage.daemon.metric(r#"reveille_jobs_in_flight{lane="prod"}"#).await, 1.0, "and not acked");
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(events, unbound.0.into(), unbound.1.into(), options, none).await.unwrap();
    assert_eq!(stage.event().await["data"]["outcome"], "started");
    assert_eq!(end(&stage.outcome().await), ("running", ""));
    stage.all_acked().await;
}

#[tokio::test]
async fn the_reply_is_the_last_word_and_submit_waits_for_it() {
    let stage = Stage::set().await;
    let mut replies = stage.queues.listen("", "").await;
    let properties =
        BasicProperties::default().with_message_id("asked".into()).with_reply_to(replies.queue().to_string().into());
    let body = json!({"instance_id": instance(1), "confirm": "running"}).to_string();
    stage.message(properties, body.as_bytes()).await;
    let mut command =
        stage.daemon.config.command(&["submit", "--lane", "prod", "--confirm", "running", "--wait", &instance(2)]);
    let ran = tokio::task::spawn_blocking(move || command.output().expect("it runs")).await.expect("no panic");
    let output = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && output.contains("running") && !output.contains("started"), "{output}");
    let reply = tokio::time::timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap();
    let event: Value = serde_json::from_slice(&reply.data).unwrap();
    assert_eq!(event["data"]["outcome"], "running");
}

/// Another replica takes the lane before that end is published, and the job goes on there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_never_said_is_not_said_once_the_job_went_on_elsewhere() {
    let vhost = broker::vhost();
    let sim = Sim::start(&["--fleet", "Stopped=1", "--boot-time", "12s"]);
    let broker = Lossy::before(&vhost.url).await;
    let wishes = Wishes { lane: RUNNING, retry: "max_attempts = 1", ..Wishes::default() };
    let start = async |broker: &str| {
        let daemon = Daemon::start(&config(broker, &sim.url(), &wishes));
        daemon.ready().await;
        daemon
    };
    let one = start(&broker.url).await;
    one.takes_the_lane().await;
    let other = start(&vhost.url).await;

    broker.ends.begin();
    sim.script(&instance(1), json!([{"status": 500}])).await;
    let properties = BasicProperties::default().with_message_id(instance(1).into());
    let queues = Queues::connect(&vhost.url).await;
    queues.publish("reveille.jobs", LANE, properties, json!({"instance_id": instance(1)}).to_string().as_bytes()).await;
    other.takes_the_lane().await;
    let started = async || events(&vhost.url).await.iter().any(|event| event["data"]["final"] == false).then_some(());
    eventually("it is started", started).await;
    assert_eq!(broker.ends.count(), 1, "another end was decided before");
    broker.ends.end();
    one.ready().await;
    other.child.signal("TERM");
    one.takes_the_lane().await;
    let ended = async || events(&vhost.url).await.into_iter().find(|event| event["data"]["final"] == true);
    let end_of_it = eventually("it ends", ended).await;
    assert_eq!(end(&end_of_it["data"]), ("running", ""), "{end_of_it}");
}
