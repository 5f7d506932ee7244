//! Days on which a schedule is not due, and days on which it is due though its line says otherwise.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use jiff::civil::{Date, Weekday};

/// The most days that an entry can stand for: ten years.
const LONGEST: i32 = 3_660;
/// Between the first and the last day of a range.
const TO: &str = "..";

/// A day, or all days from one to another: `2026-10-01`, `2026-10-01..2026-10-07`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Days {
    first: Date,
    last: Date,
}

impl Days {
    /// `None` if `text` names no days.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once(TO).unwrap_or((text, text));
        let date = |text: &str| text.trim().parse::<Date>().ok();
        let (first, last) = (date(first)?, date(last)?);
        let length = first.until(last).ok()?.get_days();
        (0..LONGEST).contains(&length).then_some(Self { first, last })
    }

    fn each(self) -> impl Iterator<Item = Date> {
        self.first.series(jiff::Span::new().days(1)).take_while(move |date| *date <= self.last)
    }
}

/// Holidays, and working days in place of others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Calendar {
    skipped: Vec<Days>,
    /// With the weekday that each counts as.
    added: BTreeMap<Date, Weekday>,
}

impl Calendar {
    /// `added` days count as the weekday `added_as`, whatever they are. A day that is both skipped and added is skipped.
    pub fn new(skipped: Vec<Days>, added: &[Days], added_as: Weekday) -> Self {
        let is_skipped = |date: &Date| skipped.iter().any(|days| (days.first..=days.last).contains(date));
        let added = added.iter().flat_map(|days| days.each()).filter(|date| !is_skipped(date));
        Self { added: added.map(|date| (date, added_as)).collect(), skipped }
    }

    /// Whether the day is none.
    pub fn skips(&self, date: Date) -> bool {
        self.skipped.iter().any(|days| (days.first..=days.last).contains(&date))
    }

    /// The weekday as which an added day counts.
    pub fn adds(&self, date: Date) -> Option<Weekday> {
        self.added.get(&date).copied()
    }

    /// The added days of a range, in order.
    pub fn added_within(&self, range: RangeInclusive<Date>) -> impl Iterator<Item = (Date, Weekday)> {
        let is_empty = range.start() > range.end();
        let range = if is_empty { Date::MAX..=Date::MAX } else { range };
        self.added.range(range).map(|(date, weekday)| (*date, *weekday)).filter(move |_| !is_empty)
    }

    /// Whether it says anything of a year. One that does not was perhaps not kept up.
    pub fn knows(&self, year: i16) -> bool {
        self.skipped.iter().any(|days| (days.first.year()..=days.last.year()).contains(&year))
            || self.added.keys().any(|date| date.year() == year)
    }
}
