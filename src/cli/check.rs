//! `reveille check`: whether all that the daemon needs is there, found out before the first morning. A line for each
//! check; what cannot be checked is said, and holds up no other check.

mod api;
mod broker;
mod files;
mod network;
mod schedules;
mod sheet;

use std::path::PathBuf;
use std::process::ExitCode;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use jiff::Timestamp;

use self::sheet::{Line, Sheet};
use super::{Failure, Output, in_runtime};
use crate::bce::InstanceId;
use crate::config::{self, Config, Lane, Purpose};
use crate::file::OPEN_TO_ALL;
use crate::similar;

/// Groups of checks that are made at once: those of RabbitMQ, and of some lanes.
const AT_ONCE: usize = 8;
const CONFIGURATION: &str = "configuration";

const EXAMPLES: &str = "\
Examples:
  reveille check
  reveille check --lane prod-bj --output json
  reveille check --lane prod-bj --try-start i-YufwpQAe";

/// What `reveille check` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// Check no other lane.
    #[arg(long)]
    lane: Option<String>,
    /// Also start this instance, to learn whether the keys may: best name one that runs, as that changes nothing.
    #[arg(long, value_name = "INSTANCE", value_parser = instance)]
    try_start: Option<InstanceId>,
    /// `json` is a line of JSON for each check.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

fn instance(text: &str) -> Result<InstanceId, String> {
    InstanceId::parse(text).map_err(|error| error.to_string())
}

/// Checks the configuration at `path`, and with it all that it names.
pub(super) fn run(arguments: &Arguments, path: Option<PathBuf>) -> Result<ExitCode, Failure> {
    let path = config::file_of(path.as_deref());
    let config = match config::load(path.as_deref(), Purpose::Ask) {
        Ok(config) => config,
        Err(problems) => {
            let mut sheet = Sheet::new(arguments.output, []);
            problems.errors().iter().try_for_each(|problem| sheet.add(&Line::failed(CONFIGURATION, problem)))?;
            problems.warnings().iter().try_for_each(|problem| sheet.add(&Line::warning(CONFIGURATION, problem)))?;
            sheet.close()?;
            return Ok(ExitCode::from(2));
        }
    };
    let lanes = lanes(arguments, &config)?;
    in_runtime(|| Ok(()), async |()| check(arguments, &config, path, &lanes).await)
}

/// The lanes to check.
fn lanes<'a>(arguments: &Arguments, config: &'a Config) -> Result<Vec<&'a Lane>, Failure> {
    let names: Vec<&str> = config.lanes.iter().map(|lane| lane.name.as_str()).collect();
    let Some(name) = &arguments.lane else {
        if arguments.try_start.is_some() && names.len() > 1 {
            let names = names.join(", ");
            return Err(Failure::Usage(format!("--try-start needs a lane: name it with --lane; there are {names}")));
        }
        return Ok(config.lanes.iter().collect());
    };
    match config.lanes.iter().find(|lane| lane.name.as_str() == name) {
        Some(lane) => Ok(vec![lane]),
        None => Err(Failure::Usage(format!("there is no lane {name}{}", similar::hint(name, &names)))),
    }
}

async fn check(
    arguments: &Arguments,
    config: &Config,
    path: Option<PathBuf>,
    lanes: &[&Lane],
) -> Result<ExitCode, Failure> {
    let mut sheet = Sheet::new(arguments.output, lanes.iter().map(|lane| lane.name.as_str()));
    sheet.add(&configuration(config, path.as_ref()))?;
    // Open files have lines of their own.
    for warning in config.warnings.iter().filter(|warning| !warning.to_string().contains(OPEN_TO_ALL)) {
        sheet.add(&Line::warning(CONFIGURATION, warning))?;
    }
    schedules::calendars(&config.schedules, Timestamp::now()).iter().try_for_each(|line| sheet.add(line))?;
    schedules::files(&config.schedules).await.iter().try_for_each(|line| sheet.add(line))?;
    let instance = arguments.try_start.as_ref();
    let of_lanes = lanes.iter().map(|lane| api::check(lane, instance).boxed());
    let groups: Vec<BoxFuture<'_, Vec<Line>>> =
        [files::of_daemon(config, path).boxed(), broker::check(config).boxed()].into_iter().chain(of_lanes).collect();
    let mut checked = stream::iter(groups).buffered(AT_ONCE);
    while let Some(lines) = checked.next().await {
        lines.iter().try_for_each(|line| sheet.add(line))?;
    }
    Ok(if sheet.close()? { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn configuration(config: &Config, path: Option<&PathBuf>) -> Line {
    let from = path.map_or_else(|| "the environment alone".to_owned(), |path| path.display().to_string());
    let names: Vec<&str> = config.lanes.iter().map(|lane| lane.name.as_str()).collect();
    Line::passed(CONFIGURATION, format_args!("{from} is read, with the lanes {}", names.join(", ")))
}
