//! Unknown results are verified, and published outcomes are not contradicted: the copies of a job that a crash leaves
//! all publish the same.

use std::collections::BTreeMap;

use jiff::{Timestamp, ToSpan};
use serde_json::{Value, json};

use crate::support::account::Account;
use crate::support::daemon::Daemon;
use crate::support::lossy::Lossy;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::stage::{Stage, Wishes, config, in_batches};
use crate::support::{PATIENCE, broker, eventually, instance};

const POLICIES: [&str; 3] = ["fail", "accept", "verify"];

/// The lane's policy differs in each case: the job's policy counts.
#[tokio::test]
async fn a_start_that_succeeded_unseen_is_started_whatever_the_policy() {
    let wishes = Wishes { fleet: "Stopped=12", lane: "timeout = \"5s\"", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let unseen = [json!({"hang": "after"}), json!({"reset": "after"}), json!({"status": 503, "when": "after"})];
    let mut number = 0;
    for policy in POLICIES {
        for fault in &unseen {
            number += 1;
            let instance = instance(number);
            stage.sim.script(&instance, json!([fault])).await;
            stage.job(&instance, json!({"instance_id": instance, "conflict": policy})).await;
        }
    }
    for (instance, outcome) in stage.outcomes(number).await {
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(true)), "{outcome}");
        // In a shared call each also meets the others' faults.
        let operations = stage.sim.operations(&instance).await;
        assert!(
            operations == ["start", "start", "describe"] || in_batches() && operations.ends_with(&["describe".into()])
        );
    }
    stage.sim.every_machine_started_once(number).await;
}

/// A kill during the call leaves a redelivered message, which is touched.
#[tokio::test]
async fn a_start_that_succeeded_before_a_crash_is_started_whatever_the_policy() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=3", ..Wishes::default() }).await;
    for (instance, policy) in ["i-sim00001", "i-sim00002", "i-sim00003"].iter().zip(POLICIES) {
        stage.sim.script(instance, json!([{"hang": "after"}])).await;
        stage.job(instance, json!({"instance_id": instance, "conflict": policy})).await;
    }
    eventually("the calls are out", async || (stage.sim.log().await.len() == 3).then_some(())).await;
    stage.daemon.kill().await;
    stage.daemon.start_again();
    for outcome in stage.outcomes(3).await.into_values() {
        assert_eq!((&outcome["outcome"], &outcome["ambiguous"]), (&json!("started"), &json!(true)), "{outcome}");
    }
}

/// Two copies of every job: the original, redelivered, and the parked one.
struct Copies {
    sim: Sim,
    /// Keeps the daemon running.
    _daemon: Daemon,
    account: Account,
    /// Keeps its node running.
    _vhost: broker::Vhost,
}

/// What happens to the daemon between the confirm of the parked copy and the ack of the original.
#[derive(Clone, Copy)]
enum Crash {
    /// SIGKILL, and another one starts.
    Kill,
    /// The connection is lost, and the same one connects again.
    Cut,
}

impl Copies {
    /// Submits `jobs`, made once a daemon is ready for them, has the daemon park `parked` of them and end the others,
    /// and loses every ack.
    async fn make(
        crash: Crash,
        sim: Sim,
        wishes: Wishes<'_>,
        parked: usize,
        jobs: impl FnOnce() -> Vec<(Vec<String>, Value)>,
    ) -> Self {
        let vhost = broker::vhost();
        let broker = Lossy::before(&vhost.url).await;
        let mut daemon = Daemon::start(&config(&broker.url, &sim.url(), &wishes));
        daemon.ready().await;
        let mut account = Account::open(&vhost.url).await;
        broker.acks.begin();
        let mut count = 0;
        for (instances, more) in jobs() {
            count += instances.len();
            account.submit(instances, more).await;
        }
        let scheduled = r#"reveille_jobs_parked_total{cause="not_before",lane="prod"}"#;
        eventually("every job is parked, and its ack lost", async || {
            let seen = daemon.charged().await + daemon.metric(scheduled).await;
            (seen >= parked as f64 && broker.acks.count() >= count).then_some(())
        })
        .await;
        match crash {
            Crash::Cut => broker.cut(),
            Crash::Kill => {
                daemon.kill().await;
                broker.cut();
                let queues = Queues::connect(&vhost.url).await;
                eventually("both copies of each are there, and nobody takes them", async || {
                    let mut there = 0;
                    let levels = (0..18).map(|level| format!("reveille.delay.{level:02}"));
                    let lane = ["reveille.jobs.prod", "reveille.due.prod"].map(str::to_owned);
                    for queue in levels.chain(lane) {
                        there += queues.count(&queue).await.0 as usize;
                    }
                    (there == count + parked).then_some(())
                })
                .await;
                daemon.start_again();
            }
        }
        Self { sim, _daemon: daemon, account, _vhost: vhost }
    }

    /// Waits for both ends of every job. Returns how many ended how, after checking that no two copies differ.
    async fn ends(mut self, jobs: usize) -> (BTreeMap<String, usize>, Sim) {
        eventually("every copy ends", async || {
            self.account.ended().await;
            (self.account.events >= 2 * jobs).then_some(())
        })
        .await;
        (self.account.close(PATIENCE).await, self.sim)
    }
}

fn instances(count: usize) -> Vec<String> {
    (1..=count).map(instance).collect()
}

/// A third of them under each policy, otherwise as in `job`.
fn under_each_policy(instances: &[String], mut job: Value) -> Vec<(Vec<String>, Value)> {
    let nth = |third| instances.iter().skip(third).step_by(3).cloned().collect();
    let with = |(third, policy)| {
        job["conflict"] = json!(policy);
        (nth(third), job.clone())
    };
    POLICIES.into_iter().enumerate().map(with).collect()
}

/// Parked after a 5xx, which took effect for half of the jobs, under each policy.
async fn copies_parked_after_a_5xx(crash: Crash) {
    let sim = Sim::start(&["--fleet", "Stopped=27,Running=3"]);
    let (started, running) = (instances(27), &instances(30)[27..]);
    let (failing, good) = (started[..12].iter().chain(running), &started[12..]);
    for (index, instance) in failing.clone().enumerate() {
        let when = if index % 2 == 0 { "after" } else { "before" };
        sim.script(instance, json!([{"status": 500, "when": when}])).await;
    }
    // Each is followed by a success, or the lane would pause.
    let all: Vec<String> = failing.zip(good).flat_map(|(failing, good)| [failing.clone(), good.clone()]).collect();
    let jobs = || under_each_policy(&all, json!({}));
    let wishes = Wishes { retry: "initial = \"8s\"\nmax = \"8s\"", lane: "concurrency = 1", ..Wishes::default() };
    // In a shared call, jobs whose own calls would succeed fail too.
    let parked = if in_batches() { 30 } else { 15 };
    let copies = Copies::make(crash, sim, wishes, parked, jobs).await;
    let (counts, sim) = copies.ends(30).await;
    // Three ran before. After a call with an unknown result they may have been started by us.
    assert_eq!(counts, [("started".to_owned(), 30)].into());
    sim.every_machine_started_once(started.len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_after_a_5xx_and_a_kill_end_as_one() {
    copies_parked_after_a_5xx(Crash::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_after_a_5xx_and_a_lost_connection_end_as_one() {
    copies_parked_after_a_5xx(Crash::Cut).await;
}

/// One copy uses up its attempts before the API recovers. The other would succeed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_does_not_succeed_where_the_other_gave_up() {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    // The call before the crash; one of the original, the last one of the parked copy; and one that would succeed.
    sim.script("i-sim00001", json!([{"status": 500}, {"status": 500}, {"status": 500}, "normal"])).await;
    let wishes = Wishes { retry: "max_attempts = 2\ninitial = \"4s\"\nmax = \"4s\"", ..Wishes::default() };
    let copies = Copies::make(Crash::Kill, sim, wishes, 1, || vec![(instances(1), json!({}))]).await;
    let (counts, sim) = copies.ends(1).await;
    assert_eq!(counts, [("failed exhausted".to_owned(), 1)].into());
    assert_eq!(sim.instance("i-sim00001").await["starts"], 0);
}

/// Parked for their time, both copies are due in the same second, and both are clean first touches.
async fn copies_parked_for_their_time(crash: Crash) {
    let sim = Sim::start(&["--fleet", "Stopped=30,Running=30", "--latency", "20ms"]);
    let mut not_before = Timestamp::now();
    let jobs = || {
        not_before = Timestamp::now() + 30.seconds();
        under_each_policy(&instances(60), json!({"not_before": not_before}))
    };
    let copies = Copies::make(crash, sim, Wishes::default(), 60, jobs).await;
    assert!(copies.sim.log().await.is_empty(), "the crash came before their time");
    let (counts, sim) = copies.ends(60).await;
    // Waiting until `not_before` is no touch, not even with a crash in between: the policy applies.
    let expected = [("started", 30), ("failed conflict", 10), ("already_done", 20)];
    assert_eq!(counts, expected.map(|(end, count)| (end.to_owned(), count)).into());
    for call in sim.log().await {
        assert!(call.unix_micros >= not_before.as_microsecond(), "{call:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_scheduled_job_after_a_kill_end_as_one_and_keep_the_policy() {
    copies_parked_for_their_time(Crash::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_scheduled_job_after_a_lost_connection_end_as_one_and_keep_the_policy() {
    copies_parked_for_their_time(Crash::Cut).await;
}

/// Ended and acked, but the ack was lost: the job is redelivered as touched, and the API has recovered.
async fn outcomes_told_twice(crash: Crash) {
    let sim = Sim::start(&["--fleet", "Stopped=6,Running=30"]);
    let stopped = instances(6);
    sim.faults(json!([{"fault": {"status": 500}, "instances": stopped}])).await;
    let vhost = broker::vhost();
    let broker = Lossy::before(&vhost.url).await;
    let wishes = Wishes { retry: "max_attempts = 1", ..Wishes::default() };
    let mut daemon = Daemon::start(&config(&broker.url, &sim.url(), &wishes));
    daemon.ready().await;
    let mut account = Account::open(&vhost.url).await;
    broker.acks.begin();
    for (instances, more) in under_each_policy(&instances(36), json!({})) {
        account.submit(instances, more).await;
    }
    eventually("every job has ended, and its ack is lost", async || {
        (account.ended().await == 36 && broker.acks.count() >= 36).then_some(())
    })
    .await;
    sim.faults(json!([])).await;
    if let Crash::Kill = crash {
        daemon.kill().await;
    }
    // Foreign entries in the log do not make it useless: one far in the future, and another outcome for each job.
    let queues = Queues::connect(&vhost.url).await;
    let genuine = queues.read_stream("reveille.outcomes.log", &mut 0).await.pop().expect("they are in the log");
    queues.forge(&genuine, "i-stranger", "started", Timestamp::MAX).await;
    for instance in instances(36) {
        queues.forge(&genuine, &instance, "started", Timestamp::now()).await;
    }
    broker.cut();
    if let Crash::Kill = crash {
        daemon.start_again();
    }
    eventually("every job ends again", async || {
        account.ended().await;
        (account.events >= 72).then_some(())
    })
    .await;
    let counts = account.close(PATIENCE).await;
    if in_batches() {
        // Instances that ran before shared a call with ones that failed: they may have been started by us.
        assert_eq!((counts["failed exhausted"], counts.values().sum::<usize>()), (6, 36), "{counts:?}");
    } else {
        let expected = [("failed conflict", 10), ("already_done", 20), ("failed exhausted", 6)];
        assert_eq!(counts, expected.map(|(end, count)| (end.to_owned(), count)).into());
    }
    assert!(stopped.len() == 6 && sim.log().await.iter().all(|call| call.operation == "describe" || !call.took_effect));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_before_a_kill_is_not_said_otherwise_after_it() {
    outcomes_told_twice(Crash::Kill).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_said_before_the_connection_was_lost_is_not_said_otherwise_after_it() {
    outcomes_told_twice(Crash::Cut).await;
}
