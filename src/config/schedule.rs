//! `[[calendar]]` and `[[schedule]]`: which machines start when.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::civil::Weekday;
use jiff::tz::TimeZone;

use super::reader::{Raw, Reader, Table};
use super::{Lane, LaneName, is_name};
use crate::bce::{InstanceId, Selection};
use crate::events::MaxFailures;
use crate::job::{Confirm, Conflict};
use crate::schedule::{Calendar, Days, Timetable, zone};

const NAME: &str = "1 to 40 of a-z 0-9 -, a letter or digit first";
const DAYS: &str = "a list of up to 1000 days and ranges of days, as in [\"2026-10-01..2026-10-07\", \"2026-12-31\"]";
const INSTANCES: &str = "a list of instance ids, as in [\"i-YufwpQAe\"]";
const LENGTH: &str = "a length of time above zero, up to 7 days, such as 90m or 36h";
const WEEKDAYS: [(&str, Weekday); 7] = [
    ("monday", Weekday::Monday),
    ("tuesday", Weekday::Tuesday),
    ("wednesday", Weekday::Wednesday),
    ("thursday", Weekday::Thursday),
    ("friday", Weekday::Friday),
    ("saturday", Weekday::Saturday),
    ("sunday", Weekday::Sunday),
];
/// The `least` of a schedule that says none.
const LEAST: u8 = 50;
/// The most entries of a calendar, and the most schedules.
const MOST: usize = 1_000;
/// The most instances that stand in the configuration itself.
const MOST_INSTANCES: usize = 10_000;
/// Longer than the log keeps events, nobody knows what was fired.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// A time at which machines start, again and again.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// 1 to 40 of `a-z 0-9 -`, its own among all replicas.
    pub name: String,
    /// The lane of its jobs.
    pub lane: LaneName,
    /// When it is due.
    pub timetable: Timetable,
    /// What makes a timetable another one: the cron line and the zone, as they were given.
    pub line: String,
    /// The name of its `[[calendar]]`.
    pub calendar: Option<String>,
    /// Its machines, named when it fires.
    pub machines: Machines,
    /// The 409 policy of its jobs; the lane's where absent.
    pub conflict: Option<Conflict>,
    /// When its jobs are done; the lane's where absent.
    pub confirm: Option<Confirm>,
    /// From the due time on; jobs end as `expired` after it. Above 0, to seven days.
    pub deadline: Option<Duration>,
    /// How many of its jobs may fail before the rest is cancelled; any number where absent.
    pub max_failures: Option<MaxFailures>,
    /// How late a due time may be fired: above 0, to seven days.
    pub misfire_grace: Duration,
    /// Its machines are to be up when it is due, so it is fired before.
    pub ready_by: bool,
    /// Instances that its lane starts in a second, at most: above 0.
    pub pace: f64,
    /// Fewer jobs than so many of a hundred of the last due time are worth a warning: 0 to 100.
    pub least: u8,
}

#[cfg(test)]
impl Schedule {
    /// One of a machine in lane `prod`, by a line that is read in Asia/Shanghai.
    pub fn example(name: &str, cron: &str, calendar: Option<Calendar>) -> Self {
        Self {
            name: name.to_owned(),
            lane: LaneName::parse("prod").unwrap(),
            line: format!("{cron} Asia/Shanghai"),
            calendar: calendar.as_ref().map(|_| "cn".to_owned()),
            timetable: Timetable::new(cron, zone("Asia/Shanghai").unwrap(), calendar.map(Arc::new)).unwrap(),
            machines: Machines::Listed(vec![InstanceId::parse("i-0000").unwrap()]),
            conflict: None,
            confirm: None,
            deadline: None,
            max_failures: None,
            misfire_grace: Duration::from_secs(30 * 60),
            ready_by: true,
            pace: 20.0,
            least: LEAST,
        }
    }
}

/// The machines of a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Machines {
    /// These.
    Listed(Vec<InstanceId>),
    /// Those in a file, as `submit --file` reads it.
    File(PathBuf),
    /// Those that the lane's API lists, as `submit --select` chooses them.
    Selected(Selection),
}

/// Reads all calendars and schedules. `is_whole`: every lane could be read; otherwise a schedule's lane may be among the others.
pub(super) fn read_schedules(reader: &mut Reader, lanes: &[Lane], is_whole: bool) -> Vec<Schedule> {
    let calendars = read_calendars(reader);
    let mut schedules: Vec<Schedule> = Vec::new();
    for member in reader.members("schedule") {
        let mut table = reader.table(&member);
        let lane = read_lane(&mut table, lanes, is_whole);
        let lane = lane.and_then(|name| lanes.iter().find(|lane| lane.name == name));
        let schedule = read_schedule(&mut table, lane, &calendars);
        if let Some(schedule) = schedule {
            if schedules.iter().any(|other| other.name == schedule.name) {
                let name = &schedule.name;
                table.problem("name", format!("{name} is taken by a schedule above: expected a name of its own"));
            } else if schedules.len() == MOST {
                table.problem("name", format!("is one of more than {MOST} schedules: expected fewer"));
            }
            schedules.push(schedule);
        }
        table.finish();
    }
    schedules
}

fn read_calendars(reader: &mut Reader) -> BTreeMap<String, Arc<Calendar>> {
    let mut calendars = BTreeMap::new();
    for member in reader.members("calendar") {
        let mut table = reader.table(&member);
        let name = required(&mut table, "name", NAME, "cn", read_name);
        if calendars.len() == MOST {
            table.problem("name", format!("is one of more than {MOST} calendars: expected fewer"));
        }
        let skipped = table.or("skip_dates", Vec::new(), DAYS, days);
        let added = table.or("extra_dates", Vec::new(), DAYS, days);
        let added_as = table.named("extra_as", &WEEKDAYS).unwrap_or(Weekday::Friday);
        if let Some(name) = name
            && calendars.insert(name.clone(), Arc::new(Calendar::new(skipped, &added, added_as))).is_some()
        {
            table.problem("name", format!("{name} is taken by a calendar above: expected a name of its own"));
        }
        table.finish();
    }
    calendars
}

/// The named lane, or the only one.
fn read_lane(table: &mut Table<'_>, lanes: &[Lane], is_whole: bool) -> Option<LaneName> {
    let is_given = table.has("lane");
    let lane = table.optional("lane", "the name of a lane", |raw| LaneName::parse(raw.text()?));
    let names = || lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(", ");
    match (lane, lanes) {
        (Some(lane), _) => {
            if is_whole && !lanes.iter().any(|one| one.name == lane) {
                table.problem("lane", format!("there is no lane {lane}: expected one of {}", names()));
            }
            Some(lane)
        }
        (None, [only]) if !is_given => Some(only.name.clone()),
        (None, _) => {
            if !is_given && is_whole {
                table.problem("lane", format!("missing: expected one of {}", names()));
            }
            None
        }
    }
}

fn read_schedule(
    table: &mut Table<'_>,
    lane: Option<&Lane>,
    calendars: &BTreeMap<String, Arc<Calendar>>,
) -> Option<Schedule> {
    let name = required(table, "name", NAME, "morning", read_name);
    let zone_name = required(table, "timezone", "an IANA name", "Asia/Shanghai", Raw::text_owned);
    let line = required(table, "cron", "a cron line", "30 7 * * 1-5", Raw::text_owned);
    let (calendar_name, calendar) = read_calendar(table, calendars).unzip();
    let zone = zone_name
        .as_ref()
        .and_then(|name| zone(name).map_err(|fault| table.problem("timezone", fault.to_string())).ok());
    if zone.is_none()
        && let Some(line) = &line
        && let Err(fault) = Timetable::new(line, TimeZone::UTC, None)
    {
        table.problem("cron", fault.to_string());
    }
    let timetable = zone.zip(line.as_ref()).and_then(|(zone, line)| {
        Timetable::new(line, zone, calendar?).map_err(|fault| table.problem("cron", fault.to_string())).ok()
    });
    let machines = read_machines(table);
    let conflict = table.named("conflict", &Conflict::NAMED);
    let ready_by = table.or("ready_by", false, "true or false", Raw::flag);
    let confirm = read_confirm(table, ready_by);
    let deadline = table.optional("deadline", LENGTH, up_to_a_week);
    let max_failures =
        table.optional("max_failures", "a number of jobs, as in 20, or a part of them, as in \"5%\"", |raw| {
            let jobs = || raw.count().and_then(|jobs| usize::try_from(jobs).ok()).map(MaxFailures::Jobs);
            jobs().or_else(|| MaxFailures::parse(raw.text()?).ok())
        });
    let misfire_grace = table.or("misfire_grace", Duration::from_secs(30 * 60), LENGTH, up_to_a_week);
    if deadline.is_some_and(|deadline| deadline <= misfire_grace) {
        table.problem("deadline", format!("is no longer than misfire_grace, {misfire_grace:?}: jobs that are fired late would expire at once; expected a longer deadline, or a shorter misfire_grace"));
    }
    let least = table.or("least", LEAST, "a part of the last time's jobs, from \"0%\" to \"100%\"", |raw| {
        raw.text()?.strip_suffix('%')?.parse().ok().filter(|percent| *percent <= 100)
    });
    let line = format!("{} {}", line?.trim(), zone_name?);
    let (name, lane, timetable, machines) = (name?, lane?, timetable?, machines?);
    Some(Schedule {
        name,
        lane: lane.name.clone(),
        timetable,
        line,
        calendar: calendar_name?,
        machines,
        conflict,
        confirm,
        deadline,
        max_failures,
        misfire_grace,
        ready_by,
        pace: lane.rate * f64::from(lane.batch),
        least,
    })
}

/// Whether a machine is up shows only where jobs wait for that.
fn read_confirm(table: &mut Table<'_>, ready_by: bool) -> Option<Confirm> {
    let confirm = table.named("confirm", &Confirm::NAMED);
    if ready_by && confirm == Some(Confirm::Accepted) {
        table.problem(
            "confirm",
            "is \"accepted\", and ready_by needs jobs that wait until their machine runs: expected \"running\", or no ready_by".to_owned(),
        );
    }
    if ready_by { Some(Confirm::Running) } else { confirm }
}

/// `None` if the calendar is wrong; within, `None` if there is none.
fn read_calendar(
    table: &mut Table<'_>,
    calendars: &BTreeMap<String, Arc<Calendar>>,
) -> Option<(Option<String>, Option<Arc<Calendar>>)> {
    let is_given = table.has("calendar");
    let Some(name) = table.optional("calendar", "the name of a [[calendar]]", Raw::text_owned) else {
        return (!is_given).then_some((None, None));
    };
    let found = calendars.get(&name).cloned();
    if found.is_none() {
        let names: Vec<&str> = calendars.keys().map(String::as_str).collect();
        let there =
            if names.is_empty() { "there is none".to_owned() } else { format!("there are {}", names.join(", ")) };
        table.problem("calendar", format!("there is no [[calendar]] with the name {name:?}; {there}"));
    }
    found.map(|calendar| (Some(name), Some(calendar)))
}

fn read_machines(table: &mut Table<'_>) -> Option<Machines> {
    let given: Vec<&str> = ["instances", "file", "select"].into_iter().filter(|key| table.has(key)).collect();
    let listed = table.optional("instances", INSTANCES, |raw| list(raw, |text| InstanceId::parse(text).ok()));
    let file = table.optional("file", "the path of a list, as of submit --file", |raw| {
        // Standard input is not the daemon's to read.
        raw.text_owned().filter(|path| path != "-")
    });
    let selected = table.checked("select", |text| text.parse::<Selection>());
    if given.len() != 1 {
        let there =
            if given.is_empty() { "none is given".to_owned() } else { format!("there are {}", given.join(" and ")) };
        table.problem("instances", format!("expected instances, file or select, one of them: {there}"));
        return None;
    }
    if let Some(listed) = &listed
        && !(1..=MOST_INSTANCES).contains(&listed.len())
    {
        table.problem(
            "instances",
            format!("has {} ids: expected 1 to {MOST_INSTANCES}; more fit into a file", listed.len()),
        );
    }
    let file = file.map(|path| Machines::File(path.into()));
    listed.map(Machines::Listed).or(file).or(selected.map(Machines::Selected))
}

fn required<T>(
    table: &mut Table<'_>,
    key: &'static str,
    expected: &str,
    example: &str,
    parse: impl FnOnce(&Raw) -> Option<T>,
) -> Option<T> {
    if !table.has(key) {
        table.problem(key, format!("missing: expected {expected}, such as {example:?}"));
    }
    table.optional(key, expected, parse)
}

fn read_name(raw: &Raw) -> Option<String> {
    raw.text().filter(|text| is_name(text, b"-")).map(str::to_owned)
}

fn up_to_a_week(raw: &Raw) -> Option<Duration> {
    raw.duration().filter(|duration| *duration <= LONGEST)
}

fn days(raw: &Raw) -> Option<Vec<Days>> {
    list(raw, Days::parse).filter(|days| days.len() <= MOST)
}

fn list<T>(raw: &Raw, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    raw.texts()?.iter().map(|text| parse(text)).collect()
}
