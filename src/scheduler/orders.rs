//! Which commands to run a schedule are to be done, by the log of outcomes and the clock. Pure.
//!
//! Each is done once, whatever dies: that it was fired, or that it was too late for it, stands in the log with the command's id. A
//! holder that dies before that is said leaves it to the next one, which submits the same jobs under the same ids. What it has done
//! it also writes down with its schedules, for those that do not read the log so far back. A command that is [`TRY_FOR`] old is not
//! begun: the person who gave it has gone on, and the machines may be in use.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

use super::HELD_KEY;
use super::agenda::Step;
use super::batches::is_key;
use crate::config::Schedule;
use crate::control::{RUNS_FOR, Run};
use crate::events::{ByHand, Data, MissedReason, ScheduleFired, ScheduleMissed, SchedulerHeld};

/// How long a command is tried.
pub(super) const TRY_FOR: SignedDuration = SignedDuration::from_mins(10);
/// Longer than a command is known, by any replica's clock.
const REMEMBERED_FOR: SignedDuration = SignedDuration::from_hours(2 * RUNS_FOR.as_hours());
/// Done commands that are remembered, as many as are known at a time, and the longest id of one, in bytes.
const MOST: usize = 1_000;
const ID_LIMIT: usize = 128;

/// What is known of the commands.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Those that are done, with the time when that was said, in its order.
    done: VecDeque<(String, Timestamp)>,
    /// Why the jobs of a command could not be submitted.
    failed: BTreeMap<String, String>,
}

impl Orders {
    /// Takes an event of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, key: &str, data: &Data, time: Timestamp) {
        match data {
            Data::ScheduleFired(ScheduleFired { lane, by_hand: Some(by_hand), .. }) if is_key(key, lane, "fired") => {
                self.done(&by_hand.command_id, time);
            }
            Data::ScheduleMissed(ScheduleMissed { lane, by_hand: Some(by_hand), .. })
                if is_key(key, lane, "missed") =>
            {
                self.done(&by_hand.command_id, time);
            }
            Data::SchedulerHeld(SchedulerHeld { done, .. }) if key == HELD_KEY => {
                done.iter().for_each(|id| self.done(id, time));
            }
            _ => {}
        }
    }

    /// The command is done, as was said at that time.
    pub(super) fn done(&mut self, id: &str, time: Timestamp) {
        if id.len() > ID_LIMIT || self.is_done(id) {
            return;
        }
        if self.done.len() == MOST {
            self.done.pop_front();
        }
        self.done.push_back((id.to_owned(), time));
    }

    fn is_done(&self, id: &str) -> bool {
        self.done.iter().any(|(done, _)| done == id)
    }

    /// The ids of those that were done lately, for the next holder.
    pub(super) fn states(&self, now: Timestamp) -> Vec<String> {
        let lately = self.done.iter().filter(|(_, time)| now.duration_since(*time) <= REMEMBERED_FOR);
        lately.map(|(id, _)| id.clone()).collect()
    }

    /// The jobs of a command could not be submitted. Returns whether that is news.
    pub(super) fn failed(&mut self, id: &str, why: String) -> bool {
        self.failed.get(id) != Some(&why) && {
            self.failed.insert(id.to_owned(), why);
            true
        }
    }

    /// What is to be done `now` of the commands that are known. Each step is repeated by the next look until [`Orders::done`] has it.
    pub(super) fn look<'a>(&mut self, schedules: &'a [Schedule], runs: &[Run], now: Timestamp) -> Vec<Step<'a>> {
        self.failed.retain(|id, _| runs.iter().any(|run| run.id == *id));
        let step = |run: &Run| {
            let schedule = schedules.iter().find(|schedule| schedule.name == run.schedule)?;
            let by_hand = ByHand { by: run.by.clone(), command_id: run.id.clone() };
            if now.duration_since(run.at) <= TRY_FOR {
                return Some(Step::Fire(schedule, run.due, Some(by_hand)));
            }
            let within = format!("within {TRY_FOR:#} of the command");
            let (reason, text) = match self.failed.get(&run.id) {
                Some(why) => (MissedReason::Failed, format!("its jobs could not be submitted {within}: {why}")),
                None => (MissedReason::Late, format!("no replica fired it {within}")),
            };
            Some(Step::Publish(
                schedule,
                Data::ScheduleMissed(ScheduleMissed {
                    schedule: schedule.name.clone(),
                    lane: schedule.lane.to_string(),
                    reason,
                    text,
                    count: 1,
                    first_due: run.due,
                    last_due: run.due,
                    by_hand: Some(by_hand),
                }),
            ))
        };
        runs.iter().filter(|run| !self.is_done(&run.id)).filter_map(step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::Replica;
    use crate::scheduler::agenda::{
        self,
        tests::{at, schedule},
    };

    fn run(id: &str, schedule: &str, given: &str) -> Run {
        let (id, schedule, by) = (id.to_owned(), schedule.to_owned(), "ops@desk".to_owned());
        Run { id, schedule, by, due: at("25T07:30"), at: at(given) }
    }

    fn told(steps: &[Step<'_>]) -> Vec<String> {
        let told = |step: &Step<'_>| match step {
            Step::Fire(schedule, due, Some(by)) => format!("fire {} {due} {}", schedule.name, by.command_id),
            Step::Publish(_, Data::ScheduleMissed(missed)) => format!("{:?} {}", missed.reason, missed.text),
            step => format!("{step:?}"),
        };
        steps.iter().map(told).collect()
    }

    fn fired(id: &str) -> Data {
        let by_hand = Some(ByHand { by: "ops@desk".to_owned(), command_id: id.to_owned() });
        Data::ScheduleFired(ScheduleFired { by_hand, ..agenda::tests::fired() })
    }

    #[test]
    fn a_command_is_done_until_the_log_says_so_and_never_again() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let runs = [run("a", "morning", "25T09:00"), run("b", "evening", "25T09:00")];
        let mut orders = Orders::default();
        for _ in 0..2 {
            let steps = told(&orders.look(&schedules, &runs, at("25T09:01")));
            assert_eq!(steps, ["fire morning 2026-11-24T23:30:00Z a"], "the other is none of this replica's schedules");
        }
        // Under a key that it does not have.
        orders.hear("prod.started", &fired("a"), at("25T09:01"));
        assert_eq!(orders.look(&schedules, &runs, at("25T09:01")).len(), 1);
        orders.hear("prod.fired", &fired("a"), at("25T09:01"));
        assert!(orders.look(&schedules, &runs, at("25T09:01")).is_empty());
        // The next holder, which does not read so far back.
        let done = orders.states(at("25T09:02"));
        let mut next = Orders::default();
        let replica = Replica { host: "host-1".to_owned(), pid: 7, version: "0.1.0".to_owned() };
        let held = SchedulerHeld { replica, resume_from: Some(7), schedules: Vec::new(), boots: Vec::new(), done };
        next.hear(HELD_KEY, &Data::SchedulerHeld(held), at("25T09:02"));
        assert!(next.look(&schedules, &runs, at("25T09:03")).is_empty());
        assert!(next.states(at("25T11:03")).is_empty(), "the command itself is forgotten by then");
    }

    #[test]
    fn a_command_that_could_not_be_done_for_ten_minutes_is_given_up_with_the_reason() {
        let schedules = [schedule("morning", "30 7 * * *")];
        let runs = [run("a", "morning", "25T09:00")];
        let mut orders = Orders::default();
        let late = told(&orders.look(&schedules, &runs, at("25T09:11")));
        assert_eq!(late, ["Late no replica fired it within 10m of the command"]);
        assert!(orders.failed("a", "fleet.txt cannot be read".to_owned()));
        assert!(!orders.failed("a", "fleet.txt cannot be read".to_owned()), "no news");
        assert!(told(&orders.look(&schedules, &runs, at("25T09:10")))[0].starts_with("fire"));
        let failed = told(&orders.look(&schedules, &runs, at("25T09:11")));
        assert!(failed[0].starts_with("Failed ") && failed[0].ends_with(": fleet.txt cannot be read"), "{failed:?}");
        orders.look(&schedules, &[], at("25T10:01"));
        assert!(orders.failed.is_empty());
    }

    #[test]
    fn made_up_commands_do_not_fill_the_memory() {
        let mut orders = Orders::default();
        for number in 0..2 * MOST {
            orders.hear("prod.fired", &fired(&number.to_string()), at("25T09:00"));
        }
        orders.hear("prod.fired", &fired(&"x".repeat(ID_LIMIT + 1)), at("25T09:00"));
        assert_eq!((orders.done.len(), orders.is_done("1999"), orders.is_done("0")), (MOST, true, false));
    }
}
