//! The confirm phase: whether a started instance has come to run, and when to poll again. Pure functions of a poll's
//! result, the job's past and the time.
//!
//! The timeout applies only to what a poll has just shown: an instance that runs is `running`, however late, and no job
//! times out while its lane is paused. But where probes are answered and polls are not, a lane would pause and resume
//! for ever: so after twice the timeout a poll that shows nothing ends the job, paused or not.
//!
//! A 409 does not end the job either, unless the instance was seen Running: the producer wants to know whether the
//! machine came up, whatever started it. That holds for the policy `accept` too, which says that another client may
//! have started it, not that it came up. As the start was not ours, no `started` event is published.
//!
//! A deadline is about the start. After it no instance is started, but one that was started in time is still polled.

use std::time::Duration;

use jiff::Timestamp;

use crate::bce::InstanceState;
use crate::events::{Outcome, Reason};
use crate::job::{Boot, elapsed};
use crate::lane::calls::Observed;

/// Delay to the first poll and between polls: it grows from the first to the last, plus up to one [`BEAT`].
const FIRST: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_secs(25);
const GROWTH: f64 = 1.5;
/// Polls come due at multiples of this on the clock, so that they meet in one call.
const BEAT: Duration = Duration::from_secs(5);
/// The shortest delay: the delay ladder counts in seconds.
const SHORTEST: Duration = Duration::from_secs(1);
/// For this long after a start, a read may still show the state before it.
pub const LAG: Duration = Duration::from_secs(60);

/// What follows from a poll.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Poll again after this delay.
    Wait(Boot, Duration),
    /// The job ends.
    End {
        /// Its outcome.
        outcome: Outcome,
        /// No poll could show the state, or the start was ambiguous.
        ambiguous: bool,
        /// The reason, for a person; empty if the instance runs.
        why: String,
    },
}

/// Judges a poll. A `timeout` that has passed ends only a job whose instance was not seen running.
pub fn judge(observed: Observed, boot: &Boot, timeout: Duration, now: Timestamp) -> Step {
    let up_for = elapsed(boot.since, now);
    let not_running = |why: &str| Step::End {
        outcome: Outcome::Failed(Reason::NotRunning),
        ambiguous: boot.ambiguous,
        why: why.to_owned(),
    };
    match observed {
        Observed::State(InstanceState::Running) => {
            let ambiguous = boot.ambiguous;
            return Step::End { outcome: Outcome::Running, ambiguous, why: String::new() };
        }
        Observed::State(InstanceState::Ended) => {
            return not_running("its start was accepted, and it is now Error, Expired, Recycled or Deleted");
        }
        // The start has just been accepted, and a list can lag too.
        Observed::Absent if boot.seen_starting || up_for >= LAG => {
            return not_running("its start was accepted, and the API does not know it any more");
        }
        Observed::State(InstanceState::Stopped) if boot.seen_starting || up_for >= LAG => {
            return not_running("its start was accepted, and it is Stopped again");
        }
        Observed::State(InstanceState::Starting | InstanceState::Stopped | InstanceState::Passing)
        | Observed::Absent
        | Observed::Nothing => {}
    }
    if up_for >= timeout {
        return Step::End {
            outcome: Outcome::Failed(Reason::NotRunningInTime),
            ambiguous: boot.ambiguous || observed == Observed::Nothing,
            why: format!("not seen running within {timeout:?} of its start"),
        };
    }
    let mut boot = boot.clone();
    boot.seen_starting |= observed == Observed::State(InstanceState::Starting);
    boot.polls = boot.polls.saturating_add(u32::from(observed != Observed::Nothing));
    let delay = delay(&boot, timeout, now);
    Step::Wait(boot, delay)
}

/// The delay to the next poll: to a beat of the clock, or to the end of the `timeout`.
pub fn delay(boot: &Boot, timeout: Duration, now: Timestamp) -> Duration {
    // The delay has long reached its maximum before the exponent could overflow.
    let exponent = i32::try_from(boot.polls.min(16)).unwrap_or(16);
    let regular = FIRST.mul_f64(GROWTH.powi(exponent)).min(LAST);
    let beat = i64::try_from(BEAT.as_millis()).unwrap_or(i64::MAX);
    let since_beat = now.as_millisecond().wrapping_add(i64::try_from(regular.as_millis()).unwrap_or(0));
    let to_beat = u64::try_from((-since_beat).rem_euclid(beat)).unwrap_or(0);
    let left = timeout.saturating_sub(elapsed(boot.since, now));
    (regular + Duration::from_millis(to_beat)).min(left).max(SHORTEST)
}

/// Whether a job has waited long enough even while its lane is paused. Where probes are answered and only polls fail,
/// pauses would spare the job for ever.
pub fn is_overdue(boot: &Boot, timeout: Duration, now: Timestamp) -> bool {
    elapsed(boot.since, now) >= timeout * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(600);

    fn start() -> Timestamp {
        "2026-11-25T07:30:00Z".parse().unwrap()
    }

    fn begun() -> Boot {
        Boot { since: start(), ambiguous: false, seen_starting: false, polls: 0 }
    }

    fn judged(observed: Observed, boot: &Boot, seconds: u64) -> Step {
        judge(observed, boot, TIMEOUT, start() + Duration::from_secs(seconds))
    }

    fn ended(step: Step) -> Outcome {
        let Step::End { outcome, .. } = step else { panic!("{step:?}") };
        outcome
    }

    const NOT_RUNNING: Outcome = Outcome::Failed(Reason::NotRunning);

    #[test]
    fn running_ends_the_job_however_late_it_is_seen() {
        for seconds in [0, 5, 599, 600, 86_400] {
            assert_eq!(ended(judged(Observed::State(InstanceState::Running), &begun(), seconds)), Outcome::Running);
        }
    }

    #[test]
    fn stopped_or_gone_is_believed_once_starting_was_seen_or_a_minute_has_passed() {
        let Step::Wait(seen, _) = judged(Observed::State(InstanceState::Starting), &begun(), 5) else { panic!() };
        assert!(seen.seen_starting && seen.polls == 1);
        for observed in [Observed::State(InstanceState::Stopped), Observed::Absent] {
            assert!(matches!(judged(observed, &begun(), 59), Step::Wait(..)), "a read lags the start");
            assert_eq!(ended(judged(observed, &begun(), 60)), NOT_RUNNING);
            assert_eq!(ended(judged(observed, &seen, 10)), NOT_RUNNING);
        }
    }

    #[test]
    fn what_no_waiting_helps_ends_at_once() {
        assert_eq!(ended(judged(Observed::State(InstanceState::Ended), &begun(), 5)), NOT_RUNNING);
    }

    #[test]
    fn the_timeout_ends_what_does_not_come_up_and_says_where_nobody_could_tell() {
        for (observed, untold) in [(Observed::State(InstanceState::Starting), false), (Observed::Nothing, true)] {
            assert!(matches!(judged(observed, &begun(), 599), Step::Wait(..)));
            let Step::End { outcome, ambiguous, .. } = judged(observed, &begun(), 600) else { panic!() };
            assert_eq!((outcome, ambiguous), (Outcome::Failed(Reason::NotRunningInTime), untold));
        }
    }

    #[test]
    fn a_job_that_a_pause_spares_is_overdue_after_twice_its_time() {
        let overdue = |seconds| is_overdue(&begun(), TIMEOUT, start() + Duration::from_secs(seconds));
        assert!(!overdue(1_199) && overdue(1_200));
    }

    #[test]
    fn a_poll_that_told_nothing_is_not_counted() {
        let Step::Wait(same, _) = judged(Observed::Nothing, &begun(), 5) else { panic!() };
        assert_eq!(same, begun());
    }

    #[test]
    fn polls_grow_rarer_and_meet_on_the_beat() {
        let delays = |offset: u64| -> Vec<u64> {
            let now = start() + Duration::from_secs(offset);
            let polled = |polls| delay(&Boot { since: now, polls, ..begun() }, TIMEOUT, now);
            [0, 1, 2, 3, 4, 5, u32::MAX].map(|polls| polled(polls).as_secs()).to_vec()
        };
        assert_eq!(delays(0), [5, 10, 15, 20, 25, 25, 25]);
        assert_eq!(delays(1), [9, 9, 14, 19, 29, 29, 29]);
        let late = start() + Duration::from_secs(598);
        assert_eq!(delay(&begun(), TIMEOUT, late), Duration::from_secs(2), "no longer than to the timeout");
        let long_ago = start() + Duration::from_secs(86_400);
        assert_eq!(delay(&begun(), TIMEOUT, long_ago), SHORTEST);
    }
}
