//! How many jobs of a batch end in a second.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Seconds over which the rate is measured.
const WINDOW: i64 = 30;

/// How many jobs ended in each of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Rate {
    seconds: BTreeMap<i64, usize>,
    /// The first second of all.
    first: Option<i64>,
}

impl Rate {
    pub(super) fn add(&mut self, at: Timestamp) {
        let second = at.as_second();
        self.first = Some(self.first.map_or(second, |first| first.min(second)));
        *self.seconds.entry(second).or_default() += 1;
        while self.seconds.len() > WINDOW as usize {
            self.seconds.pop_first();
        }
    }

    /// The mean of the window, or of the time since the first job ended if that is less.
    pub(super) fn per_second(&self, now: Timestamp) -> f64 {
        let now = now.as_second();
        let count: usize = self.seconds.range(now - WINDOW + 1..).map(|(_, count)| count).sum();
        let span = self.first.map_or(WINDOW, |first| (now - first + 1).clamp(1, WINDOW));
        count as f64 / span as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_batch_that_has_just_begun_has_the_rate_of_its_first_seconds() {
        let mut rate = Rate::default();
        assert_eq!(rate.per_second(at(100)), 0.0);
        for _ in 0..10 {
            rate.add(at(100));
        }
        assert_eq!(rate.per_second(at(101)), 5.0);
        assert_eq!(rate.per_second(at(129)), 10.0 / 30.0);
        assert_eq!(rate.per_second(at(130)), 0.0);
    }

    #[test]
    fn the_rate_takes_the_same_memory_however_long_it_is_measured() {
        let mut rate = Rate::default();
        for second in (0..10_000).rev().chain(0..10_000) {
            rate.add(at(second));
        }
        assert_eq!(rate.seconds.len(), WINDOW as usize);
        assert!((rate.per_second(at(9_999)) - 2.0).abs() < 0.1, "{}", rate.per_second(at(9_999)));
    }
}
