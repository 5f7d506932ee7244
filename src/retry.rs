//! Backoff: the only file that uses the `backoff` crate.
//!
//! That crate is unmaintained (RUSTSEC-2025-0012), so it is used only for the arithmetic of growing delays: no clock,
//! no randomness, no waiting. Replacing it changes this file only.

use std::time::Duration;

use backoff::SystemClock;
use backoff::backoff::Backoff;
use backoff::exponential::ExponentialBackoff;

/// Delays double from one reschedule to the next.
const MULTIPLIER: f64 = 2.0;

/// The delay before the next try after so many `reschedules` in a row: anywhere between zero and
/// `initial × 2^(reschedules − 1)`, or `max` if that is less.
///
/// This is "full jitter": what failed together is not retried together. `random` is from [0, 1).
pub fn full_jitter(initial: Duration, max: Duration, reschedules: u32, random: f64) -> Duration {
    ceiling(initial, max, reschedules).mul_f64(random.clamp(0.0, 1.0))
}

/// As [`full_jitter`], but at least half of the same ceiling: for retries that need patience.
pub fn half_jitter(initial: Duration, max: Duration, reschedules: u32, random: f64) -> Duration {
    ceiling(initial, max, reschedules).mul_f64(random.clamp(0.0, 1.0).midpoint(1.0))
}

/// The largest delay that [`full_jitter`] makes: for one process's own retries, which need no jitter.
pub fn ceiling(initial: Duration, max: Duration, reschedules: u32) -> Duration {
    let mut backoff = ExponentialBackoff::<SystemClock> {
        current_interval: initial.min(max),
        initial_interval: initial,
        max_interval: max,
        multiplier: MULTIPLIER,
        randomization_factor: 0.0,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    // 2^64 times the shortest delay is more than the longest one: further doublings change nothing.
    for _ in 1..reschedules.clamp(1, 64) {
        backoff.next_backoff();
    }
    backoff.next_backoff().unwrap_or(max).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INITIAL: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_secs(120);

    #[test]
    fn the_ceiling_doubles_up_to_the_maximum() {
        let ceilings: Vec<u64> =
            (1..=10).map(|reschedules| ceiling(INITIAL, MAX, reschedules).as_millis().try_into().unwrap()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 120_000, 120_000]);
        assert_eq!(ceiling(INITIAL, MAX, u32::MAX), MAX);
        assert_eq!(ceiling(INITIAL, MAX, 0), INITIAL);
        assert_eq!(ceiling(MAX, INITIAL, 1), INITIAL);
    }

    #[test]
    fn jitter_is_full() {
        assert_eq!(full_jitter(INITIAL, MAX, 4, 0.0), Duration::ZERO);
        assert_eq!(full_jitter(INITIAL, MAX, 4, 0.5), Duration::from_secs(2));
        assert!(full_jitter(INITIAL, MAX, 4, 0.999_999) < Duration::from_secs(4));
    }

    #[test]
    fn half_of_the_jitter_leaves_half_of_the_ceiling() {
        assert_eq!(half_jitter(INITIAL, MAX, 4, 0.0), Duration::from_secs(2));
        assert_eq!(half_jitter(INITIAL, MAX, 4, 0.5), Duration::from_secs(3));
        assert_eq!(half_jitter(INITIAL, MAX, 99, 1.0), MAX);
    }
}
