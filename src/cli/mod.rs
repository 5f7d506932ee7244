//! The commands: a file for each, and here what they share.

mod run;
mod submit;
mod topology;

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};

use crate::config::{self, Config, Purpose};

/// Wakes fleets of Baidu AI Cloud (BCC) instances from RabbitMQ.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Arguments {
    /// The configuration file; else REVEILLE_CONFIG, else reveille.toml if there is one.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    Run,
    /// Submit instances to be started.
    Submit(submit::Arguments),
    /// Print the exchanges, queues and bindings the daemon declares.
    Topology(topology::Arguments),
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Why a command ends before its work is done.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Wrong usage or configuration.
    #[error("{0}")]
    Usage(String),
    /// The broker or the API cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// 2 for usage, 69 (`EX_UNAVAILABLE` of sysexits) for what cannot be reached, 1 for the rest.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Unreachable(_) => ExitCode::from(69),
            Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

impl From<config::Faults> for Failure {
    fn from(faults: config::Faults) -> Self {
        Self::Usage(faults.to_string())
    }
}

/// Writes to standard output what was asked for. Whoever reads may have read enough: that is no failure.
fn print(text: impl Display) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match write!(output, "{text}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::anyhow!("cannot write to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error. Where that fails there is nobody left to be told.
fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Runs a command.
pub fn run(arguments: Arguments) -> ExitCode {
    let done = match arguments.command {
        Command::Run => in_runtime(|| load(arguments.config, Purpose::Run), run::run),
        Command::Submit(submit) => {
            in_runtime(|| load(arguments.config, Purpose::Talk), async |config| submit::run(&submit, &config).await)
        }
        Command::Topology(topology) => {
            load(arguments.config, Purpose::Talk).and_then(|config| topology::run(topology, &config))
        }
    };
    done.unwrap_or_else(|failure| {
        tell(format_args!("reveille: {failure:#}"));
        failure.exit_code()
    })
}

fn load(path: Option<PathBuf>, purpose: Purpose) -> Result<Config, Failure> {
    Ok(config::load(path.as_deref(), purpose)?)
}

fn in_runtime(
    load: impl FnOnce() -> Result<Config, Failure>,
    command: impl AsyncFnOnce(Config) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let config = load()?;
    // Fails only where a provider is installed already, which then serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("cannot start the runtime: {error}"))?;
    let done = runtime.block_on(command(config));
    // Whatever still runs then is not waited for: all that matters was finished or goes back to the broker.
    runtime.shutdown_background();
    done
}
