//! Instants as the command line names them.

use std::time::Duration;

use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{RoundMode, SignedDuration, Timestamp, TimestampRound, Unit};

use super::Failure;
use crate::config::duration;
use crate::control::LASTS;
use crate::schedule;

const EXPECTED: &str = "expected a length of time, as in 30m, a time of day with --tz, as in 07:30, or a timestamp with \
                        its offset, as in 2026-11-25T07:30:00+08:00";

/// The length of time that `text` says.
///
/// # Errors
/// What is expected.
pub(super) fn length(text: &str) -> Result<Duration, &'static str> {
    duration(text).ok_or("expected a length of time, such as 90s, 30m or 24h")
}

/// A length of time for people: `1m 12s`.
pub(super) fn told(length: Duration) -> String {
    format!("{:#}", SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX))
}

/// The time zone that the option `--tz` names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    schedule::zone(name).map_err(|fault| format!("--tz {fault}"))
}

/// The instant that `text` names: a timestamp, a length of time from `start` on, or the next such time of day after
/// `start`.
///
/// # Errors
/// What is wrong with the text, as it goes on behind it.
pub(super) fn instant(text: &str, start: Timestamp, zone: Option<&TimeZone>) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse() {
        return Ok(instant);
    }
    // Before lengths of time, of which 07:30:00 could be one.
    if text.contains(':') && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':') {
        let time: Time = text.parse().map_err(|_| format!("is no time of day: {EXPECTED}"))?;
        let zone = zone.ok_or("is a time of day without a time zone: add --tz, as in --tz Asia/Shanghai")?;
        return next(time, start, zone);
    }
    let length: SignedDuration =
        text.strip_prefix('+').unwrap_or(text).parse().map_err(|_| format!("is no time: {EXPECTED}"))?;
    start.checked_add(length).map_err(|_| "is too far away: expected at most a year".to_owned())
}

/// The end of something that begins `now`, as `option` names it: a whole second within the next 30 days.
///
/// # Errors
/// The option, its value and what is expected.
pub(super) fn end(
    option: &str,
    text: Option<&str>,
    zone_name: Option<&str>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Failure> {
    let zone = zone_name.map(zone).transpose().map_err(Failure::Usage)?;
    let Some(text) = text else { return Ok(None) };
    let wrong = |problem: String| Failure::Usage(format!("{option} {text:?} {problem}"));
    let whole = TimestampRound::new().smallest(Unit::Second).mode(RoundMode::Ceil);
    let end = instant(text, now, zone.as_ref()).map_err(wrong)?;
    let end = end.round(whole).unwrap_or(end);
    match end.duration_since(now) {
        length if length <= SignedDuration::ZERO => Err(wrong("is past: expected a time to come".to_owned())),
        length if length > LASTS => Err(wrong("is more than 30 days ahead: expected an earlier time".to_owned())),
        _ => Ok(Some(end)),
    }
}

/// Whether `text`, which names an instant, is a length of time.
pub(super) fn is_length(text: &str) -> bool {
    text.parse::<Timestamp>().is_err() && !text.contains(':')
}

fn next(time: Time, start: Timestamp, zone: &TimeZone) -> Result<Timestamp, String> {
    let there = zone.to_datetime(start);
    let date = if there.time() < time { Ok(there.date()) } else { there.date().tomorrow() };
    let instant = date.and_then(|date| zone.to_ambiguous_timestamp(date.to_datetime(time)).unambiguous());
    instant.map_err(|_| {
        "is skipped or comes twice on that day, as the clocks change: expected a timestamp with its offset, as in \
         2026-11-25T07:30:00+08:00"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn only_a_length_of_time_is_one() {
        assert_eq!(length("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(length("168h"), Ok(Duration::from_secs(7 * 86_400)));
        for wrong in ["", "0s", "-1h", "24", "soon", "99999999999999999999h"] {
            assert!(length(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_zone_has_one_meaning_and_what_may_be_meant_is_named() {
        assert!(zone("Asia/Shanghai").is_ok() && zone("UTC").is_ok());
        for (wrong, expected) in [
            ("CST", "--tz \"CST\" is no time zone"),
            ("Asia/Shanghia", "did you mean Asia/Shanghai?"),
            ("", "--tz \"\" is no"),
        ] {
            let told = zone(wrong).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn an_instant_is_a_timestamp_a_length_of_time_or_a_time_of_day() {
        let start = at("2026-11-25T00:00:00Z");
        let shanghai = TimeZone::get("Asia/Shanghai").unwrap();
        for (text, expected) in [
            ("2026-11-25T07:30:00+08:00", "2026-11-24T23:30:00Z"),
            ("30m", "2026-11-25T00:30:00Z"),
            ("+1h30m", "2026-11-25T01:30:00Z"),
            // It is 08:00 there.
            ("08:01", "2026-11-25T00:01:00Z"),
            ("08:00", "2026-11-26T00:00:00Z"),
            ("07:30:00", "2026-11-25T23:30:00Z"),
        ] {
            assert_eq!(instant(text, start, Some(&shanghai)), Ok(at(expected)), "{text}");
        }
        for (text, expected) in [
            ("", "is no time: expected a length"),
            ("tomorrow", "is no time: expected a length"),
            ("30", "is no time: expected a length"),
            ("2026-11-25", "is no time: expected a length"),
            ("2026-11-25T07:30:00", "is no time: expected a length"),
            ("24:00", "is no time of day"),
            ("7:30", "is no time of day"),
            ("99999999999h", "is"),
        ] {
            let told = instant(text, start, Some(&shanghai)).unwrap_err();
            assert!(told.starts_with(expected), "{text}: {told}");
        }
        assert!(instant("07:30", start, None).unwrap_err().contains("add --tz"));
    }

    #[test]
    fn a_time_of_day_that_is_not_one_instant_is_refused() {
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        for evening in ["2026-03-28T18:00:00Z", "2026-10-24T18:00:00Z"] {
            let told = instant("02:30", at(evening), Some(&berlin)).unwrap_err();
            assert!(told.contains("is skipped or comes twice"), "{told}");
            assert!(instant("07:30", at(evening), Some(&berlin)).is_ok());
        }
    }
}
