//! `reveille schedules list`

use std::collections::HashMap;
use std::process::ExitCode;

use jiff::{Timestamp, Unit};
use serde_json::json;

use super::{LOG_KEPT, told};
use crate::broker::ConnectionKind;
use crate::cli::columns::Columns;
use crate::cli::log::Log;
use crate::cli::{Failure, Output, print, tell};
use crate::config::{Config, Schedule};
use crate::control::{LASTS, Pause, State};
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
    /// The last completion of a batch that has a schedule's name, by that. It can come before the event that the schedule was
    /// fired.
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
                    let done = self.completed.get(&fired.schedule).filter(|done| is_of(done, &fired)).cloned();
                    self.last.insert(fired.schedule.clone(), Last::Fired(fired, done));
                }
            }
            Data::ScheduleMissed(missed) if is_known(&missed.schedule) => {
                self.last.insert(missed.schedule.clone(), Last::Missed(missed));
            }
            Data::BatchCompleted(completed) => {
                let is_named = |schedule: &&Schedule| {
                    due_of(&schedule.name, &completed.batch_id).is_some() && completed.lane == schedule.lane.as_str()
                };
                let Some(schedule) = schedules.iter().find(is_named) else { return };
                if let Some(Last::Fired(fired, done)) = self.last.get_mut(&schedule.name)
                    && is_of(&completed, fired)
                {
                    *done = Some(completed.clone());
                }
                self.completed.insert(schedule.name.clone(), completed);
            }
            _ => {}
        }
    }
}

fn is_of(completed: &BatchCompleted, fired: &ScheduleFired) -> bool {
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
            Self::Fired(fired @ ScheduleFired { size: 1, .. }, None) => format!("1 job, under way{}", by_whom(fired)),
            Self::Fired(fired, None) => format!("{} jobs, under way{}", fired.size, by_whom(fired)),
            Self::Fired(fired, Some(done)) => {
                let in_time = done.up_in_time.map_or_else(String::new, |in_time| format!(", {in_time} in time"));
                format!("{} of {} up{in_time}{}", done.up, done.size, by_whom(fired))
            }
            Self::Missed(missed) => format!("missed: {}", missed.text),
        }
    }
}

fn by_whom(fired: &ScheduleFired) -> String {
    fired.by_hand.as_ref().map_or_else(String::new, |by_hand| format!("; run by {}", by_hand.by))
}

/// What the commands amount to; `None`: the user may not read them, as is told.
async fn commands_until(now: Timestamp, config: &Config) -> Result<Option<State>, Failure> {
    let log = Log::of_commands(config, ConnectionKind::Batches);
    let (from, mut state) = (now.checked_sub(LASTS).unwrap_or(Timestamp::MIN), State::default());
    let take = |Event { id, time, data, .. }| {
        if let Data::Command(command) = data {
            state.apply(&id, command, time, now);
        }
    };
    match log.replay(from, take).await.map_err(|error| log.failure(error)) {
        Ok(()) => Ok(Some(state)),
        Err(Failure::Usage(refused)) => {
            tell(format_args!("whether a schedule is paused is not seen: {refused}"));
            Ok(None)
        }
        Err(failure) => Err(failure),
    }
}

fn in_short(pause: &Pause) -> String {
    let until = pause.until.round(Unit::Second).unwrap_or(pause.until);
    text::Shown(format_args!("until {until} by {}", pause.by)).to_string()
}

/// `false` for none, since `null` stands for what is not seen.
fn in_json(pause: Option<&Pause>) -> serde_json::Value {
    pause.map_or(
        json!(false),
        |Pause { by, reason, since, until }| json!({"by": by, "reason": reason, "since": since, "until": until}),
    )
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let now = Timestamp::now();
    let mut story = Story::default();
    let mut commands = Some(State::default());
    if config.schedules.is_empty() {
        tell("the configuration has no [[schedule]]");
    } else {
        let log = Log::new(config, ConnectionKind::Batches);
        let from = now.checked_sub(LOG_KEPT).unwrap_or(Timestamp::MIN);
        let replayed = log.replay(from, |event| story.take(&config.schedules, event)).await;
        replayed.map_err(|error| log.failure(error))?;
        commands = commands_until(now, config).await?;
    }
    let pause = |schedule: &Schedule| commands.as_ref().map(|state| state.schedule_pause(&schedule.name, now));
    match arguments.output {
        Output::Table if config.schedules.is_empty() => {}
        Output::Table => {
            let mut columns = Columns::new(["SCHEDULE", "LANE", "NEXT", "PAUSED", "LAST", "HOW IT WENT"]);
            for schedule in &config.schedules {
                let time = |instant| told(instant, schedule.timetable.zone());
                let next = schedule.timetable.after(now).map_or("-".to_owned(), time);
                let paused = pause(schedule).map_or("?".to_owned(), |pause| pause.map_or("-".to_owned(), in_short));
                let last = story.last.get(&schedule.name);
                let (due, went) = last.map_or(("-".to_owned(), "-".to_owned()), |last| (time(last.due()), last.went()));
                columns.add([
                    schedule.name.clone(),
                    schedule.lane.to_string(),
                    next,
                    paused,
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
                    "next": schedule.timetable.after(now), "last": last, "paused": pause(schedule).map(in_json),
                })
            };
            let rows: Vec<_> = config.schedules.iter().map(row).collect();
            print(text::json(&format!("{:#}\n", json!(rows))))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
