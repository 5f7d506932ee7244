//! The alerts of docs/operations.md, in a real Prometheus: each fires when it should, and none while all is well.

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp, ToSpan};
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use serde_json::{Value, json};

use super::schedules::Morning;
use crate::support::broker;
use crate::support::child::run;
use crate::support::files::Folder;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::prometheus::{Labels, Prometheus};
use crate::support::scene::Scene;
use crate::support::sim::{KEY, SECRET};
use crate::support::stage::{LANE, Stage, Wishes};
use crate::support::{PATIENCE, eventually, eventually_within};

const PAUSED: &str = "reveille_lane_paused";
const HELD: &str = "reveille_lane_held";
const BROKER: &str = "reveille_broker_blocked";
const EXPIRE: &str = "reveille_lane_credentials_expire_timestamp_seconds";
const RATE: &str = "reveille_lane_rate";
const FAILED: &str = "reveille_jobs_total";
const DOWN: &str = "up{";
const ABSENT: &str = "absent(";
const LOST: &str = "reveille_queues_lost_total";
const CONTROL: &str = "reveille_control_followed";
const SCHEDULER: &str = "reveille_scheduler_held";
const CUT_SHORT: &str = "reveille_delays_cut_short_total";
const LETTERS: &str = "reveille_dead_letters";
const MISSED: &str = "reveille_schedule_missed_total";
const FAILING: &str = "reveille_schedule_failing";
const LATE: &str = "reveille_schedule_next_timestamp_seconds";
const SMALL: &str = "reveille_schedule_small";
const FORGOTTEN: &str = "reveille_batches_forgotten_total";
/// A unique part of each alert. Each is made to fire here.
const ALL: [&str; 18] = [
    PAUSED, HELD, BROKER, EXPIRE, RATE, FAILED, DOWN, ABSENT, LOST, CUT_SHORT, CONTROL, LETTERS, FORGOTTEN, SCHEDULER,
    MISSED, FAILING, LATE, SMALL,
];
/// Sets RabbitMQ's memory alarm.
const SHORT_OF_MEMORY: &str = "vm_memory_monitor:set_vm_memory_high_watermark(0.00001)";
/// As in the alert on the rate.
const AT_TWENTY: &str = "rate = 20\nburst = 5";

/// The expressions of the table of alerts.
fn expressions() -> Vec<String> {
    let page = include_str!("../../docs/operations.md");
    let (_, table) = page.split_once("| alert | what it means |\n|---|---|\n").expect("the page has the table");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let expression = |row: &str| {
        let (_, code) = row.split_once('`')?;
        // In a table of Markdown a `|` has a backslash before it.
        code.split_once('`').map(|(code, _)| code.replace(r"\|", "|"))
    };
    rows.map(|row| expression(row).unwrap_or_else(|| panic!("no expression in {row}"))).collect()
}

/// The alert with this part.
fn alert(part: &str) -> String {
    let mut found: Vec<String> = expressions().into_iter().filter(|expression| expression.contains(part)).collect();
    assert_eq!(found.len(), 1, "alerts with {part}: {found:?}");
    found.remove(0)
}

async fn firing(prometheus: &Prometheus) -> Vec<String> {
    let mut firing = Vec::new();
    for expression in expressions() {
        if !prometheus.query(&expression).await.is_empty() {
            firing.push(expression);
        }
    }
    firing
}

/// Waits until no alert fires but these.
async fn only(prometheus: &Prometheus, parts: &[&str]) {
    let mut expected: Vec<String> = parts.iter().map(|part| alert(part)).collect();
    expected.sort();
    eventually(&format!("only {parts:?} fire"), async || {
        let mut firing = firing(prometheus).await;
        firing.sort();
        (firing == expected).then_some(())
    })
    .await;
}

/// A lane at the rate in its alert, and a Prometheus that has seen that it is held.
async fn watched(lane: &str) -> (Stage, Prometheus) {
    let stage = Stage::with(Wishes { lane: &format!("{AT_TWENTY}\nbatch = 1\n{lane}"), ..Wishes::default() }).await;
    let prometheus = Prometheus::start(&stage.daemon.address().await);
    prometheus.fires(&format!("{HELD}{{lane={LANE:?}}} == 1")).await;
    (stage, prometheus)
}

#[test]
fn each_alert_of_the_page_is_made_to_fire_here() {
    for part in ALL {
        alert(part);
    }
    let others: Vec<String> =
        expressions().into_iter().filter(|expression| !ALL.iter().any(|part| expression.contains(part))).collect();
    assert!(others.is_empty(), "alerts that no test makes fire: {others:?}");
}

#[tokio::test]
async fn no_alert_fires_where_all_is_well_and_the_first_failed_job_and_the_end_of_the_daemon_do() {
    let (mut stage, prometheus) = watched("").await;
    for metric in [PAUSED, HELD, BROKER, EXPIRE, RATE, FAILED, "reveille_broker_connected"] {
        assert!(!prometheus.query(metric).await.is_empty(), "{metric} is there before the first job");
    }
    stage.wake_all(1..=10).await;
    stage.outcomes(10).await;
    prometheus.fires(r#"reveille_jobs_total{outcome="started"} == 10"#).await;
    only(&prometheus, &[]).await;

    stage.wake("i-gone0001").await;
    assert_eq!(stage.outcome().await["reason"], "not_found");
    let failed = prometheus.fires(&alert(FAILED)).await;
    assert_eq!((failed.len(), failed[0]["lane"].as_str(), failed[0]["reason"].as_str()), (1, LANE, "not_found"));
    only(&prometheus, &[FAILED]).await;

    stage.daemon.kill().await;
    prometheus.fires(&alert(DOWN)).await;
    prometheus.fires(&alert(ABSENT)).await;
}

#[tokio::test]
async fn a_lane_that_is_paused_raises_its_alert() {
    let (mut stage, prometheus) = watched("").await;
    let account = json!({"access_key_id": "another", "secret_access_key": "secret"});
    stage.sim.control("PUT", "credentials", account).await;
    stage.wake("i-sim00001").await;
    let paused = prometheus.fires(&alert(PAUSED)).await;
    assert_eq!((paused.len(), paused[0]["lane"].as_str(), paused[0]["reason"].as_str()), (1, LANE, "keys"));
    only(&prometheus, &[PAUSED]).await;
    stage.sim.control("PUT", "credentials", json!({"access_key_id": KEY, "secret_access_key": SECRET})).await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    only(&prometheus, &[]).await;
}

#[tokio::test]
async fn keys_that_are_about_to_expire_raise_their_alert() {
    let folder = KeyFolder::new();
    let until = |expires_at: Timestamp| format!("{}expires_at = {expires_at}\n", keys(KEY, SECRET));
    folder.rename(&until(Timestamp::now() + 5.minutes()));
    let (_stage, prometheus) = watched(&format!("credentials_file = {:?}", folder.file())).await;
    let expiring = prometheus.fires(&alert(EXPIRE)).await;
    assert_eq!((expiring.len(), expiring[0]["lane"].as_str()), (1, LANE));
    only(&prometheus, &[EXPIRE]).await;
    folder.rename(&until(Timestamp::now() + 1.hour()));
    only(&prometheus, &[]).await;
}

#[tokio::test]
async fn an_api_that_throttles_raises_its_alert() {
    let (stage, prometheus) = watched("").await;
    stage.sim.faults(json!([{"fault": "throttled"}])).await;
    stage.wake_all(1..=20).await;
    let slow = prometheus.fires(&alert(RATE)).await;
    assert_eq!((slow.len(), slow[0]["lane"].as_str()), (1, LANE));
    only(&prometheus, &[RATE]).await;
}

#[tokio::test]
async fn a_queue_that_is_deleted_and_a_policy_over_the_ladder_raise_their_alerts() {
    let (stage, prometheus) = watched("").await;
    let not_before = Timestamp::now() + 50.seconds();
    let channel = stage.queues.connection.create_channel().await.unwrap();
    channel.queue_delete("reveille.delay.05".into(), QueueDeleteOptions::default()).await.unwrap();
    stage.job("i-sim00001", json!({"instance_id": "i-sim00001", "not_before": not_before})).await;
    prometheus.fires(&alert(LOST)).await;
    only(&prometheus, &[LOST]).await;

    let policy = ["set_policy", "-p", &stage.vhost.name, "tidy", "^reveille", r#"{"message-ttl": 500}"#];
    stage.vhost.node.ctl(&[&policy[..], &["--apply-to", "queues"]].concat());
    let cut_short = prometheus.fires(&alert(CUT_SHORT)).await;
    assert_eq!((cut_short.len(), cut_short[0]["lane"].as_str()), (1, LANE));
}

#[tokio::test]
async fn a_schedule_with_far_fewer_machines_than_the_last_time_raises_its_alert() {
    let (vhost, folder) = (broker::vhost(), Folder::new());
    let file = folder.put("fleet.txt", "i-sim00001\ni-sim00002\ni-sim00003\n");
    let mut morning = Morning::before(&vhost.url, 1, 3, &format!("file = {file:?}")).await;
    let prometheus = Prometheus::start(&morning.daemons[0].address().await);
    morning.set_clock(SignedDuration::from_secs(-1));
    assert_eq!(morning.event("schedule.fired").await["size"], 3);
    prometheus.fires("reveille_schedule_last_jobs == 3").await;
    only(&prometheus, &[]).await;

    folder.put("fleet.txt", "i-sim00001\n");
    morning.set_clock(SignedDuration::from_hours(24));
    let small = prometheus.fires(&alert(SMALL)).await;
    assert_eq!((small.len(), small[0]["schedule"].as_str()), (1, "morning"));
    // The API's clock was not set.
    morning.set_clock(SignedDuration::from_mins(-20));
    only(&prometheus, &[SMALL]).await;
}

#[tokio::test]
async fn many_dead_letters_raise_their_alert() {
    let (stage, prometheus) = watched("").await;
    let letter = async |_| stage.queues.publish("", "reveille.dead", BasicProperties::default(), b"noise").await;
    stream::iter((0..10_000).map(letter)).buffer_unordered(200).collect::<()>().await;
    prometheus.fires("reveille_dead_letters == 10000").await;
    only(&prometheus, &[]).await;
    letter(0).await;
    prometheus.fires(&alert(LETTERS)).await;
    only(&prometheus, &[LETTERS]).await;
}

/// Due each minute: one that will be paused, and one whose machines cannot be named.
const SCHEDULES: &str = r#"
[[schedule]]
name = "paused"
cron = "* * * * *"
timezone = "UTC"
instances = ["i-sim00001"]

[[schedule]]
name = "failing"
cron = "* * * * *"
timezone = "UTC"
file = "no-such-file.txt"
"#;

#[tokio::test]
async fn a_schedule_that_is_missed_that_fails_and_that_is_late_raises_its_alerts() {
    let (stage, prometheus) = watched(SCHEDULES).await;
    let pause = ["schedules", "pause", "paused", "--as", "ops@desk", "--reason", "patching"];
    let ran = run(stage.daemon.config.command(&pause), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let missed = r#"reveille_schedule_missed_total{reason="paused",schedule="paused"}"#;
    // Until the minute is over.
    eventually_within(2 * PATIENCE, "it is missed", async || (stage.daemon.metric(missed).await >= 1.0).then_some(()))
        .await;
    let log = stage.queues.read_stream("reveille.outcomes.log", &mut 0).await;
    let told = log.iter().find(|message| message.routing_key.as_str() == "prod.missed").expect("the log says so");
    let told: Value = serde_json::from_slice(&told.data).expect("JSON");
    assert_eq!((&told["data"]["schedule"], &told["data"]["reason"]), (&json!("paused"), &json!("paused")));
    let text = told["data"]["text"].as_str().expect("a text");
    assert!(text.starts_with("the schedule was paused by ops@desk: patching; until 20"), "{text}");
    assert!(text.ends_with("or `reveille schedules resume paused`"), "{text}");

    let firing = prometheus.fires(&alert(MISSED)).await;
    assert_eq!((firing[0]["schedule"].as_str(), firing[0]["reason"].as_str()), ("paused", "paused"));
    let firing = prometheus.fires(&alert(FAILING)).await;
    assert_eq!((firing.len(), firing[0]["schedule"].as_str()), (1, "failing"));
    only(&prometheus, &[MISSED, FAILING]).await;
    // As it is if it goes on like this.
    let late = eventually("one is late", async || {
        let late = prometheus.query_at(Timestamp::now() + 295.seconds(), &alert(LATE)).await;
        (!late.is_empty()).then_some(late)
    })
    .await;
    assert_eq!((late.len(), late[0].0["schedule"].as_str()), (1, "failing"));
}

#[tokio::test]
async fn a_batch_that_is_given_up_raises_its_alert_and_what_waits_for_its_waves_is_cancelled() {
    let (mut stage, prometheus) = watched("").await;
    let announce = async |number: usize, size: usize, waves: serde_json::Value| {
        let data = json!({"batch_id": format!("b-{number}"), "lane": LANE, "size": size, "waves": waves});
        let event = json!({"specversion": "1.0", "id": format!("a-{number}"), "source": "/test", "time": Timestamp::now(),
                           "type": "io.reveille.batch.submitted.v1", "data": data});
        let properties = BasicProperties::default().with_content_type("application/cloudevents+json".into());
        let key = format!("{LANE}.submitted");
        stage.queues.publish("reveille.outcomes", &key, properties, event.to_string().as_bytes()).await;
    };
    // Its first wave never comes.
    announce(0, 2, json!({"1": 1, "2": 1})).await;
    let stamp = BasicProperties::default().with_timestamp(Timestamp::now().as_second().try_into().unwrap());
    let waiting = json!({"instance_id": "i-sim00001", "batch_id": "b-0", "wave": 2}).to_string();
    stage.message(stamp, waiting.as_bytes()).await;
    stream::iter(1..10_000).map(|number| announce(number, 1, json!({}))).buffer_unordered(200).collect::<()>().await;
    prometheus.fires("reveille_batches_open == 10000").await;
    only(&prometheus, &[]).await;
    announce(10_000, 1, json!({})).await;
    prometheus.fires(&alert(FORGOTTEN)).await;
    only(&prometheus, &[FORGOTTEN]).await;
    let ended = stage.outcome().await;
    assert_eq!((&ended["outcome"], &ended["batch_id"]), (&json!("cancelled"), &json!("b-0")), "{ended}");
    let told = "by reveille scheduler: the batch is given up, as too many batches are open";
    assert!(ended["error_message"].as_str().unwrap().contains(told), "{ended}");
}

#[tokio::test]
async fn a_broker_that_takes_no_messages_or_is_gone_raises_its_alerts() {
    let mut scene = Scene::set(20, Wishes { lane: AT_TWENTY, ..Wishes::default() }).await;
    let prometheus = Prometheus::start(&scene.daemon.address().await);
    only(&prometheus, &[]).await;
    let names = |firing: &[Labels]| -> Vec<String> { firing.iter().map(|labels| labels["__name__"].clone()).collect() };

    let alarm = scene.node.prepare(SHORT_OF_MEMORY);
    // RabbitMQ blocks only publishers: the daemon will publish for a job that waits meanwhile.
    scene.submit(1..2, json!({"not_before": Timestamp::now() + 15.seconds()})).await;
    let parked = format!(r#"reveille_jobs_parked_total{{cause="not_before",lane="{LANE}"}}"#);
    eventually("the job waits", async || (scene.daemon.metric(&parked).await == 1.0).then_some(())).await;
    alarm.now();
    let blocked = prometheus.fires(&alert(BROKER)).await;
    assert_eq!(names(&blocked), ["reveille_broker_blocked"]);
    scene.node.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    only(&prometheus, &[]).await;

    scene.node.kill();
    let gone = prometheus.fires(&alert(BROKER)).await;
    assert_eq!(names(&gone), ["reveille_broker_connected"]);
    let nowhere = prometheus.fires(&alert(HELD)).await;
    assert_eq!((nowhere.len(), nowhere[0]["lane"].as_str()), (1, LANE));
    only(&prometheus, &[BROKER, HELD, CONTROL, SCHEDULER]).await;
}
