//! `reveille schedules run`: the jobs of a schedule are submitted now, by the replica that runs the scheduler.

use std::process::ExitCode;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::{RoundMode, Timestamp, TimestampRound, Unit};

use super::{named, told};
use crate::cli::control::{self, Author};
use crate::cli::{Failure, tell};
use crate::config::{Config, Schedule};
use crate::events::{Action, Data};
use crate::text::Shown;

const EXAMPLES: &str = "\
Examples:
  reveille schedules run morning --reason \"the power was off at seven\"
  reveille schedules run morning --as-of 2026-11-25T07:30";

/// How long to wait until the jobs are submitted.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `reveille schedules run` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// The schedule.
    #[arg(value_name = "NAME")]
    name: String,
    /// As if it were this due time that has passed, in the schedule's zone unless an offset says otherwise: the batch and its jobs
    /// are the same ones, so that no machine is started for which one of them is known to have ended.
    #[arg(long, value_name = "TIME")]
    as_of: Option<String>,
    #[command(flatten)]
    author: Author,
}

/// What came of the command.
enum End {
    Fired { batch: String, size: usize },
    Missed(String),
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let schedule = named(&arguments.name, config)?;
    let due = due(schedule, arguments.as_of.as_deref(), Timestamp::now()).map_err(Failure::Usage)?;
    let (connection, names) = control::open(config).await?;
    let action = Action::RunSchedule { schedule: schedule.name.clone(), due };
    let given = control::give(&connection, &names, action, &arguments.author).await?;
    given.tell_rest();
    let is_it = |by_hand: Option<crate::events::ByHand>| by_hand.is_some_and(|by_hand| by_hand.command_id == given.id);
    let end = match given.is_for_later() {
        true => None,
        false => {
            let take = |data| match data {
                Data::ScheduleFired(fired) if is_it(fired.by_hand.clone()) => {
                    Some(End::Fired { batch: fired.batch_id, size: fired.size })
                }
                Data::ScheduleMissed(missed) if is_it(missed.by_hand.clone()) => Some(End::Missed(missed.text)),
                _ => None,
            };
            control::hear(&connection, &names, &given, PATIENCE, take).await?
        }
    };
    connection.close().await;
    let name = &schedule.name;
    match end {
        Some(End::Fired { batch, size }) => {
            let (batch, jobs) = (Shown(batch), if size == 1 { "job" } else { "jobs" });
            tell(format_args!("{size} {jobs} submitted as batch {batch}; see `reveille watch {batch}`"));
            return Ok(ExitCode::SUCCESS);
        }
        Some(End::Missed(why)) => tell(format_args!("schedule {name} was not run: {}", Shown(why))),
        None if given.is_for_later() => tell("the schedule is run if one starts within ten minutes"),
        None => tell(format_args!(
            "schedule {name} was not run within {} s, and is tried for ten minutes: the log of the replica that runs the scheduler \
             says why, unless its configuration has no such schedule",
            PATIENCE.as_secs()
        )),
    }
    Ok(ExitCode::FAILURE)
}

/// What the batch is named by: the due time that is given, or the next full second.
fn due(schedule: &Schedule, as_of: Option<&str>, now: Timestamp) -> Result<Timestamp, String> {
    let Some(text) = as_of else {
        let whole = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
        return now.round(whole).map_err(|error| format!("this machine's clock is wrong: {error}"));
    };
    let (name, timetable) = (&schedule.name, &schedule.timetable);
    let there = |text: &str| timetable.zone().to_timestamp(text.parse::<DateTime>().ok()?).ok();
    let due = text.parse().ok().or_else(|| there(text)).ok_or_else(|| {
        format!("--as-of {text:?} is no time: expected one as in 2026-11-25T07:30 or 2026-11-25T07:30:00+08:00")
    })?;
    if !timetable.is_due(due) {
        let nearest: Vec<String> = [timetable.before(due), timetable.after(due)]
            .into_iter()
            .flatten()
            .map(|due| told(due, timetable.zone()))
            .collect();
        return Err(format!(
            "--as-of {text:?} is no due time of schedule {name}: the nearest are {}",
            nearest.join(" and ")
        ));
    }
    if due > now {
        return Err(format!("--as-of {text:?} is still to come: without it, schedule {name} is run now"));
    }
    match schedule.deadline.and_then(|deadline| due.checked_add(deadline).ok()).filter(|end| *end <= now) {
        Some(end) => Err(format!(
            "--as-of {text:?}: the deadline of its jobs was over at {}: without it, schedule {name} is run now, with a deadline of its own",
            told(end, timetable.zone())
        )),
        None => Ok(due),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn morning(deadline: Option<Duration>) -> Schedule {
        Schedule { deadline, ..Schedule::example("morning", "30 7 * * 1-5", None) }
    }

    #[test]
    fn it_is_run_now_or_as_of_a_due_time_that_has_passed() {
        let now: Timestamp = "2026-11-25T09:00:00.25+08:00".parse().unwrap();
        let of = |text: &str| due(&morning(None), Some(text), now);
        let full: Timestamp = "2026-11-25T09:00:01+08:00".parse().unwrap();
        assert_eq!(due(&morning(None), None, now), Ok(full));
        let expected: Timestamp = "2026-11-25T07:30:00+08:00".parse().unwrap();
        for text in ["2026-11-25T07:30", "2026-11-25 07:30:00", "2026-11-25T07:30:00+08:00", "2026-11-24T23:30:00Z"] {
            assert_eq!(of(text), Ok(expected), "{text}");
        }
        // A Saturday, of which Friday and Monday are the nearest.
        let refused = of("2026-11-21T07:30").unwrap_err();
        let nearest = "the nearest are Fri 2026-11-20 07:30:00+08:00 and Mon 2026-11-23 07:30:00+08:00";
        assert!(refused.ends_with(nearest), "{refused}");
        assert!(of("2026-11-25T07:30:00.5").unwrap_err().contains("is no due time"));
        assert!(of("2026-11-26T07:30").unwrap_err().contains("is still to come"));
        assert!(of("seven").unwrap_err().contains("is no time: expected one as in"));
        let expired = due(&morning(Some(Duration::from_secs(5400))), Some("2026-11-25T07:30"), now).unwrap_err();
        assert!(expired.contains("was over at Wed 2026-11-25 09:00:00+08:00"), "{expired}");
    }
}
