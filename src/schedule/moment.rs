//! The time of `jiff` as `croner` takes it.

use std::cmp::Ordering;

use croner::errors::CronError;
use croner::time::{CivilDate, CivilDateTime, CivilTime, CronDateTime, Resolution, Weekday};
use jiff::civil::{self, Date, DateTime};
use jiff::tz::AmbiguousOffset;
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

/// An instant in a time zone, on a day that may count as another weekday.
#[derive(Debug, Clone)]
pub(super) struct Moment {
    zoned: ZonedDateTime,
    /// In place of its own.
    weekday: Option<civil::Weekday>,
}

impl Moment {
    pub(super) fn new(zoned: ZonedDateTime) -> Self {
        Self { zoned, weekday: None }
    }

    /// The same, with the day counted as this weekday, and those after it in step.
    pub(super) fn on(self, weekday: civil::Weekday) -> Self {
        Self { weekday: Some(weekday), ..self }
    }

    pub(super) fn date(&self) -> Date {
        self.zoned.date()
    }

    pub(super) fn timestamp(&self) -> Timestamp {
        self.zoned.timestamp()
    }
}

impl CronDateTime for Moment {
    fn to_civil(&self) -> CivilDateTime {
        let time = self.zoned.datetime();
        // What jiff has checked needs no second check; its numbers are never negative.
        let part = |number: i8| u32::from(number.unsigned_abs());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(time.year().into(), part(time.month()), part(time.day())),
            CivilTime::from_parts_unchecked(part(time.hour()), part(time.minute()), part(time.second())),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        let weekday = self.weekday.unwrap_or_else(|| self.zoned.weekday());
        Weekday::from_days_from_sunday(weekday.to_sunday_zero_offset().unsigned_abs().into())
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let part = |number: u32| i8::try_from(number).map_err(|_| CronError::InvalidDate);
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let (month, day) = (part(civil.month())?, part(civil.day())?);
        let (hour, minute, second) = (part(civil.hour())?, part(civil.minute())?, part(civil.second())?);
        let time = DateTime::new(year, month, day, hour, minute, second, 0).map_err(|_| CronError::InvalidDate)?;
        let resolved = self.zoned.time_zone().to_ambiguous_zoned_datetime(time);
        let moment = |zoned: Result<ZonedDateTime, jiff::Error>| {
            zoned.map(|zoned| Self { zoned, weekday: self.weekday }).map_err(|_| CronError::InvalidTime)
        };
        Ok(match resolved.offset() {
            AmbiguousOffset::Unambiguous { .. } => Resolution::Single(moment(resolved.unambiguous())?),
            AmbiguousOffset::Fold { .. } => {
                Resolution::Ambiguous(moment(resolved.clone().earlier())?, moment(resolved.later())?)
            }
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        let zoned = self.zoned.checked_add(SignedDuration::from_secs(seconds)).ok()?;
        Some(Self { zoned, weekday: self.weekday })
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.timestamp().cmp(&other.timestamp())
    }
}
