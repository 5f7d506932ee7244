//! `reveille schedules explain`

use std::process::ExitCode;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::told;
use crate::cli::{Failure, print};
use crate::schedule::{Timetable, zone};

const EXAMPLES: &str = "\
Examples:
  reveille schedules explain \"30 7 * * 1-5\" --tz Asia/Shanghai
  reveille schedules explain \"0 7 * * 2#2\" --tz Europe/Berlin";

/// Due times that are shown.
const SHOWN: usize = 5;

/// What `reveille schedules explain` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Minute, hour, day, month and weekday.
    #[arg(value_name = "CRON")]
    line: String,
    /// The zone in which it is read, by its IANA name; else that of this machine.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let usage = |fault: crate::schedule::Fault| Failure::Usage(fault.to_string());
    let (zone, place) = match &arguments.tz {
        Some(name) => (zone(name).map_err(usage)?, name.as_str()),
        None => (TimeZone::system(), "this machine's time zone"),
    };
    let timetable = Timetable::new(&arguments.line, zone, None).map_err(usage)?;
    let mut text = format!("{}, in {place}\n", timetable.describe().trim_end_matches('.'));
    let mut last = Timestamp::now();
    for _ in 0..SHOWN {
        let Some(due) = timetable.after(last) else { break };
        text += &format!("{}\n", told(due, timetable.zone()));
        last = due;
    }
    print(text)?;
    Ok(ExitCode::SUCCESS)
}
