//! Jobs whose instance has no capacity at present: how long they wait, and when they give way to others.

use std::time::Duration;

use jiff::Timestamp;

use crate::config::Retry;
use crate::job::{Progress, elapsed, is_past};
use crate::retry::half_jitter;

/// First and last ceiling of the backoff. The delay is at least half of its ceiling.
const FIRST: Duration = Duration::from_secs(30);
const LAST: Duration = Duration::from_secs(5 * 60);

/// The delay after so many reschedules, at most the `rest` of the job's time: so its last call is made when that is up.
pub(super) fn backoff(reschedules: u32, rest: Duration, random: f64) -> Duration {
    half_jitter(FIRST, LAST, reschedules, random).min(rest)
}

/// How long a job without capacity waits if it has to give way to others. `None` for one whose time is up: it makes its
/// last call without giving way.
pub(super) fn wait(
    progress: &Progress,
    deadline: Option<Timestamp>,
    retry: Retry,
    failing_for: Duration,
    now: Timestamp,
    random: f64,
) -> Option<Duration> {
    if is_past(deadline, now) {
        return None;
    }
    let rest = retry.give_up_after.saturating_sub(failing_for).min(left(deadline, now));
    (!rest.is_zero()).then(|| backoff(progress.reschedules.saturating_add(1), rest, random))
}

/// Time left until the deadline.
pub(super) fn left(deadline: Option<Timestamp>, now: Timestamp) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| elapsed(now, deadline))
}
