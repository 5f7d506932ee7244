//! Which due time is to be fired now, and which were missed.

use jiff::{SignedDuration, Timestamp};

use super::Timetable;

/// Due times of longer ago are forgotten: as the log keeps events.
const KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Missed due times that are counted one by one: one each minute for as long.
pub const MOST_MISSED: usize = 7 * 24 * 60;

/// What is due of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// The due time that is to be fired.
    pub fire: Option<Timestamp>,
    /// Due times that are not fired any more, in order: at most the latest [`MOST_MISSED`].
    pub missed: Vec<Timestamp>,
}

/// What is due of the times after `since` and up to `now`: the newest, unless it is too late for it. The others are missed.
pub fn due(timetable: &Timetable, since: Timestamp, now: Timestamp, is_in_time: impl FnOnce(Timestamp) -> bool) -> Due {
    let mut last = since.max(now.checked_sub(KEPT).unwrap_or(Timestamp::MIN));
    let mut passed = Vec::new();
    while let Some(next) = timetable.after(last).filter(|next| *next <= now) {
        passed.push(next);
        last = next;
    }
    let fire = passed.pop_if(|newest| is_in_time(*newest));
    passed.drain(..passed.len().saturating_sub(MOST_MISSED));
    Due { fire, missed: passed }
}
