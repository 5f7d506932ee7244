//! Jobs whose machine is not to be had just now: how long they wait, and when they let others go first.

use std::time::Duration;

use jiff::Timestamp;

use super::{Job, Next, elapsed, failing_for};
use crate::job::{Progress, is_past};
use crate::lane::parts::Lane;
use crate::retry::half_jitter;
use crate::telemetry::ParkCause;

/// Ceilings of its delay, at first and at last. It is no less than half of that.
const FIRST: Duration = Duration::from_secs(30);
const LAST: Duration = Duration::from_secs(5 * 60);

/// The delay after so many setbacks; no more than the `rest` of its time, so that its last call is made as that is up.
pub(super) fn backoff(setbacks: u32, rest: Duration, random: f64) -> Duration {
    half_jitter(FIRST, LAST, setbacks, random).min(rest)
}

/// How long a job waits, should it give way to others. `None` for every other job, and for one whose time is up: it makes its
/// last call in its turn.
pub(super) fn wait(
    progress: &Progress,
    deadline: Option<Timestamp>,
    lane: &Lane,
    now: Timestamp,
    random: f64,
) -> Option<Duration> {
    if !progress.no_capacity || is_past(deadline, now) {
        return None;
    }
    let rest =
        lane.settings.retry.give_up_after.saturating_sub(failing_for(progress, lane, now)).min(left(deadline, now));
    (!rest.is_zero()).then(|| backoff(progress.setbacks.saturating_add(1), rest, random))
}

/// How long it is until the deadline.
pub(super) fn left(deadline: Option<Timestamp>, now: Timestamp) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| elapsed(now, deadline))
}

impl Job {
    /// Back since others go first, and for longer from time to time: where thousands wait, RabbitMQ is not to move them all the
    /// while.
    pub(super) fn give_way(&self, delay: Duration) -> Next {
        let progress =
            Progress { setbacks: self.held.progress.setbacks.saturating_add(1), ..self.held.progress.clone() };
        Next::Park { progress, delay, cause: ParkCause::GaveWay }
    }
}
