//! `reveille schedules`: what is due when, and how it went; and what a person does about it.

mod by_hand;
mod explain;
mod list;
mod next;
mod pause;

use std::process::ExitCode;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::Failure;
use crate::config::{Config, Schedule};
use crate::similar::hint;

const EXAMPLES: &str = "\
Examples:
  reveille schedules list
  reveille schedules next -n 5
  reveille schedules run morning
  reveille schedules pause morning --until 36h
  reveille schedules explain \"30 7 * * 1-5\" --tz Asia/Shanghai";

/// As the log of outcomes keeps events.
const LOG_KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);

/// What `reveille schedules` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the schedules of the configuration: when each is due next, and how the last time went.
    List(list::Arguments),
    /// Show the next due times, and when machines start that are to be up by then.
    Next(next::Arguments),
    /// Say a cron line in words, with its next due times.
    Explain(explain::Arguments),
    /// Submit the jobs of a schedule now.
    Run(by_hand::Arguments),
    /// Let what is due be missed, until the schedule is resumed.
    Pause(pause::PauseArguments),
    /// End a pause.
    Resume(pause::ResumeArguments),
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    match &arguments.command {
        Command::List(arguments) => list::run(arguments, config).await,
        Command::Next(arguments) => next::run(arguments, config).await,
        Command::Explain(arguments) => explain::run(arguments),
        Command::Run(arguments) => by_hand::run(arguments, config).await,
        Command::Pause(arguments) => pause::pause(arguments, config).await,
        Command::Resume(arguments) => pause::resume(arguments, config).await,
    }
}

/// The schedule of this name.
///
/// # Errors
/// There is none in the configuration.
fn named<'a>(name: &str, config: &'a Config) -> Result<&'a Schedule, Failure> {
    config.schedules.iter().find(|schedule| schedule.name == name).ok_or_else(|| {
        let names: Vec<&str> = config.schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        if names.is_empty() {
            return Failure::Usage(format!("there is no schedule {name:?}: the configuration has no [[schedule]]"));
        }
        Failure::Usage(format!("there is no schedule {name:?}{}", hint(name, &names)))
    })
}

/// An instant as a person there reads it, to the second: `Mon 2026-11-30 07:30:00+08:00`.
pub(super) fn told(instant: Timestamp, zone: &TimeZone) -> String {
    instant.to_zoned_datetime(zone.clone()).strftime("%a %Y-%m-%d %H:%M:%S%:z").to_string()
}
