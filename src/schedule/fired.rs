//! Which due time is to be fired now, and which were missed.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::Timetable;

/// Missed due times that are counted one by one: a week of one each minute. The log, by which one knows of them, keeps no more.
pub const MOST_MISSED: usize = 7 * 24 * 60;

/// What is due of a schedule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Due {
    /// The due time that is to be fired.
    pub fire: Option<Timestamp>,
    /// Due times that are not fired any more, in order: at most the latest [`MOST_MISSED`].
    pub missed: Vec<Timestamp>,
}

/// What is due of the times after `since` and up to `now`: the newest, unless it is more than `grace` late. The others are
/// missed.
pub fn due(timetable: &Timetable, since: Timestamp, now: Timestamp, grace: Duration) -> Due {
    let keeps = SignedDuration::from_hours(7 * 24);
    let mut last = since.max(now.checked_sub(keeps).unwrap_or(Timestamp::MIN));
    let mut passed = Vec::new();
    while let Some(next) = timetable.after(last).filter(|next| *next <= now) {
        passed.push(next);
        last = next;
    }
    let is_in_time = |due: &Timestamp| now.duration_since(*due).unsigned_abs() <= grace;
    let fire = passed.pop_if(|newest| is_in_time(newest));
    passed.drain(..passed.len().saturating_sub(MOST_MISSED));
    Due { fire, missed: passed }
}
