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

use jiff::{SignedDuration, Timestamp};

use super::HELD_KEY;
use super::batches::is_key;
use crate::config::Schedule;
use crate::events::{
    ByHand, Data, MissedReason, ScheduleFired, ScheduleKnown, ScheduleMissed, ScheduleState, ScheduleStory,
    SchedulerHeld,
};
use crate::schedule::{Due, Timetable, due};

/// How far ahead of the clock the log can be: clocks of replicas differ. What says more was made up, or said by a clock that was
/// wrong, and would silence a schedule.
pub(super) const AHEAD: SignedDuration = SignedDuration::from_hours(1);
/// Schedules of other replicas' configurations that are passed on to the next holder, and the longest name and line of one, in bytes.
const MOST_OTHERS: usize = 1_000;
const NAME_LIMIT: usize = 40;
const LINE_LIMIT: usize = 200;

/// What is known of schedules.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    /// By name.
    known: BTreeMap<String, Known>,
    /// Those that this replica does not have.
    others: BTreeMap<String, ScheduleState>,
    /// When the holder last looked for what is due.
    looked: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    line: String,
    until: Timestamp,
    /// A due time that could not be fired, and why.
    failed: Option<(Timestamp, String)>,
    /// A due time that was to be fired, and how late it is by now.
    tried: Option<(Timestamp, Duration)>,
    /// The due time after `until`, once it was looked for.
    next: Option<Option<Timestamp>>,
}

impl Known {
    fn of(line: &str, until: Timestamp) -> Self {
        Self { line: line.to_owned(), until, failed: None, tried: None, next: None }
    }

    fn done(&mut self, until: Timestamp) {
        if until > self.until {
            (self.until, self.next) = (until, None);
        }
    }

    fn next(&mut self, timetable: &Timetable) -> Option<Timestamp> {
        *self.next.get_or_insert_with(|| timetable.after(self.until))
    }
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Step<'a> {
    /// To be published before anything else of the schedule.
    Publish(&'a Schedule, Data),
    /// The jobs of this due time are to be submitted, by a command or else by the clock.
    Fire(&'a Schedule, Timestamp, Option<ByHand>),
}

impl Agenda {
    /// Takes an event of the log, which was published under the routing key `key`. What it says of a schedule counts if the schedule is
    /// of the event's lane, and no time of it is to come.
    pub(super) fn hear(&mut self, schedules: &[Schedule], key: &str, data: &Data, time: Timestamp, now: Timestamp) {
        let latest = now.saturating_add(AHEAD).unwrap_or(Timestamp::MAX);
        let is_ours = |name: &str, lane: &str, word: &str| {
            is_key(key, lane, word) && schedules.iter().any(|one| one.name == name && one.lane.as_str() == lane)
        };
        match data {
            Data::ScheduleKnown(ScheduleKnown { schedule, lane, line })
                if is_ours(schedule, lane, "scheduled") && time <= latest =>
            {
                self.know(schedule, line, time);
            }
            Data::ScheduleFired(ScheduleFired { schedule, lane, due, by_hand: None, .. })
                if is_ours(schedule, lane, "fired") && *due <= latest =>
            {
                self.done(schedule, *due);
            }
            Data::ScheduleMissed(ScheduleMissed { schedule, lane, last_due, by_hand: None, .. })
                if is_ours(schedule, lane, "missed") && *last_due <= latest =>
            {
                self.done(schedule, *last_due);
            }
            Data::SchedulerHeld(SchedulerHeld { schedules: states, .. }) if key == HELD_KEY => {
                for state in states.iter().filter(|state| state.until <= latest) {
                    self.take(schedules, state);
                }
            }
            _ => {}
        }
    }

    /// Takes what an earlier holder wrote down.
    fn take(&mut self, schedules: &[Schedule], state: &ScheduleState) {
        let ScheduleState { schedule, line, until, .. } = state;
        if line.len() > LINE_LIMIT || schedule.len() > NAME_LIMIT {
            return;
        }
        if schedules.iter().any(|one| one.name == *schedule) {
            self.know(schedule, line, *until);
        } else if self.others.len() < MOST_OTHERS || self.others.contains_key(schedule) {
            self.others.insert(schedule.clone(), state.clone());
        }
    }

    /// What the next holder has to know: of the schedules that there are, and of those that only other replicas have.
    pub(super) fn states(&self) -> Vec<ScheduleState> {
        let state = |(schedule, known): (&String, &Known)| {
            let (line, until) = (known.line.clone(), known.until);
            ScheduleState { schedule: schedule.clone(), line, until, story: ScheduleStory::default() }
        };
        self.known.iter().map(state).chain(self.others.values().cloned()).collect()
    }

    fn know(&mut self, schedule: &str, line: &str, until: Timestamp) {
        match self.known.get_mut(schedule) {
            Some(known) if known.line == line => known.done(until),
            _ => drop(self.known.insert(schedule.to_owned(), Known::of(line, until))),
        }
    }

    /// Everything until then is dealt with.
    pub(super) fn done(&mut self, schedule: &str, until: Timestamp) {
        if let Some(known) = self.known.get_mut(schedule) {
            known.done(until);
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

    /// The due time that is next to be dealt with: one that has passed is late.
    pub(super) fn next(&mut self, schedule: &Schedule) -> Option<Timestamp> {
        self.known.get_mut(&schedule.name)?.next(&schedule.timetable)
    }

    /// The next due time, if that is to be fired `now` since it is no further away than `lead`, and the schedule is not paused now or
    /// then. One is fired ahead and no more, and only once all that has passed is dealt with.
    pub(super) fn early(
        &mut self,
        schedule: &Schedule,
        now: Timestamp,
        lead: Duration,
        pause: impl Fn(&Schedule, Timestamp) -> Option<String>,
    ) -> Option<Timestamp> {
        let is_dealt_with = |known: &&mut Known| known.line == schedule.line && known.until <= now;
        let known = self.known.get_mut(&schedule.name).filter(is_dealt_with)?;
        let next = known.next(&schedule.timetable).filter(|next| *next > now)?;
        let is_paused = pause(schedule, now).or_else(|| pause(schedule, next)).is_some();
        (next.duration_since(now).unsigned_abs() <= lead && !is_paused).then_some(next)
    }

    /// What is to be done `now`. `elapsed`: the time that has really gone by since the last look of this holder. `pause` describes
    /// the pause of a schedule at an instant: what is due then, or is still to be fired then, is missed. Each step is repeated by the
    /// next look until [`Agenda::hear`] or [`Agenda::done`] has it.
    pub(super) fn look<'a>(
        &mut self,
        schedules: &'a [Schedule],
        now: Timestamp,
        elapsed: Duration,
        pause: impl Fn(&Schedule, Timestamp) -> Option<String>,
    ) -> Vec<Step<'a>> {
        let looked = self.looked.replace(now);
        let mut steps = Vec::new();
        for schedule in schedules {
            let known = match self.known.get_mut(&schedule.name) {
                Some(known) if known.line == schedule.line => known,
                _ => {
                    let (name, line) = (schedule.name.clone(), schedule.line.clone());
                    self.known.insert(name.clone(), Known::of(&line, now));
                    let lane = schedule.lane.to_string();
                    let known = ScheduleKnown { schedule: name, lane, line };
                    steps.push(Step::Publish(schedule, Data::ScheduleKnown(known)));
                    continue;
                }
            };
            if let Some((_, late)) = &mut known.tried {
                *late = late.saturating_add(elapsed);
            }
            if known.next(&schedule.timetable).is_none_or(|next| next > now) {
                continue;
            }
            let lateness = |due: Timestamp| {
                let by_clock = now.duration_since(due).unsigned_abs();
                match known.tried {
                    // It was in time once, by a clock that was set since.
                    Some((tried, late)) if tried == due => late,
                    _ if looked.is_some_and(|looked| due > looked) => by_clock.min(elapsed),
                    _ => by_clock,
                }
            };
            let grace = schedule.misfire_grace;
            let Due { mut fire, mut missed } = due(&schedule.timetable, known.until, now, |due| lateness(due) <= grace);
            if let Some(pause) = pause(schedule, now).or_else(|| fire.and_then(|due| pause(schedule, due))) {
                missed.extend(fire.take());
                let text = format!("the schedule was paused {pause}");
                steps.extend(miss(schedule, &missed, MissedReason::Paused, text));
                continue;
            }
            let grace = format!("within misfire_grace, {grace:?}");
            let (reason, text) = match &known.failed {
                Some((due, why)) if missed.contains(due) => (
                    MissedReason::Failed,
                    format!("its jobs could not be submitted {grace}, or until the next time: {why}"),
                ),
                _ if fire.is_some() => {
                    (MissedReason::Superseded, "a later time is due as well, and fired in its place".to_owned())
                }
                _ => (MissedReason::Late, format!("no replica fired it {grace}")),
            };
            steps.extend(miss(schedule, &missed, reason, text));
            if let Some(due) = fire {
                known.tried = Some((due, lateness(due)));
                steps.push(Step::Fire(schedule, due, None));
            }
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
        by_hand: None,
    };
    Some(Step::Publish(schedule, Data::ScheduleMissed(missed)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::replica::Replica;

    const MINUTE: Duration = Duration::from_secs(60);

    pub(in crate::scheduler) fn at(text: &str) -> Timestamp {
        format!("2026-11-{text}:00+08:00").parse().unwrap()
    }

    pub(in crate::scheduler) fn schedule(name: &str, cron: &str) -> Schedule {
        Schedule::example(name, cron, None)
    }

    /// A due time that was fired by the clock.
    pub(in crate::scheduler) fn fired() -> ScheduleFired {
        ScheduleFired {
            schedule: "morning".to_owned(),
            lane: "prod".to_owned(),
            due: at("25T07:30"),
            batch_id: String::new(),
            size: 1,
            waves: 1,
            previous_size: None,
            small: false,
            plan: None,
            by_hand: None,
        }
    }

    /// The steps as short texts.
    fn told(steps: &[Step<'_>]) -> Vec<String> {
        let told = |step: &Step<'_>| match step {
            Step::Publish(_, Data::ScheduleKnown(known)) => format!("known {}", known.schedule),
            Step::Publish(_, Data::ScheduleMissed(missed)) => format!("{:?} {}", missed.reason, missed.count),
            Step::Publish(_, data) => format!("{data:?}"),
            Step::Fire(schedule, due, _) => format!("fire {} {due}", schedule.name),
        };
        steps.iter().map(told).collect()
    }

    /// An agenda that has looked at this time.
    fn looked(schedules: &[Schedule], now: &str) -> Agenda {
        let mut agenda = Agenda::default();
        agenda.look(schedules, at(now), MINUTE, |_, _| None);
        agenda
    }

    #[test]
    fn a_schedule_that_is_first_seen_or_changed_has_no_past() {
        let mut agenda = Agenda::default();
        let first = [schedule("morning", "30 7 * * *")];
        assert_eq!(told(&agenda.look(&first, at("25T07:31"), MINUTE, |_, _| None)), ["known morning"]);
        assert_eq!(told(&agenda.look(&first, at("25T07:32"), MINUTE, |_, _| None)), Vec::<String>::new());
        let changed = [schedule("morning", "0 7 * * *")];
        assert_eq!(told(&agenda.look(&changed, at("25T07:33"), MINUTE, |_, _| None)), ["known morning"]);
        assert_eq!(
            told(&agenda.look(&changed, at("26T07:00"), MINUTE, |_, _| None)),
            ["fire morning 2026-11-25T23:00:00Z"]
        );
    }

    #[test]
    fn a_due_time_is_fired_until_it_is_done_and_then_no_more() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        for now in ["25T07:30", "25T07:31"] {
            let steps = told(&agenda.look(&schedules, at(now), MINUTE, |_, _| None));
            assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z"]);
        }
        agenda.done("morning", at("25T07:30"));
        assert!(agenda.look(&schedules, at("25T07:32"), MINUTE, |_, _| None).is_empty());
    }

    #[test]
    fn the_next_holder_goes_on_where_the_log_says() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let fired = |schedule: &str, day: &str| {
            let (schedule, due) = (schedule.to_owned(), at(&format!("{day}T07:30")));
            Data::ScheduleFired(ScheduleFired { schedule, due, ..fired() })
        };
        let mut next = Agenda::default();
        take(&mut next, &schedules, looked(&schedules, "22T08:00").states());
        next.hear(&schedules, "prod.fired", &fired("morning", "23"), at("23T07:31"), at("25T07:45"));
        // One that anybody made up, and one of a schedule that is not known.
        next.hear(&schedules, "prod.started", &fired("morning", "26"), at("23T07:31"), at("25T07:45"));
        next.hear(&schedules, "prod.fired", &fired("other", "26"), at("23T07:31"), at("25T07:45"));
        let steps = told(&next.look(&schedules, at("25T07:45"), Duration::ZERO, |_, _| None));
        assert_eq!(steps, ["Superseded 1", "fire morning 2026-11-24T23:30:00Z"]);
        // Too late for the last one, and for all.
        let mut late = Agenda::default();
        take(&mut late, &schedules, looked(&schedules, "22T08:00").states());
        let steps = told(&late.look(&schedules, at("25T08:01"), Duration::ZERO, |_, _| None));
        assert_eq!(steps, ["Late 3"]);
    }

    #[test]
    fn a_clock_that_is_set_forth_and_back_neither_doubles_nor_misses() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:10");
        // An hour ahead after a second: 7:30 was passed over, and no time has gone by.
        let second = Duration::from_secs(1);
        let steps = told(&agenda.look(&schedules, at("25T08:10"), second, |_, _| None));
        assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z"]);
        agenda.done("morning", at("25T07:30"));
        for now in ["25T07:10", "25T07:30", "25T07:31"] {
            assert!(agenda.look(&schedules, at(now), second, |_, _| None).is_empty(), "{now}");
        }
        // A holder that really did not look for so long is late.
        let mut agenda = looked(&schedules, "25T07:10");
        assert_eq!(told(&agenda.look(&schedules, at("25T08:10"), 60 * MINUTE, |_, _| None)), ["Late 1"]);
    }

    #[test]
    fn what_is_due_while_a_schedule_is_paused_is_missed() {
        let schedules = [schedule("morning", "30 7 * * *"), schedule("noon", "0 12 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        assert_eq!(agenda.next(&schedules[0]), Some(at("25T07:30")));
        let paused = |from: &'static str, to: &'static str| {
            let by_whom = "by ops@desk: patching".to_owned();
            move |schedule: &Schedule, time| {
                (schedule.name == "morning" && at(from) <= time && time < at(to)).then(|| by_whom.clone())
            }
        };
        let steps = agenda.look(&schedules, at("25T12:00"), 2 * MINUTE, paused("25T07:00", "26T00:00"));
        assert_eq!(told(&steps), ["Paused 1", "fire noon 2026-11-25T04:00:00Z"]);
        let Step::Publish(_, Data::ScheduleMissed(missed)) = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(missed.text, "the schedule was paused by ops@desk: patching");
        assert_eq!(agenda.next(&schedules[0]), Some(at("25T07:30")), "until it is done");
        agenda.done("morning", at("25T07:30"));
        assert_eq!(agenda.next(&schedules[0]), Some(at("26T07:30")));
    }

    #[test]
    fn what_was_due_during_a_pause_is_not_fired_by_a_holder_that_comes_later() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let paused = |from, to| move |_: &Schedule, time| (at(from) <= time && time < at(to)).then(String::new);
        let mut agenda = looked(&schedules, "25T07:00");
        let steps = agenda.look(&schedules, at("25T07:45"), 45 * MINUTE, paused("25T07:10", "25T07:40"));
        assert_eq!(told(&steps), ["Paused 1"]);
        // One that was due before is not fired either: it is held back in time.
        let steps = agenda.look(&schedules, at("25T07:45"), 45 * MINUTE, paused("25T07:44", "25T08:00"));
        assert_eq!(told(&steps), ["Paused 1"]);
        let steps = agenda.look(&schedules, at("25T07:45"), 45 * MINUTE, paused("25T07:00", "25T07:30"));
        assert_eq!(told(&steps), ["fire morning 2026-11-24T23:30:00Z"]);
    }

    #[test]
    fn what_is_fired_by_hand_is_no_due_time_that_is_dealt_with() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        let by_hand = Some(ByHand { by: "ops@desk".to_owned(), command_id: "c".to_owned() });
        let fired = ScheduleFired { due: at("25T08:00"), by_hand, ..fired() };
        agenda.hear(&schedules, "prod.fired", &Data::ScheduleFired(fired), at("25T07:20"), at("25T07:20"));
        let steps = agenda.look(&schedules, at("25T07:30"), MINUTE, |_, _| None);
        assert_eq!(told(&steps), ["fire morning 2026-11-24T23:30:00Z"]);
    }

    #[test]
    fn what_could_not_be_fired_is_missed_with_the_reason() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        agenda.look(&schedules, at("25T07:30"), MINUTE, |_, _| None);
        agenda.failed("morning", at("25T07:30"), "fleet.txt cannot be read".to_owned());
        let steps = agenda.look(&schedules, at("25T08:01"), 31 * MINUTE, |_, _| None);
        let [Step::Publish(_, Data::ScheduleMissed(missed))] = &steps[..] else { panic!("{steps:?}") };
        assert_eq!(missed.reason, MissedReason::Failed);
        assert!(missed.text.ends_with("fleet.txt cannot be read"), "{}", missed.text);
        // Also where the next due time has come before its grace is over.
        let schedules = [schedule("often", "*/10 * * * *")];
        let mut agenda = looked(&schedules, "25T07:05");
        agenda.look(&schedules, at("25T07:10"), MINUTE, |_, _| None);
        agenda.failed("often", at("25T07:10"), "fleet.txt cannot be read".to_owned());
        let steps = agenda.look(&schedules, at("25T07:20"), 10 * MINUTE, |_, _| None);
        assert_eq!(told(&steps), ["Failed 1", "fire often 2026-11-24T23:20:00Z"]);
    }

    #[test]
    fn one_due_time_is_fired_ahead_once_all_that_has_passed_is_dealt_with() {
        let schedules = [schedule("half", "*/30 * * * *")];
        let [half] = &schedules;
        let (mut agenda, lead) = (looked(&schedules, "25T07:10"), 10 * MINUTE);
        let due = |text| Some(at(text));
        let early = |agenda: &mut Agenda, now, lead| agenda.early(half, at(now), lead, |_, _| None);
        assert_eq!(early(&mut agenda, "25T07:19", lead), None);
        assert_eq!(early(&mut agenda, "25T07:20", lead), due("25T07:30"));
        // It could not be fired ahead: it is as any other.
        assert_eq!(early(&mut agenda, "25T07:30", lead), None);
        let steps = told(&agenda.look(&schedules, at("25T07:30"), MINUTE, |_, _| None));
        assert_eq!(steps, ["fire half 2026-11-24T23:30:00Z"]);
        assert_eq!(early(&mut agenda, "25T07:55", lead), None, "07:30 is not dealt with");
        agenda.done("half", at("25T07:30"));
        assert_eq!(early(&mut agenda, "25T07:55", lead), due("25T08:00"));
        agenda.done("half", at("25T08:00"));
        assert_eq!(early(&mut agenda, "25T07:56", 60 * MINUTE), None, "one is ahead already");
        // Once that has passed, the next may be.
        assert!(agenda.look(&schedules, at("25T08:00"), MINUTE, |_, _| None).is_empty());
        assert_eq!(early(&mut agenda, "25T08:00", 60 * MINUTE), due("25T08:30"));
        // The clock is set back: what was fired is not fired again.
        assert_eq!(early(&mut agenda, "25T07:25", lead), None);
        let changed = schedule("half", "15 * * * *");
        assert_eq!(agenda.early(&changed, at("25T08:10"), lead, |_, _| None), None, "it has to be known first");
    }

    #[test]
    fn a_paused_schedule_is_not_fired_ahead() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        let mut early = |from, to| {
            let paused = |_: &Schedule, time| (at(from) <= time && time < at(to)).then(String::new);
            agenda.early(&schedules[0], at("25T07:25"), 10 * MINUTE, paused)
        };
        assert_eq!(early("25T07:10", "25T07:28"), None, "now");
        assert_eq!(early("25T07:28", "25T08:00"), None, "when it is due");
        assert_eq!(early("25T07:10", "25T07:20"), Some(at("25T07:30")));
    }

    fn take(agenda: &mut Agenda, schedules: &[Schedule], states: Vec<ScheduleState>) {
        let (resume_from, boots, done) = (None, Vec::new(), Vec::new());
        let held = SchedulerHeld { replica: Replica::this(), resume_from, schedules: states, boots, done };
        agenda.hear(schedules, HELD_KEY, &Data::SchedulerHeld(held), at("25T07:45"), at("25T07:45"));
    }

    #[test]
    fn what_others_make_up_silences_no_schedule_and_does_not_fill_the_memory() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:00");
        let mut hear = |lane: &str, due: &str| {
            let fired = ScheduleFired { lane: lane.to_owned(), due: due.parse().unwrap(), ..fired() };
            agenda.hear(
                &schedules,
                &format!("{lane}.fired"),
                &Data::ScheduleFired(fired),
                at("25T07:01"),
                at("25T07:01"),
            );
        };
        hear("test", "2026-11-25T00:00:00Z");
        hear("prod", "2099-01-01T00:00:00Z");
        let state = |schedule: String, until: &str| ScheduleState {
            schedule,
            line: schedules[0].line.clone(),
            until: until.parse().unwrap(),
            story: ScheduleStory::default(),
        };
        take(&mut agenda, &schedules, vec![state("morning".to_owned(), "2099-01-01T00:00:00Z")]);
        take(&mut agenda, &schedules, vec![state("x".repeat(80_000), "2026-11-25T00:00:00Z")]);
        let many = (0..2 * MOST_OTHERS).map(|number| state(number.to_string(), "2026-11-25T00:00:00Z"));
        take(&mut agenda, &schedules, many.collect());
        assert_eq!((agenda.others.len(), agenda.states().len()), (MOST_OTHERS, MOST_OTHERS + 1));
        let steps = agenda.look(&schedules, at("25T07:30"), MINUTE, |_, _| None);
        assert_eq!(told(&steps), ["fire morning 2026-11-24T23:30:00Z"]);
    }

    #[test]
    fn what_another_replica_alone_has_is_passed_on() {
        let both = [schedule("morning", "30 7 * * *"), schedule("noon", "0 12 * * *")];
        let mut without = Agenda::default();
        take(&mut without, &both[..1], looked(&both, "22T08:00").states());
        let mut next = Agenda::default();
        take(&mut next, &both, without.states());
        let steps = told(&next.look(&both, at("22T12:10"), Duration::ZERO, |_, _| None));
        assert_eq!(steps, ["fire noon 2026-11-22T04:00:00Z"]);
    }

    #[test]
    fn a_first_try_that_fails_after_the_clock_was_set_is_tried_again() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let mut agenda = looked(&schedules, "25T07:10");
        let second = Duration::from_secs(1);
        for now in ["25T08:10", "25T08:11"] {
            let steps = told(&agenda.look(&schedules, at(now), second, |_, _| None));
            assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z"]);
        }
        assert_eq!(told(&agenda.look(&schedules, at("25T08:12"), 31 * MINUTE, |_, _| None)), ["Late 1"]);
    }
}
