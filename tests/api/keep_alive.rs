//! Servers close idle connections, even as a call is sent over one. That costs no job an attempt, and the rate is kept.

use std::collections::BTreeSet;
use std::time::Duration;

use reveille::bce::{Client, Credentials, InstanceId, NoAnswer, Timeouts};
use serde_json::json;
use tokio::sync::watch;

use crate::support::account::Account;
use crate::support::broker;
use crate::support::daemon::Daemon;
use crate::support::front::{Close, Front, Habit, Seen};
use crate::support::pace::{Lateness, allowed, fullest};
use crate::support::sim::{KEY, SECRET, Sim};
use crate::support::stage::{LANE, Wishes, config};
use crate::support::tls::{Trusted, authority, in_the_place_of, vouched_for_by};
use crate::support::{PATIENCE, eventually, instance};

const JOBS: usize = 91;
const RATE: f64 = 40.0;
const BURST: u32 = 5;
/// Shorter than that of any well-known server.
const SHORTEST_IDLE: Duration = Duration::from_secs(2);

fn client(front: &Front) -> Client {
    let credentials = Credentials {
        access_key_id: KEY.to_owned(),
        secret_access_key: SECRET.to_owned().into(),
        session_token: None,
        expires_at: None,
    };
    let timeouts = Timeouts { connect: Duration::from_secs(10), total: Duration::from_secs(20) };
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(front.url().parse().unwrap(), credentials, timeouts, 8).unwrap()
}

/// A front, and a daemon with a lane that calls it.
struct Play {
    sim: Sim,
    front: Front,
    daemon: Daemon,
    account: Account,
    _vhost: broker::Vhost,
}

impl Play {
    async fn begin(habit: Habit, lane: &str) -> Self {
        let vhost = broker::vhost();
        let sim = Sim::start(&["--fleet", &format!("Stopped={JOBS}"), "--boot-time", "1h"]);
        let front = Front::before(&sim.address, habit);
        let lane = format!("rate = {RATE:?}\nburst = {BURST}\n{lane}");
        let daemon = Daemon::start(&config(&vhost.url, &front.url(), &Wishes { lane: &lane, ..Wishes::default() }));
        daemon.ready().await;
        daemon.takes_the_lane().await;
        let account = Account::open(&vhost.url).await;
        Self { sim, front, daemon, account, _vhost: vhost }
    }

    async fn submit(&mut self) {
        self.account.submit((1..=JOBS).map(instance), json!({})).await;
    }

    /// Submits all jobs, and waits until they are started without having lost an attempt.
    async fn starts_all(&mut self) {
        self.submit().await;
        assert_eq!(self.account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
        self.is_unharmed().await;
    }

    /// Calls of this operation with this result, as the daemon counts them.
    async fn calls(&self, operation: &str, status: &str) -> f64 {
        let labels = format!(r#"lane="{LANE}",operation="{operation}",status="{status}""#);
        self.daemon.metric(&format!("reveille_api_requests_total{{{labels}}}")).await
    }

    /// The probes: all lists but the first, which checks the keys.
    fn probes(&self) -> Vec<Seen> {
        let seen = self.front.seen().into_iter();
        seen.filter(|call| call.line.starts_with("GET /v2/instance?maxKeys")).skip(1).collect()
    }

    /// Every instance was started once, and no job lost an attempt.
    async fn is_unharmed(&self) {
        let (_, metrics) = self.daemon.get("/metrics").await;
        let calls: Vec<&str> = metrics.lines().filter(|line| line.starts_with("reveille_api_requests_total")).collect();
        assert_eq!(self.daemon.charged().await, 0.0, "no job lost an attempt: {calls:#?}");
        self.sim.every_machine_started_once(JOBS).await;
        self.daemon.never_paused().await;
    }
}

/// Every call over a reused connection is cut off: half of all calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_stale_connections_cost_no_job_and_keep_to_the_rate() {
    let mut play = Play::begin(Habit::ResetsUsed, "batch = 1\nconflict = \"fail\"").await;
    let lateness = Lateness::measure(&play.sim);
    play.starts_all().await;

    let stale = play.calls("start", "stale").await;
    assert!(stale >= 20.0, "connections are used again: {stale}");
    assert_eq!((play.calls("start", "200").await, play.calls("start", "broken").await), (JOBS as f64, 0.0));
    let seen = play.front.seen();
    assert_eq!(
        seen.len() as f64,
        1.0 + JOBS as f64 + stale,
        "one checks the keys, and each other is made once more at most"
    );
    let times: Vec<i64> = seen.iter().map(|call| (call.at - seen[0].at).as_micros() as i64).collect();
    let most = fullest(&times, Duration::from_secs(1)) as f64;
    assert!(most <= allowed(RATE, BURST, lateness.longest()), "{most} calls in a second");
}

/// Here TLS ends without close_notify, which rustls reports as an error, not as the end of the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_over_stale_connections_with_tls_cost_no_job_either() {
    let vhost = broker::vhost();
    let sim = Sim::start(&["--fleet", &format!("Stopped={JOBS}"), "--boot-time", "1h"]);
    let front = Front::before(&sim.address, Habit::ResetsUsed);
    let ours = authority("the tests' own");
    let (certificate, trusted) = (watch::Sender::new(vouched_for_by(&ours)), Trusted::are(&ours));
    let url = format!("https://{}", in_the_place_of(&front.address, certificate.subscribe()).await);
    let lane = format!("rate = {RATE:?}\nbatch = 1\nconnect_timeout = \"15s\"");
    let config = config(&vhost.url, &url, &Wishes { lane: &lane, ..Wishes::default() });
    let daemon = Daemon::start_with(&config, "SSL_CERT_FILE", trusted.file());
    daemon.ready().await;
    daemon.takes_the_lane().await;
    let account = Account::open(&vhost.url).await;
    let mut play = Play { sim, front, daemon, account, _vhost: vhost };
    play.starts_all().await;
    assert!(play.calls("start", "stale").await >= 20.0);
    assert_eq!(play.calls("start", "broken").await, 0.0);
}

/// A call lost over a stale connection may have been carried out: a 409 is not taken for another client's start then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_a_stale_connection_swallowed_is_known_to_be_perhaps_our_own() {
    let mut play = Play::begin(Habit::ResetsUsedAfter, "batch = 1\nconflict = \"fail\"").await;
    play.starts_all().await;
    assert!(play.calls("start", "409").await >= 20.0, "the second call finds it started");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_a_stale_connection_swallowed_is_known_to_be_perhaps_our_own() {
    let mut play = Play::begin(Habit::ResetsUsedAfter, "batch = 10\nconflict = \"fail\"").await;
    play.starts_all().await;
    assert!(play.calls("start_batch", "409").await >= 1.0, "a second call finds them started");
}

/// Its connections are closed between most calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_closes_idle_connections_quickly_costs_no_job() {
    let idle = Habit::ClosesIdle(Duration::from_millis(25));
    let mut play = Play::begin(idle, "batch = 1\nconflict = \"fail\"").await;
    play.starts_all().await;
    assert_eq!(play.calls("start", "broken").await, 0.0);
    println!("{} of {JOBS} calls met a connection that was being closed", play.calls("start", "stale").await);
}

/// An API that resets everything is an outage: finding out costs at most one more call for each idle connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_resets_fresh_connections_too_is_out() {
    let mut play = Play::begin(Habit::Keeps, "batch = 1\nconcurrency = 8").await;
    play.account.submit((1..=20).map(instance), json!({})).await;
    assert_eq!(play.account.close(PATIENCE).await, [("started".to_owned(), 20)].into());
    play.front.set(Habit::ResetsAll);
    let before = play.front.seen().len();
    play.account.submit((21..=JOBS).map(instance), json!({})).await;
    play.daemon.paused("outage", &["the connection to the API broke"]).await;
    eventually("probes are made", async || (play.probes().len() >= 3).then_some(())).await;
    let starts = play.front.seen().len() - before - play.probes().len();
    assert!(starts <= 8 + 5 + 8, "{starts} calls to find out");
    play.front.set(Habit::ResetsUsed);
    assert_eq!(play.account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    assert_eq!(play.daemon.charged().await, 0.0, "no job lost an attempt");
}

/// Old connections would show the state before the outage: they lead nowhere, and fail one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_probe_has_a_connection_of_its_own() {
    let mut play = Play::begin(Habit::Keeps, "batch = 1").await;
    play.sim.faults(json!([{"fault": {"status": 503}}])).await;
    play.submit().await;
    play.daemon.paused("outage", &["HTTP 503"]).await;
    eventually("probes are made", async || (play.probes().len() >= 3).then_some(())).await;
    play.sim.faults(json!([])).await;
    assert_eq!(play.account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    let probes = play.probes();
    assert!(probes.iter().all(|probe| !probe.is_reused), "{probes:?}");
    let connections: BTreeSet<usize> = probes.iter().map(|probe| probe.connection).collect();
    assert_eq!(connections.len(), probes.len());
    assert!(play.front.seen().iter().any(|call| call.is_reused), "others are used again");
}

#[tokio::test]
async fn a_fresh_client_keeps_no_connection_and_the_usual_one_does() {
    let sim = Sim::start(&[]);
    let front = Front::before(&sim.address, Habit::Keeps);
    let client = client(&front);
    for _ in 0..3 {
        client.probe().await.unwrap();
    }
    assert_eq!(front.connections(), 1);
    let fresh = client.fresh();
    for _ in 0..3 {
        fresh.probe().await.unwrap();
    }
    assert_eq!(front.connections(), 4);
    assert!(fresh.replace_credentials(Credentials {
        secret_access_key: "wrong".to_owned().into(),
        ..(*client.credentials()).clone()
    }));
    assert_eq!(client.probe().await.unwrap().code.as_deref(), Some("SignatureDoesNotMatch"), "it has the same keys");
}

#[tokio::test]
async fn an_idle_connection_is_dropped_before_a_server_would_drop_it() {
    let sim = Sim::start(&[]);
    let front = Front::before(&sim.address, Habit::Keeps);
    let client = client(&front);
    for _ in 0..3 {
        client.probe().await.unwrap();
        tokio::time::sleep(SHORTEST_IDLE / 4).await;
    }
    assert_eq!(front.connections(), 1, "it is kept for a while");
    tokio::time::sleep(SHORTEST_IDLE).await;
    client.probe().await.unwrap();
    assert_eq!(front.connections(), 2, "and not for longer");
    assert!(!front.left().is_empty());
}

/// The runtime is blocked as the connection is closed, so the client cannot notice before it writes. By chance it may,
/// and then nothing is sent.
async fn stale(close: Close) -> NoAnswer {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let front = Front::before(&sim.address, Habit::Keeps);
    let client = client(&front);
    for _ in 0..10 {
        client.probe().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        front.close(close);
        std::thread::sleep(Duration::from_millis(100));
        match client.start(&InstanceId::parse(&instance(1)).unwrap()).await {
            Ok(answer) => println!("it was known: {answer}"),
            Err(stale) => {
                assert!(front.seen().iter().all(|call| call.line.starts_with("GET")), "the server never read it");
                return stale;
            }
        }
    }
    panic!("no call met a closed connection");
}

#[tokio::test]
async fn a_call_over_a_connection_that_was_reset_was_not_written_and_cannot_have_been_carried_out() {
    let error = stale(Close::Resets).await;
    assert!(matches!(error, NoAnswer::Stale { may_have_been_carried_out: false, .. }), "{error:?}");
}

#[tokio::test]
async fn a_call_over_a_connection_that_was_ended_was_written_and_may_have_been_carried_out() {
    let error = stale(Close::Ends).await;
    assert!(matches!(error, NoAnswer::Stale { may_have_been_carried_out: true, .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_at_its_first_call_is_not_a_stale_one() {
    let sim = Sim::start(&[]);
    let front = Front::before(&sim.address, Habit::ResetsAll);
    let client = client(&front);
    for client in [&client, &client.fresh()] {
        let error = client.probe().await.unwrap_err();
        assert!(matches!(error, NoAnswer::Broken(_)), "{error:?}");
    }
    assert_eq!(front.seen().len(), 2);
}
