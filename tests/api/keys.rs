//! A lane's keys change while it runs: waiting jobs go on with the new ones.

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::queues::Queues;
use crate::support::sim::{KEY, SECRET};
use crate::support::stage::{Stage, Wishes};
use crate::support::{broker, instance};

const PAUSED: &str = r#"reveille_lane_paused{lane="prod",reason="keys"}"#;
const EXPIRE: &str = r#"reveille_lane_credentials_expire_timestamp_seconds{lane="prod"}"#;
const NO_KEYS: &str = r#"reveille_api_requests_total{lane="prod",operation="probe",status="no_keys"}"#;

/// A stage whose lane has its keys from the folder's file, which exists already.
async fn stage(folder: &KeyFolder) -> Stage {
    let lane = format!("credentials_file = {:?}", folder.file());
    Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await
}

/// Revokes all other keys.
async fn only(stage: &Stage, id: &str, secret: &str) {
    let account = json!({"access_key_id": id, "secret_access_key": secret});
    stage.sim.control("PUT", "credentials", account).await;
}

async fn logged(stage: &Stage, text: &str) {
    eventually(text, async || stage.daemon.child.output().contains(text).then_some(())).await;
}

fn assert_unharmed(outcome: &Value) {
    assert_eq!((&outcome["outcome"], &outcome["attempts"]), (&json!("started"), &json!(1)), "{outcome}");
}

/// The keys are revoked, jobs wait, `replace` installs new ones, and the jobs go on.
async fn jobs_wait_for_new_keys(folder: &KeyFolder, replace: impl FnOnce(&KeyFolder)) {
    let mut stage = stage(folder).await;
    stage.wake("i-sim00001").await;
    assert_unharmed(&stage.outcome().await);
    only(&stage, "new-key-id", "a-newer-secret").await;
    let waiting = ["i-sim00002", "i-sim00003", "i-sim00004"];
    for instance in waiting {
        stage.wake(instance).await;
    }
    eventually("the keys are refused", async || (stage.daemon.metric(PAUSED).await == 1.0).then_some(())).await;
    replace(folder);
    let outcomes = stage.outcomes(waiting.len()).await;
    for instance in waiting {
        assert_unharmed(&outcomes[instance]);
    }
    assert_eq!(stage.daemon.metric(PAUSED).await, 0.0);
    assert!(stage.dead().await.is_empty());
    let log = stage.daemon.child.output();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("new keys from")).collect();
    assert!(told.len() == 1 && told[0].contains("new-key-id") && told[0].contains("INFO"), "once: {log}");
    assert!(!log.contains(SECRET) && !log.contains("a-newer-secret"));
}

#[tokio::test]
async fn keys_that_are_renamed_into_place_are_taken_up() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, SECRET));
    jobs_wait_for_new_keys(&folder, |folder| folder.rename(&keys("new-key-id", "a-newer-secret"))).await;
}

#[tokio::test]
async fn keys_behind_a_link_that_is_replaced_are_taken_up() {
    let folder = KeyFolder::new();
    folder.link("..2026_11_25", &keys(KEY, SECRET));
    jobs_wait_for_new_keys(&folder, |folder| folder.link("..2026_11_26", &keys("new-key-id", "a-newer-secret"))).await;
}

#[tokio::test]
async fn keys_that_are_written_into_the_file_are_taken_up() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, SECRET));
    jobs_wait_for_new_keys(&folder, |folder| {
        std::fs::write(folder.file(), keys("new-key-id", "a-newer-secret")).unwrap();
    })
    .await;
}

/// The same id and secret are no change, whatever else was written.
#[tokio::test]
async fn a_file_that_cannot_be_read_leaves_the_old_keys_in_force() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, SECRET));
    let mut stage = stage(&folder).await;
    let mut number = 0;
    for (broken, problem) in [
        (Some("access_key_id = 'ak'\nsecret_access_key = 'torn-secret"), "not TOML of that form"),
        (Some("access_key_id = 'ak'"), "missing field `secret_access_key`"),
        (None, "cannot read"),
    ] {
        match broken {
            Some(text) => folder.rename(text),
            None => std::fs::remove_file(folder.file()).unwrap(),
        }
        logged(&stage, problem).await;
        number += 1;
        let instance = instance(number);
        stage.wake(&instance).await;
        assert_unharmed(&stage.outcome().await);
        folder.rename(&format!("# mended {number} times\n{}", keys(KEY, SECRET)));
        eventually("it is mended", async || {
            (stage.daemon.child.output().matches("can be read again").count() == number).then_some(())
        })
        .await;
    }
    let log = stage.daemon.child.output();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("the keys stay what they were")).collect();
    assert_eq!(told.len(), 3, "once for each time it broke: {log}");
    for line in told {
        assert!(line.contains("WARN") && line.contains("bce.toml") && line.contains("expected"), "{line}");
    }
    assert!(!log.contains("new keys from") && !log.contains("torn-secret") && !log.contains(SECRET), "{log}");
}

#[tokio::test]
async fn nothing_is_called_with_keys_that_have_expired_and_new_ones_are_taken_up() {
    let folder = KeyFolder::new();
    let until = |expires_at: Timestamp| format!("{}expires_at = {expires_at}\n", keys(KEY, SECRET));
    let later = Timestamp::now() + 1.hour();
    folder.rename(&until(later));
    let mut stage = stage(&folder).await;
    stage.wake("i-sim00001").await;
    assert_unharmed(&stage.outcome().await);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let seconds = |time: Timestamp| time.as_second() as f64;
    assert_eq!(stage.daemon.metric(EXPIRE).await, seconds(later));

    let past = Timestamp::now() - 1.second();
    folder.rename(&until(past));
    eventually("they are read", async || (stage.daemon.metric(EXPIRE).await == seconds(past)).then_some(())).await;
    stage.wake("i-sim00002").await;
    eventually("several tries", async || (stage.daemon.metric(NO_KEYS).await > 2.0).then_some(())).await;
    stage.daemon.paused("keys", &["put new ones into the lane's credentials_file"]).await;
    assert_eq!(stage.sim.wire().await.len(), 2, "a check of the keys and a start, and nothing is sent since");
    let log = stage.daemon.child.output();
    assert_eq!(log.matches("no calls are made until").count(), 1, "{log}");

    folder.rename(&keys(KEY, SECRET));
    assert_unharmed(&stage.outcome().await);
    assert_eq!(stage.daemon.metric(EXPIRE).await, 0.0);
    assert_eq!(stage.daemon.metric(PAUSED).await, 0.0);
}

/// One answer with a wrong date would otherwise be the last: nothing is sent with keys that have expired by it.
#[tokio::test]
async fn a_date_far_ahead_does_not_end_the_life_of_keys() {
    let folder = KeyFolder::new();
    folder.rename(&format!("{}expires_at = {}\n", keys(KEY, SECRET), Timestamp::now() + 1.hour()));
    let mut stage = stage(&folder).await;
    let clock = |offset: &str| serde_json::json!({"offset": offset, "tolerance": "24h"});
    stage.sim.control("PUT", "clock", clock("5h")).await;
    stage.wake("i-sim00001").await;
    logged(&stage, "by the API's clock, which is 18000 seconds ahead of ours").await;
    stage.sim.control("PUT", "clock", clock("0s")).await;
    assert_unharmed(&stage.outcome().await);
}

/// Waits until the daemon shows this as what the API last said of its lane's keys, and nothing else.
async fn are_checked(daemon: &Daemon, result: &str) {
    let is_shown = |(name, value): (&str, &str)| (value == "1").then(|| name.to_owned());
    eventually(&format!("the keys are {result}"), async || {
        let (_, metrics) = daemon.get("/metrics").await;
        let series =
            metrics.lines().filter_map(|line| line.strip_prefix("reveille_lane_keys_checked")?.split_once(' '));
        let shown: Vec<String> = series.filter_map(is_shown).collect();
        (shown == [format!(r#"{{lane="prod",result="{result}"}}"#)]).then_some(())
    })
    .await;
}

async fn operations(stage: &Stage) -> Vec<String> {
    stage.sim.wire().await.into_iter().map(|call| call.operation).collect()
}

/// One call each, and a replica that stands by makes none.
#[tokio::test]
async fn keys_are_checked_before_the_first_job_and_whenever_they_change() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, "a-wrong-secret"));
    let mut stage = stage(&folder).await;
    are_checked(&stage.daemon, "keys").await;
    let refused = "the lane's keys were checked: HTTP 400, SignatureDoesNotMatch";
    let log = stage.daemon.child.output();
    let told: Vec<&str> = log.lines().filter(|line| line.contains(refused)).collect();
    assert!(told.len() == 1 && told[0].contains("WARN") && told[0].contains("put valid keys where"), "{log}");
    stage.daemon.never_paused().await;
    assert_eq!(operations(&stage).await, ["list"]);

    let standing_by = Daemon::start(&std::fs::read_to_string(&stage.daemon.config.path).unwrap());
    standing_by.ready().await;
    folder.rename(&keys(KEY, SECRET));
    are_checked(&stage.daemon, "accepted").await;
    logged(&stage, "the API accepts the lane's keys").await;
    eventually("the other has them too", async || standing_by.child.output().contains("new keys from").then_some(()))
        .await;
    stage.wake("i-sim00001").await;
    assert_unharmed(&stage.outcome().await);
    assert_eq!(operations(&stage).await, ["list", "list", "start"]);
    assert!(!standing_by.get("/metrics").await.1.contains(r#"result="accepted"} 1"#));

    stage.daemon.stop().await;
    are_checked(&standing_by, "accepted").await;
    assert_eq!(operations(&stage).await, ["list", "list", "start", "list"]);
    let shown = stage.daemon.child.output() + &standing_by.child.output();
    assert!(!shown.contains(SECRET) && !shown.contains("a-wrong-secret"));
}

#[tokio::test]
async fn a_check_of_keys_that_hangs_holds_no_job_up() {
    let (vhost, sim) = (broker::vhost(), crate::support::sim::Sim::start(&["--fleet", "Stopped=1"]));
    sim.faults(json!([{"fault": {"hang": "before"}, "operations": ["list"]}])).await;
    // Longer than any test waits.
    let wishes = Wishes { lane: "timeout = \"5m\"", ..Wishes::default() };
    let daemon = Daemon::start(&crate::support::stage::config(&vhost.url, &sim.url(), &wishes));
    daemon.takes_the_lane().await;
    let queues = Queues::connect(&vhost.url).await;
    let job = lapin::BasicProperties::default().with_message_id("one".into());
    queues.publish("reveille.jobs", "prod", job, br#"{"instance_id":"i-sim00001"}"#).await;
    eventually("it is started", async || {
        let ended = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;
        (daemon.metric(ended).await == 1.0).then_some(())
    })
    .await;
    let (_, metrics) = daemon.get("/metrics").await;
    let mut shown = metrics.lines().filter(|line| line.starts_with("reveille_lane_keys_checked"));
    assert!(shown.all(|line| line.ends_with(" 0")), "nothing is known of the keys: {metrics}");
}

/// The lanes of an account share one file, or have one each: every lane follows its own.
#[tokio::test]
async fn every_lane_follows_its_own_file() {
    let (vhost, sim) = (broker::vhost(), crate::support::sim::Sim::start(&["--fleet", "Stopped=9"]));
    let (one, other) = (KeyFolder::new(), KeyFolder::new());
    for folder in [&one, &other] {
        folder.rename(&keys("refused", "refused"));
    }
    let lane = |name: &str, folder: &KeyFolder| {
        format!("[[lane]]\nname = {name:?}\nendpoint = {:?}\ncredentials_file = {:?}\n", sim.url(), folder.file())
    };
    let daemon = Daemon::start(&format!(
        "[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n[retry]\ninitial = \"200ms\"\nmax = \"1s\"\n{}{}",
        vhost.url,
        lane("one", &one),
        lane("other", &other)
    ));
    daemon.ready().await;
    let queues = Queues::connect(&vhost.url).await;
    for name in ["one", "other"] {
        let job = lapin::BasicProperties::default().with_message_id(name.into());
        queues.publish("reveille.jobs", name, job, br#"{"instance_id":"i-sim00001"}"#).await;
        let paused = format!(r#"reveille_lane_paused{{lane="{name}",reason="keys"}}"#);
        eventually("the keys are refused", async || (daemon.metric(&paused).await == 1.0).then_some(())).await;
    }
    one.rename(&keys(KEY, SECRET));
    eventually("one lane goes on", async || {
        let ended = r#"reveille_jobs_total{lane="one",outcome="started",reason=""}"#;
        (daemon.metric(ended).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(daemon.metric(r#"reveille_lane_paused{lane="one",reason="keys"}"#).await, 0.0);
    assert_eq!(daemon.metric(r#"reveille_lane_paused{lane="other",reason="keys"}"#).await, 1.0);
}
