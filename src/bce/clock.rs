//! The API's clock, by which signatures are judged, as learned from its answers.
//!
//! Every answer of the API teaches it, not only a refusal, so that drift never leads to one. A `Date` changes the
//! offset only by 2 s or more, and by more than half of the call's round trip: it has whole seconds, and was written at
//! any time in between. A `Date` more than a day from our own clock is ignored. A day is more than any confusion of
//! time zones; a party that can forge a `Date` would get signatures that are valid at a time of its choice.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// `Date` has whole seconds, so a difference below this may be none.
const HYSTERESIS_MILLIS: i64 = 2_000;
/// A `Date` further from our clock is ignored: a day is more than any confusion of time zones. A party that could forge
/// one would get signatures that are valid at a time of its choice.
const FURTHEST_MILLIS: i64 = 24 * 60 * 60 * 1_000;

/// How far the API's clock is ahead of ours.
#[derive(Debug, Default)]
pub struct Clock {
    /// Seconds.
    offset: AtomicI64,
}

impl Clock {
    /// The time by the API's clock.
    pub fn now(&self) -> Timestamp {
        let ours = Timestamp::now();
        ours.checked_add(SignedDuration::from_secs(self.offset())).unwrap_or(ours)
    }

    /// The API's clock minus ours, in seconds; zero until an answer shows otherwise.
    pub fn offset(&self) -> i64 {
        self.offset.load(Ordering::Relaxed)
    }

    /// Learns from an answer's `Date`. Returns by how many seconds the offset changed, if it did.
    ///
    /// `received` is when the answer came by our clock, `round_trip` how long that took: the answer was dated some time
    /// within that.
    pub fn learn(&self, date: Timestamp, received: Timestamp, round_trip: Duration) -> Option<i64> {
        let before = self.offset();
        let after = corrected(before, date, received, round_trip)?;
        // If a concurrent answer was faster, that one has changed it.
        self.offset.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        Some(after - before)
    }
}

/// The offset that an answer shows, in seconds, if it differs from `offset` by more than the uncertainty.
fn corrected(offset: i64, date: Timestamp, received: Timestamp, round_trip: Duration) -> Option<i64> {
    let one_way = i64::try_from(round_trip.as_millis() / 2).ok()?;
    // On average a Date is half a second older than it says.
    let seen = date.as_millisecond() + 500 - (received.as_millisecond() - one_way);
    let moved = seen.abs() <= FURTHEST_MILLIS && (seen - offset * 1_000).abs() >= HYSTERESIS_MILLIS + one_way;
    moved.then(|| (seen + 500).div_euclid(1_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_millis(20);

    /// The new offset, from `offset` seconds, after an answer that the server dated `ahead` milliseconds ahead of our
    /// clock.
    fn after(offset: i64, ahead: i64, round_trip: Duration) -> Option<i64> {
        let received = Timestamp::from_millisecond(1_795_000_000_250).unwrap();
        let date = Timestamp::from_second((received.as_millisecond() + ahead).div_euclid(1_000)).unwrap();
        corrected(offset, date, received, round_trip)
    }

    #[test]
    fn what_whole_seconds_leave_open_moves_nothing() {
        for ahead in (-1_400..=1_400).step_by(100) {
            assert_eq!(after(0, ahead, FAST), None, "{ahead}");
            assert_eq!(after(1_200, 1_200_000 + ahead, FAST), None, "{ahead}");
        }
    }

    #[test]
    fn the_offset_follows_in_both_directions_to_within_a_second() {
        for seconds in [-86_000, -1_200, -3, 3, 1_200, 86_000] {
            for offset in [0, -seconds] {
                let found = after(offset, seconds * 1_000, FAST).unwrap();
                assert!((found - seconds).abs() <= 1, "{found} where it is {seconds}");
            }
        }
        // Back to none.
        assert_eq!(after(1_200, 0, FAST), Some(0));
    }

    #[test]
    fn a_slow_answer_tells_less() {
        // Dated at any time within the ten seconds it took.
        for ahead in [-10_000, -5_000, 0] {
            assert_eq!(after(0, ahead, Duration::from_secs(10)), None, "{ahead}");
        }
        assert!(after(0, 1_200_000, Duration::from_secs(10)).is_some());
    }

    #[test]
    fn a_date_more_than_a_day_off_is_not_believed() {
        assert_eq!(after(0, 25 * 3_600_000, FAST), None);
        assert_eq!(after(0, -25 * 3_600_000, FAST), None);
        let received = Timestamp::from_second(1_795_000_000).unwrap();
        for date in [Timestamp::MIN, Timestamp::MAX, Timestamp::UNIX_EPOCH] {
            assert_eq!(corrected(0, date, received, FAST), None, "{date}");
            assert_eq!(corrected(0, received, date, Duration::MAX), None, "{date}");
        }
    }

    #[test]
    fn now_is_the_apis_time() {
        let clock = Clock::default();
        let received = Timestamp::now();
        let date = Timestamp::from_second(received.as_second() + 1_200).unwrap();
        assert!(clock.learn(date, received, FAST).is_some_and(|moved| (1_199..=1_201).contains(&moved)));
        assert!(clock.now() > received + SignedDuration::from_secs(1_198));
        assert_eq!(clock.learn(date, received, FAST), None);
    }
}
