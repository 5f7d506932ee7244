//! A pause that was ordered: the breaker is forced open, whatever its circuit says.

use std::collections::VecDeque;

use jiff::Timestamp;

use super::cause::Cause;

/// Pauses remembered. Beyond that, the oldest count as time in which jobs failed.
const REMEMBERED: usize = 256;

/// The pauses by hand of a lane.
#[derive(Debug, Default)]
pub(super) struct ByHand {
    /// Why, and since when.
    present: Option<(Cause, Timestamp)>,
    /// From when to when.
    past: VecDeque<(Timestamp, Timestamp)>,
}

impl ByHand {
    /// Why the lane is paused by hand, if it is.
    pub(super) fn cause(&self) -> Option<&Cause> {
        self.present.as_ref().map(|(cause, _)| cause)
    }

    /// Begins a pause that was ordered then, or gives the present one another cause. Returns whether that is another one than
    /// before.
    pub(super) fn pause(&mut self, cause: Cause, ordered: Timestamp) -> bool {
        let is_new = self.cause() != Some(&cause);
        let since = self.present.take().map_or(ordered, |(_, since)| since);
        self.present = Some((cause, since));
        is_new
    }

    /// Ends the pause. Returns since when it was, if there was one.
    pub(super) fn resume(&mut self, now: Timestamp) -> Option<Timestamp> {
        let (_, since) = self.present.take()?;
        if self.past.len() >= REMEMBERED {
            self.past.pop_front();
        }
        self.past.push_back((since, now));
        Some(since)
    }

    /// From when to when the lane was paused by hand, one after the other; the present pause until `now`.
    pub(super) fn pauses(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        self.past.iter().copied().chain(self.present.iter().map(move |(_, since)| (*since, now)))
    }
}
