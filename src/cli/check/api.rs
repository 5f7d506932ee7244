//! A lane's API: its keys, the way to it, its clock, and whether it accepts the keys.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::files;
use super::network::{self, Checks};
use super::sheet::Line;
use crate::bce::{Answer, Client, CredentialSource, Credentials, InstanceId, NoAnswer};
use crate::config::Lane;
use crate::job::Confirm;
use crate::lane::{KeyCheck, verdict};

const CHECKS: Checks = Checks { dns: "api.dns", tcp: "api.tcp", tls: "api.tls" };
const SOURCE: &str = "keys.source";
const EXPIRY: &str = "keys.expiry";
const CLOCK: &str = "api.clock";
const KEYS: &str = "api.keys";
const START: &str = "api.start";
/// Timeout of reading the keys.
const LOADING: Duration = Duration::from_secs(10);
/// Temporary keys that expire within this time have a warning.
const SOON: SignedDuration = SignedDuration::from_mins(10);
/// An offset of the clocks, in seconds, that a `Date` of whole seconds can show.
const EXACT: i64 = 2;
/// An offset, in seconds, from which on this machine's clock needs care: log lines and deadlines go by it.
const FAR: i64 = 60;

/// Checks a lane; with `instance` whether the keys may start it, which starts it where it is stopped.
pub(super) async fn check(lane: &Lane, instance: Option<&InstanceId>) -> Vec<Line> {
    let mut lines = Vec::new();
    if let CredentialSource::File(path) = &lane.credentials {
        lines.push(files::of_lane(path).await);
    }
    let keys = load(&lane.credentials).await;
    lines.extend(of_keys(&lane.credentials, keys.as_ref()));
    let (host, port) = lane.endpoint.first_hop();
    let whose = lane.endpoint.proxy().map(|proxy| format!("the proxy of {}, ", proxy.variable())).unwrap_or_default();
    lines.extend(network::reach(CHECKS, &host, port, &whose).await);
    match keys.map(|keys| Client::inspecting(lane.endpoint.clone(), keys, lane.timeouts)) {
        Ok(Ok(client)) => lines.extend(calls(lane, &client.with_reading(lane.reading.clone()), instance).await),
        Ok(Err(error)) => lines.push(Line::failed(CHECKS.tls, error)),
        Err(_) => {
            let without = |check| Line::skipped(check, "there are no keys to call with");
            lines.extend([CHECKS.tls, CLOCK, KEYS].map(without));
            lines.extend(instance.map(|_| without(START)));
        }
    }
    lines.into_iter().map(|line| line.of_lane(lane.name.as_str())).collect()
}

async fn load(source: &CredentialSource) -> Result<Credentials, String> {
    let source = source.clone();
    match timeout(LOADING, spawn_blocking(move || source.load())).await {
        Ok(Ok(loaded)) => loaded.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("their file cannot be read within {LOADING:?}")),
    }
}

fn of_keys(source: &CredentialSource, keys: Result<&Credentials, &String>) -> Vec<Line> {
    let keys = match keys {
        Ok(keys) => keys,
        Err(error) => return vec![Line::failed(SOURCE, error)],
    };
    let from = match source {
        CredentialSource::Environment => "the environment".to_owned(),
        CredentialSource::File(path) => path.display().to_string(),
    };
    let found = Line::passed(SOURCE, format_args!("{} from {from}", keys.access_key_id));
    match keys.expires_at {
        Some(expires_at) => vec![found, expiry(expires_at, Timestamp::now())],
        None if keys.session_token.is_some() => {
            vec![found, Line::skipped(EXPIRY, "temporary keys, which do not say when they expire (expires_at)")]
        }
        None => vec![found],
    }
}

fn expiry(expires_at: Timestamp, now: Timestamp) -> Line {
    let left = expires_at.duration_since(now);
    let remedy = "put new ones into the lane's credentials_file";
    // Whole seconds, as a person reads them.
    let length = SignedDuration::from_secs(left.as_secs().abs());
    if !left.is_positive() {
        Line::failed(EXPIRY, format_args!("the keys expired {length:#} ago, at {expires_at}")).remedy(remedy)
    } else if left < SOON {
        Line::warning(EXPIRY, format_args!("the keys expire in {length:#}, at {expires_at}")).remedy(remedy)
    } else {
        Line::passed(EXPIRY, format_args!("the keys expire in {length:#}, at {expires_at}"))
    }
}

/// What calls show: one list, made again if the clocks were too far apart, and perhaps a start.
async fn calls(lane: &Lane, client: &Client, instance: Option<&InstanceId>) -> Vec<Line> {
    let mut listed = client.probe().await;
    if listed.as_ref().is_ok_and(|answer| answer.date.is_some() && verdict::is_clock_skew(answer)) {
        listed = client.probe().await;
    }
    let mut lines = vec![tls(client, &listed, lane.endpoint.has_tls())];
    lines.push(match &listed {
        Ok(answer) if client.was_answered() && answer.date.is_some() => clock(client.clock_offset()),
        _ => Line::skipped(CLOCK, "the API did not say what time it is"),
    });
    lines.push(accepted(lane, &KeyCheck::read(&listed)));
    if let Some(instance) = instance {
        lines.push(started(instance, &client.start(instance).await));
    }
    lines
}

fn tls(client: &Client, listed: &Result<Answer, NoAnswer>, has_tls: bool) -> Line {
    match (client.certificate(), listed) {
        (Some(certificate), _) => network::certificate(CHECKS.tls, &certificate, Timestamp::now()),
        (None, _) if !has_tls => Line::skipped(CHECKS.tls, "the endpoint is http://, without TLS"),
        (None, Err(NoAnswer::Tls(why))) => Line::failed(CHECKS.tls, format_args!("the certificate was refused: {why}"))
            .remedy("check the lane's endpoint, and the certificates this machine trusts"),
        (None, _) => Line::skipped(CHECKS.tls, "nothing answered"),
    }
}

fn clock(offset: i64) -> Line {
    let (seconds, side) = (offset.unsigned_abs(), if offset < 0 { "behind" } else { "ahead of" });
    let found = format!("the API's clock is {seconds} s {side} this machine's, and calls are signed by the API's");
    if offset.abs() <= EXACT {
        Line::passed(CLOCK, format_args!("the API's clock and this machine's agree, to within {EXACT} s"))
    } else if offset.abs() < FAR {
        Line::passed(CLOCK, found)
    } else {
        Line::warning(CLOCK, found).remedy("set this machine's clock, by NTP")
    }
}

fn accepted(lane: &Lane, check: &KeyCheck) -> Line {
    let needs_lists = lane.batch > 1 || lane.confirm == Confirm::Running;
    match check {
        accepted if accepted.is_accepted() => Line::passed(KEYS, accepted.text()),
        denied if denied.may_not_list() && !needs_lists => Line::warning(KEYS, denied.text()),
        refused => Line::failed(KEYS, refused.text()),
    }
}

fn started(instance: &InstanceId, result: &Result<Answer, NoAnswer>) -> Line {
    match result {
        Ok(answer) if !answer.from_proxy && answer.is_success() => {
            Line::passed(START, format_args!("the start of {instance} was accepted: it was stopped, and starts now"))
        }
        Ok(answer) if !answer.from_proxy && answer.status == 409 => {
            Line::passed(START, format_args!("the keys may start {instance}, which needed no start ({answer})"))
        }
        Ok(answer) if !answer.from_proxy && answer.status == 404 => {
            Line::failed(START, format_args!("there is no {instance} ({answer})"))
                .remedy("name an instance of this lane's account and region, best one that runs")
        }
        Ok(answer) if !answer.from_proxy && answer.status == 403 => {
            Line::failed(START, format_args!("the keys may not start {instance} ({answer})"))
                .remedy("give the key's user permission to operate instances")
        }
        result => Line::failed(START, KeyCheck::read(result).text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::sheet::Mark;

    #[test]
    fn temporary_keys_have_to_last_for_a_while() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let expires = at("2026-11-25T07:30:00Z");
        for (now, mark, words) in [
            ("2026-11-25T04:00:00Z", Mark::Passed, "expire in 3h 30m, at 2026-11-25T07:30:00Z"),
            ("2026-11-25T07:21:00Z", Mark::Warning, "expire in 9m, at"),
            ("2026-11-25T07:30:00Z", Mark::Failed, "expired 0s ago, at"),
            ("2026-11-25T08:30:00Z", Mark::Failed, "expired 1h ago, at"),
        ] {
            let line = expiry(expires, at(now));
            assert!(line.mark == mark && line.found().contains(words), "{now}: {line:?}");
        }
    }

    #[test]
    fn an_offset_of_the_clocks_is_told_and_a_large_one_is_a_warning() {
        for (offset, mark, words) in [
            (0, Mark::Passed, "agree"),
            (-2, Mark::Passed, "agree"),
            (-30, Mark::Passed, "30 s behind this"),
            (1_200, Mark::Warning, "1200 s ahead of this"),
        ] {
            let line = clock(offset);
            assert!(line.mark == mark && line.found().contains(words), "{offset}: {line:?}");
        }
    }

    #[test]
    fn a_start_that_is_refused_as_needless_is_permitted() {
        let instance = InstanceId::parse("i-YufwpQAe").unwrap();
        let answer = |status, from_proxy| Ok(Answer { status, from_proxy, ..Answer::default() });
        for (result, mark, words) in [
            (answer(200, false), Mark::Passed, "i-YufwpQAe was accepted: it was stopped, and starts now"),
            (answer(409, false), Mark::Passed, "may start i-YufwpQAe"),
            (answer(403, false), Mark::Failed, "may not start i-YufwpQAe (HTTP 403)"),
            (answer(404, false), Mark::Failed, "there is no i-YufwpQAe"),
            (answer(409, true), Mark::Failed, "something else answers"),
            (answer(401, false), Mark::Failed, "put valid keys"),
            (Err(NoAnswer::TimedOut), Mark::Failed, "did not answer in time"),
        ] {
            let line = started(&instance, &result);
            assert!(line.mark == mark && line.found().contains(words), "{result:?}: {line:?}");
        }
    }
}
