//! A broker with a certificate of a private authority, which admits no client without one.

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::broker::Node;
use crate::support::child::run;
use crate::support::daemon::{Config, Daemon};
use crate::support::files::Folder;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::tls::{Authority, authority, certificate};
use crate::support::{PATIENCE, eventually};

const SUBMIT: [&str; 5] = ["submit", "--lane", "prod", "--wait", "i-sim00001"];

/// A node that speaks TLS, with `verify_peer` and `fail_if_no_peer_cert`.
struct Scene {
    node: Node,
    folder: Folder,
    ours: Authority,
    port: u16,
}

impl Scene {
    fn set() -> Self {
        let (folder, ours) = (Folder::new(), authority("the tests' own"));
        let [server, key] = certificate(&ours);
        let conf = [
            "listeners.ssl.1 = 127.0.0.1:TLS_PORT".to_owned(),
            format!("ssl_options.cacertfile = {}", folder.put("broker-ca.pem", &ours.pem())),
            format!("ssl_options.certfile = {}", folder.put("broker.pem", &server)),
            format!("ssl_options.keyfile = {}", folder.put("broker.key", &key)),
            "ssl_options.verify = verify_peer".to_owned(),
            "ssl_options.fail_if_no_peer_cert = true".to_owned(),
        ];
        let arguments: Vec<&str> = conf.iter().flat_map(|line| ["--conf", line]).collect();
        let node = Node::start(&arguments);
        let port = node.tls_port();
        // RabbitMQ 4 opens it after the port without TLS, for which the start waits.
        let opened = (0..PATIENCE.as_secs() * 10).any(|_| {
            let is_open = TcpStream::connect(("127.0.0.1", port)).is_ok();
            if !is_open {
                std::thread::sleep(Duration::from_millis(100));
            }
            is_open
        });
        assert!(opened, "RabbitMQ takes connections with TLS");
        Self { node, folder, ours, port }
    }

    fn config(&self, settings: &str, api: &str) -> String {
        let url = format!("amqps://guest:guest@127.0.0.1:{}/t1", self.port);
        config(&url, api, &Wishes::default()).replace("[http]", &format!("{settings}\n[http]"))
    }

    fn ca(&self, authority: &Authority) -> String {
        format!("ca_file = {:?}\n", self.folder.put("ca.pem", &authority.pem()))
    }

    fn client(&self, authority: &Authority) -> String {
        let [certificate, key] = certificate(authority);
        let (certificate, key) = (self.folder.put("client.pem", &certificate), self.folder.put("client.key", &key));
        format!("cert_file = {certificate:?}\nkey_file = {key:?}\n")
    }

    /// Asserts that `submit` and the daemon say all of these. Returns the daemon.
    async fn fails_with(&self, settings: &str, api: &str, words: &[&str]) -> Daemon {
        let daemon = Daemon::start(&self.config(settings, api));
        let ran = run(daemon.config.command(&SUBMIT), "").await;
        assert_eq!(ran.code, Some(69), "{}", ran.errors);
        for word in words {
            assert!(ran.errors.contains(word), "{word} in {}", ran.errors);
        }
        eventually("readiness says so", async || {
            let (status, body) = daemon.get("/readyz").await;
            (status == 503 && words.iter().all(|word| body.contains(word))).then_some(())
        })
        .await;
        daemon
    }
}

#[tokio::test]
async fn a_private_authority_and_a_client_certificate_are_all_it_takes() {
    let (scene, sim) = (Scene::set(), Sim::start(&["--fleet", "Stopped=1"]));
    let theirs = authority("somebody else's");

    let wrong_ca = scene.ca(&theirs) + &scene.client(&scene.ours);
    let refused = ["UnknownIssuer", "the authority of RabbitMQ's certificate in broker.ca_file, ", "/ca.pem"];
    let daemon = scene.fails_with(&wrong_ca, &sim.url(), &refused).await;
    let ran = run(daemon.config.command(&["check"]), "").await;
    let failed = |check: &str| ran.output.lines().any(|line| line.starts_with("FAILED") && line.contains(check));
    assert!(ran.code == Some(1) && failed(" broker.tls ") && failed(" broker.login "), "{}", ran.output);
    assert!(refused.iter().all(|words| ran.output.contains(words)) && !failed(" api.keys "), "{}", ran.output);
    // Files are read for each connection: the daemon is not restarted.
    scene.ca(&scene.ours);
    daemon.takes_the_lane().await;
    let ran = run(daemon.config.command(&SUBMIT), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    std::fs::set_permissions(scene.folder.path("client.key"), Permissions::from_mode(0o600)).unwrap();
    let ran = run(daemon.config.command(&["check"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.output);
    let certificate = ran.output.lines().find(|line| line.contains(" broker.tls ")).expect("a line for TLS");
    assert!(certificate.starts_with("passed") && certificate.contains("expires in "), "{certificate}");
    let listed = scene.node.ctl(&["list_connections", "ssl", "client_properties"]);
    assert!(listed.lines().any(|line| line.starts_with("true") && line.contains("reveille run")), "{listed}");

    scene.folder.put("ca.pem", "-----BEGIN");
    scene.node.ctl(&["close_all_connections", "--global", "a test"]);
    eventually("a torn file is named", async || {
        let (status, body) = daemon.get("/readyz").await;
        (status == 503 && body.contains("broker.ca_file: cannot use") && body.contains("/ca.pem")).then_some(())
    })
    .await;
    scene.ca(&scene.ours);
    daemon.takes_the_lane().await;
}

#[tokio::test]
async fn a_certificate_that_the_broker_wants_or_does_not_accept_is_told_with_the_remedy() {
    let (scene, theirs) = (Scene::set(), authority("somebody else's"));
    let api = "http://127.0.0.1:9";
    let none = ["RabbitMQ wants a certificate of the client: set broker.cert_file and broker.key_file"];
    scene.fails_with(&scene.ca(&scene.ours), api, &none).await;
    let foreign = ["RabbitMQ does not accept the certificate in broker.cert_file, ", "ssl_options.cacertfile"];
    scene.fails_with(&(scene.ca(&scene.ours) + &scene.client(&theirs)), api, &foreign).await;
    for (url, expected) in [
        (format!("amqp://guest:guest@127.0.0.1:{}", scene.port), "expected AMQP there: check the port"),
        (scene.node.url.replace("amqp:", "amqps:"), "expected TLS there: check the port"),
    ] {
        let ca = if url.starts_with("amqps") { scene.ca(&scene.ours) } else { String::new() };
        let text = config(&url, api, &Wishes::default()).replace("[http]", &format!("{ca}\n[http]"));
        let config = Config::write(&text);
        let ran = run(config.command(&SUBMIT), "").await;
        assert_eq!(ran.code, Some(69), "{}", ran.errors);
        assert!(ran.errors.contains(expected), "{}", ran.errors);
    }
    let unnamed = ["UnknownIssuer", "set broker.ca_file to the authority of RabbitMQ's certificate"];
    scene.fails_with(&scene.client(&scene.ours), api, &unnamed).await;
}

#[tokio::test]
async fn files_of_no_use_are_faults_of_the_configuration() {
    let (folder, ours) = (Folder::new(), authority("the tests' own"));
    let [certificate_of_one, _] = certificate(&ours);
    let [_, key_of_another] = certificate(&ours);
    let files = [("ca", ours.pem()), ("one", certificate_of_one), ("another", key_of_another), ("text", "hush".into())];
    let [ca, one, another, text] = files.map(|(name, text)| folder.put(name, &text));
    let broken = folder.put("broken", "-----BEGIN CERTIFICATE-----\naHVzaA==\n-----END CERTIFICATE-----\n");
    let missing = folder.path("missing");
    for (scheme, settings, faults) in [
        ("amqps", format!("ca_file = {missing:?}"), &["broker.ca_file: cannot use", "No such file", "a PEM file"][..]),
        ("amqps", format!("ca_file = {text:?}"), &["broker.ca_file: cannot use", "it holds no certificate"]),
        ("amqps", format!("ca_file = {broken:?}"), &["broker.ca_file: cannot use", "certificate 1 is none"]),
        (
            "amqps",
            format!("ca_file = {ca:?}\ncert_file = {one:?}"),
            &["broker.cert_file: alone: expected cert_file and"],
        ),
        ("amqps", format!("key_file = {one:?}"), &["broker.key_file: alone: expected cert_file and key_file"]),
        (
            "amqps",
            format!("ca_file = {ca:?}\ncert_file = {one:?}\nkey_file = {another:?}"),
            &["broker.key_file: cannot use", "it does not go with"],
        ),
        (
            "amqps",
            format!("ca_file = {ca:?}\ncert_file = {one:?}\nkey_file = {text:?}"),
            &["broker.key_file: cannot use", "it holds no private key"],
        ),
        (
            "amqp",
            format!("ca_file = {ca:?}\ncert_file = {one:?}\nkey_file = {another:?}"),
            &["broker.ca_file: beside an amqp:// URL", "broker.cert_file: beside", "broker.key_file: beside"],
        ),
    ] {
        let url = format!("{scheme}://guest:guest@127.0.0.1:9");
        let text = config(&url, "http://127.0.0.1:9", &Wishes::default());
        let config = Config::write(&text.replace("[http]", &format!("{settings}\n[http]")));
        for arguments in [&["run"][..], &SUBMIT, &["topology"]] {
            let ran = run(config.command(arguments), "").await;
            assert_eq!(ran.code, Some(2), "{settings}: {}", ran.errors);
            for fault in faults {
                assert!(ran.errors.contains(fault), "{fault} in {}", ran.errors);
            }
            assert!(!ran.errors.contains("hush"), "{}", ran.errors);
        }
    }
}
