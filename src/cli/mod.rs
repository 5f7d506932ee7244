//! The commands, each in its file, and what they share.

mod answers;
mod batches;
mod cancel;
mod check;
mod columns;
mod completions;
mod control;
mod dead;
mod descriptors;
mod lanes;
mod log;
mod man;
mod pause;
mod report;
mod run;
mod schedules;
mod signals;
mod snooze;
mod status;
mod submit;
mod times;
mod topology;
mod watch;

use std::fmt::Display;
use std::io::{self, ErrorKind, StdoutLock, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::broker::connection::ConnectError;
use crate::config::{self, Config, Purpose};
use crate::fleet::InputFault;
use crate::text::{Lines, Shown};

const AFTER_HELP: &str = "\
Examples:
  reveille run
  reveille submit --lane prod-bj --batch morning --file fleet.txt --wait
  reveille watch morning

Environment:
  REVEILLE_CONFIG
          The configuration file, unless --config names one.
  REVEILLE_BROKER__URL, REVEILLE_BROKER__PASSWORD, REVEILLE_LANE__0__RATE, …
          Any setting, as REVEILLE_TABLE__KEY. It takes precedence over the file.
  NO_COLOR
          Any text but an empty one: no colours.

Exit codes: 0 done, 1 a machine stayed down or something else failed, 2 wrong usage or configuration, \
69 RabbitMQ or the API cannot be reached.";

/// What follows the options of a command that talks to RabbitMQ: its examples, and the variables that apply.
fn after_help(examples: &str) -> String {
    format!(
        "{examples}\n\nEnvironment: REVEILLE_CONFIG, REVEILLE_BROKER__URL, REVEILLE_BROKER__PASSWORD and other settings; \
         see `reveille --help`"
    )
}

/// Wakes fleets of Baidu AI Cloud (BCC) instances from RabbitMQ.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = AFTER_HELP)]
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
    #[command(after_help = run::AFTER_HELP)]
    Run,
    /// Check that RabbitMQ, the API, keys and permissions are as the daemon needs them.
    Check(check::Arguments),
    /// Submit instances to be started.
    Submit(Box<submit::Arguments>),
    /// Watch a batch until all of its jobs have ended.
    Watch(watch::Arguments),
    /// List the latest batches, and how far each is.
    Batches(batches::Arguments),
    /// Show lanes and replicas; exit with 1 if something needs a person.
    Status(status::Arguments),
    /// Have a lane make no calls; its jobs wait.
    Pause(pause::PauseArguments),
    /// End a pause by hand.
    Resume(pause::ResumeArguments),
    /// Have the jobs of a batch, or of an instance, end without a call.
    Cancel(cancel::Arguments),
    /// Leave an instance alone until a time.
    Snooze(snooze::Arguments),
    /// List, show, replay or discard dead letters: jobs that failed, and messages that could not be read.
    Dead(dead::Arguments),
    /// Show what is due when, and how it went.
    Schedules(schedules::Arguments),
    /// Print the exchanges, queues and bindings the daemon declares.
    Topology(topology::Arguments),
    /// Print a completion script for a shell.
    Completions(completions::Arguments),
    /// Write the man pages.
    Man(man::Arguments),
}

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Why a command ends early: one line, whatever it quotes, except for [`Failure::Problems`].
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Wrong usage or configuration.
    #[error("{}", Shown(.0))]
    Usage(String),
    /// The same, with a line for each problem, each already escaped.
    #[error("{0}")]
    Problems(String),
    /// The broker or the API cannot be reached.
    #[error("{}", Shown(.0))]
    Unreachable(String),
    /// Anything else.
    #[error("{}", Shown(format_args!("{:#}", .0)))]
    Other(#[from] anyhow::Error),
}

impl Failure {
    /// 2 for usage, 69 (`EX_UNAVAILABLE` of sysexits) for an unreachable broker or API, 1 for the rest.
    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Problems(_) => ExitCode::from(2),
            Self::Unreachable(_) => ExitCode::from(69),
            Self::Other(_) => ExitCode::FAILURE,
        }
    }
}

impl From<config::Problems> for Failure {
    fn from(problems: config::Problems) -> Self {
        Self::Problems(problems.to_string())
    }
}

impl From<InputFault> for Failure {
    fn from(fault: InputFault) -> Self {
        match fault {
            InputFault::Usage(problem) => Self::Usage(problem),
            InputFault::Problems(problems) => Self::Problems(problems),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        if error.is_refusal() { Self::Usage(error.to_string()) } else { Self::Unreachable(error.to_string()) }
    }
}

/// Writes output to standard output. A reader that has closed the pipe is no failure.
fn print(text: impl Display) -> Result<(), Failure> {
    print_after("", text).map(drop)
}

/// The same, after a mark of our own, which can have a colour. Whether there is still a reader.
fn print_after(mark: impl Display, text: impl Display) -> Result<bool, Failure> {
    print_with(|output| write!(output, "{mark}{}", Lines(text)))
}

/// The same for text of our own alone, which is not escaped.
fn print_raw(text: &[u8]) -> Result<(), Failure> {
    print_with(|output| output.write_all(text)).map(drop)
}

fn print_with(write: impl FnOnce(&mut StdoutLock<'_>) -> io::Result<()>) -> Result<bool, Failure> {
    let mut output = io::stdout().lock();
    match write(&mut output).and_then(|()| output.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::anyhow!("cannot write to standard output: {error}").into()),
        Ok(()) => Ok(true),
    }
}

/// Writes a line to standard error. If that fails, nothing is left to report it to.
fn tell(text: impl Display) {
    let _ = writeln!(io::stderr(), "{}", Lines(text));
}

/// Parses the command line. If that is wrong, reports it and exits.
pub fn arguments() -> Arguments {
    Arguments::try_parse().unwrap_or_else(|error| escaped(error).exit())
}

/// clap quotes the command line unescaped. A hint that quotes it too contains colours already, and is left out.
fn escaped(mut error: clap::Error) -> clap::Error {
    let quoted = error.context().filter_map(|(kind, value)| match value {
        ContextValue::String(text) => Some((kind, text.clone(), Shown(text).to_string())),
        _ => None,
    });
    let hostile: Vec<_> = quoted.filter(|(_, text, shown)| text != shown).collect();
    for (kind, _, shown) in hostile {
        error.insert(kind, ContextValue::String(shown));
        error.remove(ContextKind::Suggested);
    }
    error
}

/// Runs a command.
pub fn run(arguments: Arguments) -> ExitCode {
    let path = arguments.config;
    // For most commands.
    let talk = |path| move || load_and_warn(path, Purpose::Talk);
    let done = match arguments.command {
        Command::Run => in_runtime(|| load(path, Purpose::Run), run::run),
        Command::Check(check) => check::run(&check, path),
        Command::Submit(submit) => {
            let load = || load_and_warn(path, submit.purpose());
            in_runtime(load, async |config| submit::run(&submit, &config).await)
        }
        Command::Watch(watch) => in_runtime(talk(path), async |config| watch::run(&watch, &config).await),
        Command::Batches(batches) => in_runtime(talk(path), async |config| batches::run(&batches, &config).await),
        Command::Status(status) => in_runtime(talk(path), async |config| status::run(status, &config).await),
        Command::Pause(pause) => in_runtime(talk(path), async |config| pause::pause(&pause, &config).await),
        Command::Resume(resume) => in_runtime(talk(path), async |config| pause::resume(&resume, &config).await),
        Command::Cancel(cancel) => in_runtime(talk(path), async |config| cancel::run(&cancel, &config).await),
        Command::Snooze(snooze) => in_runtime(talk(path), async |config| snooze::run(&snooze, &config).await),
        Command::Dead(dead) => in_runtime(talk(path), async |config| dead::run(&dead, &config).await),
        Command::Schedules(schedules) => {
            in_runtime(talk(path), async |config| schedules::run(&schedules, &config).await)
        }
        Command::Topology(topology) => talk(path)().and_then(|config| topology::run(topology, &config)),
        Command::Completions(completions) => completions::run(completions, Arguments::command()),
        Command::Man(man) => man::run(&man, Arguments::command()),
    };
    done.unwrap_or_else(|failure| {
        tell(format_args!("reveille: {failure}"));
        failure.exit_code()
    })
}

fn load(path: Option<PathBuf>, purpose: Purpose) -> Result<Config, Failure> {
    Ok(config::load(path.as_deref(), purpose)?)
}

/// For commands without a log.
fn load_and_warn(path: Option<PathBuf>, purpose: Purpose) -> Result<Config, Failure> {
    let config = load(path, purpose)?;
    for warning in &config.warnings {
        tell(format_args!("reveille: warning: {warning}"));
    }
    Ok(config)
}

fn in_runtime<C>(
    load: impl FnOnce() -> Result<C, Failure>,
    command: impl AsyncFnOnce(C) -> Result<ExitCode, Failure>,
) -> Result<ExitCode, Failure> {
    let config = load()?;
    // Fails only if a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("cannot start the runtime: {error}"))?;
    let done = runtime.block_on(command(config));
    // Tasks still running are not awaited: all that matters has finished or is requeued by the broker.
    runtime.shutdown_background();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_shown(text: &str) -> bool {
        text.chars().all(|character| character == '\n' || !character.is_control())
    }

    #[test]
    fn a_failure_is_one_line_whatever_it_quotes() {
        let text = "NOT_FOUND - '\u{1b}[2J\u{9b}\r\nreveille: all is well'";
        let other = anyhow::anyhow!("{text}").context(text.to_owned());
        for failure in [Failure::Usage(text.to_owned()), Failure::Unreachable(text.to_owned()), Failure::Other(other)] {
            let shown = failure.to_string();
            assert!(is_shown(&shown) && !shown.contains('\n'), "{shown:?}");
            assert!(shown.contains(r"'\u{1b}[2J\u{9b}\r\nreveille: all is well'"), "{shown:?}");
        }
    }

    #[test]
    fn every_command_has_examples_in_its_help() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for command in [&command].into_iter().chain(command.get_subcommands()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.starts_with("Examples:\n  reveille "), "{}: {help}", command.get_name());
        }
    }

    #[test]
    fn wrong_usage_is_told_with_nothing_raw() {
        let evil = "\u{1b}]52;c;aGk=\u{7}\nreveille: all is well";
        for arguments in [
            ["reveille", evil, ""].as_slice(),
            &["reveille", "submit", &format!("--{evil}")],
            &["reveille", "submit", &format!("-{evil}"), "i-0000"],
            &["reveille", "submit", "i-0000", "--confirm", evil],
            &["reveille", "topology", "--output", evil],
            &["reveille", "watch", "morning", "--since", evil],
            &["reveille", "batches", "-n", evil],
            &["reveille", "status", "--output", evil],
            &["reveille", "dead", evil],
            &["reveille", "dead", "list", "--older-than", evil],
            &["reveille", "run", evil],
        ] {
            let told = escaped(Arguments::try_parse_from(arguments).unwrap_err()).to_string();
            assert!(is_shown(&told) && !told.contains("\nreveille: all"), "{told:?}");
        }
        let told = escaped(Arguments::try_parse_from(["reveille", "submit", "--wat"]).unwrap_err()).to_string();
        assert!(told.contains("'--wat'") && told.contains("tip:"), "{told}");
    }
}
