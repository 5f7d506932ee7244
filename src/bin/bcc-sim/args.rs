//! The command line.

use std::net::SocketAddr;

use clap::Parser;
use jiff::SignedDuration;
use tracing::level_filters::LevelFilter;

use crate::auth::Account;
use crate::clock::{self, Clock};
use crate::faults::{Faults, Rule};
use crate::fleet::{Status, Times};
use crate::limit::Limit;
use crate::span::Span;

/// More than any account has; a typo should not fill the memory.
const LARGEST_GROUP: usize = 1_000_000;

/// A simulated BCC: start, stop, describe and list, with signatures verified, states that change with time, a rate
/// limit, and faults on order. Tests steer it through http://HOST:PORT/_sim/.
#[derive(Debug, Parser)]
#[command(name = "bcc-sim", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Where to listen; port 0 picks a free one. The first line on stdout says which.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// The instances, i-sim00001 and on, in the order given
    #[arg(long, value_name = "STATUS=COUNT,…", value_delimiter = ',', value_parser = group, default_value = "Stopped=20")]
    pub fleet: Vec<(Status, usize)>,

    /// How long Starting and Creating last
    #[arg(long, value_name = "TIME", default_value = "2s")]
    boot_time: Span,

    /// How long Stopping lasts
    #[arg(long, value_name = "TIME", default_value = "1s")]
    stop_time: Span,

    /// The one key id that may call [env: BCC_SIM_ACCESS_KEY_ID] [default: sim-access-key]
    #[arg(long, value_name = "ID", value_parser = key)]
    access_key_id: Option<String>,

    /// Its secret [env: BCC_SIM_SECRET_ACCESS_KEY] [default: sim-secret-key]
    #[arg(long, value_name = "SECRET", value_parser = key)]
    secret_access_key: Option<String>,

    /// Makes the key a temporary one: every call must carry this token [env: BCC_SIM_SESSION_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    session_token: Option<String>,

    /// Calls a second over all of /v2; more are answered 429. Without it there is no limit.
    #[arg(long, value_name = "CALLS", allow_negative_numbers = true)]
    rate: Option<f64>,

    /// Calls that may come at once after a rest [default: the rate, rounded up]
    #[arg(long, value_name = "CALLS", requires = "rate")]
    burst: Option<u32>,

    /// A fault and the share of calls it meets: NAME=SHARE, NAME@INSTANCE,…=SHARE, or a rule in JSON. Repeatable.
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Rule>,

    /// How long every answer takes
    #[arg(long, value_name = "TIME", default_value = "0s")]
    latency: Span,

    /// The seed of the faults' chance
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,

    /// How far the simulator's clock is off, such as 40m or -40m: signatures are judged by it, and Date tells it
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = clock::offset, allow_hyphen_values = true)]
    clock_offset: SignedDuration,

    /// How far the date of a request may be from that clock, either way
    #[arg(long, value_name = "TIME", default_value = "30m")]
    clock_tolerance: Span,

    /// What to log on stderr: error, warn, info, debug (every call), trace, off
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log: LevelFilter,
}

const AFTER_HELP: &str = "\
Faults: status-CODE, html-CODE, gateway-CODE, throttled, access-denied, redirect-URL, hang-before, hang-after, reset-before,
reset-after, cut, delay-TIME, trickle-TIME, pad-BYTES. Before: the call was not carried out; after: it was, and the
caller cannot know. status-CODE, html-CODE and the like take -after, too.
html-CODE and gateway-CODE are what a gateway or a captive portal says in the API's place, a page or nothing, without
x-bce-request-id. A rule in JSON gives any body and headers:
{\"fault\": {\"status\": 404, \"gateway\": true, \"body\": \"gone\", \"headers\": {\"server\": \"nginx\"}}, \"share\": 0.1}

  bcc-sim --fleet Stopped=160,Running=20,Creating=5,Expired=5 --rate 50 --burst 10 \\
          --fault status-500=0.05 --fault hang-after=0.01 --fault access-denied@i-sim00003=1";

impl Args {
    pub fn account(&self) -> Account {
        let or_default = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
        let id = or_env(&self.access_key_id, "BCC_SIM_ACCESS_KEY_ID");
        let secret = or_env(&self.secret_access_key, "BCC_SIM_SECRET_ACCESS_KEY");
        Account {
            access_key_id: or_default(id, "sim-access-key"),
            secret_access_key: or_default(secret, "sim-secret-key"),
            session_token: or_env(&self.session_token, "BCC_SIM_SESSION_TOKEN"),
        }
    }

    pub fn clock(&self) -> Clock {
        Clock { offset: self.clock_offset, tolerance: self.clock_tolerance }
    }

    pub fn times(&self) -> Times {
        Times { boot: self.boot_time.0, stop: self.stop_time.0 }
    }

    pub fn limit(&self) -> Limit {
        Limit { rate: self.rate, burst: self.burst }
    }

    pub fn faults(&self) -> Faults {
        Faults { latency: self.latency, rules: self.faults.clone() }
    }
}

/// clap reads the environment only with a feature that the daemon does not need. Set but empty is not set.
fn or_env(flag: &Option<String>, variable: &str) -> Option<String> {
    flag.clone().or_else(|| std::env::var(variable).ok()).filter(|value| !value.is_empty())
}

fn group(text: &str) -> Result<(Status, usize), String> {
    let (status, count) = text.split_once('=').ok_or_else(|| format!("{text:?} is not STATUS=COUNT"))?;
    let status = status.parse().map_err(|error| format!("{error}"))?;
    match count.parse() {
        Ok(count) if count <= LARGEST_GROUP => Ok((status, count)),
        _ => Err(format!("{count:?} is not a number of instances up to {LARGEST_GROUP}")),
    }
}

/// A slash would end the key in the `Authorization` header.
fn key(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || text.contains('/') {
        Err("must not be empty or contain a slash")
    } else {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn flags_fill_what_the_control_endpoint_takes() {
        let args = Args::try_parse_from([
            "bcc-sim",
            "--fleet",
            "Stopped=2,Creating=1",
            "--rate",
            "5",
            "--fault",
            "status-500=0.1",
            "--fault",
            "cut@i-sim00001=1",
            "--latency",
            "80ms",
            "--clock-offset",
            "-40m",
        ])
        .unwrap();
        assert_eq!(args.fleet, [(Status::Stopped, 2), (Status::Creating, 1)]);
        assert_eq!(args.clock(), Clock { offset: SignedDuration::from_mins(-40), ..Clock::default() });
        let json = r#"{"latency": "80ms", "rules": [
            {"fault": {"status": 500}, "share": 0.1}, {"fault": "cut", "instances": ["i-sim00001"]}]}"#;
        assert_eq!(args.faults(), serde_json::from_str(json).unwrap());
    }

    #[test]
    fn slips_are_refused_with_the_slip_in_the_message() {
        for (flags, part) in [
            (["--fleet", "Sleeping=3"], "Sleeping"),
            (["--fleet", "Stopped"], "STATUS=COUNT"),
            (["--fleet", "Stopped=many"], "many"),
            (["--fault", "status-500"], "NAME=SHARE"),
            (["--boot-time", "2"], "500ms"),
            (["--access-key-id", "a/b"], "slash"),
            (["--burst", "3"], "--rate"),
            (["--clock-offset", "-9000h"], "a year"),
        ] {
            let error = Args::try_parse_from(["bcc-sim"].iter().chain(&flags)).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(part), "{flags:?}: {error}");
        }
    }
}
