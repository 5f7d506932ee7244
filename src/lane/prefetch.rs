//! How many messages of each queue a lane has in hand.

use crate::config;

/// The maximum prefetch of each queue, however small its messages.
const MOST_PREFETCHED: f64 = 2112.0;

/// The rate that polls leave to starts while both wait: at least half, as a poll waits in line behind one start.
fn left_to_starts(rate: f64, confirm_share: f64) -> f64 {
    rate * (1.0 - confirm_share).max(0.5)
}

/// Prefetch of each queue: enough that neither calls nor confirms run dry, but at most six seconds' worth of calls. A
/// job can be unacked for a minute then, as due jobs go first, four to one, and each needs a second call. At a
/// twentieth of the rate, the floor of throttling, that is 20 minutes. With the longest `Retry-After` holds it is 27,
/// and RabbitMQ allows 30.
///
/// With shared calls of `batch` jobs it is a second's worth of those at the `present` rate, if that is more. It shrinks
/// again once jobs are called singly, or slowly.
fn prefetch(rate: f64, present: f64, concurrency: u32, batch: usize) -> u16 {
    #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
    let batch = batch as f64;
    let wanted = (f64::from(concurrency * 2) + rate.min(64.0)) * batch;
    let worth = (rate * 6.0).max(present * batch).max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 2,112")]
    let prefetch = wanted.min(worth).min(MOST_PREFETCHED) as u16;
    prefetch
}

/// The prefetch of each queue at the lane's full rate, where jobs are called singly.
pub(super) fn full(lane: &config::Lane) -> u16 {
    let starts = left_to_starts(lane.rate, lane.confirm_share);
    prefetch(starts, starts, lane.concurrency, 1)
}

/// The prefetch of each queue at the `rate` of now, with up to `batch` jobs per call, for small messages.
pub(super) fn present(lane: &config::Lane, rate: f64, batch: usize) -> u16 {
    let starts = |rate| left_to_starts(rate, lane.confirm_share);
    prefetch(starts(lane.rate), starts(rate), lane.concurrency, batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefetch_feeds_the_limiter_and_holds_nothing_for_a_minute() {
        assert_eq!(prefetch(20.0, 20.0, 32, 1), 84);
        // A lane whose polls take half of what there is holds half as much.
        assert_eq!((left_to_starts(20.0, 0.1), left_to_starts(20.0, 1.0)), (18.0, 10.0));
        assert_eq!(prefetch(0.01, 0.01, 32, 1), 1);
        assert_eq!(prefetch(0.5, 0.5, 32, 1), 3);
        assert_eq!(prefetch(1e6, 1e6, 64, 1), 192);
        assert_eq!(prefetch(1e6, 1e6, 1024, 1), 2112);
        // A second's worth of jobs that are called together, or six of calls.
        assert_eq!(prefetch(20.0, 20.0, 32, 20), 400);
        assert_eq!(prefetch(20.0, 20.0, 32, 2), 120);
        assert_eq!(prefetch(20.0, 20.0, 32, 100), 2000);
        assert_eq!(prefetch(0.01, 0.01, 32, 100), 1);
        assert_eq!(prefetch(1e6, 1e6, 1024, 100), 2112);
        // Throttled as far as it goes, a lane holds no more than one that calls singly.
        assert_eq!(prefetch(20.0, 1.0, 32, 20), 120);
    }
}
