//! Defaults, precedence, and a row for every kind of problem.

mod schedule;

use std::fs;

use super::*;
use crate::bce::{AtFault, Codes, CredentialSource, Meaning, RequestId, Timeouts, Word};
use crate::job::{Confirm, Conflict};

/// A file that is deleted after the test.
struct File(PathBuf);

impl File {
    fn of(text: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("reveille-config-{}", uuid::Uuid::now_v7()));
        fs::write(&path, text).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

fn read_with(file: &str, environment: &[(&str, &str)], purpose: Purpose) -> Result<Config, Problems> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    read(Some(("r.toml", file)), environment, purpose)
}

fn good(file: &str, environment: &[(&str, &str)]) -> Config {
    read_with(file, environment, Purpose::Talk).unwrap_or_else(|problems| panic!("{file}\n{problems}"))
}

/// The reported problems, one per line, without the heading.
fn problems(file: &str, environment: &[(&str, &str)]) -> Vec<String> {
    lines(&read_with(file, environment, Purpose::Talk).err().unwrap_or_else(|| panic!("no fault in\n{file}")))
}

fn lines(problems: &Problems) -> Vec<String> {
    let text = problems.to_string();
    let lines: Vec<String> = text.lines().skip(1).map(|line| line.trim_start().to_owned()).collect();
    let heading = format!("the configuration has {} fault", lines.len());
    assert!(text.starts_with(&heading), "{text}");
    lines
}

fn password(config: &Config) -> &str {
    &config.broker.uri.authority.userinfo.password
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn no_file_at_all_is_a_whole_configuration() {
    let config = read(None, [], Purpose::Talk).unwrap();
    let uri = &config.broker.uri;
    let user = &uri.authority.userinfo;
    assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), ("127.0.0.1", 5672, "/"));
    assert_eq!((user.username.as_str(), user.password.as_str(), uri.query.heartbeat), ("guest", "guest", Some(5)));
    assert_eq!(config.broker.prefix, "reveille");

    let [lane] = &config.lanes[..] else { panic!("{:?}", config.lanes) };
    assert_eq!(lane.name.as_str(), "default");
    assert_eq!(lane.endpoint.to_string(), "https://bcc.bj.baidubce.com");
    assert_eq!(lane.credentials, CredentialSource::Environment);
    assert_eq!((lane.rate, lane.burst, lane.concurrency, lane.batch), (20.0, 5, 32, 1));
    assert_eq!((lane.conflict, lane.confirm), (Conflict::Verify, Confirm::Accepted));
    assert_eq!((lane.confirm_timeout, lane.confirm_share), (600 * SECOND, 0.1));
    assert_eq!(lane.timeouts, Timeouts { connect: 3 * SECOND, total: 15 * SECOND });
    assert_eq!((lane.reading.request_id, &lane.reading.codes), (RequestId::Required, &Codes::default()));

    let retry = config.retry;
    assert_eq!((retry.max_attempts, retry.initial), (8, SECOND / 2));
    assert_eq!((retry.max, retry.give_up_after), (120 * SECOND, 1800 * SECOND));
    assert_eq!(config.dead_letters.max_length, None);
    assert_eq!(config.http.listen, SocketAddr::from(([127, 0, 0, 1], 9464)));
    assert_eq!(config.shutdown.grace, 25 * SECOND);
}

#[test]
fn a_full_file_is_read_to_its_last_key() {
    let config = good(
        r#"
        [broker]
        url = "amqps://waker:p%40ss@broker.example:5600/prod?heartbeat=9"
        prefix = "wake_up"

        [[lane]]
        name = "prod-bj"
        region = "gz"
        credentials_file = "/keys/bj.toml"
        rate = 0.5
        burst = 1
        concurrency = 1024
        batch = 100
        conflict = "fail"
        confirm = "running"
        confirm_timeout = "3m"
        confirm_share = 0.25
        connect_timeout = "1500ms"
        timeout = "5m"
        request_id = "optional"

        [[lane]]
        name = "rehearsal"
        endpoint = "http://127.0.0.1:8080"
        rate = 1000000
        conflict = "accept"

        [retry]
        max_attempts = 1
        initial = "1s"
        max = "1s"
        give_up_after = "1h30m"

        [dead_letters]
        max_length = 100000

        [http]
        listen = "[::]:80"

        [shutdown]
        grace = "1m 30s"
        "#,
        &[],
    );
    let uri = &config.broker.uri;
    assert_eq!((uri.authority.host.as_str(), uri.authority.port, uri.vhost.as_str()), ("broker.example", 5600, "prod"));
    assert_eq!((password(&config), uri.query.heartbeat), ("p@ss", Some(9)));
    assert_eq!(config.broker.prefix, "wake_up");
    let [bj, rehearsal] = &config.lanes[..] else { panic!("{:?}", config.lanes) };
    assert_eq!((bj.name.as_str(), bj.endpoint.to_string().as_str()), ("prod-bj", "https://bcc.gz.baidubce.com"));
    assert_eq!(bj.credentials, CredentialSource::File("/keys/bj.toml".into()));
    assert_eq!((bj.rate, bj.burst, bj.concurrency, bj.batch), (0.5, 1, 1024, 100));
    assert_eq!(bj.conflict, Conflict::Fail);
    assert_eq!(bj.timeouts, Timeouts { connect: 3 * SECOND / 2, total: 300 * SECOND });
    assert_eq!((bj.reading.request_id, rehearsal.reading.request_id), (RequestId::Optional, RequestId::Required));
    assert_eq!(rehearsal.endpoint.to_string(), "http://127.0.0.1:8080");
    assert_eq!((rehearsal.rate, rehearsal.conflict), (1e6, Conflict::Accept));
    assert_eq!((config.retry.max_attempts, config.retry.initial, config.retry.max), (1, SECOND, SECOND));
    assert_eq!(config.retry.give_up_after, 5400 * SECOND);
    assert_eq!(config.dead_letters.max_length, Some(100_000));
    assert_eq!(config.http.listen.port(), 80);
    assert_eq!(config.shutdown.grace, 90 * SECOND);
}

#[test]
fn the_environment_goes_over_the_file() {
    let file = "[broker]\nurl = 'amqp://u:filed@h'\n[[lane]]\nname = 'a'\nrate = 1\n[[lane]]\nname = 'b'\n";
    let config = good(
        file,
        &[
            ("REVEILLE_BROKER__PASSWORD", "hush"),
            ("REVEILLE_BROKER__PREFIX", "wake"),
            ("REVEILLE_LANE__0__RATE", "2.5"),
            ("REVEILLE_LANE__1__BURST", "7"),
            ("REVEILLE_LANE__1__CREDENTIALS_FILE", "/keys/b"),
            ("REVEILLE_LANE__2__NAME", "c"),
            ("REVEILLE_RETRY__MAX_ATTEMPTS", "3"),
            ("REVEILLE_RETRY__MAX", "9s"),
            ("REVEILLE_HTTP__LISTEN", "0.0.0.0:9464"),
            ("REVEILLE_SHUTDOWN__GRACE", "1s"),
        ],
    );
    assert_eq!((password(&config), config.broker.prefix.as_str()), ("hush", "wake"));
    assert_eq!(config.broker.uri.authority.userinfo.username, "u");
    let lanes: Vec<(&str, f64, u32)> =
        config.lanes.iter().map(|lane| (lane.name.as_str(), lane.rate, lane.burst)).collect();
    assert_eq!(lanes, [("a", 2.5, 5), ("b", 20.0, 7), ("c", 20.0, 5)]);
    assert_eq!(config.lanes[1].credentials, CredentialSource::File("/keys/b".into()));
    assert_eq!((config.retry.max_attempts, config.retry.max), (3, 9 * SECOND));
    assert!(config.http.listen.ip().is_unspecified());
    assert_eq!(config.shutdown.grace, SECOND);

    let lanes = (0..11).map(|index| (format!("REVEILLE_LANE__{index}__NAME"), format!("l{index}")));
    let lanes = read(None, lanes, Purpose::Talk).unwrap().lanes;
    assert_eq!((lanes.len(), lanes[2].name.as_str(), lanes[10].name.as_str()), (11, "l2", "l10"));
    let url = [("REVEILLE_BROKER__URL".to_owned(), "amqp://h/v".to_owned())];
    assert_eq!(read(None, url, Purpose::Talk).unwrap().broker.uri.vhost, "v");
}

#[test]
fn a_variable_without_two_underscores_is_somebody_elses() {
    let config = good(
        "",
        &[
            ("REVEILLE_PORT", "tcp://10.0.0.7:9464"),
            ("REVEILLE_PORT_9464_TCP", "tcp://10.0.0.7:9464"),
            ("REVEILLE_PORT_9464_TCP_ADDR", "10.0.0.7"),
            ("REVEILLE_SERVICE_HOST", "10.0.0.7"),
            ("REVEILLE_CONFIG", "r.toml"),
            ("REVEILLE", "1"),
            ("XREVEILLE_BROKER__URL", "nonsense"),
            ("HOME", "/"),
        ],
    );
    assert_eq!(config.broker.prefix, "reveille");
}

#[test]
fn the_password_can_come_from_a_file_of_its_own() {
    for text in ["hush", "hush\n", "hush\r\n"] {
        let file = File::of(text.as_bytes());
        let config = good("[broker]\nurl = 'amqp://u@h'", &[("REVEILLE_BROKER__PASSWORD_FILE", file.path())]);
        assert_eq!(password(&config), "hush");
    }
}

#[test]
fn a_password_that_every_user_may_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt;

    let file = File::of(b"hush");
    let environment = [("REVEILLE_BROKER__PASSWORD_FILE", file.path())];
    for (mode, warnings) in [(0o600, 0), (0o440, 0), (0o644, 1)] {
        fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
        let config = good("", &environment);
        let told: Vec<String> = config.warnings.iter().map(Problem::to_string).collect();
        assert_eq!(told.len(), warnings, "{mode:o}: {told:?}");
        assert!(told.iter().all(|told| told.contains(file.path()) && told.contains("chmod 600")), "{told:?}");
    }
}

#[test]
fn an_address_of_ipv6_is_not_taken_for_localhost() {
    let config = good("[broker]\nurl = 'amqps://u:p@[2001:db8::7]:5671/v'", &[]);
    assert_eq!(config.broker.uri.authority.host, "2001:db8::7");
    assert_eq!(good("[broker]\nurl = 'amqp://10.0.0.7'", &[]).broker.address(), "10.0.0.7:5672, vhost /");
}

/// A file, and the beginning of each of its problems: all of them, in this order.
const FAULTY_FILES: [(&str, &[&str]); 69] = [
    // Unknown names.
    ("[broker]\nprefx = 'r'", &["r.toml: broker.prefx: no such setting; did you mean prefix?"]),
    ("[[lane]]\nname = 'a'\nRate = 1", &["r.toml: lane[0].Rate: no such setting; did you mean rate?"]),
    ("[http]\nzzz = 1", &["r.toml: http.zzz: no such setting; there are listen"]),
    ("[[lane]]\nname = 'a'\nsecret_access_key = 'hush'", &["r.toml: lane[0].secret_access_key: no such setting"]),
    ("[brokr]\nurl = 1", &["r.toml: brokr: no such table; did you mean broker?"]),
    ("[[lanes]]\nname = 'a'", &["r.toml: lanes: no such table; did you mean lane?"]),
    ("zzz = 1", &["r.toml: zzz: no such table; there are broker, retry, dead_letters, http, shutdown, lane, answer"]),
    // The wrong type.
    ("broker = 'amqp://u:hush@h'", &["r.toml: broker: expected a table, [broker]"]),
    ("[[retry]]\nmax = '1s'", &["r.toml: retry: expected a table, [retry]"]),
    ("lane = 'a'", &["r.toml: lane: expected [[lane]] tables, in two brackets"]),
    ("lane = ['a']", &["r.toml: lane: expected [[lane]] tables"]),
    (
        "[lane]\nname = 'a'\nrate = 0",
        &["r.toml: lane: expected [[lane]] tables, in two brackets", "r.toml: lane[0].rate: 0 is wrong"],
    ),
    // Not TOML: nothing else is known then, so nothing else is reported.
    ("[retry]\nmax = '0s'\n[broker\nurl = 'amqp://h'", &["r.toml, line 3: not TOML: "]),
    ("[broker]\nurl = 'amqp://h'\npassword = hush", &["r.toml, line 3: not TOML: "]),
    ("[broker]\npassword = 'hush", &["r.toml, line 2: not TOML: "]),
    ("[broker]\npassword = 'hush'\npassword = 'hush'", &["r.toml, line 3: not TOML: "]),
    ("hush", &["r.toml, line 1: not TOML: "]),
    // The broker.
    ("[broker]\nurl = 'broker:5672'", &["r.toml: broker.url: expected a URL such as amqps://user@broker:5671/prod"]),
    ("[broker]\nurl = 'http://u:hush@h'", &["r.toml: broker.url: expected a URL"]),
    ("[broker]\nurl = 'amqp://u:hush@h:port/'", &["r.toml: broker.url: expected a URL"]),
    ("[broker]\nurl = 'amqp:///v'", &["r.toml: broker.url: expected a URL"]),
    ("[broker]\nurl = ''", &["r.toml: broker.url: expected a URL"]),
    ("[broker]\nurl = 5672", &["r.toml: broker.url: expected a text"]),
    ("[broker]\nurl = 'amqp://u:hush@h/'", &["r.toml: broker.url: ends in / and so names a vhost without a name: exp"]),
    ("[broker]\nurl = 'amqp://u:hush@h/v?heartbeat=x'", &["r.toml: broker.url: has a heartbeat that is no number"]),
    ("[broker]\npassword = ['hush']", &["r.toml: broker.password: expected a text"]),
    (
        "[broker]\npassword = 'hush'\npassword_file = '/does/not/exist'",
        &[
            "r.toml: broker.password: beside password_file: expected one of them",
            "r.toml: broker.password_file: cannot read /does/not/exist: No such file",
        ],
    ),
    ("[broker]\nprefix = 'Wake.up'", &["r.toml: broker.prefix: \"Wake.up\" is wrong: expected 1 to 40 of a-z 0-9 - _"]),
    // Lanes.
    ("[[lane]]\nrate = 1", &["r.toml: lane[0].name: missing: expected a name such as prod-bj"]),
    ("[[lane]]\nname = 'a.b'", &["r.toml: lane[0].name: \"a.b\" is wrong: expected 1 to 40 of a-z 0-9 -"]),
    ("[[lane]]\nname = '-a'", &["r.toml: lane[0].name: \"-a\" is wrong"]),
    ("[[lane]]\nname = 7", &["r.toml: lane[0].name: 7 is wrong"]),
    (
        "[[lane]]\nname = 'a'\n[[lane]]\nname = 'b'\n[[lane]]\nname = 'a'",
        &["r.toml: lane[2].name: a is taken by a lane above: expected a name of its own"],
    ),
    (
        "[[lane]]\nname = 'a'\nregion = 'bj'\nendpoint = 'http://h'",
        &["r.toml: lane[0].region: beside endpoint: expected one of them"],
    ),
    ("[[lane]]\nname = 'a'\nregion = 'bj.evil'", &["r.toml: lane[0].region: \"bj.evil\" is wrong: expected a region"]),
    ("[[lane]]\nname = 'a'\nendpoint = 'http://u:hush@h'", &["r.toml: lane[0].endpoint: expected a URL of scheme and"]),
    (
        "[[lane]]\nname = 'a'\nendpoint = 'https://h/v2'",
        &["r.toml: lane[0].endpoint: expected a URL of scheme and host"],
    ),
    (
        "[[lane]]\nname = 'a'\nrate = '20'",
        &["r.toml: lane[0].rate: \"20\" is wrong: expected calls per second, from 0.01"],
    ),
    ("[[lane]]\nname = 'a'\nrate = 0.001", &["r.toml: lane[0].rate: 0.001 is wrong"]),
    ("[[lane]]\nname = 'a'\nrate = nan", &["r.toml: lane[0].rate: nan is wrong"]),
    (
        "[[lane]]\nname = 'a'\nburst = 0",
        &["r.toml: lane[0].burst: 0 is wrong: expected a whole number from 1 to 100000"],
    ),
    ("[[lane]]\nname = 'a'\nburst = 1.5", &["r.toml: lane[0].burst: 1.5 is wrong"]),
    (
        "[[lane]]\nname = 'a'\nconcurrency = 1025",
        &["r.toml: lane[0].concurrency: 1025 is wrong: expected a whole number"],
    ),
    (
        "[[lane]]\nname = 'a'\nconflict = 'maybe'",
        &["r.toml: lane[0].conflict: \"maybe\" is wrong: expected fail, accept or verify"],
    ),
    (
        "[[lane]]\nname = 'a'\nconflict = 'verfy'\nconfirm = 'runing'\nrequest_id = 'optionel'",
        &[
            "r.toml: lane[0].conflict: \"verfy\" is wrong: expected fail, accept or verify; did you mean verify?",
            "r.toml: lane[0].confirm: \"runing\" is wrong: expected accepted or running; did you mean running?",
            "r.toml: lane[0].request_id: \"optionel\" is wrong: expected required or optional; did you mean optional?",
        ],
    ),
    (
        "[[lane]]\nname = 'prod-bj'\n[[answer]]\ncode = 'a'\nlane = 'prd-bj'\nmeaning = 'no-capacity'",
        &[
            "r.toml: answer[0].lane: there is no lane prd-bj: expected prod-bj; did you mean prod-bj?",
            "r.toml: answer[0].meaning: \"no-capacity\" is wrong: expected retry, no_capacity, throttled, failed or \
             lane_fault; did you mean no_capacity?",
        ],
    ),
    (
        "[broker]\nurl = 'amqp://h/?auth_mechanism=externl'",
        &["r.toml: broker.url: has another auth_mechanism than there is: expected plain, amqplain or external; did \
           you mean external?"],
    ),
    (
        "[[lane]]\nname = 'a'\nconfirm = 'soon'",
        &["r.toml: lane[0].confirm: \"soon\" is wrong: expected accepted or running"],
    ),
    (
        "[[lane]]\nname = 'a'\nconfirm_share = 0\nconfirm_timeout = '0s'",
        &[
            "r.toml: lane[0].confirm_timeout: \"0s\" is wrong",
            "r.toml: lane[0].confirm_share: 0 is wrong: expected a part",
        ],
    ),
    (
        "[[lane]]\nname = 'a'\ntimeout = '6m'",
        &["r.toml: lane[0].timeout: \"6m\" is wrong: expected a length of time abo"],
    ),
    (
        "[[lane]]\nname = 'a'\nrequest_id = false",
        &["r.toml: lane[0].request_id: false is wrong: expected required or optional"],
    ),
    // What codes mean.
    (
        "[[answer]]",
        &["r.toml: answer[0].code: missing: expected one such as *Stock*", "r.toml: answer[0].meaning: missing: exp"],
    ),
    (
        "[[answer]]\ncode = '*'\nmeaning = 'retry'",
        &["r.toml: answer[0].code: \"*\" is wrong: expected 1 to 128 letters"],
    ),
    (
        "[[answer]]\ncode = 'a'\nmeaning = 'wait'\nreasn = 'x'",
        &[
            "r.toml: answer[0].meaning: \"wait\" is wrong: expected retry, no_capacity, throttled, failed or lane_fault",
            "r.toml: answer[0].reasn: no such setting; did you mean reason?",
        ],
    ),
    (
        "[[answer]]\ncode = 'requestexpired'\nmeaning = 'retry'",
        &["r.toml: answer[0].code: requestexpired has a meaning that cannot be changed: expected another code"],
    ),
    (
        "[[answer]]\ncode = 'a'\nmeaning = 'failed'\nreason = 'No stock'",
        &["r.toml: answer[0].reason: \"No stock\" is wrong: expected 1 to 40 of a-z 0-9 _"],
    ),
    (
        "[[answer]]\ncode = 'a'\nmeaning = 'failed'\nreason = 'exhausted'",
        &[
            "r.toml: answer[0].reason: exhausted is reveille's own word for something else: expected another, or refused",
        ],
    ),
    (
        "[[answer]]\ncode = 'a'\nmeaning = 'no_capacity'\nreason = 'not_found'",
        &[
            "r.toml: answer[0].reason: not_found is reveille's own word for something else: expected another, or no_capacity",
        ],
    ),
    (
        "[[answer]]\ncode = 'a'\nmeaning = 'lane_fault'\nreason = 'broke'",
        &["r.toml: answer[0].reason: beside this meaning: expected it with no_capacity or failed alone"],
    ),
    (
        "[[lane]]\nname = 'a'\n[[lane]]\nname = 'b'\n[[answer]]\ncode = '*'\nlane = 'c'",
        &[
            "r.toml: answer[0].lane: there is no lane c: expected a or b",
            "r.toml: answer[0].meaning: missing: exp",
            "r.toml: answer[0].code: \"*\" is wrong: expected 1 to 128 letters",
        ],
    ),
    (
        "[[lane]]\nname = 'a'\nendpoint = 'https://h/v2'\n[[answer]]\ncode = 'a'\nmeaning = 'retry'\nlane = 'a'",
        &["r.toml: lane[0].endpoint: expected a URL of scheme and host"],
    ),
    (
        "[[answer]]\ncode = '*A*'\nmeaning = 'retry'\n[[answer]]\ncode = '*a*'\nmeaning = 'failed'",
        &["r.toml: answer[1].code: *a* has a rule above, which is asked first: expected another code or lane"],
    ),
    // Dead letters.
    (
        "[dead_letters]\nmax_length = 0",
        &["r.toml: dead_letters.max_length: 0 is wrong: expected a whole number from 1 to 1000000000; without it all"],
    ),
    ("[dead_letter]\nmax_length = 1", &["r.toml: dead_letter: no such table; did you mean dead_letters?"]),
    ("[dead_letters]\nmax = 1", &["r.toml: dead_letters.max: no such setting; did you mean max_length?"]),
    // Retries, metrics and the shutdown.
    (
        "[retry]\nmax_attempts = -1",
        &["r.toml: retry.max_attempts: -1 is wrong: expected a whole number from 1 to 1000"],
    ),
    ("[retry]\ninitial = '5m'", &["r.toml: retry.max: 120s is less than initial, 300s: expected no less"]),
    (
        "[http]\nlisten = 'localhost:9464'",
        &["r.toml: http.listen: \"localhost:9464\" is wrong: expected an address and"],
    ),
    (
        "[retry]\nmax = '25h'\ngive_up_after = '0s'\n[shutdown]\ngrace = 25",
        &[
            "r.toml: retry.max: \"25h\" is wrong: expected a length of time above zero, up to 24h, such as 500ms",
            "r.toml: retry.give_up_after: \"0s\" is wrong: expected a length of time above zero, such as 30m",
            "r.toml: shutdown.grace: 25 is wrong: expected a length of time",
        ],
    ),
];

#[test]
fn every_fault_of_a_file_is_reported_with_its_place_and_what_would_be_right() {
    for (file, expected) in FAULTY_FILES {
        let found = problems(file, &[]);
        assert_eq!(found.len(), expected.len(), "{file}\n{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{file}\n{found}\n{expected}");
        }
    }
}

#[test]
fn what_lapin_would_die_of_in_the_url_is_a_fault() {
    let url = |vhost: &str, more: &str| format!("[broker]\nurl = 'amqp://u:hush@h/{vhost}{more}'");
    // A letter of two bytes, percent-encoded: the decoded length of the name counts.
    let longest = "%C3%A4".repeat(127) + "v";
    assert_eq!(good(&url(&longest, ""), &[]).broker.uri.vhost.len(), 255);
    let found = problems(&url(&longest, "v"), &[]);
    assert_eq!(found, ["r.toml: broker.url: names a vhost of 256 bytes: expected 255 at most"]);
    assert_eq!(good(&url("v", "?frame_max=1048576"), &[]).broker.uri.query.frame_max, Some(1_048_576));
    let found = problems(&url("v", "?frame_max=1048577"), &[]);
    assert_eq!(found, ["r.toml: broker.url: has a frame_max of 1048577: expected 8192 to 1048576"]);
    let found = problems(&url("v", "?frame_max=8191"), &[]);
    assert_eq!(found, ["r.toml: broker.url: has a frame_max of 8191: expected 8192 to 1048576"]);
    assert_eq!(good(&url("v", ""), &[]).broker.uri.query.frame_max, Some(131_072));
}

#[test]
fn every_fault_of_the_environment_is_reported_with_the_variable() {
    for (name, value, expected) in [
        ("REVEILLE_BROKER__PREFX", "r", "no such setting; did you mean prefix?"),
        ("REVEILLE_BROKR__PREFIX", "r", "no such setting; did you mean broker? (expected REVEILLE_TABLE__KEY or"),
        ("REVEILLE_LANE__RATE", "1", "no such setting; did you mean lane?"),
        ("REVEILLE_LANE__X__RATE", "1", "no such setting; did you mean lane?"),
        ("REVEILLE_LANE__00__NAME", "a", "no such setting; did you mean lane?"),
        ("REVEILLE_LANE__0__A__B", "1", "no such setting"),
        ("REVEILLE_BROKER__URL", "amqp:hush", "expected a URL such as amqps://user@broker:5671/prod"),
        ("REVEILLE_RETRY__MAX_ATTEMPTS", "many", "\"many\" is wrong: expected a whole number from 1 to 1000"),
        ("REVEILLE_SHUTDOWN__GRACE", "", "\"\" is wrong: expected a length of time"),
        ("REVEILLE_BROKER__PASSWORD", "\u{fffd}hush", "is not UTF-8"),
    ] {
        let found = problems("", &[(name, value)]);
        let start = format!("environment {name}: {expected}");
        assert!(found.len() == 1 && found[0].starts_with(&start), "{start}\n{found:#?}");
    }
    assert_eq!(
        problems("[[lane]]\nname = 'a'", &[("REVEILLE_LANE__4__RATE", "1")]),
        ["r.toml: lane[4].name: missing: expected a name such as prod-bj"]
    );
}

#[test]
fn all_faults_of_file_environment_and_keys_are_reported_together() {
    let file = "[broker]\nurl = 'amqp:hush'\nprefx = 1\n[[lane]]\nname = 'a'\nrate = 0\n[[lane]]\nname = 'a'\n\
                credentials_file = '/does/not/exist'\n[brokr]\n[http]\nlisten = 9464";
    let environment = [("REVEILLE_RETRY__MAX", "soon"), ("REVEILLE_LANE__0__CREDENTIALS_FILE", "/not/there/either")];
    let found = lines(&read_with(file, &environment, Purpose::Run).unwrap_err());
    let places = [
        "r.toml: brokr: ",
        "r.toml: broker.url: ",
        "r.toml: broker.prefx: ",
        "environment REVEILLE_RETRY__MAX: ",
        "r.toml: http.listen: ",
        "r.toml: lane[0].credentials_file: cannot read /not/there/either: ",
        "r.toml: lane[0].rate: ",
        "r.toml: lane[1].credentials_file: cannot read /does/not/exist: ",
        "r.toml: lane[1].name: a is taken",
    ];
    assert_eq!(found.len(), places.len(), "{found:#?}");
    for (found, place) in found.iter().zip(places) {
        assert!(found.starts_with(place), "{place}\n{found}");
    }
}

#[test]
fn only_the_daemon_needs_keys() {
    let file = "[[lane]]\nname = 'a'\ncredentials_file = '/does/not/exist'";
    assert!(read_with(file, &[], Purpose::Talk).is_ok());
    let found = lines(&read_with(file, &[], Purpose::Run).unwrap_err());
    assert!(found[0].starts_with("r.toml: lane[0].credentials_file: cannot read /does/not/exist: "), "{found:?}");

    let keys = File::of(b"access_key_id = 'ak'\nsecret_access_key = 'hush'");
    let file = format!("[[lane]]\nname = 'a'\ncredentials_file = '{}'", keys.path());
    assert!(read_with(&file, &[], Purpose::Run).is_ok());

    // The keys may or may not be in this machine's environment.
    let missing = CredentialSource::Environment.load().err();
    let found = read(None, [], Purpose::Run).err().map(|problems| problems.to_string()).unwrap_or_default();
    match missing {
        Some(missing) => assert!(found.contains(&format!("lane[0].credentials_file: {missing}")), "{found}"),
        None => assert_eq!(found, ""),
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    for (file, problem) in
        [(PathBuf::from("/does/not/exist.toml"), "No such file"), (std::env::temp_dir(), "directory")]
    {
        let found = lines(&load(Some(&file), Purpose::Talk).unwrap_err());
        assert!(found[0].starts_with(&format!("{}: cannot be read: ", file.display())), "{found:?}");
        assert!(found.len() == 1 && found[0].contains(problem), "{found:?}");
    }
    let binary = File::of(b"[broker]\npassword = '\xff'");
    assert!(lines(&load(Some(&binary.0), Purpose::Talk).unwrap_err())[0].contains("UTF-8"));
    let empty = File::of(b"");
    let found = problems(&format!("[broker]\npassword_file = '{}'", empty.path()), &[]);
    assert!(found[0].contains("it is empty; expected a file with the password"), "{found:?}");
}

#[test]
fn no_fault_shows_a_password() {
    for (file, _) in FAULTY_FILES {
        let problems = read_with(file, &[("REVEILLE_BROKER__PASSWORD", "\u{fffd}hush")], Purpose::Talk).unwrap_err();
        assert!(!format!("{problems} {problems:?}").contains("hush"), "{problems}");
    }
    let keys = File::of(b"access_key_id = 'ak'\nsecret_access_key = hush");
    let file = format!("[[lane]]\nname = 'a'\ncredentials_file = '{}'", keys.path());
    let problems = read_with(&file, &[], Purpose::Run).unwrap_err();
    assert!(!format!("{problems} {problems:?}").contains("hush"), "{problems}");
}

#[test]
fn no_configuration_shows_a_password() {
    let environment = [("REVEILLE_BROKER__PASSWORD", "hush")];
    for config in [good("[broker]\nurl = 'amqp://u:hush@h'", &[]), good("[broker]\nurl = 'amqp://h'", &environment)] {
        assert_eq!(password(&config), "hush");
        let shown = format!("{config:?} {:#?} {}", config.broker, config.broker.address());
        assert!(!shown.contains("hush") && shown.contains("h:5672, vhost /"), "{shown}");
    }
}

#[test]
fn a_lane_asks_its_own_rules_before_those_of_all_lanes() {
    let word = |text| Word::parse(text).unwrap();
    let file = "[[answer]]\ncode = '*Stock*'\nmeaning = 'no_capacity'\nreason = 'no_stock'\n\
                [[answer]]\ncode = 'Own.*'\nmeaning = 'failed'\n\
                [[lane]]\nname = 'a'\n[[lane]]\nname = 'b'\n\
                [[answer]]\nlane = 'b'\ncode = '*Stock*'\nmeaning = 'lane_fault'";
    let config = good(file, &[("REVEILLE_ANSWER__1__REASON", "own_end")]);
    let [a, b] = &config.lanes[..] else { panic!("{:?}", config.lanes) };
    let meaning = |lane: &Lane, code| lane.reading.codes.meaning(403, code);
    assert_eq!(meaning(a, "OutOfStock"), Some(Meaning::NoCapacity(word("no_stock"))));
    assert_eq!(meaning(b, "OutOfStock"), Some(Meaning::LaneFault(AtFault::Account)));
    for lane in [a, b] {
        assert_eq!(meaning(lane, "own.code"), Some(Meaning::Failed(word("own_end"))));
        assert_eq!(meaning(lane, "Another.Code"), None);
    }
    let defaults = "[[answer]]\ncode = 'A'\nmeaning = 'no_capacity'\n[[answer]]\ncode = 'B'\nmeaning = 'failed'\n\
                    [[answer]]\ncode = 'C'\nmeaning = 'failed'\nreason = 'not_found'\nlane = 'default'";
    let lane = &good(defaults, &[]).lanes[0];
    assert_eq!(meaning(lane, "A"), Some(Meaning::NoCapacity(word("no_capacity"))));
    assert_eq!(meaning(lane, "B"), Some(Meaning::Failed(word("refused"))));
    assert_eq!(meaning(lane, "C"), Some(Meaning::Failed(word("not_found"))));
}

#[test]
fn lanes_go_through_the_proxies_of_the_environment_where_they_are_run() {
    let keys = File::of(b"access_key_id = 'ak'\nsecret_access_key = 'sk'");
    let endpoints = ["https://bcc.bj.baidubce.com", "http://10.1.2.3", "https://api.example"];
    let lanes = endpoints.iter().zip(["a", "b", "c"]).map(|(endpoint, name)| {
        format!("[[lane]]\nname = '{name}'\nendpoint = '{endpoint}'\ncredentials_file = '{}'\n", keys.path())
    });
    let file: String = lanes.collect();
    let environment = [("HTTPS_PROXY", "http://u:hush@p:1"), ("http_proxy", "q:2"), ("NO_PROXY", "example")];
    let through = |config: &Config| -> Vec<Option<&'static str>> {
        config.lanes.iter().map(|lane| lane.endpoint.proxy().map(crate::bce::Proxy::variable)).collect()
    };
    let config = read_with(&file, &environment, Purpose::Run).unwrap();
    assert_eq!(through(&config), [Some("HTTPS_PROXY"), Some("http_proxy"), None]);
    assert!(!format!("{config:?}").contains("hush"));
    assert_eq!(through(&good(&file, &environment)), [None; 3], "nothing else calls the API");

    let wrong =
        [("HTTPS_PROXY", "socks5://u:hush@p"), ("http_proxy", "http://hush:port"), ("REVEILLE_LANE__0__RATE", "-1")];
    let problems = read_with(&file, &wrong, Purpose::Run).unwrap_err();
    assert!(!format!("{problems} {problems:?}").contains("hush"), "{problems}");
    let found = lines(&problems);
    // Two lanes use the first proxy, which is one problem.
    let places = [
        "environment REVEILLE_LANE__0__RATE: ",
        "environment HTTPS_PROXY: names a SOCKS proxy",
        "environment http_proxy: is no URL of a proxy",
    ];
    assert_eq!(found.len(), places.len(), "{found:#?}");
    for (found, place) in found.iter().zip(places) {
        assert!(found.starts_with(place), "{place}\n{found}");
    }
    assert!(read_with(&file, &wrong[..2], Purpose::Talk).is_ok());
}
