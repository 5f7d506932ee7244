//! `broker.url`, parsed strictly: anything that may be part of a password that was not percent-encoded is an error,
//! since what a lenient parser takes for a host or a vhost is shown in logs. No error quotes the URL.

use lapin::uri::AMQPUri;
use reqwest::Url;

use crate::similar;

/// A silent peer is noticed within twice this.
const HEARTBEAT_SECONDS: u16 = 5;
/// Longest name in AMQP 0-9-1, in bytes: lapin panics over a longer one.
const LONGEST_NAME: usize = 255;
/// lapin reserves memory for 32 frames before the broker has sent its frame size.
const LARGEST_FRAME: u32 = 1024 * 1024;
/// The largest frame requested from the broker, its own default, in bytes. If it allowed more, lapin would reserve
/// memory for 64 of those.
pub const USUAL_FRAME: u32 = 128 * 1024;
/// The headers that the daemon and RabbitMQ add to a job have to fit into a frame, in bytes.
pub const SMALLEST_FRAME: u32 = 8192;

/// Parses a URL. The error says what would be right, and quotes nothing of `text`, which may contain a password.
pub(super) fn parse(text: &str) -> Result<AMQPUri, String> {
    let text = text.trim_end_matches(['\r', '\n']);
    check_form(text)?;
    let url = Url::parse(text).map_err(|_| expected())?;
    check_options(&url)?;
    let mut uri: AMQPUri = text.parse().map_err(|_| expected())?;
    let user = &uri.authority.userinfo;
    if [&user.username, &user.password].iter().any(|text| text.contains(char::is_control)) {
        return Err("has a control character in its user or password: expected none, such as %0A is".to_owned());
    }
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(expected)?;
    // lapin's parser takes an IPv6 address for a missing host, and a missing host for localhost.
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        address.clone_into(&mut uri.authority.host);
    }
    if uri.vhost.is_empty() {
        return Err(
            "ends in / and so names a vhost without a name: expected no / there, or /%2f, for the vhost /".to_owned()
        );
    }
    if uri.vhost.len() > LONGEST_NAME {
        return Err(format!("names a vhost of {} bytes: expected {LONGEST_NAME} at most", uri.vhost.len()));
    }
    uri.query.frame_max.get_or_insert(USUAL_FRAME);
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
}

fn expected() -> String {
    "expected a URL such as amqps://user@broker:5671/prod (%2f is the vhost /)".to_owned()
}

/// A single URL, with nothing in it that may be the rest of a password.
fn check_form(text: &str) -> Result<(), String> {
    let (_, rest) = text.split_once("://").ok_or_else(expected)?;
    let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (path, _) = tail.split_at(tail.find('?').unwrap_or(tail.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let problem = if rest.contains("://") || host.contains(',') {
        "is a list: expected one URL of one host, which may be a name with several addresses"
    } else if rest.contains('#') {
        "has a # in it"
    } else if tail.contains('@') {
        "has a / or ? before an @"
    } else if authority.matches('@').count() > 1 {
        "has more than one @"
    } else if path.matches('/').count() > 1 {
        "has a / in its vhost: expected %2F there"
    } else if rest.chars().any(|character| character.is_control() || character.is_whitespace()) {
        "has white space in it"
    } else {
        return Ok(());
    };
    Err(format!(
        "{problem}. Percent-encode the password (%23 is #, %2F is /, %3F is ?, %40 is @), or use password_file"
    ))
}

/// Options with an effect.
const OPTIONS: [&str; 4] = ["heartbeat", "frame_max", "channel_max", "auth_mechanism"];

/// What `auth_mechanism` can be.
const MECHANISMS: [&str; 3] = ["plain", "amqplain", "external"];

/// Options of other clients and of RabbitMQ's own URI specification, and what to use here instead.
const ELSEWHERE: [(&[&str], &str); 9] = [
    (&["cacertfile", "cafile", "ca_file", "ca_certs", "cacerts", "ssl_ca_certs"], "set broker.ca_file"),
    (&["certfile", "cert_file", "cert", "ssl_certfile"], "set broker.cert_file"),
    (&["keyfile", "key_file", "key", "ssl_keyfile"], "set broker.key_file"),
    (&["ssl", "tls", "use_ssl", "use_tls", "ssl_options"], "write amqps:// for TLS"),
    (
        &["verify", "verify_peer", "verify_ssl", "ssl_verify", "no_verify_ssl", "insecure", "fail_if_no_peer_cert"],
        "leave it out: with amqps:// the broker's certificate is always verified",
    ),
    (
        &["server_name_indication", "depth"],
        "leave it out: with amqps:// the certificate has to be valid for the URL's host",
    ),
    (
        &[
            "connection_timeout",
            "connect_timeout",
            "socket_timeout",
            "timeout",
            "connection_attempts",
            "retry_delay",
            "blocked_connection_timeout",
        ],
        "leave it out: a try to connect has 10 s, and the daemon tries until it succeeds",
    ),
    (&["vhost", "virtual_host"], "write the vhost after the host, as in /prod"),
    (
        &["user", "username", "login", "password", "passwd"],
        "write the user before the host, as in user@broker, and set broker.password_file",
    ),
];

fn check_options(url: &Url) -> Result<(), String> {
    let mut seen = Vec::new();
    for (option, value) in url.query_pairs() {
        match option.as_ref() {
            "heartbeat" => check_number(&option, &value, 1, u16::MAX.into())?,
            "frame_max" => check_number(&option, &value, SMALLEST_FRAME, LARGEST_FRAME)?,
            "channel_max" => check_number(&option, &value, 0, u16::MAX.into())?,
            "auth_mechanism" if MECHANISMS.contains(&&*value.to_lowercase()) => {}
            "auth_mechanism" => {
                let expected = similar::expected(&value.to_lowercase(), &MECHANISMS);
                return Err(format!("has another auth_mechanism than there is: {expected}"));
            }
            _ => return Err(unknown(&option)),
        }
        if seen.contains(&option) {
            return Err(format!("has the option {option} twice: expected it once"));
        }
        seen.push(option);
    }
    Ok(())
}

fn check_number(option: &str, value: &str, least: u32, most: u32) -> Result<(), String> {
    match value.parse::<u32>() {
        Ok(number) if (least..=most).contains(&number) => Ok(()),
        Ok(number) => Err(format!("has a {option} of {number}: expected {least} to {most}")),
        Err(_) => Err(format!("has a {option} that is no number: expected {least} to {most}")),
    }
}

/// The advice for an option without effect.
fn unknown(option: &str) -> String {
    let name = option.to_lowercase();
    let own = OPTIONS.iter().map(|known| (*known, None));
    let others = ELSEWHERE.iter().flat_map(|(names, advice)| names.iter().map(|known| (*known, Some(*advice))));
    let nearest = own
        .chain(others)
        .map(|(known, advice)| (strsim::jaro_winkler(&name, known), known, advice))
        .filter(|(likeness, ..)| *likeness > 0.85)
        .max_by(|(a, ..), (b, ..)| a.total_cmp(b));
    let advice = match nearest {
        Some((_, _, Some(advice))) => advice.to_owned(),
        Some((_, known, None)) => format!("did you mean {known}?"),
        None => format!("there are {}", OPTIONS.join(", ")),
    };
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    // Anything else may be part of a password.
    let shown = if option.len() <= 40 && option.bytes().all(is_word) { option } else { "that is no word" };
    format!("has an option {shown}, which there is not; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_the_rest_of_a_password_is_a_fault_that_shows_nothing_of_it() {
        const LIST: &str = "is a list: expected one URL of one host";
        for (url, problem) in [
            ("amqp://u:12/hush@h/v", "has a / or ? before an @"),
            ("amqp://u:12?hush@h/v", "has a / or ? before an @"),
            ("amqp://u:12?a=hush@h", "has a / or ? before an @"),
            ("amqp://u:12#hush@h/v", "has a # in it"),
            ("amqp://u:12@h/v#hush", "has a # in it"),
            ("amqp://u:12@hush@h/v", "has more than one @"),
            ("amqp://u:12@h/v@hush", "has a / or ? before an @"),
            ("amqp://h/v/hush", "has a / in its vhost: expected %2F there"),
            ("amqp://u:hush@a,amqp://u:hush@b", LIST),
            ("amqp://u:hush@a/v amqp://u:hush@b/v", LIST),
            ("amqp://u:hush@a,b:5672/v", LIST),
            ("amqp://u:hush@a:5672,hush:5672", LIST),
            ("amqp://u:hush hush@h", "has white space in it"),
            ("amqp://u:hush\nhush@h", "has white space in it"),
        ] {
            let fault = parse(url).unwrap_err();
            assert!(fault.starts_with(problem), "{url}: {fault}");
            assert!(fault.contains("Percent-encode the password") && fault.contains("use password_file"), "{fault}");
            assert!(!fault.contains("hush") && !fault.contains("12"), "{url}: {fault}");
        }
        for url in ["amqp://u:hush%0A@h", "amqp://u%00:hush@h"] {
            assert!(parse(url).unwrap_err().starts_with("has a control character in its user or password"), "{url}");
        }
        for url in ["", "amqp:hush", "hush", "http://u:hush@h", "amqp://u:hush@", "amqp://u:hush@h:port", "amqp://"] {
            let fault = parse(url).unwrap_err();
            assert!(fault.starts_with("expected a URL such as amqps://user@broker:5671/prod"), "{url}: {fault}");
            assert!(!fault.contains("hush"), "{fault}");
        }
    }

    #[test]
    fn a_password_that_is_percent_encoded_may_have_everything_in_it() {
        let uri = parse("amqps://u:%23%2F%3F%40%2Camqp:,%20@h/a%2Fb%40c,d\n").unwrap();
        assert_eq!((uri.authority.userinfo.password.as_str(), uri.vhost.as_str()), ("#/?@,amqp:, ", "a/b@c,d"));
        assert_eq!((uri.authority.host.as_str(), uri.authority.port), ("h", 5671));
    }

    #[test]
    fn an_option_without_effect_is_a_fault_that_says_what_to_do() {
        for (option, advice) in [
            ("hartbeat=5", "an option hartbeat, which there is not; did you mean heartbeat?"),
            ("Heartbeat=5", "an option Heartbeat, which there is not; did you mean heartbeat?"),
            ("framemax=5", "an option framemax, which there is not; did you mean frame_max?"),
            ("cacertfile=/hush", "an option cacertfile, which there is not; set broker.ca_file"),
            ("ca_certs=/hush", "an option ca_certs, which there is not; set broker.ca_file"),
            ("certfile=/hush", "an option certfile, which there is not; set broker.cert_file"),
            ("keyfile=/hush", "an option keyfile, which there is not; set broker.key_file"),
            ("ssl=true", "an option ssl, which there is not; write amqps:// for TLS"),
            ("ssl_options=hush", "an option ssl_options, which there is not; write amqps:// for TLS"),
            ("verify=verify_none", "an option verify, which there is not; leave it out: with amqps:// the broker's"),
            ("server_name_indication=h", "an option server_name_indication, which there is not; leave it out: with"),
            ("connection_timeout=5", "an option connection_timeout, which there is not; leave it out: a try to"),
            ("password=hush", "an option password, which there is not; write the user before the host"),
            ("vhost=hush", "an option vhost, which there is not; write the vhost after the host"),
            ("zzz", "an option zzz, which there is not; there are heartbeat, frame_max, channel_max, auth_mechanism"),
            ("it%20is=hush", "an option that is no word, which there is not; there are "),
            ("heartbeat=0", "a heartbeat of 0: expected 1 to 65535"),
            ("heartbeat=65536", "a heartbeat of 65536: expected 1 to 65535"),
            ("heartbeat=hush", "a heartbeat that is no number: expected 1 to 65535"),
            ("heartbeat", "a heartbeat that is no number: expected 1 to 65535"),
            ("channel_max=-1", "a channel_max that is no number: expected 0 to 65535"),
            ("auth_mechanism=hush", "another auth_mechanism than there is: expected plain, amqplain or external"),
            ("heartbeat=5&heartbeat=6", "the option heartbeat twice: expected it once"),
        ] {
            let fault = parse(&format!("amqps://u:hush@h/v?{option}")).unwrap_err();
            assert!(fault.starts_with(&format!("has {advice}")) && !fault.contains("hush"), "{option}: {fault}");
        }
        let query = parse("amqp://h?heartbeat=7&frame_max=9000&channel_max=99&auth_mechanism=EXTERNAL").unwrap().query;
        assert_eq!((query.heartbeat, query.frame_max, query.channel_max), (Some(7), Some(9000), Some(99)));
        assert!(query.auth_mechanism.is_some());
    }
}
