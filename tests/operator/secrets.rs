//! TLS and secrets: which authorities the daemon trusts, and what it never shows.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::account::Account;
use crate::support::broker;
use crate::support::daemon::Daemon;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::queues::Queues;
use crate::support::sim::{KEY, SECRET, Sim};
use crate::support::stage::{Wishes, config};
use crate::support::tls::{Trusted, authority, in_the_place_of, vouched_for_by};
use crate::support::{PATIENCE, eventually, instance};

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_a_lane_fault_and_its_jobs_are_unharmed() {
    const JOBS: usize = 200;
    let (vhost, sim) = (broker::vhost(), Sim::start(&["--fleet", &format!("Stopped={JOBS}")]));
    let (ours, theirs) = (authority("the tests' own"), authority("somebody else's"));
    let certificate = watch::Sender::new(vouched_for_by(&theirs));
    let url = format!("https://{}", in_the_place_of(&sim.address, certificate.subscribe()).await);
    let trusted = Trusted::are(&ours);
    // Time enough for handshakes on a busy machine.
    let config = config(&vhost.url, &url, &Wishes { lane: "connect_timeout = \"15s\"", ..Wishes::default() });
    let daemon = Daemon::start_with(&config, "SSL_CERT_FILE", trusted.file());
    daemon.ready().await;
    let mut events = Queues::connect(&vhost.url).await.listen("reveille.outcomes", "prod.started").await;
    let mut account = Account::open(&vhost.url).await;
    account.submit((1..=JOBS).map(instance), json!({})).await;
    let words =
        ["the API's certificate was refused: ", "check the lane's endpoint, and the certificates this machine trusts"];
    daemon.paused("endpoint", &words).await;
    eventually("several probes", async || {
        (daemon.metric(r#"reveille_api_requests_total{lane="prod",operation="probe",status="tls"}"#).await > 2.0)
            .then_some(())
    })
    .await;
    assert_eq!(sim.calls_made().await, 0, "nothing was sent to whom it did not trust");

    certificate.send_replace(vouched_for_by(&ours));
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    for _ in 0..JOBS {
        let next = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time");
        let event = next.expect("subscribed").expect("open");
        let event: Value = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(event["data"]["attempts"], 1, "{event}");
    }
    assert_eq!(daemon.charged().await, 0.0, "no job lost an attempt");
    daemon.works_again().await;
}

/// Everything that a run shows: logs at the highest level, metrics, health, events and dead letters, before and after
/// the keys were changed, and while they were wrong.
#[tokio::test]
async fn no_secret_is_shown_whatever_is_logged() {
    const PASSWORD: &str = "Hush-4711-hush";
    const OLD: [&str; 3] = [KEY, SECRET, "Old-4712-token"];
    const NEW: [&str; 3] = ["new-key-id", "New-4713-secret", "New-4714-token"];
    let account = |[id, secret, token]: [&str; 3]| json!({"access_key_id": id, "secret_access_key": secret, "session_token": token});
    let file = |[id, secret, token]: [&str; 3]| format!("{}session_token = {token:?}\n", keys(id, secret));

    let (vhost, sim, folder) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=3"]), KeyFolder::new());
    sim.control("PUT", "credentials", account(OLD)).await;
    folder.rename(&file(OLD));
    vhost.node.ctl(&["add_user", "keeper", PASSWORD]);
    vhost.node.ctl(&["set_permissions", "-p", &vhost.name, "keeper", ".*", ".*", ".*"]);
    let url = vhost.url.replace("guest:guest@", &format!("keeper:{PASSWORD}@"));
    let lane = format!("credentials_file = {:?}", folder.file());
    let config = config(&url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() });
    let mut daemon = Daemon::start_logging(&config, "trace");
    daemon.ready().await;
    let queues = Queues::connect(&vhost.url).await;
    let mut events = queues.listen("reveille.outcomes", "prod.*").await;
    let wake = async |instance: &str| {
        let job = lapin::BasicProperties::default().with_message_id(instance.into());
        let body = json!({"instance_id": instance}).to_string();
        queues.publish("reveille.jobs", "prod", job, body.as_bytes()).await;
    };
    let mut shown = String::new();
    let pages = async || {
        let mut pages = String::new();
        for path in ["/metrics", "/readyz", "/livez"] {
            pages += &daemon.get(path).await.1;
        }
        pages
    };
    let mut ends = async |wanted: &str| {
        let mut told = String::new();
        while !told.contains(wanted) {
            let next = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event in time");
            let event = next.expect("subscribed").expect("open");
            told += &format!("{:?} {}", event.properties, String::from_utf8_lossy(&event.data));
        }
        told
    };

    wake("i-sim00001").await;
    shown += &ends("i-sim00001").await;
    shown += &pages().await;
    // A wrong secret is not ours, but the next one to be tried may be right.
    sim.control("PUT", "credentials", account(NEW)).await;
    wake("i-sim00002").await;
    eventually("the keys are refused", async || {
        (daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await == 1.0).then_some(())
    })
    .await;
    shown += &pages().await;
    folder.rename(file(NEW).trim_end_matches(['"', '\n']));
    eventually("the file is found torn", async || {
        daemon.child.output().contains("the keys stay what they were").then_some(())
    })
    .await;
    folder.rename(&file(NEW));
    shown += &ends("i-sim00002").await;
    wake("i-nobody").await;
    shown += &ends("i-nobody").await;
    let dead = eventually("a dead letter", async || queues.take_all("reveille.dead").await.pop()).await;
    shown += &format!("{:?} {}", dead.properties, String::from_utf8_lossy(&dead.data));
    shown += &pages().await;
    daemon.stop().await;
    shown += &daemon.child.output();

    assert!(shown.contains("TRACE") && shown.contains("DEBUG lapin"), "everything was logged");
    for part in ["new keys from", "started", "not_found", "x-reveille-dead-at", "reveille_lane_clock_offset_seconds"] {
        assert!(shown.contains(part), "{part} is looked at");
    }
    let bytes = |secret: &str| format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned();
    for secret in [PASSWORD, OLD[1], OLD[2], NEW[1], NEW[2]] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert!(!shown.contains(&bytes(secret)), "{secret} is shown in bytes");
    }
}
