//! Publisher confirms as proof: an unroutable message never counts as confirmed, however many others are confirmed
//! around it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use reveille::broker::{Connection, ConnectionKind, Outgoing, PublishError, Traffic, connect};
use reveille::config::Broker;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::account::Account;
use crate::support::broker::Vhost;
use crate::support::daemon::Daemon;
use crate::support::lossy::Lossy;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{PATIENCE, eventually, instance};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_message_is_never_taken_for_a_confirmed_one() {
    let vhost = crate::support::broker::vhost();
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, ConnectionKind::Run).await.unwrap();
    let channel = connection.channel().await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare("x".into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
    for (queue, kind) in [("q", "quorum"), ("s", "stream"), ("c", "classic")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        let key = format!("{queue}.*");
        channel
            .queue_bind(
                queue.into(),
                "x".into(),
                key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    let publisher = connection.publisher(Traffic::Jobs, 4);
    let mut publishing = JoinSet::new();
    for number in 0..4000 {
        let publisher = publisher.clone();
        // Confirms at different speeds, and one message in ten is unroutable.
        let key = if number % 10 == 3 {
            format!("nobody.{}", number % 7)
        } else {
            format!("{}.k", ["q", "s", "c"][number % 3])
        };
        publishing.spawn(async move {
            let nobody = key.starts_with("nobody");
            let message =
                Outgoing { exchange: "x".to_owned(), key, properties: BasicProperties::default(), body: vec![0; 600] };
            (nobody, publisher.try_publish(Arc::new(message)).await)
        });
    }
    let (mut taken, mut returned) = (0, 0);
    while let Some(ended) = publishing.join_next().await {
        match ended.unwrap() {
            (false, Ok(_)) => taken += 1,
            (true, Err(PublishError::Returned { .. })) => returned += 1,
            (nobody, other) => panic!("to nobody: {nobody}, and yet {other:?}"),
        }
    }
    assert_eq!((taken, returned), (3600, 400));
}

#[tokio::test]
async fn a_message_to_an_exchange_there_is_not_is_refused_and_the_next_one_goes() {
    let vhost = crate::support::broker::vhost();
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, ConnectionKind::Run).await.unwrap();
    let channel = connection.channel().await.unwrap();
    channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let publisher = connection.publisher(Traffic::Jobs, 4);
    for _ in 0..8 {
        let to = |exchange: &str| {
            let (exchange, key) = (exchange.to_owned(), "q".to_owned());
            publisher.try_publish(Arc::new(Outgoing {
                exchange,
                key,
                properties: BasicProperties::default(),
                body: vec![],
            }))
        };
        assert!(matches!(to("nowhere").await, Err(PublishError::Forbidden { .. })));
        assert!(to("").await.is_ok());
    }
}

/// Two queues, of which one confirms nothing, as without a majority: its process is suspended.
struct Stuck {
    vhost: Vhost,
    connection: Connection,
    queues: Queues,
}

impl Stuck {
    async fn set() -> Self {
        let vhost = crate::support::broker::vhost();
        let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
        let connection = connect(&broker, ConnectionKind::Run).await.unwrap();
        let queues = Queues::connect(&vhost.url).await;
        let channel = queues.connection.create_channel().await.unwrap();
        for queue in ["q", "stuck"] {
            channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
        }
        channel.close(200, "declared".into()).await.unwrap();
        let stuck = Self { vhost, connection, queues };
        stuck.has_it("suspend");
        stuck
    }

    fn has_it(&self, word: &str) {
        let queue = format!("rabbit_misc:r(<<\"{}\">>, queue, <<\"stuck\">>)", self.vhost.name);
        let told = format!("{{ok, Q}} = rabbit_amqqueue:lookup({queue}), sys:{word}(amqqueue:get_pid(Q)).");
        self.vhost.node.ctl(&["eval", &told]);
    }

    fn channels(&self) -> usize {
        let listed = self.vhost.node.ctl(&["list_channels", "--no-table-headers", "vhost"]);
        listed.lines().filter(|line| *line == self.vhost.name).count()
    }
}

fn to(queue: &str) -> Outgoing {
    let (exchange, key, properties) = (String::new(), queue.to_owned(), BasicProperties::default());
    Outgoing { exchange, key, properties, body: vec![] }
}

/// Lets time pass for us, but not for the broker.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn what_is_never_confirmed_holds_up_no_other_message_beyond_its_first_half_minute() {
    const CHANNELS: usize = 4;
    let stuck = Stuck::set().await;
    let publisher = stuck.connection.publisher(Traffic::Jobs, CHANNELS);
    let unconfirmed = tokio::spawn({
        let publisher = publisher.clone();
        async move { publisher.publish(to("stuck")).await }
    });
    tokio::task::yield_now().await;
    // The first channel is in use: once around the others.
    for _ in 1..CHANNELS {
        let _confirmed = publisher.try_publish(Arc::new(to("q"))).await.unwrap();
    }
    for seconds in [30, 60] {
        later(seconds).await;
        // Several times over each of the channels.
        for _ in 0..20 {
            let others = join_all((0..CHANNELS).map(|_| publisher.try_publish(Arc::new(to("q")))));
            let words =
                timeout(Duration::from_secs(20), others).await.expect("nothing waits for the one that is stuck");
            assert!(words.iter().all(Result::is_ok), "{words:?}");
        }
    }
    assert!(!unconfirmed.is_finished());
    stuck.has_it("resume");
    let _confirmed = unconfirmed.await.unwrap().unwrap();
    // At first, after half a minute, and a minute later.
    stuck.queues.has("stuck", 3, 0).await;
}

#[tokio::test]
async fn what_is_never_confirmed_takes_no_more_channels_than_it_may() {
    const MESSAGES: usize = 10;
    let stuck = Stuck::set().await;
    let publisher = stuck.connection.publisher(Traffic::Jobs, 1);
    let before = stuck.channels();
    let mut publishing = JoinSet::new();
    for _ in 0..MESSAGES {
        let publisher = publisher.clone();
        publishing.spawn(async move { publisher.publish(to("stuck")).await });
    }
    eventually("all are on their way", async || (stuck.channels() == before + 1).then_some(())).await;
    later(30).await;
    eventually("four are on their way again", async || (stuck.channels() == before + 4).then_some(())).await;
    assert_eq!(stuck.channels(), before + 4);
    stuck.has_it("resume");
    while let Some(published) = publishing.join_next().await {
        let _confirmed = published.unwrap().unwrap();
    }
}

/// Channels that clients of a node have opened since it started.
fn channels_opened(vhost: &Vhost) -> usize {
    let counted = "[{_, _, _, Opened, _, _, _, _}] = ets:lookup(connection_churn_metrics, node()), Opened.";
    vhost.node.ctl(&["eval", counted]).trim().parse().expect("a number")
}

#[tokio::test]
async fn a_queue_that_rejects_does_not_cost_a_channel_for_each_message() {
    const MESSAGES: usize = 60;
    let vhost = Vhost::alone();
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, ConnectionKind::Run).await.unwrap();
    let channel = connection.channel().await.unwrap();
    let mut full = FieldTable::default();
    full.insert("x-max-length".into(), AMQPValue::LongLongInt(0));
    full.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    channel.queue_declare("full".into(), QueueDeclareOptions::durable(), full).await.unwrap();
    let publisher = connection.publisher(Traffic::Jobs, 1);
    let (before, begun) = (channels_opened(&vhost), Instant::now());
    for _ in 0..MESSAGES {
        let word = publisher.try_publish(Arc::new(to("full"))).await;
        assert!(matches!(word, Err(PublishError::Rejected { .. })), "{word:?}");
    }
    let opened = channels_opened(&vhost) - before;
    // A channel that is over a second old is replaced once it rejects.
    assert!(opened <= 1 + begun.elapsed().as_secs() as usize, "{opened} channels for {MESSAGES} messages");
}

const JOBS: usize = 60;

/// A lane whose broker can lose its confirms.
struct Scene {
    sim: Sim,
    broker: Lossy,
    account: Account,
    daemon: Daemon,
    _vhost: Vhost,
}

impl Scene {
    async fn set(more: &str) -> Self {
        let vhost = crate::support::broker::vhost();
        let broker = Lossy::before(&vhost.url).await;
        let sim = Sim::start(&["--fleet", &format!("Stopped={JOBS}")]);
        let daemon = Daemon::start(&config(&broker.url, &sim.url(), &Wishes { lane: more, ..Wishes::default() }));
        daemon.ready().await;
        let account = Account::open(&vhost.url).await;
        let queues = Queues::connect(&vhost.url).await;
        queues.has("reveille.jobs.prod", 0, 1).await;
        Self { sim, broker, account, daemon, _vhost: vhost }
    }

    async fn submit(&mut self) {
        self.account.submit((1..=JOBS).map(instance), json!({})).await;
    }

    /// The start calls only: a probe may have checked the API besides.
    async fn starts(&self) -> usize {
        self.sim.log().await.iter().filter(|call| call.operation == "start").count()
    }

    async fn says(&self, words: &str) {
        eventually(words, async || self.daemon.child.output().contains(words).then_some(())).await;
    }
}

/// Of outcomes and of parked jobs: one in three calls fails at first.
#[tokio::test]
async fn confirms_that_never_come_cost_no_job_and_no_call() {
    let mut scene = Scene::set("batch = 1").await;
    for number in (1..=JOBS).step_by(3) {
        scene.sim.script(&instance(number), json!([{"status": 503}])).await;
    }
    scene.broker.confirms.begin();
    scene.submit().await;
    eventually("every job was called, and no confirm came", async || {
        (scene.starts().await == JOBS && scene.broker.confirms.count() > 0).then_some(())
    })
    .await;
    scene.broker.confirms.end();
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    // Nothing was redelivered.
    assert_eq!(scene.starts().await, JOBS + JOBS / 3);
    scene.says("it is published once more").await;
}

/// A pause keeps its channel, but not with jobs on it that no task handles any more.
#[tokio::test]
async fn jobs_that_cannot_be_put_back_as_a_lane_pauses_come_again() {
    let mut scene = Scene::set("batch = 1\n[shutdown]\ngrace = \"1s\"").await;
    scene.sim.faults(json!([{"fault": {"status": 503}}])).await;
    scene.broker.confirms.begin();
    scene.submit().await;
    scene.says("jobs still in flight after the grace go back to their queue").await;
    scene.broker.confirms.end();
    scene.sim.faults(json!([])).await;
    assert_eq!(scene.account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
}
