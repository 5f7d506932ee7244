//! Jobs of a later wave of their batch: how long they wait until they look again whether it may start.
//!
//! They wait in the delay ladder, where nothing can be looked up, so they come back and look. Each look costs RabbitMQ a copy of the
//! job. So a job waits for an eighth of the time that it has waited already, and the longer the more jobs wait: some thousand of
//! them look in a second. A delay is a power of two, which one level of the ladder holds.

use std::time::Duration;

/// Looks in a second, of all jobs of a batch together.
const LOOKS: usize = 1_000;
/// The part of the time that it has waited for which a job waits again.
const PART: u64 = 8;
/// Longest time between two looks, by the age of the job …
const LONGEST_BY_AGE: u64 = 32;
/// … and by the number of jobs.
const LONGEST: u64 = 256;

/// Until the next look, of a job that has waited for so long, with so many others.
pub(super) fn next_look(waited: Duration, waiting: usize) -> Duration {
    let by_age = (waited.as_secs() / PART).min(LONGEST_BY_AGE);
    let by_number = u64::try_from(waiting / LOOKS).unwrap_or(LONGEST).min(LONGEST);
    Duration::from_secs(1 << by_age.max(by_number).max(1).ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

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
