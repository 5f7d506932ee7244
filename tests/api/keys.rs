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
    assert_eq!(stage.sim.log().await.len(), 1, "nothing is sent");
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
