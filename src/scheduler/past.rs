//! What the log of outcomes shows of schedules: how the last due time went, and how long machines take to boot. From this
//! follows how long before a due time a schedule is to be fired so that its machines are up by then. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::HELD_KEY;
use super::agenda::AHEAD;
use super::batches::is_key;
use super::boots::Boots;
use crate::config::{Machines, Schedule};
use crate::events::{
    Data, LaneBoots, LastCompleted, LastFired, Plan, ScheduleFired, ScheduleState, ScheduleStory, SchedulerHeld,
};

/// How long a machine takes to boot where the log shows none.
const USUAL_BOOT: Duration = Duration::from_secs(3 * 60);
/// A machine is seen running at a beat of five seconds, and what is due is so at a beat: the one before has to see it.
const BEAT: Duration = Duration::from_secs(5);
/// The longest before a due time that it is fired.
pub(super) const LONGEST_LEAD: Duration = Duration::from_secs(30 * 60);

/// What is known of configured schedules, in memory of their number.
#[derive(Debug)]
pub struct Past {
    /// With the lane of each.
    schedules: BTreeMap<String, (String, ScheduleStory)>,
    boots: Boots,
}

impl Past {
    /// Nothing is known yet.
    pub fn new(schedules: &[Schedule]) -> Self {
        let story =
            |schedule: &Schedule| (schedule.name.clone(), (schedule.lane.to_string(), ScheduleStory::default()));
        let early = schedules.iter().filter(|schedule| schedule.ready_by);
        Self {
            schedules: schedules.iter().map(story).collect(),
            boots: Boots::new(early.map(|schedule| schedule.lane.to_string())),
        }
    }

    /// Takes an event of the log that happened at `time`. A due time that is further ahead of `now` than one can be was made up.
    pub fn hear(&mut self, data: &Data, time: Timestamp, now: Timestamp) {
        let latest = now.saturating_add(AHEAD).unwrap_or(Timestamp::MAX);
        match data {
            Data::Job(job) => self.boots.hear(job, time),
            Data::ScheduleFired(ScheduleFired { schedule, lane, due, size, waves, small, .. }) if *due <= latest => {
                if let Some((_, story)) = self.schedules.get_mut(schedule).filter(|(own, _)| own == lane) {
                    fired(story, LastFired { due: *due, size: *size, waves: *waves, small: *small });
                }
            }
            Data::BatchCompleted(done) => {
                for (name, (lane, story)) in &mut self.schedules {
                    if let Some(due) = due_of(name, &done.batch_id).filter(|due| *due <= latest && *lane == done.lane) {
                        completed(story, LastCompleted { due, up_in_time: done.up_in_time });
                        let is_success = done.up == done.ended && done.up > 0;
                        story.succeeded = story.succeeded.max(is_success.then_some(due));
                    }
                }
            }
            Data::SchedulerHeld(SchedulerHeld { schedules, boots, .. }) => {
                self.boots.take(boots);
                for ScheduleState { schedule, story: written, .. } in schedules {
                    let Some((_, story)) = self.schedules.get_mut(schedule) else { continue };
                    written.fired.iter().filter(|last| last.due <= latest).for_each(|last| fired(story, *last));
                    written.completed.iter().filter(|last| last.due <= latest).for_each(|last| completed(story, *last));
                    story.succeeded = story.succeeded.max(written.succeeded.filter(|due| *due <= latest));
                }
            }
            _ => {}
        }
    }

    /// How the last due times of a schedule went.
    pub fn story(&self, schedule: &str) -> ScheduleStory {
        self.schedules.get(schedule).map(|(_, story)| *story).unwrap_or_default()
    }

    /// What the next holder has to know of a schedule beside how far its due times are dealt with. Of one that only other replicas have
    /// that is what they have said.
    pub(super) fn complete(&self, state: ScheduleState) -> ScheduleState {
        let story = self.schedules.get(&state.schedule).map_or(state.story, |(_, story)| *story);
        ScheduleState { story, ..state }
    }

    /// What the next holder has to know of boots.
    pub(super) fn boots(&self) -> Vec<LaneBoots> {
        self.boots.written()
    }

    /// How long before it is due a schedule is to be fired, and why; `None`: its machines need not be up by then.
    pub fn plan(&self, schedule: &Schedule) -> Option<Plan> {
        let last = self.story(&schedule.name).fired;
        let expected_size = match &schedule.machines {
            Machines::Listed(ids) => ids.len(),
            Machines::File(_) | Machines::Selected(_) => last.map_or(0, |last| last.size),
        };
        let expected_waves = last.map_or(1, |last| last.waves);
        let up_after = |spread| self.boots.up_after(schedule.lane.as_str(), spread);
        schedule.ready_by.then(|| plan(expected_size, expected_waves, schedule.pace, up_after))
    }

    /// Completes what is said of a due time that is fired.
    pub(super) fn fired(&self, schedule: &Schedule, fired: ScheduleFired) -> ScheduleFired {
        let last = self.story(&schedule.name).fired.filter(|last| last.due != fired.due);
        let previous_size = last.map(|last| last.size);
        let is_small = |previous| fired.size as u128 * 100 < previous as u128 * u128::from(schedule.least);
        ScheduleFired { previous_size, small: previous_size.is_some_and(is_small), ..fired }
    }
}

fn fired(story: &mut ScheduleStory, new: LastFired) {
    if story.fired.is_none_or(|last| last.due <= new.due) {
        story.fired = Some(new);
    }
}

fn completed(story: &mut ScheduleStory, new: LastCompleted) {
    if story.completed.is_none_or(|last| last.due <= new.due) {
        story.completed = Some(new);
    }
}

/// The batch of a due time: `morning-2026-11-25T07:30:00+08:00`.
pub(super) fn batch_of(schedule: &Schedule, due: Timestamp) -> String {
    let due = due.to_zoned_datetime(schedule.timetable.zone().clone());
    format!("{}-{}", schedule.name, due.strftime("%Y-%m-%dT%H:%M:%S%:z"))
}

/// The due time of which this is the batch. The batch may be done before it is said that it was fired.
pub fn due_of(schedule: &str, batch: &str) -> Option<Timestamp> {
    batch.strip_prefix(schedule)?.strip_prefix('-')?.parse().ok()
}

/// Whether an event was published under the routing key that it should have, as far as it counts here.
pub(super) fn has_its_key(key: &str, data: &Data) -> bool {
    match data {
        Data::Job(job) => is_key(key, &job.lane, &job.outcome),
        Data::ScheduleFired(fired) => is_key(key, &fired.lane, "fired"),
        Data::BatchCompleted(completed) => is_key(key, &completed.lane, "completed"),
        Data::SchedulerHeld(_) => key == HELD_KEY,
        _ => false,
    }
}

/// The starts take as long as the lane's rate and its shared calls allow, and the machines of each wave are up before the next one
/// begins. `up_after` is [`Boots::up_after`].
fn plan(
    expected_size: usize,
    expected_waves: usize,
    pace: f64,
    up_after: impl Fn(Duration) -> Option<Duration>,
) -> Plan {
    let longest = LONGEST_LEAD.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "beyond 2^53 it is bounded")]
    let (size, waves) = (expected_size as f64, expected_waves.max(1) as f64);
    let spread = Duration::from_secs_f64((size / pace / waves).min(longest));
    let (boot, up) = (up_after(Duration::ZERO), up_after(spread).unwrap_or(USUAL_BOOT + spread));
    Plan {
        lead_seconds: seconds(((up.as_secs_f64() + BEAT.as_secs_f64()) * waves).min(longest)),
        expected_size,
        expected_waves,
        boot_seconds: seconds(boot.unwrap_or(USUAL_BOOT).as_secs_f64()),
        is_measured: boot.is_some(),
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a day at most")]
fn seconds(seconds: f64) -> u32 {
    seconds.ceil() as u32
}

#[cfg(test)]
mod tests {
    use super::super::agenda::{
        self,
        tests::{at, schedule},
    };
    use super::super::boots::tests::job;
    use super::*;
    use crate::bce::InstanceId;
    use crate::events::{BatchCompleted, Event, Outcome};
    use crate::replica::Replica;

    const MACHINES: usize = 500;

    /// One with so many machines, at 50 a second.
    fn morning(machines: usize) -> Schedule {
        let ids = (0..machines).map(|number| InstanceId::parse(&format!("i-{number:04}")).unwrap());
        Schedule { pace: 50.0, machines: Machines::Listed(ids.collect()), ..schedule("morning", "30 7 * * *") }
    }

    /// Machines that take so long to boot are fired `lead` seconds before they are due, which is at a beat of polls: how many are
    /// seen running by then. Polls are those of docs/outcomes.md. What the log shows of it, `past` hears.
    fn fire(past: &mut Past, pace: f64, boot: f64, lead: f64) -> usize {
        let due = at("25T07:30");
        let instant = |seconds: f64| due + jiff::SignedDuration::from_millis((seconds * 1_000.0) as i64);
        let machine = |number: usize| {
            // A second passes before the first call.
            let start = 1.0 + number as f64 / pace - lead;
            let poll = |at: f64, poll| ((at + (5.0 * 1.5_f64.powi(poll)).min(25.0)) / 5.0).ceil() * 5.0;
            let polls = (0..).scan(start, |at, number| {
                *at = poll(*at, number);
                Some(*at)
            });
            (start, polls.into_iter().find(|at| *at >= start + boot).unwrap() + 0.2)
        };
        let mut machines: Vec<(usize, (f64, f64))> = (0..MACHINES).map(|number| (number, machine(number))).collect();
        machines.sort_by(|(_, (_, one)), (_, (_, other))| one.total_cmp(other));
        for (number, (start, seen)) in &machines {
            let mut hear = |outcome, is_final, at| {
                past.hear(&Data::Job(Box::new(job(&number.to_string(), outcome, is_final))), instant(at), instant(at));
            };
            hear(Outcome::Started, false, *start);
            hear(Outcome::Running, true, *seen);
        }
        machines.iter().filter(|(_, (_, seen))| *seen <= 0.0).count()
    }

    #[test]
    fn machines_are_up_in_time_and_none_is_started_earlier_than_needed_by_more_than_a_fifth() {
        let enough = MACHINES * 95 / 100;
        // Starts that take 10, 20 and 100 s.
        for (boot, pace) in [8.0, 60.0, 240.0].into_iter().flat_map(|boot| [50.0, 25.0, 5.0].map(|pace| (boot, pace))) {
            let schedule = Schedule { pace, ..morning(MACHINES) };
            let fresh = || Past::new(std::slice::from_ref(&schedule));
            let mut past = fresh();
            let guess = past.plan(&schedule).unwrap();
            assert_eq!((guess.boot_seconds, guess.is_measured), (180, false));
            fire(&mut past, pace, boot, guess.lead_seconds.into());
            let plan = past.plan(&schedule).unwrap();
            let lead = f64::from(plan.lead_seconds);
            let in_time = fire(&mut past, pace, boot, lead);
            let needed = (0_u32..).map(f64::from).find(|lead| fire(&mut fresh(), pace, boot, *lead) >= enough).unwrap();
            let told = format!("boots of {boot} s at {pace} a second: {in_time} in time, {needed} s needed: {plan:?}");
            println!("{told}");
            assert!(plan.is_measured && in_time >= enough, "{told}");
            assert!(lead <= needed * 1.2, "{told}");
        }
    }

    #[test]
    fn the_lead_follows_from_size_rate_waves_and_boots_and_is_bounded() {
        let leads = |size, waves, pace, boot| {
            let up_after = |spread: Duration| Some(Duration::from_secs(boot) + spread);
            plan(size, waves, pace, up_after).lead_seconds
        };
        assert_eq!(leads(0, 1, 20.0, 60), 65);
        assert_eq!(leads(5_000, 1, 20.0, 60), 315);
        assert_eq!(leads(5_000, 1, 400.0, 60), 78, "20 jobs share a call");
        assert_eq!(leads(5_000, 3, 20.0, 60), 445, "each wave boots");
        for (size, waves, pace, boot) in [(usize::MAX, 1, 0.01, 0), (1, usize::MAX, 1e6, 1), (1, 0, 1.0, 86_400)] {
            assert_eq!(leads(size, waves, pace, boot), 1_800);
        }
        let other = Schedule { ready_by: false, ..morning(1) };
        assert_eq!(Past::new(std::slice::from_ref(&other)).plan(&other), None);
    }

    fn fired(day: &str, size: usize) -> ScheduleFired {
        ScheduleFired { due: at(&format!("{day}T07:30")), size, ..agenda::tests::fired() }
    }

    fn completed(day: &str, up: usize) -> Data {
        Data::BatchCompleted(Box::new(BatchCompleted {
            batch_id: format!("morning-2026-11-{day}T07:30:00+08:00"),
            lane: "prod".to_owned(),
            size: 10,
            ended: 10,
            up,
            outcomes: BTreeMap::new(),
            reasons: BTreeMap::new(),
            submitted_at: at("25T07:30"),
            first_event_at: None,
            last_event_at: None,
            ready_by: None,
            up_in_time: Some(up - 1),
        }))
    }

    #[test]
    fn a_due_time_with_far_fewer_jobs_than_the_one_before_is_small() {
        let schedule = morning(1);
        let mut past = Past::new(std::slice::from_ref(&schedule));
        let first = past.fired(&schedule, fired("23", 10));
        assert_eq!((first.previous_size, first.small), (None, false));
        past.hear(&Data::ScheduleFired(first), at("23T07:30"), at("23T07:30"));
        for (size, small) in [(0, true), (4, true), (5, false), (10, false), (usize::MAX, false)] {
            let next = past.fired(&schedule, fired("24", size));
            assert_eq!((next.previous_size, next.small), (Some(10), small), "{size}");
        }
        assert_eq!(past.fired(&schedule, fired("23", 1)).previous_size, None, "the same again");
        let never = Schedule { least: 0, ..morning(1) };
        assert!(!past.fired(&never, fired("24", 0)).small);
    }

    #[test]
    fn how_it_went_is_known_of_the_last_due_time_and_to_the_next_holder() {
        let schedule = morning(1);
        let mut past = Past::new(std::slice::from_ref(&schedule));
        // A completion can come before it is said that the schedule was fired.
        past.hear(&completed("23", 10), at("23T07:31"), at("23T07:31"));
        past.hear(&Data::ScheduleFired(fired("23", 10)), at("23T07:31"), at("23T07:31"));
        past.hear(&Data::ScheduleFired(fired("24", 10)), at("24T07:31"), at("24T07:31"));
        past.hear(&completed("24", 9), at("24T07:31"), at("24T07:31"));
        // Late, of an earlier one; of another schedule; of another lane.
        past.hear(&Data::ScheduleFired(fired("22", 3)), at("24T07:31"), at("24T07:31"));
        past.hear(&completed("22", 10), at("24T07:31"), at("24T07:31"));
        past.hear(
            &Data::ScheduleFired(ScheduleFired { schedule: "evening".to_owned(), ..fired("25", 3) }),
            at("25T07:31"),
            at("25T07:31"),
        );
        let mut other = completed("25", 10);
        let Data::BatchCompleted(done) = &mut other else { unreachable!() };
        done.lane = "other".to_owned();
        past.hear(&other, at("25T07:31"), at("25T07:31"));
        fire(&mut past, 50.0, 8.0, 30.0);

        let story = past.story("morning");
        assert_eq!(story.fired.map(|fired| (fired.due, fired.size)), Some((at("24T07:30"), 10)));
        assert_eq!(story.completed.map(|done| (done.due, done.up_in_time)), Some((at("24T07:30"), Some(8))));
        assert_eq!(story.succeeded, Some(at("23T07:30")));
        let state = ScheduleState {
            schedule: "morning".to_owned(),
            line: schedule.line.clone(),
            until: at("24T07:30"),
            story: ScheduleStory::default(),
        };
        let (schedules, boots) = (vec![past.complete(state)], past.boots());
        let replica = Replica::this();
        let held = SchedulerHeld { replica, resume_from: None, schedules, boots, done: Vec::new() };
        let held = Event::of_scheduler(Data::SchedulerHeld(held), at("24T08:00"));
        let held = Event::read(&held.to_bytes()).unwrap();
        let mut next = Past::new(std::slice::from_ref(&schedule));
        next.hear(&held.data, held.time, held.time);
        assert_eq!((next.story("morning"), next.plan(&schedule)), (story, past.plan(&schedule)));
        assert!(next.plan(&schedule).unwrap().is_measured);
    }

    #[test]
    fn what_others_make_up_of_times_to_come_is_not_believed() {
        let schedule = morning(1);
        let mut past = Past::new(std::slice::from_ref(&schedule));
        let now = at("20T07:30");
        past.hear(&Data::ScheduleFired(fired("25", 1)), now, now);
        past.hear(&completed("25", 10), now, now);
        let fired = Some(LastFired { due: at("25T07:30"), size: 1, waves: 1, small: false });
        let completed = Some(LastCompleted { due: at("25T07:30"), up_in_time: None });
        let story = ScheduleStory { fired, completed, succeeded: Some(at("25T07:30")) };
        let state = |name: &str| ScheduleState {
            schedule: name.to_owned(),
            line: schedule.line.clone(),
            until: at("19T07:30"),
            story,
        };
        let (replica, resume_from, schedules) = (Replica::this(), None, vec![state("morning")]);
        let held = SchedulerHeld { replica, resume_from, schedules, boots: Vec::new(), done: Vec::new() };
        past.hear(&Data::SchedulerHeld(held), now, now);
        assert_eq!(past.story("morning"), ScheduleStory::default());
        // What another replica's schedule has is passed on.
        assert_eq!(past.complete(state("evening")).story, story);
    }

    #[test]
    fn a_batch_is_of_the_schedule_and_the_due_time_in_its_name() {
        let schedule = morning(1);
        let due = at("25T07:30");
        assert_eq!(batch_of(&schedule, due), "morning-2026-11-25T07:30:00+08:00");
        assert_eq!(due_of("morning", &batch_of(&schedule, due)), Some(due));
        for batch in ["morning", "morning-", "morning-fleet", "evening-2026-11-25T07:30:00+08:00"] {
            assert_eq!(due_of("morning", batch), None);
        }
        assert_eq!(due_of("a", "a-b-2026-11-25T07:30:00+08:00"), None);
    }
}
