use jiff::SignedDuration;
use jiff::civil::Weekday;

use super::*;

/// The next due times after `start`, a civil time in the zone, as civil times with their offset.
fn next(line: &str, zone_name: &str, start: &str, count: usize) -> Vec<String> {
    next_by(None, line, zone_name, start, count)
}

fn next_by(calendar: Option<Calendar>, line: &str, zone_name: &str, start: &str, count: usize) -> Vec<String> {
    let zone = zone(zone_name).unwrap();
    let timetable = Timetable::new(line, zone.clone(), calendar.map(Arc::new)).unwrap();
    let start: jiff::civil::DateTime = start.parse().unwrap();
    let mut last = zone.to_timestamp(start).unwrap();
    let mut due = Vec::new();
    for _ in 0..count {
        last = timetable.after(last).unwrap();
        due.push(last.to_zoned_datetime(zone.clone()).strftime("%Y-%m-%dT%H:%M%:z").to_string());
    }
    due
}

#[test]
fn a_fixed_time_in_a_gap_is_due_once_at_the_first_instant_after_it() {
    // Berlin: 2026-03-29 02:00 is 03:00.
    assert_eq!(
        next("30 2 * * *", "Europe/Berlin", "2026-03-28T00:00", 3),
        ["2026-03-28T02:30+01:00", "2026-03-29T03:00+02:00", "2026-03-30T02:30+02:00",]
    );
    // Lord Howe: 2026-10-04 02:00 is 02:30.
    assert_eq!(
        next("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T00:00", 3),
        ["2026-10-03T02:15+10:30", "2026-10-04T02:30+11:00", "2026-10-05T02:15+11:00",]
    );
    // São Paulo: 2018-11-04 00:00 was 01:00; no clock changes there since 2019.
    assert_eq!(
        next("0 0 * * *", "America/Sao_Paulo", "2018-11-03T12:00", 2),
        ["2018-11-04T01:00-02:00", "2018-11-05T00:00-02:00",]
    );
    assert_eq!(next("30 0 4 11 *", "America/Sao_Paulo", "2026-01-01T00:00", 1), ["2026-11-04T00:30-03:00"]);
}

#[test]
fn a_fixed_time_that_comes_twice_is_due_the_first_time() {
    // Berlin: 2026-10-25 03:00 is 02:00.
    assert_eq!(
        next("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00", 2),
        ["2026-10-25T02:30+02:00", "2026-10-26T02:30+01:00",]
    );
    // Lord Howe: 2026-04-05 02:00 is 01:30.
    assert_eq!(
        next("45 1 * * *", "Australia/Lord_Howe", "2026-04-04T12:00", 2),
        ["2026-04-05T01:45+11:00", "2026-04-06T01:45+10:30",]
    );
}

#[test]
fn both_sides_of_a_change_are_where_the_clock_on_the_wall_says() {
    assert_eq!(
        next("59 1,3 29 3 *", "Europe/Berlin", "2026-03-01T00:00", 2),
        ["2026-03-29T01:59+01:00", "2026-03-29T03:59+02:00",]
    );
    assert_eq!(
        next("0 1,3 25 10 *", "Europe/Berlin", "2026-10-01T00:00", 2),
        ["2026-10-25T01:00+02:00", "2026-10-25T03:00+01:00",]
    );
    // A line with a star follows the clock, through both halves of the hour that comes twice.
    assert_eq!(
        next("30 * * * *", "Europe/Berlin", "2026-10-25T01:00", 4),
        ["2026-10-25T01:30+02:00", "2026-10-25T02:30+02:00", "2026-10-25T02:30+01:00", "2026-10-25T03:30+01:00",]
    );
}

#[test]
fn shanghai_has_no_changes_of_the_clock_and_weekdays_are_those_there() {
    assert_eq!(
        next("30 7 * * 1-5", "Asia/Shanghai", "2026-11-27T08:00", 2),
        ["2026-11-30T07:30+08:00", "2026-12-01T07:30+08:00",]
    );
}

#[test]
fn the_edges_of_the_calendar_are_kept() {
    assert_eq!(next("0 7 29 2 *", "UTC", "2026-01-01T00:00", 2), ["2028-02-29T07:00+00:00", "2032-02-29T07:00+00:00"]);
    assert_eq!(next("0 7 31 * *", "UTC", "2026-01-31T08:00", 2), ["2026-03-31T07:00+00:00", "2026-05-31T07:00+00:00"]);
    assert_eq!(next("0 7 L * *", "UTC", "2026-01-31T08:00", 2), ["2026-02-28T07:00+00:00", "2026-03-31T07:00+00:00"]);
    // The second Tuesday, and the last Friday.
    assert_eq!(next("0 7 * * 2#2", "UTC", "2026-11-01T00:00", 2), ["2026-11-10T07:00+00:00", "2026-12-08T07:00+00:00"]);
    assert_eq!(next("0 7 * * 5L", "UTC", "2026-11-01T00:00", 2), ["2026-11-27T07:00+00:00", "2026-12-25T07:00+00:00"]);
    assert_eq!(next("59 23 31 12 *", "UTC", "2026-01-01T00:00", 1), ["2026-12-31T23:59+00:00"]);
}

fn calendar(skipped: &[&str], added: &[&str], added_as: Weekday) -> Calendar {
    let days = |texts: &[&str]| texts.iter().map(|text| Days::parse(text).unwrap()).collect::<Vec<_>>();
    Calendar::new(days(skipped), &days(added), added_as)
}

#[test]
fn holidays_are_skipped_and_make_up_days_are_as_the_weekday_they_stand_for() {
    // China's National Day of 2026, with a Saturday after it that is worked.
    let cn = || calendar(&["2026-10-01..2026-10-07"], &["2026-10-10"], Weekday::Friday);
    assert_eq!(
        next_by(Some(cn()), "30 7 * * 1-5", "Asia/Shanghai", "2026-09-30T00:00", 5),
        [
            "2026-09-30T07:30+08:00",
            "2026-10-08T07:30+08:00",
            "2026-10-09T07:30+08:00",
            "2026-10-10T07:30+08:00",
            "2026-10-12T07:30+08:00",
        ]
    );
    // As a Friday: also where the line says Friday alone, and not where it says Saturday.
    assert_eq!(next_by(Some(cn()), "0 18 * * 5", "Asia/Shanghai", "2026-10-09T19:00", 1), ["2026-10-10T18:00+08:00"]);
    assert_eq!(next_by(Some(cn()), "0 18 * * 6", "Asia/Shanghai", "2026-10-05T00:00", 1), ["2026-10-17T18:00+08:00"]);
    let monday = calendar(&[], &["2026-10-10"], Weekday::Monday);
    assert_eq!(
        next_by(Some(monday), "0 18 * * 1", "Asia/Shanghai", "2026-10-06T00:00", 2),
        ["2026-10-10T18:00+08:00", "2026-10-12T18:00+08:00",]
    );
    // Several times of such a day, and one that is skipped as well.
    let both = calendar(&["2026-10-10"], &["2026-10-10..2026-10-11"], Weekday::Friday);
    assert_eq!(
        next_by(Some(both), "0 6,18 * * 5", "Asia/Shanghai", "2026-10-10T00:00", 3),
        ["2026-10-11T06:00+08:00", "2026-10-11T18:00+08:00", "2026-10-16T06:00+08:00",]
    );
}

#[test]
fn a_calendar_that_skips_everything_ends_the_search() {
    let timetable = |calendar| Timetable::new("30 7 * * *", TimeZone::UTC, Some(Arc::new(calendar))).unwrap();
    let years = calendar(&["2026-01-01..2035-12-31", "2036-01-01..2045-12-31"], &[], Weekday::Friday);
    assert_eq!(timetable(years).after("2026-01-01T00:00:00Z".parse().unwrap()), None);
    assert_eq!(timetable(Calendar::default()).after(Timestamp::MAX), None);
}

#[test]
fn days_and_years_of_a_calendar() {
    let cn = calendar(&["2026-12-31..2027-01-02"], &["2028-02-05"], Weekday::Friday);
    assert_eq!([2025, 2026, 2027, 2028, 2029].map(|year| cn.knows(year)), [false, true, true, true, false]);
    assert!(Days::parse(" 2026-10-01 .. 2026-10-07 ").is_some());
    for wrong in ["", "2026-13-01", "2026-10-07..2026-10-01", "2026-10-01..", "0001-01-01..9999-12-31", "Friday"] {
        assert_eq!(Days::parse(wrong), None, "{wrong}");
    }
}

#[test]
fn what_is_no_line_or_zone_is_told_with_the_remedy() {
    let line = |line: &str| Timetable::new(line, TimeZone::UTC, None).map(drop).unwrap_err().to_string();
    for wrong in [
        "",
        "30 7",
        "* * * * * *",
        "61 7 * * *",
        "30 7 * * MONN",
        "30 25 * * *",
        "every day",
        "\u{1b}[2J * * * *",
        "@reboot",
    ] {
        let told = line(wrong);
        assert!(told.contains("expected minute, hour, day, month and weekday"), "{told}");
    }
    assert_eq!(line("0 0 30 2 *"), "\"0 0 30 2 *\" is never due: there is no such day");
    assert!(Timetable::new("@daily", TimeZone::UTC, None).is_ok());
    for (wrong, told) in [
        ("CST", "expected one as in Asia/Shanghai"),
        ("EST", "expected one as in Asia/Shanghai"),
        ("+08:00", "expected one as in Asia/Shanghai"),
        ("Asia/Shangai", "did you mean Asia/Shanghai?"),
        ("Europe/Berln", "did you mean Europe/Berlin?"),
    ] {
        let fault = zone(wrong).unwrap_err().to_string();
        assert!(fault.contains(told), "{fault}");
    }
    assert!(zone("UTC").is_ok());
}

#[test]
fn the_newest_due_time_is_fired_if_it_is_in_time_and_the_others_are_missed() {
    let timetable = Timetable::new("30 7 * * *", zone("Asia/Shanghai").unwrap(), None).unwrap();
    let at = |text: &str| format!("2026-11-{text}:00+08:00").parse::<Timestamp>().unwrap();
    let within = |now: Timestamp| move |due: Timestamp| now.duration_since(due) <= SignedDuration::from_mins(30);
    let due = |since: &str, now: &str| due(&timetable, at(since), at(now), within(at(now)));
    assert_eq!(due("24T07:30", "25T07:29"), Due::default());
    assert_eq!(due("24T07:30", "25T07:30"), Due { fire: Some(at("25T07:30")), missed: vec![] });
    assert_eq!(due("24T07:30", "25T08:00"), Due { fire: Some(at("25T07:30")), missed: vec![] });
    assert_eq!(due("24T07:30", "25T08:01"), Due { fire: None, missed: vec![at("25T07:30")] });
    let missed = vec![at("23T07:30"), at("24T07:30")];
    assert_eq!(due("22T07:30", "25T07:45"), Due { fire: Some(at("25T07:30")), missed });
    // What was fired is not due again, and a clock that went back makes nothing due.
    assert_eq!(due("25T07:30", "25T07:45"), Due::default());
    assert_eq!(due("25T07:30", "25T06:30"), Due::default());
    // However long nothing ran, a week counts.
    let minutely = Timetable::new("* * * * *", TimeZone::UTC, None).unwrap();
    let long = super::due(&minutely, Timestamp::UNIX_EPOCH, at("25T07:30"), |_| true);
    assert_eq!((long.fire, long.missed.len()), (Some(at("25T07:30")), MOST_MISSED - 1));
}

#[test]
fn a_due_time_is_told_from_others_with_the_ones_before_and_after() {
    let timetable = |line: &str| Timetable::new(line, zone("Asia/Shanghai").unwrap(), None).unwrap();
    let at = |text: &str| -> Timestamp { format!("{text}+08:00").parse().unwrap() };
    let weekdays = timetable("30 7 * * 1-5");
    assert!(weekdays.is_due(at("2026-11-25T07:30:00")));
    for other in ["2026-11-25T07:30:01", "2026-11-25T07:29:59", "2026-11-25T07:30:00.001", "2026-11-21T07:30:00"] {
        assert!(!weekdays.is_due(at(other)), "{other}");
    }
    assert!(!weekdays.is_due(Timestamp::MIN) && !weekdays.is_due(Timestamp::MAX));
    for (line, instant, before) in [
        ("30 7 * * 1-5", "2026-11-23T07:30:00", "2026-11-20T07:30:00"),
        ("30 7 * * 1-5", "2026-11-23T07:30:01", "2026-11-23T07:30:00"),
        ("* * * * *", "2026-11-23T07:30:00", "2026-11-23T07:29:00"),
        ("0 0 29 2 *", "2028-02-28T00:00:00", "2024-02-29T00:00:00"),
    ] {
        assert_eq!(timetable(line).before(at(instant)), Some(at(before)), "{line} before {instant}");
    }
    assert_eq!(weekdays.before(Timestamp::MIN), None);
}
