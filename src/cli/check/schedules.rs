//! Schedules: files that could not be read when they fire, and calendars that were not kept up.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sheet::Line;
use crate::config::{LaneName, Machines, Schedule};
use crate::fleet::{Defaults, Identity, Input};

/// Timeout of reading a file, which a file system can keep waiting for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// Problems of a file that are named.
const NAMED: usize = 3;

/// From this month on the next year's dates are missed: they are known by then.
const DECEMBER: i8 = 12;

/// A line for each schedule whose machines are in a file.
pub(super) async fn files(schedules: &[Schedule]) -> Vec<Line> {
    let mut lines = Vec::new();
    for schedule in schedules {
        let Machines::File(path) = &schedule.machines else { continue };
        let (name, shown, lane) = (&schedule.name, path.display().to_string(), schedule.lane.clone());
        let reading = timeout(
            PATIENCE,
            spawn_blocking({
                let path = path.clone();
                move || jobs(path, lane)
            }),
        );
        lines.push(match reading.await {
            Ok(Ok(Ok(jobs))) => {
                let jobs = if jobs == 1 { "1 job".to_owned() } else { format!("{jobs} jobs") };
                Line::passed("schedule", format_args!("{name} has {jobs}, in {shown}"))
            }
            Ok(Ok(Err(problem))) => Line::failed("schedule", format_args!("{name} cannot be fired: {problem}")).remedy(
                "mend the file before the schedule is due, and run the check as the daemon's user, where that runs",
            ),
            Ok(Err(error)) => Line::failed("schedule", format_args!("{name} cannot be checked: {error}")),
            Err(_) => Line::failed(
                "schedule",
                format_args!("{name} cannot be fired: {shown} is not read within {PATIENCE:?}"),
            ),
        });
    }
    lines
}

/// How many jobs a file has.
fn jobs(path: PathBuf, lane: LaneName) -> Result<usize, String> {
    if std::fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(format!("{} is no regular file", path.display()));
    }
    let defaults = Defaults::new("check".to_owned(), Timestamp::now());
    let identity = Identity { lane, moving_deadline: None, ramp: false };
    let input = Input::new(Vec::new(), &[path], None, defaults, identity);
    let checked = input.and_then(|input| input.naming(NAMED).check());
    let one_line = |text: String| text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    checked.map(|checked| checked.size()).map_err(|fault| one_line(fault.to_string()))
}

/// A warning for each calendar that has no dates for a year in which a schedule goes by it.
pub(super) fn calendars(schedules: &[Schedule], now: Timestamp) -> Vec<Line> {
    let mut unkept: BTreeMap<(&str, i16), Vec<&str>> = BTreeMap::new();
    for schedule in schedules {
        let (Some(name), Some(calendar)) = (&schedule.calendar, schedule.timetable.calendar()) else { continue };
        let today = now.to_zoned_datetime(schedule.timetable.zone().clone());
        let next = (today.month() == DECEMBER).then(|| today.year().saturating_add(1));
        for year in [today.year()].into_iter().chain(next).filter(|year| !calendar.knows(*year)) {
            unkept.entry((name, year)).or_default().push(&schedule.name);
        }
    }
    let line = |((calendar, year), schedules): ((&str, i16), Vec<&str>)| {
        let of = schedules.join(", ");
        Line::warning("calendar", format_args!("[[calendar]] {calendar}, of {of}, has no dates in {year}")).remedy(
            format_args!("add the holidays of {year} to its skip_dates, and working days in their place to its extra_dates: without them the schedule is due on every day that its line says"),
        )
    };
    unkept.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use jiff::civil::Weekday;

    use super::*;
    use crate::schedule::{Calendar, Days};

    fn schedule(name: &str, dates: Option<&str>) -> Schedule {
        let calendar = dates.map(|dates| Calendar::new(vec![Days::parse(dates).unwrap()], &[], Weekday::Friday));
        Schedule::example(name, "30 7 * * *", calendar)
    }

    #[test]
    fn a_calendar_without_dates_for_this_year_or_in_december_the_next_is_a_warning() {
        let found = |dates, now: &str| {
            let schedules = [schedule("morning", dates), schedule("noon", dates)];
            let lines = calendars(&schedules, now.parse().unwrap());
            lines.iter().map(|line| line.found().to_owned()).collect::<Vec<_>>()
        };
        let of = |year: u16| format!("[[calendar]] cn, of morning, noon, has no dates in {year}");
        assert_eq!(found(Some("2026-10-01..2026-10-07"), "2026-11-30T00:00:00+08:00"), Vec::<String>::new());
        assert_eq!(found(Some("2026-10-01..2026-10-07"), "2026-11-30T23:59:59+08:00"), Vec::<String>::new());
        assert_eq!(found(Some("2026-10-01..2026-10-07"), "2026-12-01T00:00:00+08:00"), [of(2027)]);
        assert_eq!(found(Some("2025-10-01"), "2026-12-01T00:00:00+08:00"), [of(2026), of(2027)]);
        assert_eq!(found(Some("2026-12-31..2027-01-01"), "2026-12-01T00:00:00+08:00"), Vec::<String>::new());
        assert_eq!(found(None, "2026-12-01T00:00:00+08:00"), Vec::<String>::new());
    }
}
