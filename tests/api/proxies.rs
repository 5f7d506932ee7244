//! Proxies between the daemon and the API: used as the environment says. A problem with one is reported with the
//! variable that names it, and never with its password.

use serde_json::json;
use tokio::sync::watch;

use crate::support::account::Account;
use crate::support::broker::{self, Vhost};
use crate::support::child;
use crate::support::daemon::{Config, Daemon};
use crate::support::hosts::Refusing;
use crate::support::http_proxy::HttpProxy;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::tls::{Trusted, authority, in_the_place_of, vouched_for_by};
use crate::support::{PATIENCE, eventually, instance};

const JOBS: usize = 20;
const PASSWORD: &str = "Hush-4715-hush";
/// User `waker` with the password.
const BASIC: &str = "Basic d2FrZXI6SHVzaC00NzE1LWh1c2g=";

/// Everything that the daemon shows.
async fn shown(daemon: &Daemon) -> String {
    let mut shown = daemon.child.output();
    for path in ["/metrics", "/readyz", "/livez"] {
        shown += &daemon.get(path).await.1;
    }
    shown
}

async fn shows_no_password(daemon: &Daemon) {
    let shown = shown(daemon).await;
    for secret in [PASSWORD, BASIC, BASIC.trim_start_matches("Basic ")] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
}

struct Play {
    vhost: Vhost,
    sim: Sim,
}

impl Play {
    fn set() -> Self {
        Self { vhost: broker::vhost(), sim: Sim::start(&["--fleet", &format!("Stopped={JOBS}")]) }
    }

    /// A daemon that calls the API at `endpoint`, with these variables, none of the machine's own, and no exempt hosts.
    async fn daemon(&self, endpoint: &str, environment: &[(&str, &str)]) -> Daemon {
        let lane = "connect_timeout = \"15s\"";
        let config = config(&self.vhost.url, endpoint, &Wishes { lane, ..Wishes::default() });
        let daemon = Daemon::start_in(&config, &[&[("NO_PROXY", ""), ("RUST_LOG", "trace")], environment].concat());
        daemon.ready().await;
        daemon.takes_the_lane().await;
        daemon
    }

    async fn submit(&self) -> Account {
        let mut account = Account::open(&self.vhost.url).await;
        account.submit((1..=JOBS).map(instance), json!({})).await;
        account
    }
}

async fn all_are_started(mut account: Account, daemon: &Daemon) {
    assert_eq!(account.close(PATIENCE).await, [("started".to_owned(), JOBS)].into());
    assert_eq!(daemon.charged().await, 0.0, "no job lost an attempt");
}

/// The proxy can read what it forwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_endpoint_is_asked_for_through_the_proxy_of_http_proxy() {
    let (play, proxy) = (Play::set(), HttpProxy::start(Some(BASIC)).await);
    let url = format!("http://waker:{PASSWORD}@{}", proxy.address);
    let daemon = play.daemon(&play.sim.url(), &[("HTTP_PROXY", &url), ("HTTPS_PROXY", "socks5://nobody")]).await;
    all_are_started(play.submit().await, &daemon).await;
    let seen = proxy.seen();
    assert_eq!(seen.len(), play.sim.calls_made().await, "no call went past it");
    let whole = format!(" http://{}/v2/instance", play.sim.address);
    let asks = |request: &String| request.lines().next().is_some_and(|line| line.contains(&whole));
    assert!(seen.iter().all(|request| asks(request) && request.contains("bce-auth-v1")), "{seen:?}");
    shows_no_password(&daemon).await;
    let says = daemon.child.output();
    assert!(says.contains("calls go through the proxy of HTTP_PROXY") && says.contains(&proxy.address), "{says}");
}

/// The proxy sees the target, and no more: neither the key nor the signature.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_https_endpoint_is_reached_through_a_tunnel() {
    let (play, proxy) = (Play::set(), HttpProxy::start(Some(BASIC)).await);
    let ours = authority("the tests' own");
    let (certificate, trusted) = (watch::Sender::new(vouched_for_by(&ours)), Trusted::are(&ours));
    let api = in_the_place_of(&play.sim.address, certificate.subscribe()).await;
    let url = format!("waker:{PASSWORD}@{}", proxy.address);
    let environment = [("https_proxy", url.as_str()), ("SSL_CERT_FILE", trusted.file())];
    let daemon = play.daemon(&format!("https://{api}"), &environment).await;
    all_are_started(play.submit().await, &daemon).await;
    let seen = proxy.seen();
    assert!(!seen.is_empty() && seen.iter().all(|request| request.starts_with(&format!("CONNECT {api} "))), "{seen:?}");
    assert!(!seen.concat().contains("bce"), "{seen:?}");
    shows_no_password(&daemon).await;
}

/// As an answer, or instead of a tunnel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_wants_a_user_pauses_the_lane_until_it_does_not() {
    let ours = authority("the tests' own");
    let (certificate, trusted) = (watch::Sender::new(vouched_for_by(&ours)), Trusted::are(&ours));
    for (variable, user, words) in [
        (
            "HTTP_PROXY",
            String::new(),
            "the proxy of HTTP_PROXY wants a user and a password (407): put them into HTTP_PROXY",
        ),
        (
            "HTTPS_PROXY",
            String::new(),
            "the proxy of HTTPS_PROXY wants a user and a password (407): put them into HTTPS_PROXY",
        ),
        (
            "ALL_PROXY",
            format!("waker:{PASSWORD}@"),
            "the proxy of ALL_PROXY refuses its user and password (407): put the right",
        ),
    ] {
        let (play, proxy) = (Play::set(), HttpProxy::start(Some("Basic other")).await);
        let api = if variable == "HTTPS_PROXY" {
            format!("https://{}", in_the_place_of(&play.sim.address, certificate.subscribe()).await)
        } else {
            play.sim.url()
        };
        let url = format!("http://{user}{}", proxy.address);
        let daemon = play.daemon(&api, &[(variable, &url), ("SSL_CERT_FILE", trusted.file())]).await;
        let account = play.submit().await;
        daemon.paused("endpoint", &[words]).await;
        let labels = r#"lane="prod",operation="probe",status="proxy""#;
        eventually("probes are made", async || {
            (daemon.metric(&format!("reveille_api_requests_total{{{labels}}}")).await >= 2.0).then_some(())
        })
        .await;
        assert_eq!(play.sim.calls_made().await, 0);
        shows_no_password(&daemon).await;
        proxy.open();
        all_are_started(account, &daemon).await;
        daemon.works_again().await;
    }
}

/// The same text if no proxy is known, but something answers like one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_407_of_nobody_knows_whom_pauses_the_lane() {
    let play = Play::set();
    let daemon = play.daemon(&play.sim.url(), &[]).await;
    play.sim.faults(json!([{"fault": {"status": 407, "html": true}}])).await;
    let account = play.submit().await;
    daemon.paused("endpoint", &["answers as a proxy that wants a user and a password (407)", "check region or"]).await;
    play.sim.faults(json!([])).await;
    all_are_started(account, &daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_whose_certificate_is_refused_is_named() {
    let (play, proxy) = (Play::set(), HttpProxy::start(None).await);
    let (ours, theirs) = (authority("the tests' own"), authority("somebody else's"));
    let (certificate, trusted) = (watch::Sender::new(vouched_for_by(&theirs)), Trusted::are(&ours));
    let front = in_the_place_of(&proxy.address, certificate.subscribe()).await;
    let url = format!("https://{front}");
    for endpoint in [play.sim.url(), "https://127.0.0.1:9".to_owned()] {
        let daemon = play.daemon(&endpoint, &[("ALL_PROXY", &url), ("SSL_CERT_FILE", trusted.file())]).await;
        drop(play.submit().await);
        daemon.paused("endpoint", &["the certificate of the proxy of ALL_PROXY was refused", "check ALL_PROXY"]).await;
        assert!(proxy.seen().is_empty());
    }
}

#[tokio::test]
async fn a_variable_that_names_no_usable_proxy_is_a_fault_of_the_configuration_that_names_it() {
    let lanes = "[broker]\nprefx = \"r\"\n[[lane]]\nname = \"a\"\nendpoint = \"http://127.0.0.1:9\"\n\
                 [[lane]]\nname = \"b\"\n[[lane]]\nname = \"c\"\nregion = \"gz\"\n";
    let config = Config::write(lanes);
    let socks = format!("socks5://waker:{PASSWORD}@127.0.0.1:1080");
    let nonsense = format!("http://waker:{PASSWORD}@:port");
    let run = async |arguments: &[&str], exempt: &str| {
        let mut command = config.command(arguments);
        command.env("NO_PROXY", exempt).env("HTTP_PROXY", &socks).env("https_proxy", &nonsense).env("ALL_PROXY", "://");
        child::run(command, "").await
    };
    let ran = run(&["run"], "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("3 faults") && ran.errors.contains("did you mean prefix?"), "{}", ran.errors);
    for words in [
        "environment HTTP_PROXY: names a SOCKS proxy, which reveille cannot use: expected the URL of an HTTP proxy",
        "environment https_proxy: is no URL of a proxy: expected the URL of an HTTP proxy",
    ] {
        assert!(ran.errors.contains(words), "{words} in {}", ran.errors);
    }
    assert!(!ran.errors.contains("ALL_PROXY") && !ran.errors.contains(PASSWORD), "{}", ran.errors);
    // Unused proxies are not checked.
    for ran in [run(&["run"], "127.0.0.1, baidubce.com").await, run(&["topology"], "").await] {
        assert!(ran.errors.contains("1 fault:"), "{}", ran.errors);
    }
}

/// A typo in the endpoint looks like an outage, but the log says what to check.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_never_answered_says_what_to_check() {
    let play = Play::set();
    let refusing = Refusing::at("127.0.0.1:0");
    let nobody = refusing.address.to_string();
    let (direct, through) = (format!("http://{nobody}"), play.sim.url());
    for (endpoint, environment, words) in [
        (
            direct.as_str(),
            &[][..],
            &["Connection refused", "it has never answered so far: check region or endpoint)"][..],
        ),
        ("http://nonexistent.invalid", &[], &["no connection to the API", "check region or endpoint)"]),
        (
            &through,
            &[("ALL_PROXY", nobody.as_str())],
            &["through the proxy of ALL_PROXY: Connection refused", "check region or endpoint, and ALL_PROXY"],
        ),
        (
            "https://127.0.0.1:9",
            &[("ALL_PROXY", nobody.as_str())],
            &["through the proxy of ALL_PROXY: ", "check region or endpoint, and ALL_PROXY"],
        ),
    ] {
        let daemon = play.daemon(endpoint, environment).await;
        drop(play.submit().await);
        daemon.paused("outage", words).await;
    }
}

/// After an answer it is just an outage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_has_answered_before_is_right_where_it_is() {
    let mut play = Play::set();
    let daemon = play.daemon(&play.sim.url(), &[]).await;
    all_are_started(play.submit().await, &daemon).await;
    play.sim.stop();
    drop(play.submit().await);
    daemon.paused("outage", &["Connection refused"]).await;
    let (_, body) = daemon.get("/readyz").await;
    assert!(!body.contains("check region"), "{body}");
}
