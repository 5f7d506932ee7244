//! Which schedules are to be fired, by the log of outcomes and the clock. Pure.
//!
//! What was due is known from the log: the last due time that was fired, or missed. A holder that takes over reads it there, so each
//! due time is dealt with once, whatever dies; one that dies halfway through its jobs has said nothing yet, and the next holder
//! submits all of them again under the same ids.
//!
//! **Clocks.** A due time that has passed since the holder last looked is no later than the time that has really gone by
//! since, whatever the clock says: one that is set forward fires what it passes over, one that is set back fires nothing again.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::HELD_KEY;
use super::batches::is_key;
use crate::config::Schedule;
use crate::events::{
    Data, MissedReason, ScheduleFired, ScheduleKnown, ScheduleMissed, ScheduleState, ScheduleStory, SchedulerHeld,
};
use crate::schedule::{Due, due};

/// Schedules that are remembered: more than a configuration has. Anybody who may publish outcomes can make up others.
const MOST: usize = 10_000;

/// What is known of schedules.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    known: BTreeMap<String, Known>,
    /// When the holder last looked for what is due.
    looked: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    line: String,
    until: Timestamp,
    /// A due time that could not be fired, and why.
    failed: Option<(Timestamp, String)>,
}

impl Known {
    fn of(line: &str, until: Timestamp) -> Self {
        Self { line: line.to_owned(), until, failed: None }
    }
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// To be published before anything else of the schedule.
    Publish(&'a Schedule, Data),
    /// The jobs of this due time are to be submitted.
    Fire(&'a Schedule, Timestamp),
}

impl Agenda {
    /// Takes an event of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, key: &str, data: &Data, time: Timestamp) {
        match data {
            Data::ScheduleKnown(ScheduleKnown { schedule, lane, line }) if is_key(key, lane, "scheduled") => {
                self.know(schedule, line, time);
            }
            Data::ScheduleFired(ScheduleFired { schedule, lane, due, .. }) if is_key(key, lane, "fired") => {
                self.done(schedule, *due);
            }
            Data::ScheduleMissed(ScheduleMissed { schedule, lane, last_due, .. }) if is_key(key, lane, "missed") => {
                self.done(schedule, *last_due);
            }
            Data::SchedulerHeld(SchedulerHeld { schedules, .. }) if key == HELD_KEY => self.take(schedules),
            _ => {}
        }
    }

    /// Takes what an earlier holder wrote down.
    fn take(&mut self, states: &[ScheduleState]) {
        for ScheduleState { schedule, line, until, .. } in states {
            self.know(schedule, line, *until);
        }
    }

    /// What the next holder has to know of the schedules that there are.
    pub(super) fn states(&self, schedules: &[Schedule]) -> Vec<ScheduleState> {
        let state = |schedule: &Schedule| {
            let Known { line, until, .. } = self.known.get(&schedule.name)?.clone();
            Some(ScheduleState { schedule: schedule.name.clone(), line, until, story: ScheduleStory::default() })
        };
        schedules.iter().filter_map(state).collect()
    }

    fn know(&mut self, schedule: &str, line: &str, until: Timestamp) {
        let has_room = self.known.len() < MOST;
        match self.known.get_mut(schedule) {
            Some(known) if known.line == line => known.until = known.until.max(until),
            Some(known) => *known = Known::of(line, until),
            None if has_room => drop(self.known.insert(schedule.to_owned(), Known::of(line, until))),
            None => {}
        }
    }

    /// Everything until then is dealt with.
    pub(super) fn done(&mut self, schedule: &str, until: Timestamp) {
        if let Some(known) = self.known.get_mut(schedule) {
            known.until = known.until.max(until);
        }
    }

    /// A due time could not be fired. Returns whether that is news.
    pub(super) fn failed(&mut self, schedule: &str, due: Timestamp, why: String) -> bool {
        let Some(known) = self.known.get_mut(schedule) else { return false };
        let failed = Some((due, why));
        let is_news = known.failed != failed;
        known.failed = failed;
        is_news
    }

    /// The next due time, if that is to be fired `now` since it is no further away than `lead`. One is fired ahead and no more, and
    /// only once all that has passed is dealt with.
    pub(super) fn early(&self, schedule: &Schedule, now: Timestamp, lead: Duration) -> Option<Timestamp> {
        let is_dealt_with = |known: &&Known| known.line == schedule.line && known.until <= now;
        let known = self.known.get(&schedule.name).filter(is_dealt_with)?;
        let next = schedule.timetable.after(known.until).filter(|next| *next > now)?;
        (next.duration_since(now).unsigned_abs() <= lead).then_some(next)
    }

    /// What is to be done `now`. `elapsed`: the time that has really gone by since the last look of this holder. A schedule for
    /// which `is_paused` is not fired. Each step is repeated by the next look until [`Agenda::hear`] or [`Agenda::done`] has it.
    pub(super) fn look<'a>(
        &mut self,
        schedules: &'a [Schedule],
        now: Timestamp,
        elapsed: Duration,
        is_paused: impl Fn(&Schedule) -> bool,
    ) -> Vec<Step<'a>> {
        let looked = self.looked.replace(now);
        let mut steps = Vec::new();
        for schedule in schedules {
            let Some(known) = self.known.get(&schedule.name).filter(|known| known.line == schedule.line) else {
                let (name, line) = (schedule.name.clone(), schedule.line.clone());
                self.known.insert(name.clone(), Known::of(&line, now));
                let lane = schedule.lane.to_string();
                steps.push(Step::Publish(schedule, Data::ScheduleKnown(ScheduleKnown { schedule: name, lane, line })));
                continue;
            };
            let lateness = |due: Timestamp| {
                let by_clock = now.duration_since(due).unsigned_abs();
                if looked.is_some_and(|looked| due > looked) { by_clock.min(elapsed) } else { by_clock }
            };
            let grace = schedule.misfire_grace;
            let Due { fire, missed } = due(&schedule.timetable, known.until, now, |due| lateness(due) <= grace);
            if is_paused(schedule) {
                let all: Vec<Timestamp> = missed.into_iter().chain(fire).collect();
                steps.extend(miss(schedule, &all, MissedReason::Paused, "the schedule is paused by hand".to_owned()));
                continue;
            }
            let grace = format!("within misfire_grace, {grace:?}");
            let (reason, text) = match &known.failed {
                _ if fire.is_some() => {
                    (MissedReason::Superseded, "a later time is due as well, and fired in its place".to_owned())
                }
                Some((due, why)) if missed.contains(due) => {
                    (MissedReason::Failed, format!("its jobs could not be submitted {grace}: {why}"))
                }
                _ => (MissedReason::Late, format!("no replica fired it {grace}")),
            };
            steps.extend(miss(schedule, &missed, reason, text));
            steps.extend(fire.map(|due| Step::Fire(schedule, due)));
        }
        steps
    }
}

/// That these due times, in order, are not fired any more.
fn miss<'a>(schedule: &'a Schedule, due: &[Timestamp], reason: MissedReason, text: String) -> Option<Step<'a>> {
    let (first, last) = (*due.first()?, *due.last()?);
    let missed = ScheduleMissed {
        schedule: schedule.name.clone(),
        lane: schedule.lane.to_string(),
        reason,
        text,
        count: due.len(),
        first_due: first,
        last_due: last,
    };
    Some(Step::Publish(schedule, Data::ScheduleMissed(missed)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bce::InstanceId;
    use crate::config::{LaneName, Machines};
    use crate::schedule::{Timetable, zone};

    const MINUTE: Duration = Duration::from_secs(60);

    pub(in crate::scheduler) fn at(text: &str) -> Timestamp {
        format!("2026-11-{text}:00+08:00").parse().unwrap()
    }

    pub(in crate::scheduler) fn schedule(name: &str, cron: &str) -> Schedule {
        Schedule {
            name: name.to_owned(),
            lane: LaneName::parse("prod").unwrap(),
            timetable: Timetable::new(cron, zone("Asia/Shanghai").unwrap(), None).unwrap(),
            line: format!("{cron} Asia/Shanghai"),
            machines: Machines::Listed(vec![InstanceId::parse("i-0000").unwrap()]),
            conflict: None,
            confirm: None,
            deadline: None,
            max_failures: None,
            misfire_grace: 30 * MINUTE,
            ready_by: true,
            pace: 20.0,
            least: 50,
        }
    }

    /// The steps as short texts.
    fn told(steps: &[Step<'_>]) -> Vec<String> {
        let told = |step: &Step<'_>| match step {
            Step::Publish(_, Data::ScheduleKnown(known)) => format!("known {}", known.schedule),
            Step::Publish(_, Data::ScheduleMissed(missed)) => format!("{:?} {}", missed.reason, missed.count),
            Step::Publish(_, data) => format!("{data:?}"),
            Step::Fire(schedule, due) => format!("fire {} {due}", schedule.name),
        };
        steps.iter().map(told).collect()
    }

    /// An agenda that has looked at this time.
    fn looked(schedules: &[Schedule], now: &str) -> Agenda {
        let mut agenda = Agenda::default();
        agenda.look(schedules, at(now), MINUTE, |_| false);
        agenda
    }

    #[test]
    fn a_schedule_that_is_first_seen_or_changed_has_no_past() {
        let mut agenda = Agenda::default();
        let first = [schedule("morning", "30 7 * * *")];
        assert_eq!(told(&agenda.look(&first, at("25T07:31"), MINUTE, |_| false)), ["known morning"]);
        assert_eq!(told(&agenda.look(&first, at("25T07:32"), MINUTE, |_| false)), Vec::<String>::new());
        let changed = [schedule("morning", "0 7 * * *")];
        assert_eq!(told(&agenda.look(&changed, at("25T07:33"), MINUTE, |_| false)), ["known morning"]);
        assert_eq!(
            told(&agenda.look(&changed, at("26T07:00"), MINUTE, |_| false)),
            ["fire morning 2026-11-25T23:00:00Z"]
        );
    }

    #[test]
    fn a_due_time_is_fired_until_it_is_done_and_then_no_more() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        for now in ["25T07:30", "25T07:31"] {
            let steps = told(&agenda.look(&schedules, at(now), MINUTE, |_| false));
            assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z"]);
        }
        agenda.done("morning", at("25T07:30"));
        assert!(agenda.look(&schedules, at("25T07:32"), MINUTE, |_| false).is_empty());
    }

    #[test]
    fn the_next_holder_goes_on_where_the_log_says() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let fired = |schedule: &str, day: &str| {
            let (schedule, lane, batch_id) = (schedule.to_owned(), "prod".to_owned(), String::new());
            let (due, previous_size, plan) = (at(&format!("{day}T07:30")), None, None);
            let (size, waves, small) = (1, 1, false);
            Data::ScheduleFired(ScheduleFired {
                schedule,
                lane,
                due,
                batch_id,
                size,
                waves,
                previous_size,
                small,
                plan,
            })
        };
        let mut next = Agenda::default();
        next.take(&looked(&schedules, "22T08:00").states(&schedules));
        next.hear("prod.fired", &fired("morning", "23"), at("23T07:31"));
        // One that anybody made up, and one of a schedule that is not known.
        next.hear("prod.started", &fired("morning", "26"), at("23T07:31"));
        next.hear("prod.fired", &fired("other", "26"), at("23T07:31"));
        let steps = told(&next.look(&schedules, at("25T07:45"), Duration::ZERO, |_| false));
        assert_eq!(steps, ["Superseded 1", "fire morning 2026-11-24T23:30:00Z"]);
        // Too late for the last one, and for all.
        let mut late = Agenda::default();
        late.take(&looked(&schedules, "22T08:00").states(&schedules));
        let steps = told(&late.look(&schedules, at("25T08:01"), Duration::ZERO, |_| false));
        assert_eq!(steps, ["Late 3"]);
    }

    #[test]
    fn a_clock_that_is_set_forth_and_back_neither_doubles_nor_misses() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:10");
        // An hour ahead after a second: 7:30 was passed over, and no time has gone by.
        let second = Duration::from_secs(1);
        let steps = told(&agenda.look(&schedules, at("25T08:10"), second, |_| false));
        assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z"]);
        agenda.done("morning", at("25T07:30"));
        for now in ["25T07:10", "25T07:30", "25T07:31"] {
            assert!(agenda.look(&schedules, at(now), second, |_| false).is_empty(), "{now}");
        }
        // A holder that really did not look for so long is late.
        let mut agenda = looked(&schedules, "25T07:10");
        assert_eq!(told(&agenda.look(&schedules, at("25T08:10"), 60 * MINUTE, |_| false)), ["Late 1"]);
    }

    #[test]
    fn what_is_due_while_a_schedule_is_paused_is_missed() {
        let schedules = [schedule("morning", "30 7 * * *"), schedule("noon", "0 12 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        let steps = told(&agenda.look(&schedules, at("25T12:00"), 2 * MINUTE, |schedule| schedule.name == "morning"));
        assert_eq!(steps, ["Paused 1", "fire noon 2026-11-25T04:00:00Z"]);
    }

    #[test]
    fn what_could_not_be_fired_is_missed_with_the_reason() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        agenda.look(&schedules, at("25T07:30"), MINUTE, |_| false);
        agenda.failed("morning", at("25T07:30"), "fleet.txt cannot be read".to_owned());
        let steps = agenda.look(&schedules, at("25T08:01"), MINUTE, |_| false);
        let [Step::Publish(_, Data::ScheduleMissed(missed))] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(missed.reason, MissedReason::Failed);
        assert!(missed.text.ends_with("fleet.txt cannot be read"), "{}", missed.text);
    }

    #[test]
    fn one_due_time_is_fired_ahead_once_all_that_has_passed_is_dealt_with() {
        let schedules = [schedule("half", "*/30 * * * *")];
        let [half] = &schedules;
        let (mut agenda, lead) = (looked(&schedules, "25T07:10"), 10 * MINUTE);
        let due = |text| Some(at(text));
        assert_eq!(agenda.early(half, at("25T07:19"), lead), None);
        assert_eq!(agenda.early(half, at("25T07:20"), lead), due("25T07:30"));
        // It could not be fired ahead: it is as any other.
        assert_eq!(agenda.early(half, at("25T07:30"), lead), None);
        let steps = told(&agenda.look(&schedules, at("25T07:30"), MINUTE, |_| false));
        assert_eq!(steps, ["fire half 2026-11-24T23:30:00Z"]);
        assert_eq!(agenda.early(half, at("25T07:55"), lead), None, "07:30 is not dealt with");
        agenda.done("half", at("25T07:30"));
        assert_eq!(agenda.early(half, at("25T07:55"), lead), due("25T08:00"));
        agenda.done("half", at("25T08:00"));
        assert_eq!(agenda.early(half, at("25T07:56"), 60 * MINUTE), None, "one is ahead already");
        // Once that has passed, the next may be.
        assert!(agenda.look(&schedules, at("25T08:00"), MINUTE, |_| false).is_empty());
        assert_eq!(agenda.early(half, at("25T08:00"), 60 * MINUTE), due("25T08:30"));
        // The clock is set back: what was fired is not fired again.
        assert_eq!(agenda.early(half, at("25T07:25"), lead), None);
        let changed = schedule("half", "15 * * * *");
        assert_eq!(agenda.early(&changed, at("25T08:10"), lead), None, "it has to be known first");
    }

    #[test]
    fn made_up_schedules_do_not_fill_the_memory() {
        let mut agenda = Agenda::default();
        for number in 0..2 * MOST {
            agenda.know(&number.to_string(), "", Timestamp::UNIX_EPOCH);
        }
        assert_eq!(agenda.known.len(), MOST);
    }
}
