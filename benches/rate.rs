//! How exactly a lane keeps to its rate: the real daemon on a private RabbitMQ node, and the log of `bcc-sim`.
//!
//! For each rate a lane with jobs waiting is watched as it starts, for some seconds as it runs, after it was idle for a
//! while, after a pause, and as another replica takes it over. A busy machine shows up in the gaps: run it on a quiet
//! one.
//!
//! `cargo bench --bench rate -- [--rates 5,50,500,2000] [--burst 5] [--seconds 10]`
//!
//! Exit code 1 if a lane ran at less than 99 % of its rate, or calls within a second exceeded rate and burst, plus the
//! machine's own delays; or if a replica that took over made its first call two seconds or more after the kill.

mod common;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use crate::common::Cargo;
use crate::support::account::Account;
use crate::support::broker::Vhost;
use crate::support::daemon::Daemon;
use crate::support::pace::{Lateness, ON_THEIR_WAY};
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};
use crate::support::{GLANCE, eventually, instance, pace};

/// Enough for calls that take milliseconds, at any rate here.
const CONCURRENCY: u32 = 64;
const LEAST: f64 = 0.99;
/// What counts as the start of a lane, in seconds.
const START: f64 = 2.0;
/// How long the lane is idle, in seconds, and how long the API refuses every call; and how long the lane is watched
/// after either, and around a take-over.
const IDLE: f64 = 3.0;
const AFTER: f64 = 3.0;
/// How long after a pause it is back at its rate: five seconds to notice and ten of slow start. And jobs for that time
/// and for the time it is watched then, in seconds' worth at that rate, which it has from the first moment on if the
/// pause was short.
const BACK: f64 = 15.0;
const JOBS_AFTER_A_PAUSE: f64 = 20.0;
/// Between the kill of a replica and the first call of the one that takes over.
const TAKEN_OVER: Duration = Duration::from_secs(2);
/// By then its jobs have ended, in seconds.
const DONE: f64 = 60.0;
const PAUSED: &str = r#"reveille_lane_paused{lane="prod",reason="keys"}"#;
const STARTED: &str = r#"reveille_jobs_total{lane="prod",outcome="started",reason=""}"#;

#[derive(Parser)]
struct Options {
    /// Calls a second.
    #[arg(long, value_delimiter = ',', default_value = "5,50,500,2000")]
    rates: Vec<u32>,
    /// What the limiter lets through at once after a pause, and so how late it may be woken and lose nothing.
    #[arg(long, default_value_t = 5)]
    burst: u32,
    /// How long each is watched as it runs.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    #[command(flatten)]
    cargo: Cargo,
}

fn main() -> ExitCode {
    let Some(options) = common::options("rate", |options: &Options| &options.cargo) else {
        return ExitCode::SUCCESS;
    };
    println!(
        "{:>6}  {:<14}{:>10}{:>16}{:>10}{:>23}{:>20}",
        "rate", "", "achieved", "fullest second", "allowed", "gap p50 / p99 / max", "held up for, ms"
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let missed =
        options.rates.into_iter().filter(|rate| !runtime.block_on(lane(*rate, options.burst, options.seconds))).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measures a lane of this rate; returns whether it kept to it.
async fn lane(rate: u32, burst: u32, seconds: u32) -> bool {
    let vhost = Vhost::alone();
    let per_second = f64::from(rate);
    let mut jobs = Jobs { account: Account::of_the_log(&vhost.url), submitted: 0, others: 0, rate: per_second, burst };
    let longest = START + f64::from(seconds) + 2.0 + 3.0 * AFTER + JOBS_AFTER_A_PAUSE;
    let sim = Sim::start(&[
        "--log",
        "warn",
        "--fleet",
        &format!("Stopped={}", (longest * per_second) as usize + 5 * burst as usize),
    ]);
    let lane = format!("rate = {rate}\nburst = {burst}\nconcurrency = {CONCURRENCY}");
    let config = config(&vhost.url, &sim.url(), &Wishes { lane: &lane, ..Wishes::default() });
    let start = || Daemon::start_logging(&config, "reveille=info");

    // A daemon declares the queues, so the first one only does that.
    let first = start();
    first.ready().await;
    drop(first);
    jobs.submit(START + f64::from(seconds) + 1.0).await;
    let mut lateness = Lateness::measure(&sim);
    let holder = start();
    jobs.called(&sim).await;
    let running = Calls::of(&sim, rate, burst, &lateness).await;
    let began = running.times[0];
    let started = running.within(began, START).row("start", false);
    let kept = running.within(began + micros(START), f64::from(seconds)).row("running", true);

    tokio::time::sleep(Duration::from_secs_f64(IDLE)).await;
    let calls = running.times.len();
    lateness = Lateness::measure(&sim);
    jobs.submit(AFTER).await;
    jobs.called(&sim).await;
    let busy = Calls::of(&sim, rate, burst, &lateness).await;
    let rested = busy.within(busy.times[calls], AFTER).row("after idling", false);

    sim.faults(json!([{"fault": {"status": 401}}])).await;
    lateness = Lateness::measure(&sim);
    jobs.submit(JOBS_AFTER_A_PAUSE).await;
    eventually("the lane is paused", async || (holder.metric(PAUSED).await == 1.0).then_some(())).await;
    tokio::time::sleep(Duration::from_secs_f64(IDLE)).await;
    let mended = jiff::Timestamp::now().as_microsecond();
    sim.faults(json!([])).await;
    jobs.started(&holder, &sim).await;
    let again = Calls::of(&sim, rate, burst, &lateness).await;
    let resumed = again.within(mended, DONE).row("after a pause", false);
    let climbed = again.within(mended + micros(BACK), AFTER).row("… and 15 s", true);

    let next = start();
    next.ready().await;
    let calls = sim.calls_made().await;
    lateness = Lateness::measure(&sim);
    jobs.submit(2.0 * AFTER).await;
    let third = calls + (AFTER * per_second / 1.5) as usize;
    eventually("calls are made", async || (sim.calls_made().await >= third).then_some(())).await;
    let killed = jiff::Timestamp::now().as_microsecond();
    holder.child.signal("KILL");
    jobs.called(&sim).await;
    let around = Calls::of(&sim, rate, burst, &lateness).await.within(killed - micros(1.0), 2.0 * AFTER);
    let is_paced = around.row("take-over", false);
    let first = around.times.iter().find(|time| **time > killed + micros(ON_THEIR_WAY.as_secs_f64()));
    let taken_over = first.map(|first| Duration::from_micros((first - killed).unsigned_abs()));
    println!(
        "{rate:>6}  {:<14}{:>10}",
        "… first call",
        taken_over.map_or("none".to_owned(), |after| format!("{after:.1?}"))
    );
    let is_prompt = taken_over.is_some_and(|after| after < TAKEN_OVER);
    is_paced && is_prompt && started && kept && rested && resumed && climbed
}

fn micros(seconds: f64) -> i64 {
    (seconds * 1e6) as i64
}

/// Jobs for one instance after the other.
struct Jobs {
    account: Account,
    submitted: usize,
    /// Calls for jobs that started nothing.
    others: usize,
    rate: f64,
    burst: u32,
}

impl Jobs {
    /// Submits this many seconds' worth.
    async fn submit(&mut self, seconds: f64) {
        let first = self.submitted + 1;
        self.submitted += (seconds * self.rate) as usize + self.burst as usize;
        self.account.submit((first..=self.submitted).map(instance), json!({})).await;
    }

    /// Waits until a call was made for each. The log, which is long, tells checks of the keys from these.
    async fn called(&self, sim: &Sim) {
        let wanted = self.submitted + self.others;
        while sim.calls_made().await < wanted || sim.log().await.len() < wanted {
            tokio::time::sleep(GLANCE * 10).await;
        }
    }

    /// Waits until each has ended at a daemon that had them all, whatever calls were refused before.
    async fn started(&mut self, daemon: &Daemon, sim: &Sim) {
        while daemon.metric(STARTED).await < self.submitted as f64 {
            tokio::time::sleep(GLANCE * 10).await;
        }
        self.others = sim.log().await.len() - self.submitted;
    }
}

/// When the simulator received calls, in microseconds.
struct Calls {
    rate: u32,
    burst: u32,
    /// The longest delay of a call by the machine meanwhile.
    lateness: Duration,
    /// The end of watching, in microseconds.
    until: i64,
    times: Vec<i64>,
}

impl Calls {
    async fn of(sim: &Sim, rate: u32, burst: u32, lateness: &Lateness) -> Self {
        Self { rate, burst, lateness: lateness.longest(), until: i64::MAX, times: pace::times(&sim.wire().await) }
    }

    fn within(&self, from: i64, seconds: f64) -> Self {
        let until = from + micros(seconds);
        let times = self.times.iter().copied().filter(|time| (from..until).contains(time)).collect();
        Self { until, times, ..*self }
    }

    /// Prints the results; returns whether they are as they should be.
    fn row(&self, situation: &str, is_steady: bool) -> bool {
        let (first, last) = (self.times[0], self.times[self.times.len() - 1]);
        let per_second = f64::from(self.rate);
        // The next call is an interval away, and one more as this one may have been early.
        let end = if is_steady { last.max(self.until - micros(2.0 / per_second)) } else { last };
        let achieved = (self.times.len() - 1) as f64 / ((end - first) as f64 / 1e6) / per_second;
        let fullest = pace::fullest(&self.times, Duration::from_secs(1));
        let mut gaps: Vec<f64> =
            self.times.windows(2).map(|pair| (pair[1] - pair[0]) as f64 * per_second / 1e6).collect();
        gaps.sort_by(f64::total_cmp);
        let gap = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
        let late = self.lateness.as_secs_f64() * 1e3;
        let achieved_text = if is_steady { format!("{:.2} %", achieved * 100.0) } else { String::new() };
        println!(
            "{:>6}  {situation:<14}{achieved_text:>10}{fullest:>16}{:>10}{:>9.2} /{:>5.2} /{:>5.2}{late:>20.0}",
            self.rate,
            self.rate + self.burst,
            gap(0.5),
            gap(0.99),
            gap(1.0),
        );
        fullest as f64 <= pace::allowed(per_second, self.burst, self.lateness) && (!is_steady || achieved >= LEAST)
    }
}
