//! Jobs of a later wave of their batch: how long they wait until they look again whether it may start.
//!
//! They wait in the delay ladder, where nothing can be looked up, so they come back and look. Each look costs RabbitMQ a copy of the
//! job. So a job waits for an eighth of the time that it has waited already, and the longer the more jobs wait: some thousand of
//! them look in a second. A delay is a power of two, which one level of the ladder holds.
//!
//! Where no scheduler follows its batch, a wave is never started. So a job that has waited for as long as commands last is given up.

use std::time::Duration;

use jiff::Timestamp;

use super::{First, SHORTEST_DELAY, capacity};
use crate::control::{LASTS, WaveAhead};
use crate::job::{Job, ParkCause, elapsed};

/// Looks in a second, of all jobs of a batch together.
const LOOKS: usize = 1_000;
/// The part of the time that it has waited for which a job waits again.
const PART: u64 = 8;
/// Longest time between two looks, by the age of the job …
const LONGEST_BY_AGE: u64 = 32;
/// … and by the number of jobs.
const LONGEST: u64 = 256;

/// What comes first for a job that has to wait for others of its batch, and was first seen at `received_at`.
pub(super) fn first(ahead: WaveAhead, job: &Job, received_at: Timestamp, now: Timestamp) -> First {
    let since = job.not_before.map_or(received_at, |start| start.max(received_at));
    let look = match ahead {
        WaveAhead::Running { .. } if now.duration_since(since) > LASTS => return First::GiveUp,
        WaveAhead::Running { waiting } => next_look(elapsed(since, now), waiting),
        WaveAhead::Until(start) => elapsed(now, start),
    };
    First::Wait(look.min(capacity::left(job.deadline, now)).max(SHORTEST_DELAY), ParkCause::Wave)
}

/// Until the next look, of a job that has waited for so long, with so many others.
fn next_look(waited: Duration, waiting: usize) -> Duration {
    let by_age = (waited.as_secs() / PART).min(LONGEST_BY_AGE);
    let by_number = u64::try_from(waiting / LOOKS).unwrap_or(LONGEST).min(LONGEST);
    Duration::from_secs(1 << by_age.max(by_number).max(1).ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bce::InstanceId;

    #[test]
    fn a_job_waits_for_its_wave_for_as_long_as_commands_last() {
        let received_at: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let day = |days: i64| received_at + jiff::SignedDuration::from_hours(24 * days);
        let running = WaveAhead::Running { waiting: 0 };
        let job = Job::of(InstanceId::parse("i-0000").unwrap());
        let first = |ahead, job: &Job, now| first(ahead, job, received_at, now);
        let wait = |seconds| First::Wait(Duration::from_secs(seconds), ParkCause::Wave);
        assert_eq!(first(running, &job, received_at), wait(1));
        assert_eq!(first(running, &job, day(30)), wait(32));
        let after = day(30) + jiff::SignedDuration::from_secs(1);
        assert_eq!(first(running, &job, after), First::GiveUp);
        assert_eq!(first(WaveAhead::Until(day(31)), &job, day(30)), wait(86_400), "its wave may start");
        let later = Job { not_before: Some(day(1)), ..job.clone() };
        assert_eq!(first(running, &later, after), wait(32), "until then it waited for its time");
        let soon_late = Job { deadline: Some(received_at + jiff::SignedDuration::from_secs(500)), ..job };
        assert_eq!(first(WaveAhead::Until(day(1)), &soon_late, received_at), wait(500));
    }

    #[test]
    fn a_job_looks_the_less_often_the_longer_it_waits_and_the_more_wait_with_it() {
        let look = |waited, waiting| next_look(Duration::from_secs(waited), waiting).as_secs();
        for (waited, seconds) in [(0, 1), (15, 1), (16, 2), (64, 8), (255, 16), (256, 32), (u64::MAX, 32)] {
            assert_eq!(look(waited, 0), seconds, "{waited}");
        }
        for (waiting, seconds) in [(999, 1), (4_000, 4), (100_000, 64), (1_000_000, 256), (usize::MAX, 256)] {
            assert_eq!(look(0, waiting), seconds, "{waiting}");
        }
    }
}
