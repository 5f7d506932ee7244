//! `reveille check`: each thing that can be wrong has a line of its own, and hides no other.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use jiff::{Timestamp, ToSpan};
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::broker::{self, Vhost};
use crate::support::child::{Ran, run};
use crate::support::daemon::Config;
use crate::support::eventually;
use crate::support::files::Folder;
use crate::support::http_proxy::HttpProxy;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::sim::{KEY, SECRET, Sim};
use crate::support::stage::{Stage, Wishes, config};
use crate::support::tls::{Trusted, authority, in_the_place_of, vouched_for_by};

/// Nothing listens there.
const NOWHERE: &str = "amqp://guest:guest@127.0.0.1:9";

/// A line of the check's JSON.
#[derive(Debug)]
struct Line {
    result: String,
    /// What was found, and what to do.
    text: String,
}

/// What a check printed.
#[derive(Debug)]
struct Checked {
    code: Option<i32>,
    /// By name; the last one of a name.
    lines: BTreeMap<String, Line>,
    ran: Ran,
}

impl Checked {
    /// Asserts how this check ended, and that its line has these words.
    #[track_caller]
    fn is(&self, check: &str, result: &str, words: &[&str]) {
        let line = self.lines.get(check).unwrap_or_else(|| panic!("no line of {check}: {self:#?}"));
        assert_eq!(line.result, result, "{check}: {self:#?}");
        for word in words {
            assert!(line.text.contains(word), "{word:?} in {check}: {self:#?}");
        }
    }

    fn failed(&self) -> Vec<&str> {
        let failed = self.lines.iter().filter(|(_, line)| line.result == "failed");
        failed.map(|(check, _)| check.as_str()).collect()
    }
}

async fn check(config: &Config, arguments: &[&str]) -> Checked {
    check_in(config, arguments, &[]).await
}

/// With more variables in the environment.
async fn check_in(config: &Config, arguments: &[&str], environment: &[(&str, &str)]) -> Checked {
    let mut command = config.command(&[&["check", "--output", "json"], arguments].concat());
    command.envs(environment.iter().copied());
    let ran = run(command, "").await;
    let mut lines = BTreeMap::new();
    for line in ran.output.lines() {
        let read: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {}", ran.output));
        let text = |key: &str| read[key].as_str().unwrap_or_default();
        let line = Line { result: text("result").to_owned(), text: format!("{}; {}", text("found"), text("remedy")) };
        lines.insert(text("check").to_owned(), line);
    }
    Checked { code: ran.code, lines, ran }
}

/// All that a broker has in this vhost. Batons come and go, and RabbitMQ's counts of messages in streams lag behind.
fn contents(vhost: &Vhost) -> Vec<String> {
    let list = |what: &[&str]| vhost.node.ctl(&[&["-p", vhost.name.as_str(), "-q"], what].concat());
    let lists = [
        list(&["list_queues", "name", "messages"]),
        list(&["list_exchanges", "name", "type"]),
        list(&["list_bindings", "source_name", "destination_name", "routing_key"]),
    ];
    let is_steady = |line: &&str| {
        !["reveille.baton.", "reveille.outcomes.log", "reveille.control.log"].iter().any(|name| line.starts_with(name))
    };
    let lines = lists.iter().flat_map(|list| list.lines()).filter(is_steady);
    let mut lines: Vec<String> = lines.map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn where_all_is_well_every_check_passes_and_nothing_is_left_behind() {
    let mut stage = Stage::set().await;
    let before = contents(&stage.vhost);
    let checked = check(&stage.daemon.config, &[]).await;
    assert_eq!((checked.code, checked.failed()), (Some(0), vec![]), "{checked:#?}");
    for (name, words) in [
        ("configuration", "with the lanes prod"),
        ("broker.dns", "127.0.0.1"),
        ("broker.tcp", " is open"),
        ("broker.login", "as guest, vhost t"),
        ("broker.server", "RabbitMQ "),
        ("broker.configure", "guest may configure"),
        ("broker.write", "guest may write"),
        ("broker.read", "guest may read"),
        ("broker.topology", "all 50 exchanges and queues are there"),
        ("keys.source", "sim-access-key from the environment"),
        ("api.dns", "127.0.0.1"),
        ("api.tcp", " is open"),
        ("api.clock", "agree"),
        ("api.keys", "the API accepts the keys"),
    ] {
        checked.is(name, "passed", &[words]);
    }
    checked.is("broker.tls", "skipped", &["amqp://"]);
    checked.is("api.tls", "skipped", &["http://"]);
    assert_eq!(checked.lines.len(), 16);

    assert_eq!(contents(&stage.vhost), before);
    let operations: Vec<String> = stage.sim.wire().await.into_iter().map(|call| call.operation).collect();
    assert_eq!(operations, ["list", "list"], "the daemon's, and one of the check's");
    // Its event is the first that anybody sees.
    stage.wake("i-sim00001").await;
    assert_eq!(stage.event().await["data"]["instance_id"], "i-sim00001");

    let ran = run(stage.daemon.config.command(&["check"]), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.output);
    assert!(
        ran.output.contains("\npassed  prod api.keys ") && ran.output.contains("\nskipped broker.tls "),
        "{}",
        ran.output
    );
    assert!(
        ran.output.ends_with("\nof 16 checks: none failed, none with a warning\n") && !ran.output.contains('\u{1b}'),
        "{}",
        ran.output
    );
    for secret in ["guest:guest", SECRET] {
        assert!(!ran.output.contains(secret) && !checked.ran.output.contains(secret), "{}", ran.output);
    }
}

#[tokio::test]
async fn an_empty_broker_is_said_to_get_its_topology_from_the_daemon_and_stays_empty() {
    let (vhost, sim) = (broker::vhost(), Sim::start(&[]));
    let before = contents(&vhost);
    let checked = check(&Config::write(&config(&vhost.url, &sim.url(), &Wishes::default())), &[]).await;
    assert_eq!(checked.code, Some(0), "{checked:#?}");
    let words = ["50 of 50 exchanges and queues are missing: ", "the daemon declares them as it starts"];
    checked.is("broker.topology", "warning", &words);
    checked.is("broker.configure", "passed", &[]);
    assert_eq!(contents(&vhost), before);
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_holds_up_no_other_check() {
    let sim = Sim::start(&[]);
    let checked = check(&Config::write(&config(NOWHERE, &sim.url(), &Wishes::default())), &[]).await;
    assert_eq!((checked.code, checked.failed()), (Some(1), vec!["broker.login", "broker.tcp"]), "{checked:#?}");
    checked.is("broker.tcp", "failed", &["127.0.0.1:9: Connection refused", "firewalls"]);
    checked.is("broker.topology", "skipped", &["there is no login"]);
    checked.is("api.keys", "passed", &[]);

    let unknown = NOWHERE.replace("127.0.0.1", "nobody.invalid");
    let checked = check(&Config::write(&config(&unknown, "http://nobody.invalid", &Wishes::default())), &[]).await;
    assert_eq!(checked.code, Some(1));
    for check in ["broker.dns", "api.dns"] {
        checked.is(check, "failed", &["nobody.invalid cannot be looked up", "check its spelling"]);
    }
    checked.is("api.tcp", "skipped", &[]);
    checked.is("api.keys", "failed", &["no connection to the API", "check region or endpoint"]);

    let vhost = broker::vhost();
    let wrong = vhost.url.replace("guest:guest", "guest:hush");
    let checked = check(&Config::write(&config(&wrong, &sim.url(), &Wishes::default())), &[]).await;
    checked.is("broker.login", "failed", &["check the user, its password"]);
    checked.is("broker.server", "passed", &["RabbitMQ "]);
    assert!(!checked.ran.output.contains("hush"), "{checked:#?}");
}

#[tokio::test]
async fn each_permission_is_tried() {
    let stage = Stage::set().await;
    let (node, vhost) = (&stage.vhost.node, stage.vhost.name.as_str());
    let user = format!("check-{vhost}");
    node.ctl(&["add_user", &user, "hush"]);
    let url = stage.vhost.url.replace("guest:guest", &format!("{user}:hush"));
    let config = Config::write(&config(&url, &stage.sim.url(), &Wishes::default()));
    std::fs::set_permissions(&config.path, Permissions::from_mode(0o600)).unwrap();
    let all = [r"^reveille\.", r"^(reveille\.|amq\.default$)", r"^reveille\."];
    let checks = ["broker.configure", "broker.write", "broker.read"];
    let remedy = format!(
        r"rabbitmqctl set_permissions -p '{vhost}' '{user}' '^reveille\.' '^(reveille\.|amq\.default$)' '^reveille\.'"
    );
    let with = async |number: usize, pattern: &str| {
        let mut patterns = all;
        patterns[number] = pattern;
        node.ctl(&["set_permissions", "-p", vhost, &user, patterns[0], patterns[1], patterns[2]]);
        check(&config, &[]).await
    };
    for (number, pattern) in [
        (0, "^$"),
        (1, "^$"),
        (2, "^$"),
        // As the trials of names of their own do not show.
        (0, r"^reveille\.(check\.|[^b])"),
        (1, r"^(reveille\.[^d]|amq\.default$)"),
        (2, r"^reveille\.check\."),
    ] {
        let checked = with(number, pattern).await;
        assert_eq!((checked.code, checked.failed()), (Some(1), vec![checks[number]]), "{pattern}: {checked:#?}");
        checked.is(checks[number], "failed", &["all that the daemon needs: ", "refused", &remedy]);
        assert!(!checked.ran.output.contains("hush"), "{checked:#?}");
    }
    let checked = with(0, all[0]).await;
    assert_eq!((checked.code, checked.failed()), (Some(0), vec![]), "what the remedy grants is enough: {checked:#?}");
}

#[tokio::test]
async fn a_queue_with_other_arguments_is_named() {
    let (vhost, sim) = (broker::vhost(), Sim::start(&[]));
    let connection = lapin::Connection::connect(&vhost.url, lapin::ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let options = QueueDeclareOptions::durable();
    channel.queue_declare("reveille.dead".into(), options, FieldTable::default()).await.unwrap();
    let ran = run(Config::write(&config(&vhost.url, &sim.url(), &Wishes::default())).command(&["check"]), "").await;
    assert_eq!(ran.code, Some(1), "{}", ran.output);
    let found =
        |start: &str, words: &str| ran.output.lines().any(|line| line.starts_with(start) && line.contains(words));
    assert!(
        found("FAILED  broker.topology", "reveille.dead") && found("FAILED", "empty and delete it"),
        "{}",
        ran.output
    );
    assert!(found("warning broker.topology", "49 of 50 exchanges and queues are missing"), "{}", ran.output);
    assert!(ran.output.ends_with("\nof 17 checks: 1 failed, 1 with a warning\n"), "{}", ran.output);
}

#[tokio::test]
async fn a_broker_that_takes_no_messages_fails_the_right_to_write() {
    let (vhost, sim) = (Vhost::alone(), Sim::start(&[]));
    vhost.node.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    let config = Config::write(&config(&vhost.url, &sim.url(), &Wishes::default()));
    let blocked = eventually("the alarm is on", async || {
        let checked = check(&config, &[]).await;
        (!checked.failed().is_empty()).then_some(checked)
    })
    .await;
    blocked.is("broker.write", "failed", &["accepts no messages", "rabbitmqctl status"]);
    blocked.is("api.keys", "passed", &[]);
}

#[tokio::test]
async fn keys_that_are_refused_expired_or_open_to_all_are_told_apart() {
    let sim = Sim::start(&[]);
    let folder = KeyFolder::new();
    let lane = format!("credentials_file = {:?}", folder.file());
    let config = Config::write(&config(NOWHERE, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() }));
    let put = |text: &str, mode: u32| {
        folder.rename(text);
        std::fs::set_permissions(folder.file(), Permissions::from_mode(mode)).unwrap();
    };
    let path = folder.file().display().to_string();

    put(&keys(KEY, SECRET), 0o640);
    let checked = check(&config, &[]).await;
    checked.is("keys.file", "passed", &[&path]);
    checked.is("api.keys", "passed", &[]);
    put(&keys(KEY, SECRET), 0o644);
    check(&config, &[]).await.is("keys.file", "failed", &["every user may read it", &format!("chmod 600 {path}")]);

    put(&keys(KEY, "a-wrong-secret"), 0o600);
    let checked = check(&config, &[]).await;
    checked.is("api.keys", "failed", &["HTTP 400, SignatureDoesNotMatch", "put valid keys"]);
    assert!(!checked.ran.output.contains("a-wrong-secret"), "{checked:#?}");

    let until = |expires_at: Timestamp| format!("{}expires_at = {expires_at}\n", keys(KEY, SECRET));
    for (minutes, result, words) in
        [(-1, "failed", "the keys expired"), (5, "warning", "expire in"), (60, "passed", "")]
    {
        put(&until(Timestamp::now() + minutes.minutes()), 0o600);
        let checked = check(&config, &[]).await;
        checked.is("keys.expiry", result, &[words]);
        checked.is("api.keys", if minutes < 0 { "failed" } else { "passed" }, &[]);
    }
    put("access_key_id = 'ak'\nsecret_access_key = 'a-torn-secret", 0o600);
    let checked = check(&config, &[]).await;
    checked.is("keys.source", "failed", &["not TOML of that form", "expected TOML"]);
    checked.is("api.tcp", "passed", &[]);
    checked.is("api.keys", "skipped", &["no keys"]);
    assert!(!checked.ran.output.contains("a-torn-secret"), "{checked:#?}");
}

#[tokio::test]
async fn a_configuration_with_a_password_must_not_be_open_to_all() {
    let sim = Sim::start(&[]);
    let text = config("amqp://keeper:hush@127.0.0.1:9", &sim.url(), &Wishes::default());
    let config = Config::write(&text);
    for (mode, result) in [(0o644, "failed"), (0o600, "passed")] {
        std::fs::set_permissions(&config.path, Permissions::from_mode(mode)).unwrap();
        let checked = check(&config, &[]).await;
        checked.is("file", result, &["has a password in it"]);
        assert!(!checked.ran.output.contains("hush"), "{checked:#?}");
    }
}

#[tokio::test]
async fn the_way_to_the_api_is_checked_through_its_proxy_and_with_its_certificate() {
    let (sim, proxy) =
        (Sim::start(&["--clock-offset", "20m", "--clock-tolerance", "1m"]), HttpProxy::start(None).await);
    let (ours, theirs) = (authority("the tests' own"), authority("somebody else's"));
    let certificate = watch::Sender::new(vouched_for_by(&ours));
    let api = in_the_place_of(&sim.address, certificate.subscribe()).await;
    let wishes = Wishes { lane: "connect_timeout = \"15s\"", ..Wishes::default() };
    let config = Config::write(&config(NOWHERE, &format!("https://{api}"), &wishes));
    let trusted = Trusted::are(&ours);
    let url = format!("http://{}", proxy.address);
    let environment = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", ""), ("SSL_CERT_FILE", trusted.file())];

    let checked = check_in(&config, &[], &environment).await;
    checked.is("api.dns", "passed", &["the proxy of HTTPS_PROXY, 127.0.0.1"]);
    checked.is("api.tls", "passed", &["the certificate is accepted, and expires in ", " days, at "]);
    checked.is("api.keys", "passed", &[]);
    checked.is("api.clock", "warning", &["s ahead of this machine's", "by NTP"]);
    assert!(proxy.seen().iter().all(|request| request.starts_with(&format!("CONNECT {api} "))));

    certificate.send_replace(vouched_for_by(&theirs));
    let checked = check_in(&config, &[], &environment).await;
    checked.is("api.tls", "failed", &["the certificate was refused", "the certificates this machine trusts"]);
    checked.is("api.keys", "failed", &["the API's certificate was refused"]);
}

#[tokio::test]
async fn an_api_that_hangs_is_given_up() {
    let sim = Sim::start(&[]);
    sim.faults(json!([{"fault": {"hang": "before"}}])).await;
    let wishes = Wishes { lane: "timeout = \"1s\"", ..Wishes::default() };
    let checked = check(&Config::write(&config(NOWHERE, &sim.url(), &wishes)), &[]).await;
    checked.is("api.keys", "failed", &["did not answer in time"]);
    checked.is("api.clock", "skipped", &[]);
}

#[tokio::test]
async fn the_permission_to_start_is_tried_only_where_that_is_asked_for() {
    let sim = Sim::start(&["--fleet", "Running=1,Stopped=2"]);
    let config = Config::write(&config(NOWHERE, &sim.url(), &Wishes::default()));
    let runs = check(&config, &["--try-start", "i-sim00001"]).await;
    runs.is("api.start", "passed", &["the keys may start i-sim00001, which needed no start (HTTP 409, "]);
    let accepted = check(&config, &["--try-start", "i-sim00002", "--lane", "prod"]).await;
    accepted.is("api.start", "passed", &["the start of i-sim00002 was accepted: it was stopped, and starts now"]);
    check(&config, &["--try-start", "i-gone0001"]).await.is("api.start", "failed", &["there is no i-gone0001"]);

    let denied = json!({"status": 403, "code": "AccessDenied"});
    sim.faults(json!([{"fault": denied, "operations": ["start"]}])).await;
    let checked = check(&config, &["--try-start", "i-sim00003"]).await;
    checked.is(
        "api.start",
        "failed",
        &["the keys may not start i-sim00003 (HTTP 403, AccessDenied", "give the key's user"],
    );
    checked.is("api.keys", "passed", &[]);
    sim.faults(json!([{"fault": denied, "operations": ["list"]}])).await;
    let checked = check(&config, &[]).await;
    checked.is("api.keys", "warning", &["the keys are good, but their user may not list instances"]);
    assert!(!checked.lines.contains_key("api.start"));

    for (instance, starts) in [("i-sim00001", 0), ("i-sim00002", 1), ("i-sim00003", 0)] {
        assert_eq!(sim.instance(instance).await["starts"], starts, "{instance}");
    }
}

#[tokio::test]
async fn wrong_usage_and_a_configuration_that_cannot_be_loaded_end_with_two() {
    let lanes = "[[lane]]\nname = \"prod-bj\"\n[[lane]]\nname = \"prod-gz\"";
    let two = Config::write(lanes);
    for (arguments, words) in [
        (
            &["--try-start", "i-sim00001"][..],
            "--try-start needs a lane: name it with --lane; there are prod-bj, prod-gz",
        ),
        (&["--lane", "prod-bi"], "there is no lane prod-bi; did you mean prod-bj?"),
        (&["--try-start", "sim"], "'--try-start <INSTANCE>'"),
    ] {
        let ran = run(two.command(&[&["check"], arguments].concat()), "").await;
        assert_eq!((ran.code, ran.output.as_str()), (Some(2), ""), "{}", ran.errors);
        assert!(ran.errors.contains(words), "{}", ran.errors);
    }

    let folder = Folder::new();
    let broken = Config::write("[broker]\nurl = \"amqp://u:hu#sh@h\"\nprefix = \"\\u001b[2J\"\n[htpp]");
    let environment = [("HTTPS_PROXY", "socks5://hush"), ("NO_PROXY", "")];
    let mut command = broken.command(&["check"]);
    command.envs(environment);
    let ran = run(command, "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.output);
    let failed: Vec<&str> = ran.output.lines().filter(|line| line.starts_with("FAILED  configuration ")).collect();
    assert_eq!(failed.len(), 4, "{}", ran.output);
    for words in ["broker.url", r"\u001B[2J", "htpp", "HTTPS_PROXY: names a SOCKS proxy"] {
        assert!(failed.iter().any(|line| line.contains(words)), "{words} in {}", ran.output);
    }
    assert!(!ran.output.contains("sh@h") && !ran.output.contains("hush"), "{}", ran.output);
    assert_eq!(check_in(&broken, &[], &environment).await.failed(), ["configuration"]);

    let missing = folder.path("none.toml");
    let ran = run(broken.command(&["check", "--config", &missing]), "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.output);
    assert!(ran.output.contains(&missing) && ran.output.contains("cannot be read"), "{}", ran.output);
}

/// While a daemon runs, its quota is left a call short at most, and its lane is not disturbed.
#[tokio::test]
async fn a_lane_that_works_is_checked_meanwhile() {
    let mut stage =
        Stage::with(Wishes { fleet: "Stopped=40", lane: "rate = 20\nburst = 1", ..Wishes::default() }).await;
    stage.wake_all(1..=40).await;
    let checked = check(&stage.daemon.config, &[]).await;
    assert_eq!(checked.code, Some(0), "{checked:#?}");
    assert!(stage.outcomes(40).await.values().all(|outcome| outcome["attempts"] == 1));
    stage.daemon.never_paused().await;
}

#[tokio::test]
async fn a_file_of_a_schedule_is_read_before_the_schedule_is_due() {
    let folder = Folder::new();
    let file = folder.path("fleet.csv");
    let schedule = format!(
        "[broker]\nurl = {NOWHERE:?}\n[[schedule]]\nname = \"morning\"\ncron = \"30 7 * * *\"\ntimezone = \"UTC\"\nfile = {file:?}\n"
    );
    let config = Config::write(&schedule);
    for (text, result, words) in [
        (None, "failed", &["morning cannot be fired", "fleet.csv", "No such file", "mend the file"][..]),
        (Some("id\nweb-1\n"), "failed", &["fleet.csv, line 2", "is no instance id"]),
        (Some("id\ni-YufwpQAe\n"), "passed", &["morning has 1 job, in", "fleet.csv"]),
    ] {
        if let Some(text) = text {
            folder.put("fleet.csv", text);
        }
        check(&config, &[]).await.is("schedule", result, words);
    }
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    check(&config, &[]).await.is("schedule", "failed", &["is no regular file"]);
}
