//! When a lane was paused.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

/// Pauses remembered. Beyond that, the oldest count as time in which jobs failed.
const REMEMBERED: usize = 256;

/// Past pauses: from when to when.
#[derive(Debug, Default)]
pub(super) struct Pauses(VecDeque<(Timestamp, Timestamp)>);

impl Pauses {
    pub(super) fn add(&mut self, from: Timestamp, to: Timestamp) {
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((from, to));
    }

    /// Those so far, the oldest first, and then the `present` one, if there is one, until `now`.
    pub(super) fn until(
        &self,
        now: Timestamp,
        present: Option<Timestamp>,
    ) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        self.0.iter().copied().chain(present.map(|since| (since, now)))
    }
}

/// How much of the time between two instants is in `pauses`, some of which may overlap.
pub(super) fn time_in(
    pauses: impl Iterator<Item = (Timestamp, Timestamp)>,
    from: Timestamp,
    to: Timestamp,
) -> Duration {
    let mut pauses: Vec<_> = pauses.collect();
    pauses.sort_unstable();
    let (mut sum, mut counted) = (Duration::ZERO, from);
    for (began, ended) in pauses {
        let (began, ended) = (began.max(counted), ended.min(to));
        sum += Duration::try_from(ended.duration_since(began)).unwrap_or_default();
        counted = counted.max(ended);
    }
    sum
}
