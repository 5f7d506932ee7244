//! Waves of a batch, and `submit --ramp`: each wave starts when the one before has ended, whatever becomes of terminals, replicas
//! and brokers.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use serde_json::{Value, json};

use crate::support::child::{Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::queues::Queues;
use crate::support::scene::Scene;
use crate::support::sim::Sim;
use crate::support::stage::{LANE, Stage, Wishes, config};
use crate::support::{broker, eventually, instance};

const CONTROL: &str = "reveille.control";
const HELD: &str = "reveille_scheduler_held";
const WAITED: &str = r#"reveille_jobs_parked_total{cause="wave",lane="prod"}"#;

/// `reveille submit` of these lines, which has to succeed.
async fn submit(config: &Config, batch: &str, arguments: &[&str], lines: &str) -> Ran {
    let submit = ["submit", "--lane", LANE, "--batch", batch, "--file", "-"];
    let ran = run(config.command(&[&submit, arguments].concat()), lines).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    ran
}

fn lines(numbers: std::ops::RangeInclusive<usize>) -> String {
    numbers.map(|number| instance(number) + "\n").collect()
}

/// A table in which so many machines are of each of these waves.
fn table(waves: &[usize], each: usize) -> String {
    let rows = waves.iter().enumerate().flat_map(|(place, wave)| {
        (1..=each).map(move |number| format!("{},{wave}\n", instance(place * each + number)))
    });
    std::iter::once("instance_id,wave\n".to_owned()).chain(rows).collect()
}

/// A job of a wave, as a line.
fn wave_of(number: usize, wave: u32) -> String {
    format!("{{\"instance_id\":\"{}\",\"wave\":{wave}}}\n", instance(number))
}

/// Has RabbitMQ refuse all commands about batches until the queue `full` is deleted.
async fn refuse_commands(queues: &Queues) -> Channel {
    let channel = queues.connection.create_channel().await.unwrap();
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare("full".into(), QueueDeclareOptions::durable(), full).await.unwrap();
    let (key, none) = ("command.batch.#".into(), FieldTable::default());
    channel.queue_bind("full".into(), CONTROL.into(), key, QueueBindOptions::default(), none).await.unwrap();
    channel
}

/// The jobs that ended by the log of outcomes, by instance: the wave of each, and its end in microseconds.
async fn ended(url: &str) -> BTreeMap<String, (u64, i64, String)> {
    let mut ended = BTreeMap::new();
    for message in Queues::connect(url).await.read_stream("reveille.outcomes.log", &mut 0).await {
        let Ok(event) = serde_json::from_slice::<Value>(&message.data) else { continue };
        let data = &event["data"];
        if data["final"] == true {
            let at: Timestamp = data["finished_at"].as_str().unwrap().parse().unwrap();
            let instance = data["instance_id"].as_str().unwrap().to_owned();
            let outcome = data["outcome"].as_str().unwrap().to_owned();
            // Copies of an event follow it.
            ended.entry(instance).or_insert((data["wave"].as_u64().unwrap_or(1), at.as_microsecond(), outcome));
        }
    }
    ended
}

/// Asserts that no call to start a machine was made before all jobs of the waves before had ended, and returns those that ended.
async fn in_order(sim: &Sim, url: &str) -> BTreeMap<String, (u64, i64, String)> {
    let ended = ended(url).await;
    for call in sim.log().await.into_iter().filter(|call| call.operation == "start") {
        let (wave, ..) = ended[&call.instance];
        let early = ended.values().filter(|(before, end, _)| *before < wave && *end > call.unix_micros);
        assert_eq!(early.count(), 0, "{} of wave {wave} was called too early: {call:?}", call.instance);
    }
    ended
}

fn outcomes(ended: &BTreeMap<String, (u64, i64, String)>, outcome: &str) -> usize {
    ended.values().filter(|(.., other)| other == outcome).count()
}

/// Waits for the completion of this batch in the log.
async fn completed(url: &str, batch: &str) -> Value {
    let queues = Queues::connect(url).await;
    eventually("the batch is completed", async || {
        let all = queues.read_stream("reveille.outcomes.log", &mut 0).await;
        let mut done =
            all.iter().filter(|message| message.routing_key.as_str() == "prod.completed").filter_map(|message| {
                let event: Value = serde_json::from_slice(&message.data).ok()?;
                (event["data"]["batch_id"] == batch).then(|| event["data"].clone())
            });
        done.next()
    })
    .await
}

#[tokio::test]
async fn a_ramp_takes_each_step_once_the_one_before_is_up_and_needs_no_terminal() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=15", ..Wishes::default() }).await;
    let ran = submit(&stage.daemon.config, "patched", &["--ramp"], &lines(1..=15)).await;
    let told = "15 jobs submitted to lane prod as batch patched, in 4 waves of 1, 2, 4, 8 jobs";
    assert!(ran.errors.contains(told), "{}", ran.errors);
    let announced = stage.event().await;
    let waves = json!({"1": 1, "2": 2, "3": 4, "4": 8});
    let expected = json!({"batch_id": "patched", "size": 15, "lane": "prod", "max_failures": 0, "waves": waves});
    assert_eq!(announced["data"], expected);
    let ends = stage.outcomes(15).await;
    assert!(ends.values().all(|end| end["outcome"] == "running"), "{ends:?}");
    let ended = in_order(&stage.sim, &stage.vhost.url).await;
    let waves: Vec<u64> = ended.values().map(|(wave, ..)| *wave).collect();
    assert_eq!(waves, [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4], "in the order of the input");
    stage.sim.every_machine_started_once(15).await;
    assert_eq!(completed(&stage.vhost.url, "patched").await["up"], 15);
    stage.all_acked().await;
    let watched = run(stage.daemon.config.command(&["watch", "patched"]), "").await;
    assert_eq!(watched.code, Some(0), "{}", watched.errors);
}

#[tokio::test]
async fn a_ramp_stops_at_the_first_step_that_fails() {
    let mut stage = Stage::set().await;
    let input = lines(1..=4) + "i-gone0001\n" + &lines(5..=14);
    submit(&stage.daemon.config, "patched", &["--ramp", "--confirm", "accepted"], &input).await;
    let ends = stage.outcomes(15).await;
    in_order(&stage.sim, &stage.vhost.url).await;
    for end in ends.values().filter(|end| end["wave"] == 4) {
        assert_eq!((&end["outcome"], &end["reason"]), (&json!("cancelled"), &json!("by_command")), "{end}");
        assert_eq!(end["error_message"], "cancelled by reveille scheduler: 1 job has failed, and max_failures is 0");
    }
    let calls = stage.sim.log().await.into_iter().filter(|call| call.operation == "start");
    let called: BTreeSet<String> = calls.map(|call| call.instance).collect();
    assert!(called.len() <= 7, "more than the first three steps: {called:?}");
    let completed = completed(&stage.vhost.url, "patched").await;
    assert!(completed["outcomes"]["failed"] == 1 && completed["outcomes"]["cancelled"].as_u64() >= Some(8));
}

#[tokio::test]
async fn waves_of_a_column_go_on_after_failures_in_ascending_order() {
    let stage = Stage::set().await;
    // The first of them is not 1, and they do not come in order.
    let rows = [(30, 3), (10, 1), (20, 2)]
        .map(|(wave, number)| format!("{},{wave}\ni-gone000{number},{wave}\n", instance(number)));
    let table = format!("instance_id,wave\n{}", rows.concat());
    let arguments = ["--format", "csv", "--dry-run", "--file", "-", "--batch", "morning"];
    let ran = run(stage.daemon.config.command(&[&["submit"][..], &arguments].concat()), &table).await;
    assert!(ran.output.contains("batch morning: in 3 waves of 2, 2, 2 jobs"), "{}", ran.output);
    submit(&stage.daemon.config, "morning", &["--format", "csv"], &table).await;
    let said = completed(&stage.vhost.url, "morning").await;
    assert_eq!((&said["up"], &said["outcomes"]), (&json!(3), &json!({"started": 3, "failed": 3})));
    let ended = in_order(&stage.sim, &stage.vhost.url).await;
    assert_eq!(ended[&instance(2)].0, 20);
}

#[tokio::test]
async fn a_name_that_is_used_again_waits_for_its_own_waves() {
    let stage = Stage::set().await;
    const SETTLE: i64 = 3;
    submit(&stage.daemon.config, "morning", &["--format", "csv"], &table(&[1, 2], 2)).await;
    completed(&stage.vhost.url, "morning").await;
    // The commands of before are known.
    let later = [(5, 1), (6, 2)].map(|(number, wave)| wave_of(number, wave)).concat();
    submit(&stage.daemon.config, "morning", &["--settle", &format!("{SETTLE}s")], &later).await;
    eventually("all are up", async || (ended(&stage.vhost.url).await.len() == 6).then_some(())).await;
    let (_, first, _) = ended(&stage.vhost.url).await[&instance(5)];
    let calls = stage.sim.log().await;
    let second = calls.iter().find(|call| call.operation == "start" && call.instance == instance(6)).expect("a call");
    assert!(second.unix_micros >= first + SETTLE * 1_000_000, "by a command of its own: {calls:?}");
}

#[tokio::test]
async fn the_same_ramp_again_while_it_waits_starts_nothing_twice_and_leaves_nothing_behind() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    for _ in 0..2 {
        submit(&stage.daemon.config, "patched", &["--ramp", "--confirm", "accepted"], &lines(1..=7)).await;
        // By its second, commands know an announcement.
        let second = Timestamp::now().as_second();
        eventually("the next second", async || (Timestamp::now().as_second() > second).then_some(())).await;
    }
    stage.queues.has("reveille.jobs.prod", 14, 0).await;
    stage.daemon.start_again();
    assert_eq!(completed(&stage.vhost.url, "patched").await["up"], 7);
    eventually("the copies have ended", async || {
        broker::jobs_left(&stage.vhost.url).values().all(|jobs| *jobs == 0).then_some(())
    })
    .await;
    in_order(&stage.sim, &stage.vhost.url).await;
    stage.sim.every_machine_started_once(7).await;
}

#[tokio::test]
async fn a_submission_says_that_later_waves_wait_where_no_replica_runs_the_scheduler() {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    // In its place, something that holds the lane alone.
    let channel = stage.queues.connection.create_channel().await.unwrap();
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let _holder = channel.basic_consume("reveille.baton.prod".into(), "".into(), options, none).await.unwrap();
    let told = "no replica runs the scheduler: waves after the first wait until one does";
    let ran = submit(&stage.daemon.config, "patched", &["--ramp"], &lines(1..=2)).await;
    assert!(ran.errors.contains(told), "{}", ran.errors);
    let ran = submit(&stage.daemon.config, "alone", &["--ramp"], &lines(3..=3)).await;
    assert!(!ran.errors.contains(told), "there is one wave: {}", ran.errors);
}

#[tokio::test]
async fn a_kill_of_the_replica_that_runs_the_scheduler_between_waves_costs_and_repeats_nothing() {
    const WAVES: [usize; 4] = [1, 2, 3, 4];
    const EACH: usize = 5;
    let vhost = broker::vhost();
    let sim = Sim::start(&["--fleet", &format!("Stopped={}", WAVES.len() * EACH)]);
    let config = config(&vhost.url, &sim.url(), &Wishes::default());
    let mut daemons: Vec<Daemon> = (0..2).map(|_| Daemon::start(&config)).collect();
    for daemon in &daemons {
        daemon.ready().await;
    }
    submit(&daemons[0].config, "morning", &["--format", "csv"], &table(&WAVES, EACH)).await;
    for wave in WAVES {
        eventually("a wave has ended", async || (ended(&vhost.url).await.len() >= wave * EACH).then_some(())).await;
        let holder = eventually("one runs the scheduler", async || {
            for (number, daemon) in daemons.iter().enumerate() {
                if daemon.metric(HELD).await == 1.0 {
                    return Some(number);
                }
            }
            None
        })
        .await;
        daemons[holder].kill().await;
        daemons[holder].start_again();
        daemons[holder].ready().await;
    }
    let said = completed(&vhost.url, "morning").await;
    assert_eq!((&said["size"], &said["up"]), (&json!(WAVES.len() * EACH), &json!(WAVES.len() * EACH)));
    let ended = in_order(&sim, &vhost.url).await;
    assert_eq!(outcomes(&ended, "started"), WAVES.len() * EACH);
    sim.every_machine_started_once(WAVES.len() * EACH).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_between_waves_costs_nothing() {
    const WAVES: [usize; 3] = [1, 2, 3];
    const EACH: usize = 4;
    let mut scene = Scene::set(WAVES.len() * EACH, Wishes::default()).await;
    submit(&scene.daemon.config, "morning", &["--format", "csv"], &table(&WAVES, EACH)).await;
    for wave in [1, 2] {
        scene.calls(wave * EACH).await;
        scene.node.kill();
        scene.node.restart();
        scene.daemon.ready().await;
    }
    assert_eq!(completed(&scene.node.url, "morning").await["up"], WAVES.len() * EACH);
    in_order(&scene.sim, &scene.node.url).await;
    scene.sim.every_machine_started_once(WAVES.len() * EACH).await;
}

#[tokio::test]
async fn a_wave_settles_before_the_next_one() {
    const SETTLE: i64 = 4;
    let mut stage = Stage::set().await;
    let arguments = ["--ramp", "--confirm", "accepted", "--settle", "4s"];
    submit(&stage.daemon.config, "patched", &arguments, &lines(1..=3)).await;
    assert_eq!(stage.event().await["data"]["settle_seconds"], SETTLE);
    stage.outcomes(3).await;
    let ended = in_order(&stage.sim, &stage.vhost.url).await;
    let (_, first, _) = ended[&instance(1)];
    for call in stage.sim.log().await.into_iter().filter(|call| call.operation == "start").skip(1) {
        assert!(call.unix_micros >= first + SETTLE * 1_000_000, "{call:?}");
    }
    for (wrong, told) in [
        (["--settle", "4s", "--urgent"], "--settle is the time between two waves, and there is one"),
        (["--settle", "25h", "--ramp"], "is longer than a day: expected 24h at most"),
        (["--settle", "soon", "--ramp"], "expected a length of time, such as 90s"),
    ] {
        let ran = run(stage.daemon.config.command(&[&["submit", "i-sim00004"][..], &wrong].concat()), "").await;
        assert!(ran.code == Some(2) && ran.errors.contains(told), "{}", ran.errors);
    }
}

fn start_wave(id: &str, wave: &Value, announced_at: &str) -> Vec<u8> {
    let data = json!({"batch_id": "morning", "lane": "prod", "wave": wave, "announced_at": announced_at, "by": "ops"});
    let command = json!({"specversion": "1.0", "id": id, "source": "/ops", "type": "io.reveille.batch.wave.v1",
                         "time": Timestamp::now(), "data": data});
    command.to_string().into_bytes()
}

#[tokio::test]
async fn what_is_no_wave_starts_nothing_and_a_right_command_does() {
    const ANNOUNCED: &str = "2026-11-25T07:30:00.25Z";
    let mut stage = Stage::set().await;
    for (id, wave) in
        [("zero", json!(0)), ("large", json!(4_294_967_296_u64)), ("text", json!("2")), ("minus", json!(-1))]
    {
        stage.job(id, json!({"instance_id": instance(1), "batch_id": "morning", "wave": wave})).await;
    }
    stage.job("alone", json!({"instance_id": instance(1), "wave": 2})).await;
    for (id, rejected) in stage.outcomes(5).await {
        assert_eq!(rejected["outcome"], "rejected", "{id}");
        assert!(rejected["error_message"].as_str().unwrap().contains("wave"), "{rejected}");
    }
    let announced: Timestamp = ANNOUNCED.parse().unwrap();
    let stamp = BasicProperties::default().with_timestamp(announced.as_second().try_into().unwrap());
    let job =
        |wave: u32, number| json!({"instance_id": instance(number), "batch_id": "morning", "wave": wave}).to_string();
    for (id, body) in [("last", job(u32::MAX, 1)), ("second", job(2, 2))] {
        stage.message(stamp.clone().with_message_id(id.into()), body.as_bytes()).await;
    }
    // Its message does not say when it was announced.
    stage.job("undated", serde_json::from_str(&job(2, 3)).unwrap()).await;
    stage.job("first", serde_json::from_str(&job(1, 4)).unwrap()).await;
    assert_eq!(stage.outcome().await["job_id"], "first");
    let mut applied = stage.queues.listen("reveille.outcomes", "_control.applied").await;
    for (number, wave) in
        [json!(0), json!(4_294_967_296_u64), json!(-1), json!("2"), json!(null), json!([2]), json!(2.5)]
            .iter()
            .enumerate()
    {
        let command = start_wave(&format!("bad-{number}"), wave, ANNOUNCED);
        stage.queues.publish(CONTROL, "command.batch.wave", BasicProperties::default(), &command).await;
    }
    let other = start_wave("yesterday", &json!(7), "2026-11-24T07:30:00Z");
    stage.queues.publish(CONTROL, "command.batch.wave", BasicProperties::default(), &other).await;
    let event: Value = serde_json::from_slice(&applied.next().await.unwrap().unwrap().data).unwrap();
    assert_eq!(event["data"]["command_id"], "yesterday", "none before it was a command");
    // Each of the three has looked again since.
    let before = stage.daemon.metric(WAITED).await;
    eventually("they wait", async || (stage.daemon.metric(WAITED).await >= before + 6.0).then_some(())).await;
    assert_eq!(stage.sim.log().await.len(), 1, "the first job's");
    let right = start_wave("right", &json!(2), ANNOUNCED);
    stage.queues.publish(CONTROL, "command.batch.wave", BasicProperties::default(), &right).await;
    let ended = stage.outcome().await;
    assert_eq!((&ended["job_id"], &ended["outcome"], &ended["wave"]), (&json!("second"), &json!("started"), &json!(2)));
    let ran = run(stage.daemon.config.command(&["cancel", "morning"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let ends = stage.outcomes(2).await;
    assert!(ends.values().all(|end| end["outcome"] == "cancelled"), "{ends:?}");
    assert!(ends.contains_key("last") && ends.contains_key("undated"));
}

#[tokio::test]
async fn a_deadline_passes_while_a_job_waits_for_its_wave() {
    let mut stage = Stage::set().await;
    // Its first wave has jobs that will not end here.
    let hours = |hours| Timestamp::now() + jiff::SignedDuration::from_hours(hours);
    let first = json!({"instance_id": instance(1), "not_before": hours(1), "deadline": hours(2)});
    let lines = format!("{first}\n{}", wave_of(2, 2));
    submit(&stage.daemon.config, "morning", &["--deadline", "4s"], &lines).await;
    let ended = stage.outcome().await;
    assert_eq!((&ended["outcome"], &ended["wave"]), (&json!("expired"), &json!(2)));
    assert_eq!(stage.sim.log().await.len(), 0);
}

#[tokio::test]
async fn a_job_that_has_waited_for_its_wave_for_thirty_days_fails_and_can_be_replayed() {
    let mut stage = Stage::set().await;
    let since = |days: i64| Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    for (id, number, days) in [("young", 1, 29), ("old", 2, 31)] {
        let mut headers = FieldTable::default();
        let seen = AMQPValue::LongString(since(days).to_string().into());
        headers.insert("x-reveille-received-at".into(), seen);
        let properties = BasicProperties::default().with_message_id(id.into()).with_headers(headers);
        let body = json!({"instance_id": instance(number), "batch_id": "morning", "wave": 2}).to_string();
        stage.message(properties, body.as_bytes()).await;
    }
    let ended = stage.outcome().await;
    assert_eq!(
        (&ended["job_id"], &ended["outcome"], &ended["reason"]),
        (&json!("old"), &json!("failed"), &json!("wave_not_started"))
    );
    assert_eq!(ended["error_message"], "its wave was not started within 30 days: replay it to start it now");
    assert_eq!(stage.sim.log().await.len(), 0);
    let ran = run(stage.daemon.config.command(&["dead", "replay"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let replayed = stage.outcome().await;
    assert_eq!((&replayed["replay_of"], &replayed["outcome"]), (&json!("old"), &json!("started")), "{replayed}");
    assert!(stage.daemon.metric(WAITED).await > 0.0, "the other one waits");
}

#[tokio::test]
async fn a_replay_counts_for_the_machine_that_failed_and_waits_for_no_wave() {
    let mut stage = Stage::with(Wishes { lane: "batch = 1", ..Wishes::default() }).await;
    stage.sim.script(&instance(2), json!([{"status": 404, "code": "NoSuchObject"}])).await;
    // So the second wave begins once that is wanted.
    let channel = refuse_commands(&stage.queues).await;
    let all = lines(1..=2) + &wave_of(3, 2);
    submit(&stage.daemon.config, "morning", &["--max-failures", "1"], &all).await;
    let ends = stage.outcomes(2).await;
    let failed = ends.values().find(|end| end["outcome"] == "failed").expect("one").clone();
    let ran = run(stage.daemon.config.command(&["dead", "replay"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let replayed = stage.outcome().await;
    assert_eq!((&replayed["outcome"], &replayed["replay_of"]), (&json!("started"), &failed["job_id"]));
    channel.queue_delete("full".into(), Default::default()).await.unwrap();
    assert_eq!(stage.outcome().await["instance_id"], instance(3));
    let said = completed(&stage.vhost.url, "morning").await;
    assert_eq!((&said["ended"], &said["up"], &said["outcomes"]), (&json!(3), &json!(3), &json!({"started": 3})));
    let watched = run(stage.daemon.config.command(&["watch", "morning"]), "").await;
    assert_eq!(watched.code, Some(0), "all are up: {}{}", watched.output, watched.errors);
}

#[tokio::test]
async fn a_part_of_a_batch_that_may_fail_is_of_all_that_was_announced() {
    let mut stage = Stage::set().await;
    let never =
        |number| format!("{{\"instance_id\":\"{}\",\"not_before\":\"9999-12-31T23:59:59Z\"}}\n", instance(number));
    let many: String = (1..=19).map(never).collect();
    submit(&stage.daemon.config, "morning", &["--max-failures", "10%"], &many).await;
    submit(&stage.daemon.config, "morning", &["--max-failures", "10%"], "i-gone0001\ni-gone0002\n").await;
    let ends = stage.outcomes(2).await;
    assert!(ends.values().all(|end| end["outcome"] == "failed"), "{ends:?}");
    submit(&stage.daemon.config, "after", &[], &lines(20..=20)).await;
    completed(&stage.vhost.url, "after").await;
    assert_eq!(stage.daemon.metric("reveille_batches_cancelled_total").await, 0.0, "2 of 21 may fail");
    submit(&stage.daemon.config, "morning", &["--max-failures", "10%"], "i-gone0003\n").await;
    eventually("3 of 22 may not", async || {
        (stage.daemon.metric("reveille_batches_cancelled_total").await == 1.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn commands_that_are_refused_hold_up_no_completion_and_are_given_once_they_are_taken() {
    let stage = Stage::set().await;
    let channel = refuse_commands(&stage.queues).await;
    let never = r#"{"instance_id":"i-sim00001","not_before":"9999-12-31T23:59:59Z"}"#;
    submit(&stage.daemon.config, "failing", &["--max-failures", "0"], &format!("{never}\ni-gone0001\n")).await;
    eventually("the command is refused", async || {
        stage.daemon.child.output().contains("command.batch.cancel").then_some(())
    })
    .await;
    submit(&stage.daemon.config, "other", &[], &lines(2..=3)).await;
    assert_eq!(completed(&stage.vhost.url, "other").await["up"], 2);
    assert_eq!(stage.daemon.metric("reveille_batches_cancelled_total").await, 0.0);
    channel.queue_delete("full".into(), Default::default()).await.unwrap();
    eventually("the command is given", async || {
        (stage.daemon.metric("reveille_batches_cancelled_total").await == 1.0).then_some(())
    })
    .await;
}
