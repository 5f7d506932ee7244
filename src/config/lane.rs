//! `[[lane]]`: one account in one region.

use std::fmt;
use std::time::Duration;

use super::reader::{Raw, Reader, Table};
use super::{LENGTH_OF_TIME, Purpose, at_most_a_day, is_name, within};
use crate::bce::{Codes, CredentialSource, Endpoint, Proxies, ProxyFault, Reading, RequestId, Timeouts};
use crate::job::{Confirm, Conflict};

/// A lane's name: `^[a-z0-9][a-z0-9-]{0,39}$`. It is one word of a routing key, so it has no dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneName(String);

impl LaneName {
    /// `None` if `text` is no lane name.
    pub fn parse(text: &str) -> Option<Self> {
        is_name(text, b"-").then(|| Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LaneName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One account in one region.
#[derive(Debug, Clone)]
pub struct Lane {
    /// Also its routing key.
    pub name: LaneName,
    /// It stands in for lanes, since the configuration has none.
    pub is_implied: bool,
    /// The address of its API.
    pub endpoint: Endpoint,
    /// The source of its keys.
    pub credentials: CredentialSource,
    /// API calls per second, 0.01 to 1,000,000.
    pub rate: f64,
    /// Calls that may be made at once after idle time, 1 to 100,000.
    pub burst: u32,
    /// Calls in flight, at most, 1 to 1,024.
    pub concurrency: u32,
    /// Jobs per call, at most, 1 to [`MOST_IDS`](crate::bce::MOST_IDS), which is 100.
    pub batch: u32,
    /// The 409 policy of jobs that name none.
    pub conflict: Conflict,
    /// When a job is done that does not say so itself.
    pub confirm: Confirm,
    /// How long an instance may take to run once its start was accepted: above 0, to 24 h.
    pub confirm_timeout: Duration,
    /// The part of the rate that polls may use while starts wait, 0.01 to 1.
    pub confirm_share: f64,
    /// Of each call.
    pub timeouts: Timeouts,
    /// Which answers are the API's, and what their codes mean.
    pub reading: Reading,
}

const REQUEST_ID: [(&str, RequestId); 2] = [("required", RequestId::Required), ("optional", RequestId::Optional)];

pub(super) fn read_lanes(reader: &mut Reader, proxies: &Proxies, purpose: Purpose) -> Vec<Lane> {
    let mut members = reader.members("lane");
    let only_default = members.is_empty();
    if only_default {
        members.push("lane[0]".to_owned());
    }
    let mut lanes: Vec<Lane> = Vec::new();
    for member in members {
        let mut table = reader.table(&member);
        if let Some(lane) = read_lane(&mut table, only_default, purpose) {
            if lanes.iter().any(|other| other.name == lane.name) {
                table.problem("name", format!("{} is taken by a lane above: expected a name of its own", lane.name));
            }
            lanes.push(lane);
        }
        table.finish();
    }
    if purpose != Purpose::Talk {
        for ProxyFault { variable, problem } in put_behind_proxies(&mut lanes, proxies) {
            reader.problem(format!("environment {variable}"), problem);
        }
    }
    lanes
}

/// Returns the problems of the variables that name the lanes' proxies, each once.
fn put_behind_proxies(lanes: &mut [Lane], proxies: &Proxies) -> Vec<ProxyFault> {
    let mut problems = Vec::new();
    for lane in lanes {
        match lane.endpoint.clone().through(proxies) {
            Ok(endpoint) => lane.endpoint = endpoint,
            Err(fault) if problems.contains(&fault) => {}
            Err(fault) => problems.push(fault),
        }
    }
    problems
}

fn read_lane(table: &mut Table<'_>, is_default: bool, purpose: Purpose) -> Option<Lane> {
    let named = table.has("name");
    let name =
        table.optional("name", "1 to 40 of a-z 0-9 -, a letter or digit first", |raw| LaneName::parse(raw.text()?));
    let name = if is_default { LaneName::parse("default") } else { name };
    if name.is_none() && !named {
        table.problem("name", "missing: expected a name such as prod-bj".to_owned());
    }
    let endpoint = read_endpoint(table);
    let path = table.optional("credentials_file", "a path", Raw::text_owned);
    let credentials = path.map_or(CredentialSource::Environment, |path| CredentialSource::File(path.into()));
    if purpose == Purpose::Run
        && let Err(error) = credentials.load()
    {
        table.problem("credentials_file", error.to_string());
    }
    let defaults = Timeouts { connect: Duration::from_secs(3), total: Duration::from_secs(15) };
    let rate_expected = "calls per second, from 0.01 to 1000000";
    let lane = Lane {
        rate: table.or("rate", 20.0, rate_expected, |raw| raw.number().filter(|rate| (0.01..=1e6).contains(rate))),
        burst: table.or("burst", 5, "a whole number from 1 to 100000", |raw| within(raw.count(), 1, 100_000)),
        concurrency: table.or("concurrency", 32, "a whole number from 1 to 1024", |raw| within(raw.count(), 1, 1024)),
        batch: table.or("batch", 1, "a whole number from 1 to 100", |raw| within(raw.count(), 1, 100)),
        conflict: table.named("conflict", &Conflict::NAMED).unwrap_or(Conflict::Verify),
        confirm: table.named("confirm", &Confirm::NAMED).unwrap_or(Confirm::Accepted),
        confirm_timeout: table.or("confirm_timeout", Duration::from_secs(10 * 60), LENGTH_OF_TIME, at_most_a_day),
        confirm_share: table.or("confirm_share", 0.1, "a part of the rate, from 0.01 to 1", |raw| {
            raw.number().filter(|share| (0.01..=1.0).contains(share))
        }),
        timeouts: Timeouts {
            connect: table.or("connect_timeout", defaults.connect, LENGTH_OF_TIME, at_most_a_day),
            total: table.or("timeout", defaults.total, "a length of time above zero, up to 5m, such as 15s", |raw| {
                // RabbitMQ closes a channel whose delivery stays unacked for 30 minutes.
                raw.duration().filter(|timeout| *timeout <= Duration::from_secs(300))
            }),
        },
        reading: Reading {
            request_id: table.named("request_id", &REQUEST_ID).unwrap_or_default(),
            // Rules are read once all lanes are known.
            codes: Codes::default(),
        },
        name: name?,
        is_implied: is_default,
        endpoint: endpoint?,
        credentials,
    };
    Some(lane)
}

/// `endpoint`, else that of `region`, else Beijing's.
fn read_endpoint(table: &mut Table<'_>) -> Option<Endpoint> {
    let both = table.has("region") && table.has("endpoint");
    let given = table.has("region") || table.has("endpoint");
    if both {
        table.problem("region", "beside endpoint: expected one of them".to_owned());
    }
    let region = table
        .optional("region", "a region such as bj, bd, gz, su, fwh, hkg", |raw| Endpoint::of_region(raw.text()?).ok());
    // A URL can contain a password, so a wrong one is not shown.
    let endpoint = table.secret("endpoint", |text| text.parse().map_err(|expected| format!("expected {expected}")));
    if given { endpoint.or(region) } else { Endpoint::of_region("bj").ok() }
}
