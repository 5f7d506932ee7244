//! `reveille schedules pause` and `resume`: what is due meanwhile is missed.

use std::process::ExitCode;

use jiff::Timestamp;

use super::{named, told};
use crate::cli::control::{self, Author};
use crate::cli::{Failure, tell, times};
use crate::config::Config;
use crate::events::Action;

const PAUSE_EXAMPLES: &str = "\
Examples:
  reveille schedules pause morning --reason \"the hall is being rewired\"
  reveille schedules pause morning --until 36h
  reveille schedules pause morning --until 2026-10-08T00:00:00+08:00";

const RESUME_EXAMPLES: &str = "\
Examples:
  reveille schedules resume morning";

/// What `reveille schedules pause` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::super::after_help(PAUSE_EXAMPLES))]
pub(super) struct PauseArguments {
    /// The schedule.
    #[arg(value_name = "NAME")]
    name: String,
    /// When it ends by itself: after a length of time (30m), at the next such time of day (07:30, with --tz), or at a
    /// timestamp with its offset; else once it is resumed, or after 30 days.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The time zone of a time of day; else the schedule's.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    #[command(flatten)]
    author: Author,
}

/// What `reveille schedules resume` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::super::after_help(RESUME_EXAMPLES))]
pub(super) struct ResumeArguments {
    /// The schedule.
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    author: Author,
}

pub(super) async fn pause(arguments: &PauseArguments, config: &Config) -> Result<ExitCode, Failure> {
    let schedule = named(&arguments.name, config)?;
    let zone = arguments.tz.as_deref().or(schedule.timetable.zone().iana_name());
    let until = times::end("--until", arguments.until.as_deref(), zone, Timestamp::now())?;
    let name = &schedule.name;
    let is_everywhere =
        give(Action::PauseSchedule { schedule: name.clone(), until }, &arguments.author, config).await?;
    let end = until.map_or_else(String::new, |until| format!("until {}, or ", told(until, schedule.timetable.zone())));
    tell(format_args!(
        "schedule {name} is paused, {end}until `reveille schedules resume {name}`; what is due meanwhile is missed"
    ));
    Ok(if is_everywhere { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) async fn resume(arguments: &ResumeArguments, config: &Config) -> Result<ExitCode, Failure> {
    let schedule = named(&arguments.name, config)?;
    let name = &schedule.name;
    let is_everywhere = give(Action::ResumeSchedule { schedule: name.clone() }, &arguments.author, config).await?;
    let next = schedule.timetable.after(Timestamp::now());
    let next = next.map_or_else(|| "never".to_owned(), |next| told(next, schedule.timetable.zone()));
    tell(format_args!("schedule {name} is not paused any more; it is due next: {next}"));
    Ok(if is_everywhere { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Gives a command. Returns whether it has taken effect everywhere.
async fn give(action: Action, author: &Author, config: &Config) -> Result<bool, Failure> {
    let (connection, names) = control::open(config).await?;
    let given = control::give(&connection, &names, action, author).await?;
    connection.close().await;
    Ok(given.tell_rest())
}
