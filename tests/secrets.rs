//! TLS and secrets: whom the daemon trusts, and what it never shows.

use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::broker;
use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::queues::Queues;
use crate::support::sim::{SECRET, Sim};
use crate::support::stage::{Wishes, config};

/// A server whose certificate nobody vouches for. It never gets to see a request.
async fn impostor() -> String {
    let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            assert!(acceptor.accept(stream).await.is_err(), "the daemon trusted it");
        }
    });
    url
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_a_lane_fault_and_its_jobs_are_unharmed() {
    let vhost = broker::vhost();
    let daemon = Daemon::start(&config(&vhost.url, &impostor().await, &Wishes::default()));
    daemon.ready().await;
    let queues = Queues::connect(&vhost.url).await;
    queues
        .publish("reveille.jobs", "prod", lapin::BasicProperties::default(), br#"{"instance_id":"i-sim00001"}"#)
        .await;
    eventually("the fault is seen", async || {
        (daemon.metric(r#"reveille_lane_paused{lane="prod",reason="endpoint"}"#).await == 1.0).then_some(())
    })
    .await;
    eventually("several probes", async || {
        (daemon.metric(r#"reveille_api_requests_total{lane="prod",operation="probe",status="tls"}"#).await > 2.0)
            .then_some(())
    })
    .await;
    assert!(daemon.child.output().contains("certificate"), "{}", daemon.child.output());
    assert!(queues.take_all("reveille.dead").await.is_empty());
}

#[tokio::test]
async fn no_secret_is_shown_whatever_is_logged() {
    const PASSWORD: &str = "Hush-4711-hush";
    let (vhost, sim) = (broker::vhost(), Sim::start(&["--fleet", "Stopped=3"]));
    vhost.node.ctl(&["add_user", "keeper", PASSWORD]);
    vhost.node.ctl(&["set_permissions", "-p", &vhost.name, "keeper", ".*", ".*", ".*"]);
    let url = vhost.url.replace("guest:guest@", &format!("keeper:{PASSWORD}@"));
    let mut daemon = Daemon::start_logging(&config(&url, &sim.url(), &Wishes::default()), "trace");
    daemon.ready().await;
    let queues = Queues::connect(&vhost.url).await;
    let job = lapin::BasicProperties::default().with_message_id("job".into());
    queues.publish("reveille.jobs", "prod", job, br#"{"instance_id":"i-sim00001"}"#).await;
    eventually("the job ends", async || {
        let ended = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;
        (daemon.metric(ended).await == 1.0).then_some(())
    })
    .await;
    let mut shown = String::new();
    for path in ["/metrics", "/readyz", "/livez"] {
        shown += &daemon.get(path).await.1;
    }
    // A wrong password is no secret of ours, but the next one to be typed may be right.
    sim.control("PUT", "credentials", serde_json::json!({"access_key_id": "other", "secret_access_key": "other"}))
        .await;
    queues
        .publish("reveille.jobs", "prod", lapin::BasicProperties::default(), br#"{"instance_id":"i-sim00002"}"#)
        .await;
    eventually("the keys are refused", async || {
        (daemon.metric(r#"reveille_lane_paused{lane="prod",reason="keys"}"#).await == 1.0).then_some(())
    })
    .await;
    daemon.child.signal("TERM");
    daemon.child.ended().await;
    shown += &daemon.child.output();
    assert!(shown.contains("TRACE") && shown.contains("DEBUG lapin"), "everything was logged");
    let bytes = |secret: &str| format!("{:?}", secret.as_bytes()).trim_matches(['[', ']']).to_owned();
    for secret in [PASSWORD, SECRET] {
        assert!(!shown.contains(secret), "{secret} is shown");
        assert!(!shown.contains(&bytes(secret)), "{secret} is shown in bytes");
    }
}
