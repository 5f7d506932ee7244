//! When a schedule is due: a cron line in a time zone, with a calendar of days that are none and days that are one. Pure.
//!
//! Where clocks change, a fixed time is due exactly once on each of its days: in a gap at the first instant after it, in an
//! overlap the first time. Lines with `*` in the hours or minutes follow the clock on the wall, so they are due in both
//! halves of an overlap.

mod calendar;
mod fired;
mod moment;

use std::sync::Arc;

use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};

pub use self::calendar::{Calendar, Days};
pub use self::fired::{Due, MOST_MISSED, due};
use self::moment::Moment;
use crate::similar;

/// Likeness above which a known zone is named for one that is not.
const ALIKE: f64 = 0.8;
/// Days in a row that a calendar can set aside: ten years.
const MOST_SET_ASIDE: usize = 3_660;

/// How far back a due time is looked for: so that there are few within the first length that has any.
const BACK: [SignedDuration; 4] = [
    SignedDuration::from_hours(1),
    SignedDuration::from_hours(24),
    SignedDuration::from_hours(31 * 24),
    SignedDuration::from_hours(3_660 * 24),
];

/// When a schedule is due.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
    calendar: Option<Arc<Calendar>>,
}

/// Why a line or a zone is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It has no meaning.
    #[error(
        "{line:?} is no cron line: {problem}; expected minute, hour, day, month and weekday, as in \"30 7 * * 1-5\""
    )]
    Line {
        /// As it was given.
        line: String,
        /// What is wrong.
        problem: String,
    },
    /// It means no day there is.
    #[error("{0:?} is never due: there is no such day")]
    Never(String),
    /// It is no zone.
    #[error("{name:?} is no time zone of this system (package tzdata){hint}; expected one as in Asia/Shanghai, or UTC")]
    Zone {
        /// As it was given.
        name: String,
        /// The one that may be meant.
        hint: String,
    },
}

/// The time zone of an IANA name. Abbreviations such as CST are none: there are several of each.
///
/// # Errors
/// [`Fault::Zone`].
pub fn zone(name: &str) -> Result<TimeZone, Fault> {
    let is_full = name == "UTC" || name.contains('/');
    if let Some(zone) = TimeZone::get(name).ok().filter(|_| is_full) {
        return Ok(zone);
    }
    let known: Vec<String> = jiff::tz::db().available().map(|zone| zone.to_string()).collect();
    let known: Vec<&str> = known.iter().map(String::as_str).filter(|name| name.contains('/')).collect();
    let hint = similar::most_similar(name, &known, ALIKE).map(|meant| format!("; did you mean {meant}?"));
    Err(Fault::Zone { name: name.to_owned(), hint: hint.unwrap_or_default() })
}

impl Timetable {
    /// Reads a cron line of five fields.
    ///
    /// # Errors
    /// [`Fault::Line`], or [`Fault::Never`].
    pub fn new(line: &str, zone: TimeZone, calendar: Option<Arc<Calendar>>) -> Result<Self, Fault> {
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(line).map_err(|error| {
            let problem = match error {
                CronError::InvalidPattern(problem)
                | CronError::IllegalCharacters(problem)
                | CronError::ComponentError(problem) => problem,
                CronError::EmptyPattern => "it is empty".to_owned(),
                other => other.to_string(),
            };
            Fault::Line { line: line.to_owned(), problem: problem.trim_end_matches('.').to_owned() }
        })?;
        let timetable = Self { cron, zone, calendar };
        // From the calendar's point of view it may still never be due, but the calendar changes.
        match timetable.search(&timetable.moment(Timestamp::UNIX_EPOCH), false) {
            Some(_) => Ok(timetable),
            None => Err(Fault::Never(line.to_owned())),
        }
    }

    /// The first instant after this one at which it is due. `None`: there is none that this system can name.
    pub fn after(&self, instant: Timestamp) -> Option<Timestamp> {
        let usual = self.usual(instant);
        let extra = self.extra(instant, usual);
        usual.into_iter().chain(extra).min()
    }

    /// Whether it is due at this instant.
    pub fn is_due(&self, instant: Timestamp) -> bool {
        instant.checked_sub(1.second()).ok().and_then(|just_before| self.after(just_before)) == Some(instant)
    }

    /// The last instant before this one at which it was due, within ten years.
    pub fn before(&self, instant: Timestamp) -> Option<Timestamp> {
        BACK.into_iter().find_map(|back| {
            let start = instant.checked_sub(back).unwrap_or(Timestamp::MIN);
            let due = std::iter::successors(self.after(start), |due| self.after(*due));
            due.take_while(|due| *due < instant).last()
        })
    }

    /// Its calendar.
    pub fn calendar(&self) -> Option<&Calendar> {
        self.calendar.as_deref()
    }

    /// The zone in which the line is read.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// The line in words, without its zone and calendar.
    pub fn describe(&self) -> String {
        self.cron.describe()
    }

    /// By the line alone, without the days that the calendar has something to say of.
    fn usual(&self, instant: Timestamp) -> Option<Timestamp> {
        let mut from = self.moment(instant);
        for _ in 0..MOST_SET_ASIDE {
            let found = self.search(&from, false)?;
            let date = found.date();
            let is_set_aside =
                self.calendar.as_ref().is_some_and(|calendar| calendar.skips(date) || calendar.adds(date).is_some());
            if !is_set_aside {
                return Some(found.timestamp());
            }
            // One second before the next day begins.
            from = self.moment(self.start_of(date.tomorrow().ok()?)?.checked_sub(1.second()).ok()?);
        }
        None
    }

    /// On a day that the calendar adds, before `limit`.
    fn extra(&self, instant: Timestamp, limit: Option<Timestamp>) -> Option<Timestamp> {
        let calendar = self.calendar.as_ref()?;
        let first = instant.to_zoned_datetime(self.zone.clone()).date();
        let last = limit.map_or(Date::MAX, |limit| limit.to_zoned_datetime(self.zone.clone()).date());
        let due = |(date, weekday)| {
            let midnight = self.start_of(date)?;
            // The weekday is kept in step from the day on with which the search begins.
            let (from, inclusive) = if midnight > instant { (midnight, true) } else { (instant, false) };
            let found = self.search(&self.moment(from).on(weekday), inclusive)?;
            (found.date() == date).then(|| found.timestamp())
        };
        calendar.added_within(first..=last).find_map(due)
    }

    fn start_of(&self, date: Date) -> Option<Timestamp> {
        self.zone.to_timestamp(date.to_datetime(Time::midnight())).ok()
    }

    fn moment(&self, instant: Timestamp) -> Moment {
        Moment::new(instant.to_zoned_datetime(self.zone.clone()))
    }

    fn search(&self, from: &Moment, inclusive: bool) -> Option<Moment> {
        self.cron.find_next_occurrence(from, inclusive).ok()
    }
}

#[cfg(test)]
mod tests;
