//! `reveille schedules next`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::process::ExitCode;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::json;

use super::{named, told};
use crate::cli::columns::Columns;
use crate::cli::{Failure, Output, print, tell};
use crate::config::{Config, Schedule};
use crate::text;

const EXAMPLES: &str = "\
Examples:
  reveille schedules next
  reveille schedules next morning -n 5
  reveille schedules next --output json | jq '.[0]'";

/// The most due times that are shown.
const MOST: u16 = 1_000;

/// What `reveille schedules next` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// The schedule; else all of the configuration.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Show so many due times.
    #[arg(short = 'n', long = "number", value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST)))]
    number: u16,
    /// `json` is a list of objects.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let schedules: Vec<&Schedule> = match &arguments.name {
        Some(name) => vec![named(name, config)?],
        None => config.schedules.iter().collect(),
    };
    if schedules.is_empty() {
        tell("the configuration has no [[schedule]]");
    }
    let due = next(&schedules, Timestamp::now(), arguments.number.into());
    match arguments.output {
        Output::Table if due.is_empty() => {}
        Output::Table => {
            let here = TimeZone::system();
            let mut columns = Columns::new(["DUE", "HERE", "SCHEDULE", "LANE"]);
            for (due, schedule) in &due {
                let there = told(*due, schedule.timetable.zone());
                columns.add([there, told(*due, &here), schedule.name.clone(), schedule.lane.to_string()]);
            }
            print(columns)?;
        }
        Output::Json => {
            let row = |(due, schedule): &(Timestamp, &Schedule)| {
                let there = due.to_zoned_datetime(schedule.timetable.zone().clone());
                json!({"schedule": schedule.name, "lane": schedule.lane.as_str(), "due": due, "there": there})
            };
            print(text::json(&format!("{:#}\n", json!(due.iter().map(row).collect::<Vec<_>>()))))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The next `count` due times of all of them, in order.
fn next<'a>(schedules: &[&'a Schedule], now: Timestamp, count: usize) -> Vec<(Timestamp, &'a Schedule)> {
    let mut ahead = BinaryHeap::new();
    for (number, schedule) in schedules.iter().enumerate() {
        ahead.extend(schedule.timetable.after(now).map(|due| Reverse((due, number))));
    }
    let mut found = Vec::new();
    while let Some(Reverse((due, number))) = ahead.pop()
        && found.len() < count
    {
        let Some(schedule) = schedules.get(number) else { continue };
        found.push((due, *schedule));
        ahead.extend(schedule.timetable.after(due).map(|due| Reverse((due, number))));
    }
    found
}
