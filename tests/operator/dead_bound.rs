//! `dead_letters.max_length`: the oldest dead letters beyond it are discarded, and no others.

use futures_util::StreamExt;
use jiff::{Timestamp, ToSpan};
use lapin::options::{BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use serde_json::json;

use super::dead::{DEAD, at_rest, id, jobs_listed, put};
use crate::support::child::run;
use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::queues::Queues;
use crate::support::stage::{Stage, Wishes, config};

const LETTERS: &str = "reveille_dead_letters";
const DISCARDED: &str = "reveille_dead_letters_discarded_total";

/// A daemon beside a stage at rest, with this table `[dead_letters]`.
fn bounded(stage: &Stage, table: &str) -> Daemon {
    let config = config(&stage.vhost.url, &stage.sim.url(), &Wishes::default());
    Daemon::start(&format!("{config}\n{table}"))
}

fn ids(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("j-{number:05}")).collect()
}

async fn left(stage: &Stage) -> Vec<String> {
    stage.dead().await.iter().map(id).collect()
}

#[tokio::test]
async fn all_letters_stay_where_nothing_is_set_and_are_counted() {
    let stage = at_rest(None).await;
    put(&stage.queues, 0..30, "not_found", Timestamp::now(), &json!({})).await;
    let daemon = bounded(&stage, "");
    eventually("they are counted", async || (daemon.metric(LETTERS).await == 30.0).then_some(())).await;
    assert_eq!(daemon.metric(DISCARDED).await, 0.0);
    assert_eq!(left(&stage).await, ids(0, 30));
}

#[tokio::test]
async fn the_oldest_beyond_the_bound_are_discarded_while_others_list_them_and_whatever_is_killed() {
    let stage = at_rest(None).await;
    let hour_ago = Timestamp::now() - 1.hour();
    put(&stage.queues, 0..2000, "not_found", hour_ago, &json!({})).await;
    // Letters that were returned once stand before those that never were.
    assert_eq!(jobs_listed(&stage.daemon.config, &["--reason", "none"]).await.len(), 0);
    let mut daemon = bounded(&stage, "[dead_letters]\nmax_length = 500");
    eventually("some are discarded", async || (stage.queues.count(DEAD).await.0 < 1990).then_some(())).await;
    daemon.kill().await;
    daemon.start_again();
    for _ in 0..2 {
        let listed = jobs_listed(&stage.daemon.config, &[]).await;
        let first: usize = listed[0].strip_prefix("j-").unwrap().parse().unwrap();
        assert!(listed == ids(first, 2000), "none is missing or in another place: {listed:?}");
    }
    eventually("as many stay as may", async || (stage.queues.count(DEAD).await.0 == 500).then_some(())).await;
    let told = "the oldest dead letters were discarded: there were more than dead_letters.max_length";
    eventually("it is told", async || daemon.child.output().contains(told).then_some(())).await;
    let line = daemon.child.output();
    let line = line.lines().find(|line| line.contains(told)).unwrap();
    assert!(line.contains(&format!("oldest=\"{hour_ago}\" newest=\"{hour_ago}\"")), "{line}");
    assert!(daemon.metric(DISCARDED).await > 0.0);
    eventually("the rest is counted", async || (daemon.metric(LETTERS).await == 500.0).then_some(())).await;
    assert_eq!(left(&stage).await, ids(1500, 2000));
}

#[tokio::test]
async fn none_is_discarded_while_a_command_holds_the_oldest_and_batches_are_completed_meanwhile() {
    let stage = at_rest(None).await;
    put(&stage.queues, 0..30, "not_found", Timestamp::now(), &json!({})).await;
    // As `reveille dead` does it.
    let command = Queues::connect(&stage.vhost.url).await;
    let channel = command.connection.create_channel().await.unwrap();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("reveille.dead.lock".into(), exclusive, FieldTable::default()).await.unwrap();
    channel.basic_qos(10, BasicQosOptions::default()).await.unwrap();
    let consumer = channel.basic_consume(DEAD.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default());
    let held = consumer.await.unwrap().take(10).count().await;
    assert_eq!(held, 10);

    let daemon = bounded(&stage, "[dead_letters]\nmax_length = 5");
    let told = "are being read just now: none is discarded until that ends";
    eventually("it has looked", async || daemon.child.output().contains(told).then_some(())).await;
    let mut completions = stage.queues.listen("reveille.outcomes", "prod.completed").await;
    let submit = daemon.config.command(&["submit", "--lane", "prod", "--batch", "morning", "i-sim00001"]);
    assert_eq!(run(submit, "").await.code, Some(0));
    assert!(completions.next().await.unwrap().is_ok(), "the batch is completed");
    assert_eq!((stage.queues.count(DEAD).await.0, daemon.metric(DISCARDED).await), (20, 0.0));

    command.connection.close(200, "done".into()).await.unwrap();
    eventually("all but five are discarded", async || (daemon.metric(DISCARDED).await == 25.0).then_some(())).await;
    assert_eq!(left(&stage).await, ids(25, 30));
}
