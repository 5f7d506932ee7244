//! A pause that was ordered: the breaker is forced open, whatever its circuit says.

use jiff::Timestamp;

use super::cause::Cause;
use super::pauses::Pauses;

/// The pauses by hand of a lane.
#[derive(Debug, Default)]
pub(super) struct ByHand {
    /// Why, and since when.
    present: Option<(Cause, Timestamp)>,
    past: Pauses,
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
        self.past.add(since, now);
        Some(since)
    }

    /// From when to when the lane was paused by hand, one after the other; the present pause until `now`.
    pub(super) fn pauses(&self, now: Timestamp) -> impl Iterator<Item = (Timestamp, Timestamp)> {
        self.past.until(now, self.present.as_ref().map(|(_, since)| *since))
    }
}
