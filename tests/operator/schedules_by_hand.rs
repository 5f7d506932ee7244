//! `reveille schedules run`, `pause` and `resume`, and where schedules show: `list`, `status`, `check`.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use lapin::BasicProperties;
use serde_json::{Value, json};

use crate::support::child::{Ran, run};
use crate::support::daemon::{Config, Daemon};
use crate::support::files::Folder;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{broker, eventually};

const HELD: &str = "reveille_scheduler_held";
const LOG: &str = "reveille.outcomes.log";
/// In the lane's table. No test waits until one of them is due.
const SCHEDULES: &str = r#"
[[schedule]]
name = "morning"
cron = "30 7 * * *"
timezone = "Asia/Shanghai"
instances = ["i-sim00001", "i-sim00002", "i-sim00003"]

[[schedule]]
name = "leap"
cron = "0 0 29 2 *"
timezone = "UTC"
instances = ["i-sim00004"]
"#;

async fn set() -> Stage {
    Stage::with(Wishes { lane: SCHEDULES, ..Wishes::default() }).await
}

async fn command(config: &Config, arguments: &[&str]) -> Ran {
    run(config.command(arguments), "").await
}

/// `reveille schedules …`, which has to succeed.
async fn schedules(config: &Config, arguments: &[&str]) -> Ran {
    let ran = command(config, &[&["schedules"], arguments].concat()).await;
    assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.errors);
    ran
}

/// The batch that `schedules run` tells of.
fn batch_of(ran: &Ran) -> String {
    let (_, rest) = ran.errors.split_once("submitted as batch ").unwrap_or_else(|| panic!("{}", ran.errors));
    rest.split(';').next().unwrap().to_owned()
}

/// What the log says with this routing key, in order.
async fn said(url: &str, key: &str) -> Vec<Value> {
    let log = Queues::connect(url).await.read_stream(LOG, &mut 0).await;
    let events = log.iter().filter(|message| message.routing_key.as_str() == key);
    events.map(|message| serde_json::from_slice::<Value>(&message.data).unwrap()["data"].clone()).collect()
}

/// How often a schedule was fired. Copies count.
async fn fires(url: &str, schedule: &str) -> usize {
    said(url, "prod.fired").await.iter().filter(|fired| fired["schedule"] == schedule).count()
}

/// Waits until this replica runs, and none beside it.
async fn alone(daemon: &Daemon, queues: &Queues) {
    daemon.ready().await;
    queues.has("reveille.replicas", 0, 1).await;
}

#[tokio::test]
async fn a_schedule_that_is_run_by_hand_submits_its_jobs_once_whatever_dies_afterwards() {
    let mut stage = set().await;
    let ran = schedules(&stage.daemon.config, &["run", "morning", "--as", "ops@desk", "--reason", "power"]).await;
    let batch = batch_of(&ran);
    assert!(batch.starts_with("morning-20") && batch.ends_with("+08:00"), "{batch}");
    assert!(ran.errors.contains(&format!("3 jobs submitted as batch {batch}; see `reveille watch {batch}`")));
    let ends = stage.outcomes(3).await;
    assert!(ends.values().all(|end| end["batch_id"] == batch && end["outcome"] == "started"), "{ends:?}");
    let fired = said(&stage.vhost.url, "prod.fired").await;
    let [fired] = &fired[..] else { panic!("{fired:?}") };
    assert_eq!((&fired["schedule"], &fired["by"], &fired["size"]), (&json!("morning"), &json!("ops@desk"), &json!(3)));
    assert!(fired["command_id"].is_string(), "{fired}");
    // The next holder reads the command again.
    stage.daemon.kill().await;
    stage.daemon.start_again();
    alone(&stage.daemon, &stage.queues).await;
    schedules(&stage.daemon.config, &["run", "leap"]).await;
    assert_eq!((fires(&stage.vhost.url, "morning").await, fires(&stage.vhost.url, "leap").await), (1, 1));
    assert_eq!(stage.outcome().await["instance_id"], "i-sim00004");
    stage.sim.every_machine_started_once(4).await;
    let list = schedules(&stage.daemon.config, &["list"]).await;
    assert!(list.output.contains("; run by ops@desk"), "{}", list.output);
}

#[tokio::test]
async fn a_run_as_of_a_due_time_has_its_ids_so_that_no_machine_is_started_again() {
    let mut stage = set().await;
    let zone = TimeZone::get("Asia/Shanghai").unwrap();
    let yesterday = zone.to_datetime(Timestamp::now() - 24.hours()).date();
    let as_of = format!("{yesterday}T07:30");
    let mut batches = Vec::new();
    for _ in 0..2 {
        let ran = schedules(&stage.daemon.config, &["run", "morning", "--as-of", &as_of]).await;
        batches.push(batch_of(&ran));
        if batches.len() == 1 {
            stage.outcomes(3).await;
        }
    }
    assert_eq!(batches, [format!("morning-{as_of}:00+08:00"), format!("morning-{as_of}:00+08:00")]);
    assert_eq!(fires(&stage.vhost.url, "morning").await, 2);
    stage.all_acked().await;
    stage.sim.every_machine_started_once(3).await;
    for (arguments, words) in [
        (&["run", "mornin"][..], &["there is no schedule \"mornin\"", "did you mean morning?"][..]),
        (&["pause", "lepa"], &["there is no schedule \"lepa\"", "leap"]),
        (&["resume", "\u{1b}[2J"], &["there is no schedule \"\\u{1b}[2J\""]),
        (
            &["run", "leap", "--as-of", "2028-03-01T00:00"],
            &[
                "is no due time of schedule leap: the nearest are Tue 2028-02-29 00:00:00+00:00 and Sun 2032-02-29 00:00:00+00:00",
            ],
        ),
        (&["run", "leap", "--as-of", "2032-02-29T00:00"], &["is still to come"]),
        (&["run", "leap", "--as-of", "soon"], &["is no time: expected one as in"]),
        (&["pause", "leap", "--until", "1000h"], &["is more than 30 days ahead"]),
    ] {
        let ran = command(&stage.daemon.config, &[&["schedules"], arguments].concat()).await;
        assert_eq!(ran.code, Some(2), "{arguments:?}: {}", ran.errors);
        assert!(words.iter().all(|word| ran.errors.contains(word)), "{arguments:?}: {}", ran.errors);
    }
}

/// The replica that runs the scheduler.
async fn holder(daemons: &[Daemon; 2]) -> usize {
    eventually("one runs the scheduler", async || {
        let held = [daemons[0].metric(HELD).await, daemons[1].metric(HELD).await];
        held.iter().position(|held| *held == 1.0)
    })
    .await
}

#[tokio::test]
async fn a_run_whose_replica_is_killed_before_its_effect_is_done_by_the_other_once() {
    let (vhost, sim, folder) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=20"]), Folder::new());
    let file = folder.path("fleet.txt");
    let schedule = |name: &str, machines: &str| {
        format!("[[schedule]]\nname = {name:?}\ncron = \"0 0 29 2 *\"\ntimezone = \"UTC\"\n{machines}\n")
    };
    let lane = schedule("fleet", &format!("file = {file:?}")) + &schedule("leap", "instances = [\"i-sim00009\"]");
    let text = config(&vhost.url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() });
    let mut daemons = [Daemon::start(&text), Daemon::start(&text)];
    for daemon in &daemons {
        daemon.ready().await;
    }
    Queues::connect(&vhost.url).await.has("reveille.replicas", 0, 2).await;
    let first = holder(&daemons).await;
    // It waits for the effect meanwhile, or gives up waiting for it: that is no promise.
    let giving = tokio::spawn(run(daemons[1 - first].config.command(&["schedules", "run", "fleet"]), ""));
    eventually("it is tried, and there is no such file", async || {
        daemons[first].child.output().contains("the schedule could not be fired; trying again").then_some(())
    })
    .await;
    daemons[first].kill().await;
    assert_eq!(fires(&vhost.url, "fleet").await, 0);
    folder.put("fleet.txt", "i-sim00001\ni-sim00002\n");
    eventually("the other does it", async || (fires(&vhost.url, "fleet").await == 1).then_some(())).await;
    giving.await.unwrap();
    // Whatever comes after it has been looked at again by then.
    daemons[first].start_again();
    daemons[1 - first].kill().await;
    alone(&daemons[first], &Queues::connect(&vhost.url).await).await;
    schedules(&daemons[first].config, &["run", "leap"]).await;
    assert_eq!(fires(&vhost.url, "fleet").await, 1);
    eventually("all are started", async || (sim.log().await.len() >= 3).then_some(())).await;
    sim.every_machine_started_once(3).await;
}

#[tokio::test]
async fn a_paused_schedule_shows_by_whom_until_it_is_resumed_and_can_be_run_by_hand() {
    let mut stage = set().await;
    let told = schedules(
        &stage.daemon.config,
        &["pause", "morning", "--as", "ops@desk", "--reason", "patching", "--until", "1h"],
    )
    .await;
    assert!(told.errors.contains("schedule morning is paused, until "), "{}", told.errors);
    assert!(told.errors.contains("or until `reveille schedules resume morning`; what is due meanwhile is missed"));
    let list = schedules(&stage.daemon.config, &["list"]).await.output;
    let row = |name: &str| list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{list}"));
    assert!(row("morning").contains(" until 20") && row("morning").contains("Z by ops@desk"), "{list}");
    assert!(!row("leap").contains("ops@desk"), "{list}");
    let paused = async |config: &Config| {
        let json = schedules(config, &["list", "--output", "json"]).await.output;
        serde_json::from_str::<Value>(&json).unwrap()[0]["paused"].clone()
    };
    let seen = paused(&stage.daemon.config).await;
    assert_eq!((&seen["by"], &seen["reason"]), (&json!("ops@desk"), &json!("patching")));
    assert_eq!(
        batch_of(&schedules(&stage.daemon.config, &["run", "morning"]).await).split('-').next(),
        Some("morning")
    );
    stage.outcomes(3).await;
    // It is seen where no daemon runs, too.
    stage.daemon.kill().await;
    eventually("it is gone", async || (stage.queues.count("reveille.replicas").await.1 == 0).then_some(())).await;
    let told = schedules(&stage.daemon.config, &["resume", "morning"]).await.errors;
    assert!(told.contains("no daemon runs: it takes effect when one starts"), "{told}");
    assert!(told.contains("schedule morning is not paused any more; it is due next: "), "{told}");
    assert_eq!(paused(&stage.daemon.config).await, json!(false));
    let ran = command(&stage.daemon.config, &["schedules", "run", "morning"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.errors.contains("the schedule is run if one starts within ten minutes"), "{}", ran.errors);
    stage.daemon.start_again();
    eventually("it is run", async || (fires(&stage.vhost.url, "morning").await == 2).then_some(())).await;
}

#[tokio::test]
async fn hostile_commands_for_schedules_stop_nothing() {
    let stage = set().await;
    let evil = "\u{1b}[2J\nschedule fired";
    let now = Timestamp::now();
    let event = |id: &str, kind: &str, data: Value| {
        let kind = format!("io.reveille.schedule.{kind}.v1");
        json!({"specversion": "1.0", "id": id, "source": "/", "type": kind, "time": now, "data": data}).to_string()
    };
    let due = |due: &str| json!({"schedule": "morning", "due": due, "by": evil});
    for (id, kind, data) in [
        ("a", "pause", json!({"schedule": "x".repeat(10_000), "by": "me"})),
        ("b", "pause", json!({"schedule": evil, "by": evil, "reason": evil})),
        ("c", "resume", json!({"schedule": "nothing", "by": "me"})),
        ("d", "run", json!({"schedule": evil, "due": now, "by": evil})),
        ("e", "run", due("tomorrow")),
        (evil, "run", due("-009999-01-02T00:00:00Z")),
        ("g", "run", due("9999-12-30T00:00:00Z")),
        (&"x".repeat(1_000), "run", due("2026-11-25T00:00:00Z")),
    ] {
        let body = event(id, kind, data);
        stage.queues.publish("reveille.control", "command.x", BasicProperties::default(), body.as_bytes()).await;
    }
    let ran = schedules(&stage.daemon.config, &["run", "leap"]).await;
    assert!(batch_of(&ran).starts_with("leap-"), "{}", ran.errors);
    assert!(!stage.daemon.child.output().contains(evil), "text from outside is escaped");
    for arguments in [&["list"][..], &["list", "--output", "json"]] {
        let list = schedules(&stage.daemon.config, arguments).await.output;
        assert!(!list.contains('\u{1b}') && !list.contains("\nschedule fired"), "{list}");
    }
}

#[tokio::test]
async fn status_shows_when_schedules_are_due_next_and_check_which_calendars_were_not_kept_up() {
    let lane = format!(
        "{SCHEDULES}calendar = \"cn\"\n\n[[calendar]]\nname = \"cn\"\nskip_dates = [\"2020-10-01..2020-10-07\"]\n"
    );
    let stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    let status = command(&stage.daemon.config, &["status"]).await;
    assert_eq!(status.code, Some(0), "{}", status.errors);
    let table = &status.output[status.output.find("SCHEDULE").unwrap_or_else(|| panic!("{}", status.output))..];
    let rows: Vec<Vec<&str>> = table.lines().take(3).map(|line| line.split_whitespace().take(2).collect()).collect();
    assert_eq!(rows[1..], [["morning", "prod"], ["leap", "prod"]], "{table}");
    let next = table.lines().nth(1).unwrap();
    assert!(next.ends_with(" 07:30:00+08:00"), "{next}");
    let check = command(&stage.daemon.config, &["check", "--output", "json"]).await;
    let lines: Vec<Value> = check.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let line = lines.iter().find(|line| line["check"] == "calendar").unwrap_or_else(|| panic!("{}", check.output));
    assert_eq!(line["result"], "warning");
    assert!(line["found"].as_str().unwrap().starts_with("[[calendar]] cn, of leap, has no dates in 20"), "{line}");
    assert!(line["remedy"].as_str().unwrap().contains("to its skip_dates"), "{line}");
}
