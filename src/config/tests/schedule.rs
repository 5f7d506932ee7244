//! Calendars and schedules.

use jiff::Timestamp;

use super::*;

const MORNING: &str = "[[schedule]]\nname = \"morning\"\ncron = \"30 7 * * 1-5\"\ntimezone = \"Asia/Shanghai\"\n\
                       instances = [\"i-YufwpQAe\"]\n";

fn after(schedule: &Schedule, instant: &str) -> String {
    let due = schedule.timetable.after(instant.parse::<Timestamp>().unwrap()).unwrap();
    due.to_string()
}

#[test]
fn a_schedule_needs_a_name_a_line_a_zone_and_machines() {
    let config = good(MORNING, &[]);
    let [schedule] = &config.schedules[..] else { panic!("{:?}", config.schedules) };
    assert_eq!((schedule.name.as_str(), schedule.lane.as_str()), ("morning", "default"));
    assert_eq!(after(schedule, "2026-11-27T00:00:00Z"), "2026-11-29T23:30:00Z");
    assert_eq!((schedule.deadline, schedule.misfire_grace), (None, Duration::from_secs(1800)));
    assert_eq!((schedule.conflict, schedule.confirm), (None, None));
    assert_eq!((schedule.ready_by, schedule.least, schedule.pace), (false, 50, 20.0));
    assert_eq!(
        problems("[[schedule]]\n", &[]),
        [
            "r.toml: schedule[0].name: missing: expected 1 to 40 of a-z 0-9 -, a letter or digit first, such as \"morning\"",
            "r.toml: schedule[0].timezone: missing: expected an IANA name, such as \"Asia/Shanghai\"",
            "r.toml: schedule[0].cron: missing: expected a cron line, such as \"30 7 * * 1-5\"",
            "r.toml: schedule[0].instances: expected instances, file or select, one of them: none is given",
        ]
    );
}

#[test]
fn a_schedule_that_is_to_be_ready_has_jobs_that_wait_until_their_machine_runs() {
    let more = "ready_by = true\nleast = \"80%\"\n[[lane]]\nname = \"prod\"\nrate = 10\nbatch = 20\n";
    let config = good(&format!("{MORNING}{more}"), &[]);
    let [schedule] = &config.schedules[..] else { panic!("{:?}", config.schedules) };
    assert_eq!((schedule.ready_by, schedule.least, schedule.pace), (true, 80, 200.0));
    assert_eq!(schedule.confirm, Some(crate::job::Confirm::Running));
    assert!(good(MORNING, &[("REVEILLE_SCHEDULE__0__READY_BY", "true")]).schedules[0].ready_by);
}

#[test]
fn a_calendar_is_named_and_its_days_count() {
    let calendar =
        "[[calendar]]\nname = \"cn\"\nskip_dates = [\"2026-10-01..2026-10-07\"]\nextra_dates = [\"2026-10-10\"]\n";
    let with = |more: &str| good(&format!("{calendar}{more}{MORNING}calendar = \"cn\"\n"), &[]);
    let of = |config: Config| after(&config.schedules[0], "2026-10-09T12:00:00Z");
    assert_eq!(of(with("")), "2026-10-09T23:30:00Z");
    assert_eq!(of(with("extra_as = \"sunday\"\n")), "2026-10-11T23:30:00Z");
    assert_eq!(after(&with("").schedules[0], "2026-09-30T12:00:00Z"), "2026-10-07T23:30:00Z");
    assert_eq!(
        good(&format!("{calendar}{MORNING}"), &[("REVEILLE_SCHEDULE__0__INSTANCES", "i-aaaa, i-bbbb")]).schedules[0]
            .machines,
        Machines::Listed(["i-aaaa", "i-bbbb"].map(|id| crate::bce::InstanceId::parse(id).unwrap()).to_vec())
    );
}

#[test]
fn what_is_wrong_with_a_schedule_is_told_with_the_remedy() {
    let two = "[[lane]]\nname = \"a\"\n[[lane]]\nname = \"b\"\n";
    let without = |key: &str| MORNING.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
    for (file, told) in [
        (format!("{two}{MORNING}"), "schedule[0].lane: missing: expected one of a, b"),
        (format!("{two}{MORNING}lane = \"c\""), "schedule[0].lane: there is no lane c: expected one of a, b"),
        (format!("{MORNING}{MORNING}"), "schedule[1].name: morning is taken by a schedule above"),
        (format!("{}\ntimezone = \"CST\"", without("timezone")), "\"CST\" is no time zone of this system"),
        (format!("{}\ncron = \"every day\"", without("cron")), "schedule[0].cron: \"every day\" is no cron line"),
        (format!("{}\ncron = \"0 0 30 2 *\"", without("cron")), "is never due"),
        (format!("{}\ninstances = [\"web-1\"]", without("instances")), "schedule[0].instances: [\"web-1\"] is wrong"),
        (format!("{}\ninstances = []", without("instances")), "has 0 ids: expected 1 to 10000"),
        (format!("{MORNING}file = \"fleet.txt\""), "one of them: there are instances and file"),
        (
            format!("{}\nselect = \"tags=wake\"", without("instances")),
            "schedule[0].select: \"tags=wake\" is wrong: there is no condition \"tags\"; did you mean tag?",
        ),
        (format!("{MORNING}calendar = \"cn\""), "there is no [[calendar]] with the name \"cn\"; there is none"),
        (format!("{MORNING}deadline = \"30m\""), "is no longer than misfire_grace, 1800s"),
        (format!("{MORNING}misfire_grace = \"8d\""), "expected a length of time above zero, up to 7 days"),
        (format!("{MORNING}ready_by = \"7:30\""), "schedule[0].ready_by: \"7:30\" is wrong: expected true or false"),
        (
            format!("{MORNING}ready_by = true\nconfirm = \"accepted\""),
            "schedule[0].confirm: is \"accepted\", and ready_by needs jobs that wait until their machine runs",
        ),
        (format!("{MORNING}least = \"half\""), "schedule[0].least: \"half\" is wrong: expected a part"),
        (format!("{MORNING}least = \"101%\""), "schedule[0].least: \"101%\" is wrong: expected a part"),
        (format!("{MORNING}cronn = \"\""), "no such setting; did you mean cron?"),
        (
            "[[calendar]]\nname = \"cn\"\nskip_dates = [\"2026-10-07..2026-10-01\"]".to_owned(),
            "expected a list of up to 1000 days",
        ),
        ("[[calendar]]\nname = \"cn\"\nextra_as = \"Fri\"".to_owned(), "expected monday, tuesday"),
        ("[[calendar]]\nname = \"cn\"\n[[calendar]]\nname = \"cn\"".to_owned(), "cn is taken by a calendar above"),
    ] {
        let problems = problems(&file, &[]);
        assert!(problems.len() == 1 && problems[0].contains(told), "{file}\n{problems:?}");
    }
}
