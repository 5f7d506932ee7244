//! What failing calls cost a lane that should not be paused for them, and one that should: the real daemon on a private
//! RabbitMQ node, and an API that fails for a share of its calls by chance, or of the instances always.
//!
//! `cargo bench --bench breaker -- [--seconds 30]`: four lanes of one daemon, at 5, 20, 100 and 1,000 calls a second,
//! each with its own API that answers after 20 ms.
//!
//! Exit code 1 if, with up to six calls in ten failing by chance or up to a fifth of the instances always failing, a
//! lane made less than four fifths of the calls that its rate allows, or a lane spent more calls on detecting an outage
//! than its concurrency and five.

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
use crate::support::sim::Sim;
use crate::support::{eventually, instance};

const LATENCY: &str = "20ms";
/// Calls a second, and calls in flight at most.
const LANES: [(usize, usize); 4] = [(5, 32), (20, 32), (100, 32), (1000, 64)];
/// Calls beyond those in flight that detection may cost.
const MORE: usize = 5;
/// The least share of its rate, in percent, that a lane has to reach without an outage.
const LEAST: f64 = 80.0;
/// How long the API is out.
const OUTAGE: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Options {
    /// How long each case is watched.
    #[arg(long, default_value_t = 30)]
    seconds: usize,
    #[command(flatten)]
    cargo: Cargo,
}

/// The API's behaviour.
#[derive(Clone, Copy)]
enum Case {
    /// So many calls in a hundred fail.
    Chance(usize),
    /// So many instances in a hundred always fail.
    Bad(usize),
    /// All calls fail, probes too, some time after the lane has begun.
    Out,
}

impl Case {
    fn name(self) -> String {
        match self {
            Self::Chance(percent) => format!("{percent} % of calls"),
            Self::Bad(percent) => format!("{percent} % of instances"),
            Self::Out => "all, for 10 s".to_owned(),
        }
    }

    fn rules(self, jobs: usize) -> Value {
        let fault = json!({"status": 503});
        match self {
            Self::Chance(percent) => json!([{"fault": fault, "share": percent as f64 / 100.0}]),
            Self::Bad(percent) => {
                let bad: Vec<String> = (1..=jobs).filter(|number| number % 100 < percent).map(instance).collect();
                json!([{"fault": fault, "instances": bad, "operations": ["start"]}])
            }
            Self::Out => json!([]),
        }
    }

    /// Whether a lane should go on, with hardly a pause.
    fn is_bearable(self) -> bool {
        match self {
            Self::Chance(percent) => percent <= 60,
            Self::Bad(_) => true,
            Self::Out => false,
        }
    }
}

fn main() -> ExitCode {
    let Some(options) = common::options("breaker", |options: &Options| &options.cargo) else {
        return ExitCode::SUCCESS;
    };
    println!(
        "{:<20}{:>7}{:>8}{:>9}{:>9}{:>9}{:>8}{:>13}{:>9}{:>8}",
        "failing", "rate", "calls", "of rate", "started", "charged", "pauses", "to find out", "after s", "back s"
    );
    let cases = [1, 4, 7, 12, 20].map(Case::Bad).into_iter();
    let cases = [10, 20, 40, 60, 80, 95, 100].map(Case::Chance).into_iter().chain(cases).chain([Case::Out]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let missed = cases.filter(|case| !runtime.block_on(watch(*case, &options))).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs four lanes through the case, and prints the cost; returns whether it was as promised.
async fn watch(case: Case, options: &Options) -> bool {
    let jobs = |rate: usize| rate * options.seconds + 200;
    let vhost = Vhost::alone();
    let mut sims = Vec::new();
    let mut config = format!("[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n", vhost.url);
    for (rate, concurrency) in LANES {
        let sim = Sim::start(&["--log", "off", "--fleet", &format!("Stopped={}", jobs(rate))]);
        let order = json!({"latency": LATENCY, "rules": case.rules(jobs(rate))});
        sim.control("PUT", "faults", order).await;
        config += &format!(
            "[[lane]]\nname = \"r{rate}\"\nendpoint = {:?}\nrate = {rate}\nburst = 5\nconcurrency = {concurrency}\n",
            sim.url()
        );
        sims.push(sim);
    }
    // A daemon declares the queues, so the first one only does that.
    let first = Daemon::start_logging(&config, "reveille=info");
    first.ready().await;
    drop(first);
    let mut account = Account::of_the_log(&vhost.url);
    for (rate, _) in LANES {
        account.submit_to(&format!("r{rate}"), (1..=jobs(rate)).map(instance), json!({})).await;
    }
    let daemon = Daemon::start_logging(&config, "reveille=info");
    for sim in &sims {
        eventually("each lane calls", async || (sim.calls_made().await > 0).then_some(())).await;
    }
    let begun = Timestamp::now().as_microsecond();
    let (mut broken, mut mended) = (begun, begun);
    if matches!(case, Case::Out) {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let out = json!({"latency": LATENCY, "rules": [{"fault": {"status": 503}}]});
        for sim in &sims {
            sim.control("PUT", "faults", out.clone()).await;
        }
        broken = Timestamp::now().as_microsecond();
        tokio::time::sleep(OUTAGE).await;
        for sim in &sims {
            sim.control("PUT", "faults", json!({"latency": LATENCY, "rules": []})).await;
        }
        mended = Timestamp::now().as_microsecond();
    }
    let ends = begun + options.seconds as i64 * 1_000_000;
    let left = Duration::from_micros((ends - Timestamp::now().as_microsecond()).max(0).unsigned_abs());
    tokio::time::sleep(left).await;

    let mut as_promised = true;
    let output = daemon.child.output();
    for ((rate, concurrency), sim) in LANES.into_iter().zip(&sims) {
        let log: Vec<Call> =
            sim.log().await.into_iter().filter(|call| (begun..ends).contains(&call.unix_micros)).collect();
        let is_good = |call: &&Call| call.status == Some(200);
        let starts: Vec<&Call> = log.iter().filter(|call| call.operation == "start").collect();
        let started = starts.iter().filter(|call| is_good(call)).count();
        let of_rate = 100.0 * starts.len() as f64 / (rate * options.seconds) as f64;
        let lane = format!("lane=r{rate} ");
        let pauses = output.lines().filter(|line| line.contains("lane paused") && line.contains(&lane)).count();
        let charged =
            daemon.metric(&format!(r#"reveille_jobs_parked_total{{cause="transient",lane="r{rate}"}}"#)).await;
        print!("{:<20}{rate:>7}{:>8}{of_rate:>8.0}%{started:>9}{charged:>9}{pauses:>8}", case.name(), starts.len());
        if let Case::Out = case {
            let spent: Vec<_> = starts.iter().filter(|call| !is_good(call) && call.unix_micros < mended).collect();
            let after = spent.last().map_or(0, |call| call.unix_micros - broken) as f64 / 1e6;
            let back = starts.iter().find(|call| is_good(call) && call.unix_micros >= mended);
            let back = back.map_or(f64::NAN, |call| (call.unix_micros - mended) as f64 / 1e6);
            print!("{:>13}{after:>9.1}{back:>8.1}", spent.len());
            as_promised &= spent.len() <= concurrency + MORE && charged == 0.0 && back <= 10.0;
        }
        println!();
        as_promised &= !case.is_bearable() || of_rate >= LEAST;
    }
    as_promised
}
