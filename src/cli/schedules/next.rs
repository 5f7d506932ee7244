//! `reveille schedules next`

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::process::ExitCode;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{LOG_KEPT, named, told};
use crate::broker::ConnectionKind;
use crate::cli::columns::Columns;
use crate::cli::log::Log;
use crate::cli::{Failure, Output, print, tell};
use crate::config::{Config, Schedule};
use crate::events::Plan;
use crate::scheduler::Past;
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

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let schedules: Vec<&Schedule> = match &arguments.name {
        Some(name) => vec![named(name, config)?],
        None => config.schedules.iter().collect(),
    };
    if schedules.is_empty() {
        tell("the configuration has no [[schedule]]");
    }
    let now = Timestamp::now();
    let due = next(&schedules, now, arguments.number.into());
    let past = if schedules.iter().any(|schedule| schedule.ready_by) {
        past(config, now).await
    } else {
        Past::new(&config.schedules)
    };
    match arguments.output {
        Output::Table if due.is_empty() => {}
        Output::Table => {
            let here = TimeZone::system();
            let mut columns = Columns::new(["DUE", "HERE", "SCHEDULE", "LANE", "STARTS"]);
            for (due, schedule) in &due {
                let there = told(*due, schedule.timetable.zone());
                let starts = past.plan(schedule).map_or("then".to_owned(), |plan| in_words(&plan));
                columns.add([there, told(*due, &here), schedule.name.clone(), schedule.lane.to_string(), starts]);
            }
            print(columns)?;
        }
        Output::Json => {
            let row = |(due, schedule): &(Timestamp, &Schedule)| {
                let there = due.to_zoned_datetime(schedule.timetable.zone().clone());
                let plan = past.plan(schedule);
                let lead = plan.map_or(0, |plan| plan.lead_seconds);
                let starts = due.checked_sub(Duration::from_secs(lead.into())).unwrap_or(Timestamp::MIN);
                json!({
                    "schedule": schedule.name, "lane": schedule.lane.as_str(), "due": due, "there": there,
                    "starts": starts, "plan": plan,
                })
            };
            print(text::json(&format!("{:#}\n", json!(due.iter().map(row).collect::<Vec<_>>()))))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the log of outcomes shows, or nothing if it cannot be read: that is told.
async fn past(config: &Config, now: Timestamp) -> Past {
    let mut past = Past::new(&config.schedules);
    let log = Log::new(config, ConnectionKind::Batches);
    let from = now.checked_sub(LOG_KEPT).unwrap_or(Timestamp::MIN);
    if let Err(error) = log.replay(from, |event| past.hear(&event.data, event.time, now)).await {
        let why = log.failure(error);
        tell(format_args!("how many machines there were, and how long they take to boot, is not seen: {why}"));
        return Past::new(&config.schedules);
    }
    past
}

/// `57s before: 500 machines, boots of 31s`
fn in_words(plan: &Plan) -> String {
    let length = |seconds: u32| format!("{:#}", SignedDuration::from_secs(seconds.into()));
    let Plan { lead_seconds, expected_size, boot_seconds, is_measured, .. } = *plan;
    let machines = if expected_size == 0 { String::new() } else { format!("{expected_size} machines, ") };
    let guess = if is_measured { "" } else { ", a guess" };
    format!("{} before: {machines}boots of {}{guess}", length(lead_seconds), length(boot_seconds))
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
