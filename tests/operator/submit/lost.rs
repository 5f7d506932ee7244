//! Submissions that do not get through at once, or not at all.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::child::{Child, run};
use crate::support::daemon::Config;
use crate::support::files::Folder;
use crate::support::lossy::Lossy;
use crate::support::stage::{Stage, Wishes, config};
use crate::support::{eventually, instance};

/// More jobs than are under way at a time.
const JOBS: usize = 10_000;

fn fleet(folder: &Folder, jobs: usize) -> String {
    folder.put("fleet", &(1..=jobs).map(|number| instance(number) + "\n").collect::<String>())
}

/// A stage whose daemon has stopped, and a proxy before its broker.
async fn stage() -> (Stage, Lossy, Config) {
    let mut stage = Stage::set().await;
    stage.daemon.stop().await;
    let lossy = Lossy::before(&stage.vhost.url).await;
    let config = Config::write(&config(&lossy.url, &stage.sim.url(), &Wishes::default()));
    (stage, lossy, config)
}

/// Starts to submit, and comes back once some jobs are there and no confirm comes any more.
async fn half(stage: &Stage, lossy: &Lossy, config: &Config, fleet: &str) -> Child {
    let submitting = Child::start(config.command(&["submit", "--batch", "morning", "--file", fleet]));
    eventually("the batch is announced", async || (lossy.confirms.forwarded() > 0).then_some(())).await;
    lossy.confirms.begin();
    eventually("a confirm is lost", async || (lossy.confirms.count() > 0).then_some(())).await;
    eventually("some jobs are there", async || (stage.queues.count("reveille.jobs.prod").await.0 > 0).then_some(()))
        .await;
    submitting
}

#[tokio::test]
async fn a_broker_that_goes_away_is_tried_again_and_all_jobs_get_there() {
    let (mut stage, lossy, config) = stage().await;
    let folder = Folder::new();
    let mut submitting = half(&stage, &lossy, &config, &fleet(&folder, JOBS)).await;
    lossy.cut();
    lossy.confirms.end();
    assert_eq!(submitting.ended().await.code(), Some(0), "{}", submitting.output());
    let told = submitting.output();
    assert!(told.contains("RabbitMQ is away, and tried again: "), "{told}");
    assert!(told.contains("RabbitMQ is there again: the rest is submitted"), "{told}");
    assert!(told.ends_with(&format!("{JOBS} jobs submitted to lane prod as batch morning\n")), "{told}");
    let jobs = stage.queues.take_all("reveille.jobs.prod").await;
    let ids: BTreeSet<String> =
        jobs.iter().map(|job| job.properties.message_id().as_ref().expect("an id").to_string()).collect();
    assert!(ids.len() == JOBS && jobs.len() >= JOBS, "{} of {}", ids.len(), jobs.len());
    assert_eq!(stage.event().await["data"], json!({"batch_id": "morning", "size": JOBS, "lane": "prod"}));
}

#[tokio::test]
async fn a_submission_that_is_stopped_says_what_was_sent_and_corrects_the_size() {
    let (mut stage, lossy, config) = stage().await;
    let folder = Folder::new();
    let fleet = fleet(&folder, JOBS);
    let mut submitting = half(&stage, &lossy, &config, &fleet).await;
    submitting.signal("INT");
    // The announcement is confirmed, and none of the jobs that are under way.
    lossy.confirms.end();
    assert_eq!(submitting.ended().await.code(), Some(130), "{}", submitting.output());
    let told = submitting.output();
    let (_, sent) = told.split_once("\nsubmitted ").expect("it is said");
    let (sent, rest) = sent.split_once(' ').expect("a number");
    let sent: usize = sent.parse().expect("a number");
    let expected = format!(
        "of {JOBS} jobs as batch morning, then stopped by a signal. The announced size is corrected. To go on, submit the same \
         with --batch"
    );
    assert!(sent < JOBS && rest.starts_with(&expected), "{told}");
    let (first, corrected) = (stage.event().await, stage.event().await);
    assert_eq!((&first["data"]["size"], &corrected["data"]["size"]), (&json!(JOBS), &json!(sent)));
    assert_eq!(first["id"], corrected["id"]);

    let ran = run(config.command(&["submit", "--batch", "morning", "--file", &fleet]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let again = stage.event().await;
    assert_eq!((&again["id"], &again["data"]["size"]), (&first["id"], &json!(JOBS)));
    let jobs = stage.queues.take_all("reveille.jobs.prod").await;
    let ids: BTreeSet<String> =
        jobs.iter().map(|job| job.properties.message_id().as_ref().expect("an id").to_string()).collect();
    assert_eq!(ids.len(), JOBS);
}

#[tokio::test]
async fn a_queue_that_takes_no_more_ends_the_submission_and_the_batch_completes_with_what_was_sent() {
    const FLEET: usize = 500;
    let mut stage = Stage::with(Wishes { fleet: "Stopped=500", ..Wishes::default() }).await;
    stage.daemon.stop().await;
    let policy = ["set_policy", "-p", &stage.vhost.name, "--apply-to", "queues", "full", r"^reveille\.jobs\.prod$"];
    let limit = r#"{"max-length": 1, "overflow": "reject-publish"}"#;
    stage.vhost.node.ctl(&[&policy[..], &[limit]].concat());
    let folder = Folder::new();
    let fleet = fleet(&folder, FLEET);
    let config = Config::write(&config(&stage.vhost.url, &stage.sim.url(), &Wishes::default()));
    let submit = |batch: &'static str| config.command(&["submit", "--batch", batch, "--file", &fleet]);
    // RabbitMQ rejects a little later than the queue is full.
    eventually("the queue is full", async || (run(submit("first"), "").await.code != Some(0)).then_some(())).await;
    let ran = run(submit("morning"), "").await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    let (_, sent) = ran.errors.rsplit_once("submitted ").expect("it is said");
    let (sent, rest) = sent.split_once(' ').expect("a number");
    let expected = format!("of {FLEET} jobs as batch morning, then failed. The announced size is corrected.");
    assert!(rest.starts_with(&expected) && rest.contains("it is full, as a policy may have it"), "{}", ran.errors);

    stage.vhost.node.ctl(&["clear_policy", "-p", &stage.vhost.name, "full"]);
    stage.daemon.start_again();
    let watch = async |jobs: &str| {
        let watched = run(stage.daemon.config.command(&["watch", "morning", "--timeout", "60s"]), "").await;
        assert_eq!(watched.code, Some(0), "{}", watched.errors);
        let table = watched.output.lines().skip(1);
        let counted: usize = table.filter_map(|line| line.split_whitespace().last()?.parse::<usize>().ok()).sum();
        assert_eq!(counted.to_string(), jobs, "{}", watched.output);
    };
    watch(sent).await;
    let submitted = run(submit("morning"), "").await;
    assert_eq!(submitted.code, Some(0), "{}", submitted.errors);
    watch("500").await;
}
