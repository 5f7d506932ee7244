//! What many lanes in one daemon cost: until all are held on a new broker, memory, how fast jobs spread over them end, and how
//! long a replica that stood by takes to hold them all once the first one was killed. Then what a lane in trouble costs
//! another: how much longer the other one's jobs take. The real daemon on a private RabbitMQ node, with `bcc-sim`. Run it on a
//! quiet machine: the jobs of the second part take a millisecond each.
//!
//! `cargo bench --bench lanes -- [--jobs 1000] [--rounds 5]`
//!
//! Exit code 1 if 500 lanes were not held within 30 s, took 150 MiB or more, or ended jobs at less than a fifth of the pace
//! of one lane; or if a lane in trouble made half of another one's jobs, or nine in ten, take over 10 % longer.

mod common;
#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::future::join;
use futures_util::{StreamExt, stream};
use lapin::BasicProperties;
use serde_json::json;
use tokio::time::timeout;

use crate::common::Cargo;
use crate::support::broker::Vhost;
use crate::support::daemon::Daemon;
use crate::support::queues::Queues;
use crate::support::sim::Sim;
use crate::support::trouble::{Cost, Trouble};
use crate::support::{eventually_within, instance};

/// Time for lanes to be held, and for jobs to end.
const PATIENCE: Duration = Duration::from_secs(300);
/// Time for the daemon to become idle before its memory is read.
const REST: Duration = Duration::from_secs(3);
const MOST_SECONDS: f64 = 30.0;
const MOST_KIB: u64 = 150 * 1024;
const LEAST_SHARE: f64 = 0.2;
/// The most that trouble in one lane may cost another.
const MOST_COST: f64 = 1.1;

#[derive(Parser)]
struct Options {
    /// Spread over the lanes.
    #[arg(long, default_value_t = 1000)]
    jobs: usize,
    /// Windows with each trouble, and as many without.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    cargo: Cargo,
}

struct Measured {
    /// Seconds until all lanes are held.
    held: f64,
    /// Memory while idle.
    kib: u64,
    jobs_per_second: f64,
}

fn main() -> ExitCode {
    let Some(options) = common::options("lanes", |options: &Options| &options.cargo) else {
        return ExitCode::SUCCESS;
    };
    println!("{:>6}{:>8}{:>8}{:>13}{:>9}{:>11}", "lanes", "held/s", "MiB", "connections", "jobs/s", "taken/s");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let [one, .., most] = [1, 50, 140, 500].map(|lanes| runtime.block_on(measure(lanes, options.jobs)));
    let is_well =
        most.held <= MOST_SECONDS && most.kib < MOST_KIB && most.jobs_per_second >= LEAST_SHARE * one.jobs_per_second;
    println!("\n{:>10}{:>15}{:>12}{:>12}{:>8}", "trouble", "jobs in 100", "alone/ms", "beside/ms", "ratio");
    let troubles = [Trouble::Hangs, Trouble::Throttles, Trouble::Refuses];
    let dear = troubles.into_iter().filter(|trouble| !runtime.block_on(is_cheap(*trouble, options.rounds))).count();
    if is_well && dear == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Measures what a lane in this trouble costs another; returns whether it is as little as it should be.
async fn is_cheap(trouble: Trouble, rounds: usize) -> bool {
    let cost = Cost::of(trouble, rounds).await;
    let ratios = [50, 90].map(|percent| {
        let (alone, beside) = cost.within(percent);
        let ratio = beside as f64 / alone as f64;
        let ms = |micros: u128| micros as f64 / 1e3;
        println!("{:>10}{percent:>15}{:>12.1}{:>12.1}{ratio:>8.2}", format!("{trouble:?}"), ms(alone), ms(beside));
        ratio
    });
    ratios.into_iter().all(|ratio| ratio <= MOST_COST)
}

async fn measure(lanes: usize, jobs: usize) -> Measured {
    let vhost = Vhost::alone();
    let sim = Sim::start(&["--log", "warn", "--fleet", &format!("Stopped={jobs}")]);
    let mut config = format!("[broker]\nurl = {:?}\n[http]\nlisten = \"127.0.0.1:0\"\n", vhost.url);
    for lane in 0..lanes {
        // The same calls per second in all, for any number of lanes.
        let rate = 10_000 / lanes;
        config +=
            &format!("[[lane]]\nname = \"lane-{lane}\"\nendpoint = {:?}\nrate = {rate}\nburst = {rate}\n", sim.url());
    }
    let start = Instant::now();
    let mut daemon = Daemon::start_logging(&config, "reveille=info");
    all_held(&daemon, lanes).await;
    let held = start.elapsed().as_secs_f64();
    tokio::time::sleep(REST).await;
    let kib = daemon.child.memory("VmRSS");
    let listed = vhost.node.ctl(&["list_connections", "--no-table-headers", "vhost"]);
    let connections = listed.lines().filter(|line| *line == vhost.name).count();

    let queues = Queues::connect(&vhost.url).await;
    let mut events = queues.listen("reveille.outcomes", "*.started").await;
    let start = Instant::now();
    let submitting = (0..jobs).map(async |number| {
        let body = json!({ "instance_id": instance(number + 1) }).to_string();
        let properties = BasicProperties::default().with_message_id(number.to_string().into());
        queues.publish("reveille.jobs", &format!("lane-{}", number % lanes), properties, body.as_bytes()).await;
    });
    let ended = async {
        for _ in 0..jobs {
            events.next().await.expect("subscribed").expect("open");
        }
    };
    let both = join(stream::iter(submitting).buffer_unordered(200).collect::<()>(), ended);
    timeout(PATIENCE, both).await.expect("all jobs end");
    let jobs_per_second = jobs as f64 / start.elapsed().as_secs_f64();

    let heir = Daemon::start_logging(&config, "reveille=info");
    heir.ready().await;
    // It holds some lanes by now.
    let start = Instant::now();
    daemon.kill().await;
    all_held(&heir, lanes).await;
    let taken = start.elapsed().as_secs_f64();
    println!("{lanes:>6}{held:>8.1}{:>8}{connections:>13}{jobs_per_second:>9.0}{taken:>11.1}", kib / 1024);
    Measured { held, kib, jobs_per_second }
}

async fn all_held(daemon: &Daemon, lanes: usize) {
    eventually_within(PATIENCE, "all lanes are held", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        (daemon.get("/readyz").await.1.matches(r#":"held""#).count() == lanes).then_some(())
    })
    .await;
}
