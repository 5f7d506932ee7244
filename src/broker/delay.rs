//! The delay ladder: level n holds a message for 2^n seconds, so 18 queues make every delay up to three days.
//!
//! The first 18 words of the routing key are the delay in binary, most significant first, and the last word is the
//! lane. At level n a `1` leads into the level's queue, which lets the message fall one level when its time is up;
//! a `0` leads straight to the level below.
//!
//! Delays are rounded up to whole seconds, the ladder's unit: a job never comes back before its time.

use std::time::Duration;

use super::names::{LEVELS, Names};
use crate::config::LaneName;

/// The longest delay of one descent, in seconds. A job that is due later returns and goes up again.
pub const LONGEST: u64 = (1 << LEVELS) - 1;

/// The exchange and routing key that bring a message to `lane`'s due queue after `delay`, rounded up to whole seconds,
/// [`LONGEST`] at most.
pub fn route(names: &Names, delay: Duration, lane: &LaneName) -> (String, String) {
    let whole = delay.as_secs().saturating_add(u64::from(delay.subsec_nanos() > 0)).min(LONGEST);
    let mut key = String::with_capacity(2 * LEVELS as usize + lane.as_str().len());
    for level in (0..LEVELS).rev() {
        key.push(if whole >> level & 1 == 1 { '1' } else { '0' });
        key.push('.');
    }
    key.push_str(lane.as_str());
    // The levels above the highest 1 would only pass the message on.
    let exchange = whole.checked_ilog2().map_or_else(|| names.delay_return(), |level| names.delay(level));
    (exchange, key)
}

/// The binding of a level for one value of its bit.
pub(super) fn pattern(level: u32, bit: char) -> String {
    let above = (LEVELS - 1 - level) as usize;
    format!("{}{bit}.#", "*.".repeat(above))
}

/// The bindings of a level for messages that are no parked jobs: for keys with fewer words. A message with such a key,
/// as when sent to a queue of the ladder by its name over the default exchange, would have no route when its time is
/// up. RabbitMQ dead-letters 32 messages of a queue at a time: that many would block all jobs in it.
pub(super) fn strays() -> impl Iterator<Item = String> {
    (0..=LEVELS as usize).map(|words| vec!["*"; words].join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_enters_at_its_highest_bit() {
        let (names, lane) = (Names::new("reveille"), LaneName::parse("prod").unwrap());
        let route = |millis| route(&names, Duration::from_millis(millis), &lane);
        let zeros = "0.".repeat(17);
        assert_eq!(route(0), ("reveille.delay.return".to_owned(), format!("{zeros}0.prod")));
        assert_eq!(route(1), ("reveille.delay.00".to_owned(), format!("{zeros}1.prod")));
        assert_eq!(route(1_000), route(1));
        assert_eq!(route(5_001), ("reveille.delay.02".to_owned(), format!("{}1.1.0.prod", "0.".repeat(15))));
        assert_eq!(route(u64::MAX), ("reveille.delay.17".to_owned(), format!("{}prod", "1.".repeat(18))));
    }

    #[test]
    fn a_level_looks_at_its_own_word_alone() {
        assert_eq!(pattern(17, '1'), "1.#");
        assert_eq!(pattern(15, '0'), "*.*.0.#");
        assert_eq!(pattern(0, '1'), format!("{}1.#", "*.".repeat(17)));
    }

    #[test]
    fn every_key_that_is_shorter_than_a_parked_jobs_is_a_strays_and_no_other() {
        let (_, parked) = route(&Names::new("reveille"), Duration::from_secs(1), &LaneName::parse("prod").unwrap());
        let words: Vec<usize> = strays().map(|key| key.split('.').filter(|word| *word == "*").count()).collect();
        assert_eq!(words, (0..parked.split('.').count()).collect::<Vec<_>>());
        assert_eq!(strays().nth(3).unwrap(), "*.*.*");
    }
}
