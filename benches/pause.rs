//! What a pause costs: a lane at its full rate, with thousands of jobs waiting, meets a fault that is no job's, and
//! resumes once that is lifted. The real daemon on a private RabbitMQ node, and the log of `bcc-sim`.
//!
//! A lane that has just begun would prove less: it makes one call at a time at first, so that a single call decides.
//!
//! `cargo bench --bench pause -- [--jobs 5000] [--rate 200]`
//!
//! Exit code 1 if detection cost more calls than `concurrency` and five (one more for each trial, if only a job can
//! show it), a job was charged an attempt or ended other than `started`, or ten seconds passed from the end of the
//! fault to the first start.

mod common;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::common::Cargo;
use crate::support::account::Account;
use crate::support::broker::Vhost;
use crate::support::calls::Call;
use crate::support::daemon::Daemon;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::sim::{KEY, SECRET, Sim};
use crate::support::stage::{Wishes, config};
use crate::support::{eventually, instance};

const CONCURRENCY: usize = 32;
/// Calls beyond those in flight that detection may cost.
const MORE: usize = 5;
/// For how long the lane runs before the fault, in seconds.
const FULL_SWING: f64 = 2.0;
/// How long the fault lasts once the lane is paused.
const OUTAGE: Duration = Duration::from_secs(10);
/// The most seconds from the end of the fault to the first start.
const BACK: f64 = 10.0;
/// The share of the rate at which a lane counts as back.
const WHOLE: f64 = 0.95;
/// Time for the last job to end.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Parser)]
struct Options {
    /// Jobs that wait as the fault comes.
    #[arg(long, default_value_t = 5000)]
    jobs: usize,
    /// Calls a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    #[command(flatten)]
    cargo: Cargo,
}

/// A fault, and the cause that is shown for the pause.
struct Fault {
    name: &'static str,
    kind: Kind,
    reason: &'static str,
}

enum Kind {
    /// Calls that match this rule of the simulator fail.
    Rule(Value),
    /// The keys are revoked, and finally replaced in their file.
    Revoked,
}

impl Fault {
    async fn begin(&self, sim: &Sim) {
        match &self.kind {
            Kind::Rule(rule) => sim.faults(json!([rule])).await,
            Kind::Revoked => {
                let account = json!({"access_key_id": "new-key-id", "secret_access_key": "a-newer-secret"});
                sim.control("PUT", "credentials", account).await;
            }
        }
    }

    async fn mend(&self, sim: &Sim, folder: &KeyFolder) {
        match &self.kind {
            Kind::Rule(_) => sim.faults(json!([])).await,
            Kind::Revoked => folder.rename(&keys("new-key-id", "a-newer-secret")),
        }
    }
}

fn faults() -> [Fault; 6] {
    let rule = |name, rule, reason| Fault { name, kind: Kind::Rule(rule), reason };
    let denied = json!({"fault": {"status": 403, "code": "AccessDenied"}, "operations": ["start"]});
    [
        Fault { name: "keys", kind: Kind::Revoked, reason: "keys" },
        rule("redirect", json!({"fault": {"status": 302, "location": "http://127.0.0.1:9/"}}), "endpoint"),
        rule("503", json!({"fault": {"status": 503}}), "outage"),
        rule("hang", json!({"fault": "hang-before"}), "outage"),
        rule("reset", json!({"fault": "reset-before"}), "outage"),
        rule("denied", denied, "access_denied"),
    ]
}

fn main() -> ExitCode {
    let Some(options) = common::options("pause", |options: &Options| &options.cargo) else {
        return ExitCode::SUCCESS;
    };
    println!(
        "{:<10}{:>9}{:>7}{:>8}{:>9}{:>8}{:>14}{:>14}{:>15}",
        "fault", "waiting", "calls", "probes", "charged", "failed", "back after s", "first second", "whole after s"
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let missed = faults().iter().filter(|fault| !runtime.block_on(pause(fault, &options))).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs a lane through the fault, and prints the cost; returns whether it was as promised.
async fn pause(fault: &Fault, options: &Options) -> bool {
    let rate = options.rate;
    let before = (FULL_SWING * f64::from(rate)) as usize;
    // At least as many are left as should wait, if the fault comes within another second.
    let jobs = options.jobs + before + rate as usize;
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, SECRET));
    let vhost = Vhost::alone();
    let sim = Sim::start(&["--log", "off", "--fleet", &format!("Stopped={jobs}")]);
    let lane = format!(
        "rate = {rate}\nburst = 5\nconcurrency = {CONCURRENCY}\ntimeout = \"2s\"\ncredentials_file = {:?}",
        folder.file()
    );
    let config = config(&vhost.url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() });
    let start = || Daemon::start_logging(&config, "reveille=info");

    // A daemon declares the queues, so the first one only does that.
    let first = start();
    first.ready().await;
    drop(first);
    let mut account = Account::of_the_log(&vhost.url);
    account.submit((1..=jobs).map(instance), json!({})).await;
    let daemon = start();
    eventually("the lane is in full swing", async || (sim.calls_made().await >= before).then_some(())).await;
    fault.begin(&sim).await;
    let broken = Timestamp::now().as_microsecond();
    let waiting = jobs - sim.calls_made().await;
    let paused = format!(r#"reveille_lane_paused{{lane="prod",reason="{}"}}"#, fault.reason);
    eventually("the lane is paused", async || (daemon.metric(&paused).await == 1.0).then_some(())).await;
    tokio::time::sleep(OUTAGE).await;
    let mended = Timestamp::now().as_microsecond();
    fault.mend(&sim, &folder).await;
    let ends = account.close(PATIENCE).await;

    let charged = daemon.charged().await;
    let failed = jobs - ends.get("started").copied().unwrap_or_default();
    let log = sim.wire().await;
    let is_start = |call: &&Call| call.operation == "start";
    let is_good = |call: &&Call| is_start(call) && call.status == Some(200);
    let calls = log.iter().filter(|call| is_start(call) && !is_good(call)).count();
    let outage = broken..mended;
    let probes = log.iter().filter(|call| call.operation == "list" && outage.contains(&call.unix_micros)).count();
    let good = log.iter().filter(is_good).map(|call| call.unix_micros);
    let starts: Vec<i64> = good.filter(|time| *time >= mended).collect();
    let since = |time: i64| (time - mended) as f64 / 1e6;
    let back = since(starts[0]);
    let first_second = starts.iter().filter(|time| **time < starts[0] + 1_000_000).count();
    let whole = whole(&starts, f64::from(rate)).map_or("-".to_owned(), |time| format!("{:.1}", since(time)));
    println!(
        "{:<10}{waiting:>9}{calls:>7}{probes:>8}{charged:>9}{failed:>8}{back:>14.1}{first_second:>14}{whole:>15}",
        fault.name
    );
    let looks = if fault.reason == "access_denied" { probes } else { 0 };
    calls <= CONCURRENCY + MORE + looks && charged == 0.0 && failed == 0 && back <= BACK
}

/// The end of the first second with nearly as many starts as the rate allows.
fn whole(starts: &[i64], rate: f64) -> Option<i64> {
    let wanted = (rate * WHOLE).ceil() as usize;
    starts
        .windows(wanted.max(1))
        .find(|second| second[second.len() - 1] - second[0] <= 1_000_000)
        .map(|second| second[second.len() - 1])
}
