//! `reveille schedules list`

use std::collections::HashMap;
use std::process::ExitCode;

use jiff::Timestamp;
use serde_json::json;

use super::{LOG_KEPT, told};
use crate::broker::ConnectionKind;
use crate::cli::columns::Columns;
use crate::cli::log::Log;
use crate::cli::{Failure, Output, print, tell};
use crate::config::{Config, Schedule};
use crate::events::{BatchCompleted, Data, Event, ScheduleFired, ScheduleMissed};
use crate::scheduler::due_of;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  reveille schedules list
  reveille schedules list --output json | jq '.[] | select(.last == null)'";

/// What `reveille schedules list` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// `json` is a list of objects.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// The last that the log says of a schedule.
#[derive(Debug)]
enum Last {
    Fired(ScheduleFired, Option<Box<BatchCompleted>>),
    Missed(ScheduleMissed),
}

/// What the log says of the configured schedules, in memory of their number.
#[derive(Debug, Default)]
struct Story {
    last: HashMap<String, Last>,
    /// By schedule, the last batch that was completed: a small one may be before it is said that it was fired.
    completed: HashMap<String, Box<BatchCompleted>>,
}

impl Story {
    fn take(&mut self, schedules: &[Schedule], event: Event) {
        let is_known = |name: &str| schedules.iter().any(|schedule| schedule.name == name);
        match event.data {
            Data::ScheduleFired(fired) if is_known(&fired.schedule) => {
                // A holder that took over halfway says it again.
                let is_again = |last: &Last| matches!(last, Last::Fired(last, _) if last.batch_id == fired.batch_id);
                if !self.last.get(&fired.schedule).is_some_and(is_again) {
                    let done = self.completed.get(&fired.schedule);
                    let done = done.filter(|done| is_of(&fired, done)).cloned();
                    self.last.insert(fired.schedule.clone(), Last::Fired(fired, done));
                }
            }
            Data::ScheduleMissed(missed) if is_known(&missed.schedule) => {
                self.last.insert(missed.schedule.clone(), Last::Missed(missed));
            }
            Data::BatchCompleted(completed) => {
                for last in self.last.values_mut() {
                    if let Last::Fired(fired, done) = last
                        && is_of(fired, &completed)
                    {
                        *done = Some(completed.clone());
                    }
                }
                for schedule in schedules {
                    if due_of(&schedule.name, &completed.batch_id).is_some() {
                        self.completed.insert(schedule.name.clone(), completed.clone());
                    }
                }
            }
            _ => {}
        }
    }
}

fn is_of(fired: &ScheduleFired, completed: &BatchCompleted) -> bool {
    fired.batch_id == completed.batch_id && fired.lane == completed.lane
}

impl Last {
    fn due(&self) -> Timestamp {
        match self {
            Self::Fired(fired, _) => fired.due,
            Self::Missed(missed) => missed.last_due,
        }
    }

    fn went(&self) -> String {
        match self {
            Self::Fired(fired, None) => format!("{} jobs, under way", fired.size),
            Self::Fired(_, Some(done)) => {
                let in_time = done.up_in_time.map_or_else(String::new, |in_time| format!(", {in_time} in time"));
                format!("{} of {} up{in_time}", done.up, done.size)
            }
            Self::Missed(missed) => format!("missed: {}", missed.text),
        }
    }
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let now = Timestamp::now();
    let mut story = Story::default();
    if config.schedules.is_empty() {
        tell("the configuration has no [[schedule]]");
    } else {
        let log = Log::new(config, ConnectionKind::Batches);
        let from = now.checked_sub(LOG_KEPT).unwrap_or(Timestamp::MIN);
        let replayed = log.replay(from, |event| story.take(&config.schedules, event)).await;
        replayed.map_err(|error| log.failure(error))?;
    }
    match arguments.output {
        Output::Table if config.schedules.is_empty() => {}
        Output::Table => {
            let mut columns = Columns::new(["SCHEDULE", "LANE", "NEXT", "LAST", "HOW IT WENT"]);
            for schedule in &config.schedules {
                let time = |instant| told(instant, schedule.timetable.zone());
                let next = schedule.timetable.after(now).map_or("-".to_owned(), time);
                let last = story.last.get(&schedule.name);
                let (due, went) = last.map_or(("-".to_owned(), "-".to_owned()), |last| (time(last.due()), last.went()));
                columns.add([
                    schedule.name.clone(),
                    schedule.lane.to_string(),
                    next,
                    due,
                    text::Shown(went).to_string(),
                ]);
            }
            print(columns)?;
        }
        Output::Json => {
            let row = |schedule: &Schedule| {
                let last = story.last.get(&schedule.name).map(|last| match last {
                    Last::Fired(fired, done) => json!({"fired": fired, "completed": done}),
                    Last::Missed(missed) => json!({"missed": missed}),
                });
                json!({
                    "schedule": schedule.name, "lane": schedule.lane.as_str(), "timetable": schedule.line,
                    "next": schedule.timetable.after(now), "last": last,
                })
            };
            let rows: Vec<_> = config.schedules.iter().map(row).collect();
            print(text::json(&format!("{:#}\n", json!(rows))))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
