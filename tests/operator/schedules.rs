//! Schedules: each due time is fired once, whatever dies and whatever clocks do.

mod ready;

use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use lapin::Consumer;
use serde_json::{Value, json};

use crate::support::broker::{self, Node};
use crate::support::child::{Child, Ran, run};
use crate::support::clock::Clock;
use crate::support::daemon::Daemon;
use crate::support::files::Folder;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

const HELD: &str = "reveille_scheduler_held";
/// Between the start of a test and the due time, by the clock: longer than a test takes to get there.
const AHEAD: SignedDuration = SignedDuration::from_mins(20);

/// Replicas with a schedule, and a clock that is set for them.
pub struct Morning {
    clock: Clock,
    due: Timestamp,
    pub sim: Sim,
    pub daemons: Vec<Daemon>,
    /// Of the schedule.
    events: Consumer,
    /// Those of its lane that came.
    heard: Vec<Value>,
    _queues: Queues,
}

impl Morning {
    /// `replicas` that know a schedule with these `machines`, and have not fired it.
    pub async fn before(url: &str, replicas: usize, fleet: usize, machines: &str) -> Self {
        Self::with(url, replicas, fleet, machines, Wishes::default()).await
    }

    /// The same with wishes for the lane and the simulator.
    pub async fn with(url: &str, replicas: usize, fleet: usize, machines: &str, wishes: Wishes<'_>) -> Self {
        let sim = Sim::start(&[&["--fleet", &format!("Stopped={fleet}")], wishes.sim].concat());
        let clock = Clock::new();
        let due = (clock.now() + AHEAD).round(jiff::Unit::Minute).expect("a time");
        let cron = due.strftime("%M %H * * *");
        let grace = if machines.contains("misfire_grace") { "" } else { "misfire_grace = \"10m\"" };
        let schedule =
            format!("[[schedule]]\nname = \"morning\"\ncron = \"{cron}\"\ntimezone = \"UTC\"\n{grace}\n{machines}\n");
        let config = format!("{}{schedule}", config(url, &sim.url(), &wishes));
        let environment = clock.environment();
        let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (&**name, &**value)).collect();
        let daemons: Vec<Daemon> = (0..replicas).map(|_| Daemon::start_in(&config, &environment)).collect();
        for daemon in &daemons {
            daemon.ready().await;
        }
        let queues = Queues::connect(url).await;
        let events = queues.listen("reveille.outcomes", "#").await;
        let mut morning = Self { clock, due, sim, daemons, events, heard: Vec::new(), _queues: queues };
        let next = r#"reveille_schedule_next_timestamp_seconds{schedule="morning"}"#;
        eventually("a replica knows when it is due", async || {
            let daemon = &morning.daemons[morning.holder().await];
            (daemon.metric(next).await == due.as_second() as f64).then_some(())
        })
        .await;
        morning.events = morning._queues.listen("reveille.outcomes", "prod.*").await;
        morning
    }

    /// The replica that runs the scheduler.
    pub async fn holder(&self) -> usize {
        eventually("a replica runs the scheduler", async || {
            for (number, daemon) in self.daemons.iter().enumerate() {
                if daemon.metric(HELD).await == 1.0 {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Starts a replica again that was killed.
    pub fn start_again(&mut self, number: usize) {
        let mut command = self.daemons[number].config.command(&["run"]);
        command.envs(self.clock.environment());
        self.daemons[number].child = Child::start(command);
    }

    pub fn set_clock(&mut self, after_due: SignedDuration) {
        let time = self.due + after_due;
        self.clock.set(time);
    }

    /// The next event of its lane.
    async fn hear(&mut self) -> Option<Value> {
        let next = tokio::time::timeout(PATIENCE, self.events.next()).await.ok()?;
        Some(serde_json::from_slice(&next.expect("subscribed").expect("open").data).expect("JSON"))
    }

    /// The type and the data of the next event that was not asked for yet.
    async fn next(&mut self) -> (String, Value) {
        let mut event = match self.heard.is_empty() {
            true => self.hear().await.expect("there is one more event"),
            false => self.heard.remove(0),
        };
        (event["type"].as_str().expect("a text").to_owned(), event["data"].take())
    }

    /// The data of the first event of this type that was not asked for yet. Events of two types come in either order.
    pub async fn event(&mut self, kind: &str) -> Value {
        let kind = format!("io.reveille.{kind}.v1");
        loop {
            if let Some(place) = self.heard.iter().position(|event| event["type"] == kind) {
                return self.heard.remove(place)["data"].take();
            }
            let next = self.hear().await.unwrap_or_else(|| panic!("no {kind}"));
            self.heard.push(next);
        }
    }

    /// Asserts that no event of this type has come so far.
    fn has_none(&self, kind: &str) {
        let kind = format!("io.reveille.{kind}.v1");
        let found: Vec<&Value> = self.heard.iter().filter(|event| event["type"] == kind).collect();
        assert!(found.is_empty(), "{found:?}");
    }

    /// Waits until the log of the first replica has a line with these words.
    async fn says(&self, words: &[&str]) {
        eventually("the log says it", async || {
            let output = self.daemons[0].child.output();
            output.lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(())
        })
        .await;
    }

    pub async fn reveille(&self, arguments: &[&str]) -> Ran {
        let mut command = self.daemons[0].config.command(arguments);
        command.envs(self.clock.environment());
        run(command, "").await
    }

    async fn started_once(&self, machines: usize) {
        eventually("all machines are started", async || {
            let instances = self.sim.control("GET", "instances", Value::Null).await;
            let started = instances.as_array().unwrap().iter().filter(|it| it["starts"].as_u64() > Some(0)).count();
            (started >= machines).then_some(())
        })
        .await;
        self.sim.every_machine_started_once(machines).await;
    }
}

pub const SECOND: SignedDuration = SignedDuration::from_secs(1);

fn listed(machines: usize) -> String {
    let ids: Vec<String> = (1..=machines).map(instance).collect();
    format!("instances = {ids:?}")
}

#[tokio::test]
async fn a_due_time_is_fired_once_though_the_clock_is_set_forth_and_back() {
    let mut morning = Morning::before(&broker::vhost().url, 1, 5, &listed(5)).await;
    // An hour ahead: the due time is passed over.
    morning.set_clock(SignedDuration::from_mins(40));
    let fired = morning.event("schedule.fired").await;
    assert_eq!((&fired["schedule"], &fired["lane"], &fired["size"]), (&json!("morning"), &json!("prod"), &json!(5)));
    assert_eq!(fired["due"], json!(morning.due));
    let batch = fired["batch_id"].as_str().unwrap().to_owned();
    assert_eq!(batch, format!("morning-{}", morning.due.strftime("%Y-%m-%dT%H:%M:%S+00:00")));
    assert_eq!(morning.event("batch.completed").await["batch_id"], json!(batch));
    morning.started_once(5).await;

    // Back, and over the due time again.
    morning.set_clock(-SECOND * 2);
    let fired_total = r#"reveille_schedule_fired_total{schedule="morning"}"#;
    eventually("the due time has passed again, and was looked for", async || {
        (morning.clock.now() > morning.due + SECOND * 5).then_some(())
    })
    .await;
    assert_eq!(morning.daemons[0].metric(fired_total).await, 1.0);
    morning.sim.every_machine_started_once(5).await;
    morning.has_none("schedule.missed");

    let ran = morning.reveille(&["schedules", "list"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.output.contains("morning") && ran.output.contains("5 of 5 up"), "{}", ran.output);
}

#[tokio::test]
async fn a_holder_that_is_killed_as_it_fires_leaves_the_rest_to_the_next() {
    const MACHINES: usize = 600;
    let vhost = broker::vhost();
    let mut morning = Morning::before(&vhost.url, 2, MACHINES, &listed(MACHINES)).await;
    let holder = morning.holder().await;
    morning.set_clock(-SECOND);
    // In the midst of its jobs.
    morning.event("batch.submitted").await;
    morning.daemons[holder].kill().await;
    let fired = morning.event("schedule.fired").await;
    assert_eq!(fired["size"], json!(MACHINES));
    let completed = morning.event("batch.completed").await;
    assert_eq!((&completed["ended"], &completed["up"]), (&json!(MACHINES), &json!(MACHINES)));
    morning.started_once(MACHINES).await;
}

#[tokio::test]
async fn a_broker_that_is_killed_as_a_schedule_fires_gets_all_jobs_in_the_end() {
    const MACHINES: usize = 300;
    let mut node = Node::start(&[]);
    let mut morning = Morning::before(&node.url, 1, MACHINES, &listed(MACHINES)).await;
    morning.set_clock(-SECOND);
    morning.event("batch.submitted").await;
    node.kill();
    node.restart();
    morning.started_once(MACHINES).await;
    let fired = r#"reveille_schedule_fired_total{schedule="morning"}"#;
    eventually("it is said to be fired", async || (morning.daemons[0].metric(fired).await >= 1.0).then_some(())).await;
}

#[tokio::test]
async fn a_due_time_that_passed_while_nothing_ran_is_fired_late_or_missed() {
    let vhost = broker::vhost();
    let mut morning = Morning::before(&vhost.url, 1, 1, &listed(1)).await;
    morning.daemons[0].kill().await;
    morning.set_clock(SignedDuration::from_mins(5));
    morning.start_again(0);
    assert_eq!(morning.event("schedule.fired").await["due"], json!(morning.due));
    morning.started_once(1).await;
    // The next day's, too late.
    morning.daemons[0].kill().await;
    morning.set_clock(SignedDuration::from_hours(24) + SignedDuration::from_mins(11));
    morning.start_again(0);
    let missed = morning.event("schedule.missed").await;
    assert_eq!((&missed["reason"], &missed["count"]), (&json!("late"), &json!(1)));
    assert_eq!(missed["last_due"], json!(morning.due + SignedDuration::from_hours(24)));
    let total = r#"reveille_schedule_missed_total{reason="late",schedule="morning"}"#;
    eventually("it is counted", async || (morning.daemons[0].metric(total).await == 1.0).then_some(())).await;
    morning.sim.every_machine_started_once(1).await;
}

#[tokio::test]
async fn machines_are_selected_or_read_from_a_file_when_it_fires_and_failures_are_tried_again() {
    let vhost = broker::vhost();
    let mut morning = Morning::before(&vhost.url, 1, 4, "select = \"tag=wake:morning\"").await;
    morning.set_clock(-SECOND);
    let failing = r#"reveille_schedule_failing{schedule="morning"}"#;
    morning.says(&["no instance meets tag=wake:morning"]).await;
    assert_eq!(morning.daemons[0].metric(failing).await, 1.0);
    for number in [2, 3] {
        let tagged = json!({"status": "Stopped", "tags": {"wake": "morning"}});
        morning.sim.set_instance(&instance(number), tagged).await;
    }
    assert_eq!(morning.event("schedule.fired").await["size"], json!(2));
    morning.started_once(2).await;
    eventually("it fails no more", async || (morning.daemons[0].metric(failing).await == 0.0).then_some(())).await;

    let (vhost, folder) = (broker::vhost(), Folder::new());
    let file = folder.put("fleet.csv", "id\nno instance\n");
    let mut morning = Morning::before(&vhost.url, 1, 4, &format!("file = {file:?}")).await;
    morning.set_clock(-SECOND);
    morning.says(&["fleet.csv, line 2", "is no instance id"]).await;
    folder.put("fleet.csv", &format!("id,batch_id\n{},other\n", instance(1)));
    morning.says(&["its file names the batch \"other\"", "leave out batch_id"]).await;
    folder.put("fleet.csv", &format!("id,wave\n{},1\n{},2\n", instance(1), instance(4)));
    assert_eq!(morning.event("schedule.fired").await["size"], json!(2));
    morning.started_once(2).await;
    let order = morning.sim.log().await.into_iter().map(|call| call.instance).collect::<Vec<_>>();
    assert_eq!(order, [instance(1), instance(4)], "the second wave comes after the first");
}

#[tokio::test]
async fn a_schedule_that_cannot_be_fired_until_its_grace_is_over_is_missed_with_the_reason() {
    let vhost = broker::vhost();
    let mut morning = Morning::before(&vhost.url, 1, 1, "file = \"/nowhere/fleet.txt\"\nmisfire_grace = \"8s\"").await;
    morning.set_clock(-SECOND);
    let failing = r#"reveille_schedule_failing{schedule="morning"}"#;
    eventually("it fails", async || (morning.daemons[0].metric(failing).await == 1.0).then_some(())).await;
    let missed = morning.event("schedule.missed").await;
    assert_eq!((&missed["reason"], &missed["count"]), (&json!("failed"), &json!(1)));
    assert!(missed["text"].as_str().unwrap().contains("/nowhere/fleet.txt"), "{missed}");
    eventually("it fails no more", async || (morning.daemons[0].metric(failing).await == 0.0).then_some(())).await;
}
