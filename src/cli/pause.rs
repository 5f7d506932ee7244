//! `reveille pause` and `reveille resume`: a lane makes no calls, until it is told to, and its jobs wait unharmed.

use std::process::ExitCode;

use jiff::Timestamp;

use super::control::{self, Author};
use super::{Failure, tell, times};
use crate::config::Config;
use crate::events::Action;

const PAUSE_EXAMPLES: &str = "\
Examples:
  reveille pause prod-bj --reason \"the account is being moved\"
  reveille pause prod-bj --until 2h
  reveille pause prod-bj --until 07:30 --tz Asia/Shanghai";

const RESUME_EXAMPLES: &str = "\
Examples:
  reveille resume prod-bj";

/// What `reveille pause` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(PAUSE_EXAMPLES))]
pub(super) struct PauseArguments {
    /// The lane.
    #[arg(value_name = "LANE")]
    lane: String,
    /// When it ends by itself: after a length of time (30m), at the next such time of day (07:30, with --tz), or at a
    /// timestamp with its offset; else once it is resumed, or after 30 days.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// The time zone of a time of day, as in Asia/Shanghai.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    #[command(flatten)]
    author: Author,
}

/// What `reveille resume` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(RESUME_EXAMPLES))]
pub(super) struct ResumeArguments {
    /// The lane.
    #[arg(value_name = "LANE")]
    lane: String,
    #[command(flatten)]
    author: Author,
}

pub(super) async fn pause(arguments: &PauseArguments, config: &Config) -> Result<ExitCode, Failure> {
    let until = times::end("--until", arguments.until.as_deref(), arguments.tz.as_deref(), Timestamp::now())?;
    let (connection, names) = control::open(config).await?;
    let lane = control::lane(&arguments.lane, &connection, &names, config).await?;
    let action = Action::PauseLane { lane: lane.to_string(), until };
    let given = control::give(&connection, &names, action, &arguments.author).await?;
    connection.close().await;
    let end = until.map_or_else(String::new, |until| format!("until {until}, or "));
    match given.holder_of(&lane) {
        Some(_) => tell(format_args!("lane {lane} is paused, {end}until `reveille resume {lane}`; its jobs wait")),
        None => tell(format_args!(
            "no replica is known to run lane {lane} now: once one does it is paused, {end}until `reveille resume {lane}`"
        )),
    }
    Ok(if given.tell_rest() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) async fn resume(arguments: &ResumeArguments, config: &Config) -> Result<ExitCode, Failure> {
    let (connection, names) = control::open(config).await?;
    let lane = control::lane(&arguments.lane, &connection, &names, config).await?;
    let action = Action::ResumeLane { lane: lane.to_string() };
    let given = control::give(&connection, &names, action, &arguments.author).await?;
    connection.close().await;
    match given.holder_of(&lane) {
        Some(_) => tell(format_args!("lane {lane} is not paused by hand any more")),
        None => {
            tell(format_args!("no replica is known to run lane {lane} now: once one does, it is not paused by hand"))
        }
    }
    Ok(if given.tell_rest() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
