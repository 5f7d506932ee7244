//! How much of the machine the daemon uses, compared with the least that could do its work.
//!
//! On a private RabbitMQ node and against a stub that answers every call at once, the [floor] and the real daemon
//! process the same number of jobs alternately. The broker, the stub and the client share the cores, so jobs/s mean
//! little by themselves and less on a busy machine: read the ratios, and CPU before jobs/s.
//!
//! `cargo bench --bench throughput -- [--jobs N] [--rounds N] [--backlog N] [--floor-only]`
//!
//! Exit code 1 if the daemon misses an aim, or if anything went wrong.

mod broker;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod floor;
mod measure;
mod process;
mod report;
mod stub;
mod usage;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::broker::Broker;
use crate::client::{Kind, Surroundings};
use crate::common::Cargo;
use crate::process::Process;
use crate::report::Series;

/// Ends the benchmark if anything hangs. A whole run takes about three minutes on two cores.
const LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(Parser)]
struct Options {
    /// Jobs of a run.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    jobs: u32,
    /// Runs of each client, alternating.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Jobs of one last run of each; 0 leaves it out.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
    backlog: u32,
    /// Leaves the daemon out.
    #[arg(long)]
    floor_only: bool,
    #[command(flatten)]
    cargo: Cargo,
}

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        // The processes of the benchmark that are this same program.
        [part] if part == "stub" => {
            end_with_stdin();
            stub::run()?;
        }
        [part, broker, api] if part == "floor" => {
            end_with_stdin();
            floor::run(broker, api)?;
        }
        _ => {
            if let Some(options) = common::options("throughput", |options: &Options| &options.cargo) {
                return compare(&options);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The parent process holds the other end, so this process never outlives it.
fn end_with_stdin() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

fn compare(options: &Options) -> Result<ExitCode> {
    rustls::crypto::ring::default_provider().install_default().ok().context("a TLS provider is installed already")?;
    let missed = tokio::runtime::Runtime::new()?.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        // Whichever ends first, dropping the run stops all that it started.
        tokio::select! {
            missed = run(options) => missed,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
            () = tokio::time::sleep(LIMIT) => bail!("given up after {LIMIT:?}"),
        }
    })?;
    for aim in &missed {
        println!("missed: {aim}");
    }
    Ok(if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Measures everything; returns the aims that were missed.
async fn run(options: &Options) -> Result<Vec<String>> {
    let kinds: &[Kind] = if options.floor_only { &[Kind::Floor] } else { &[Kind::Floor, Kind::Daemon] };
    let (_node, ready) = start_node()?;
    let (_stub, api) = start_stub()?;
    let surroundings = surroundings(&ready, api).context("the node's script did not say URL, folder and process")?;
    let broker = Broker::connect(&surroundings.broker).await?;
    let log = client::daemon_log(&surroundings.folder);

    client::declare_queues(kinds, &surroundings, &broker).await.inspect_err(|_| show_end_of(&log))?;
    let mut missed = Vec::new();
    let all = [(options.jobs, options.rounds), (options.backlog, 1)];
    for (jobs, rounds) in all.into_iter().filter(|(jobs, _)| *jobs > 0) {
        let mut series = Series { jobs, runs: Vec::new() };
        for _ in 0..rounds {
            for &kind in kinds {
                let figures = measure::measure(kind, jobs, &broker, &surroundings).await;
                series.runs.push((kind, figures.inspect_err(|_| show_end_of(&log))?));
            }
        }
        missed.extend(series.report());
    }
    broker.close().await?;
    Ok(missed)
}

fn start_node() -> Result<(Process, String)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/rabbitmq-node");
    let mut node = Process::start("RabbitMQ node", Command::new(script).stdout(Stdio::piped()))?;
    let ready = node.ready()?;
    Ok((node, ready))
}

fn surroundings(ready: &str, api: String) -> Option<Surroundings> {
    let mut words = ready.split(' ');
    let (broker, folder, pid) = (words.next()?, words.next()?, words.next()?);
    Some(Surroundings { broker: broker.to_owned(), broker_pid: pid.parse().ok()?, api, folder: folder.into() })
}

fn start_stub() -> Result<(Process, String)> {
    let mut stub = Process::start("stub", Command::new(std::env::current_exe()?).arg("stub").stdout(Stdio::piped()))?;
    let url = stub.ready()?;
    Ok((stub, url))
}

fn show_end_of(log: &Path) {
    let Ok(text) = fs::read_to_string(log) else { return };
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("the end of the daemon's log:");
    for line in lines.iter().skip(lines.len().saturating_sub(20)) {
        eprintln!("  {line}");
    }
}
