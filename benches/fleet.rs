//! How fast a fleet wakes at a quota of calls per second, by the number of jobs per call: the real daemon on a private
//! RabbitMQ node, and the log of `bcc-sim`.
//!
//! `cargo bench --bench fleet -- [--rate 20] [--machines 10000]`
//!
//! Exit code 1 if calls within a second exceeded rate and burst, plus the machine's own delays, or a sleeping fleet
//! took more than a tenth longer than its calls do at that rate.

mod common;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};

use crate::common::Cargo;
use crate::support::account::Account;
use crate::support::broker::Vhost;
use crate::support::daemon::Daemon;
use crate::support::instance;
use crate::support::pace::{self, Lateness};
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};

const BURST: u32 = 5;
/// Time for the last of them to end.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Parser)]
struct Options {
    /// Calls a second.
    #[arg(long, default_value_t = 20)]
    rate: u32,
    /// Of the fleets that are woken in batches.
    #[arg(long, default_value_t = 10_000)]
    machines: usize,
    #[command(flatten)]
    cargo: Cargo,
}

/// Machines, of which one in `running` runs already, if that is not 0; and how many share a call.
struct Fleet {
    machines: usize,
    running: usize,
    batch: u32,
}

fn main() -> ExitCode {
    let Some(options) = common::options("fleet", |options: &Options| &options.cargo) else {
        return ExitCode::SUCCESS;
    };
    println!(
        "{:>9}{:>10}{:>7}{:>9}{:>8}{:>7}{:>8}{:>10}{:>9}{:>9}{:>16}",
        "machines",
        "running",
        "batch",
        "batches",
        "lists",
        "starts",
        "others",
        "calls/job",
        "seconds",
        "jobs/s",
        "fullest second"
    );
    let fleet = |machines, running, batch| Fleet { machines, running, batch };
    let fleets = [
        fleet(options.machines / 25, 0, 1),
        fleet(options.machines, 0, 20),
        fleet(options.machines, 0, 100),
        fleet(options.machines / 5, 100, 20),
        fleet(options.machines / 5, 10, 20),
        fleet(options.machines / 25, 2, 20),
    ];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let missed = fleets.iter().filter(|fleet| !runtime.block_on(wake(fleet, options.rate))).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Wakes a fleet and prints what it took; returns whether the lane kept to its rate.
async fn wake(fleet: &Fleet, rate: u32) -> bool {
    let &Fleet { machines, running, batch } = fleet;
    let vhost = Vhost::alone();
    let sim = Sim::start(&["--log", "warn", "--fleet", &format!("Stopped={machines}")]);
    if running > 0 {
        let up = (running..=machines).step_by(running);
        let up: Vec<Value> = up.map(|number| json!({"id": instance(number), "status": "Running"})).collect();
        sim.control("PUT", "instances", json!(up)).await;
    }
    let lane = format!("rate = {rate}\nburst = {BURST}\nbatch = {batch}");
    let config = config(&vhost.url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() });
    let start = || Daemon::start_logging(&config, "reveille=info");

    // A daemon declares the queues, so the first one only does that.
    let first = start();
    first.ready().await;
    drop(first);
    let mut account = Account::of_the_log(&vhost.url);
    account.submit((1..=machines).map(instance), json!({})).await;
    let lateness = Lateness::measure(&sim);
    let _daemon = start();
    account.close(PATIENCE).await;

    let log = sim.wire().await;
    let count = |operation: &str| log.iter().filter(|call| call.operation == operation).count();
    let times = pace::times(&log);
    let seconds = (times[times.len() - 1] - times[0]) as f64 / 1e6;
    let fullest = pace::fullest(&times, Duration::from_secs(1));
    let share = if running > 0 { format!("1 in {running}") } else { "none".to_owned() };
    println!(
        "{machines:>9}{share:>10}{batch:>7}{:>9}{:>8}{:>7}{:>8}{:>10.3}{seconds:>9.1}{:>9.0}{fullest:>16}",
        count("batch_start"),
        count("list_by_ids"),
        count("start"),
        count("describe"),
        log.len() as f64 / machines as f64,
        machines as f64 / seconds,
    );
    let expected = log.len() as f64 / f64::from(rate);
    fullest as f64 <= pace::allowed(f64::from(rate), BURST, lateness.longest())
        && (running > 0 || seconds <= expected * 1.1)
}
