//! Calendars that were not kept up.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::sheet::Line;
use crate::config::Schedule;

/// From this month on the next year's dates are missed: they are known by then.
const DECEMBER: i8 = 12;

/// A warning for each calendar that has no dates for a year in which a schedule goes by it.
pub(super) fn check(schedules: &[Schedule], now: Timestamp) -> Vec<Line> {
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
            let lines = check(&schedules, now.parse().unwrap());
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
