//! The memory that messages take, so that fewer large ones are prefetched.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::content::LARGEST_BODY;
use super::table::{MOST_VALUES, VALUE};
use crate::config::USUAL_FRAME;

/// Approximate memory of the largest message, in bytes.
pub const MOST_LOAD: usize = LARGEST_BODY as usize + USUAL_FRAME as usize + MOST_VALUES * VALUE;
/// Messages per generation. The largest of the last one to two generations counts.
const GENERATION: u32 = 128;
/// Until so many messages came over a channel, [`MOST_LOAD`] is assumed for them.
pub const SEEN: u64 = 16;

/// The memory that messages take, by channel.
#[derive(Debug, Default)]
pub struct Loads(Mutex<HashMap<u16, Recent>>);

#[derive(Debug, Default, Clone, Copy)]
struct Recent {
    /// All messages ever seen.
    seen: u64,
    /// Messages of the present generation.
    count: u32,
    largest: usize,
    /// The largest of the generation before.
    before: usize,
}

impl Loads {
    pub(super) fn record(&self, channel: u16, load: usize) {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = channels.entry(channel).or_default();
        if recent.count == GENERATION {
            *recent = Recent { count: 0, largest: 0, before: recent.largest, ..*recent };
        }
        recent.seen += 1;
        recent.count += 1;
        recent.largest = recent.largest.max(load);
    }

    /// The size of the largest recent message on a channel, in bytes; [`MOST_LOAD`] while too few came to know.
    pub fn largest(&self, channel: u16) -> usize {
        let recent = self.recent(channel);
        if recent.seen < SEEN { MOST_LOAD } else { recent.largest.max(recent.before) }
    }

    /// How many messages ever came over a channel.
    pub fn seen(&self, channel: u16) -> u64 {
        self.recent(channel).seen
    }

    fn recent(&self, channel: u16) -> Recent {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&channel).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_of_the_last_messages_counts_and_none_is_small_unseen() {
        let loads = Loads::default();
        assert_eq!(loads.largest(1), MOST_LOAD);
        (1..SEEN).for_each(|_| loads.record(1, 300));
        assert_eq!(loads.largest(1), MOST_LOAD);
        loads.record(1, 300);
        assert_eq!((loads.largest(1), loads.largest(2)), (300, MOST_LOAD));
        assert_eq!((loads.seen(1), loads.seen(2)), (SEEN, 0));
        loads.record(1, 50_000);
        (0..GENERATION).for_each(|_| loads.record(1, 300));
        assert_eq!(loads.largest(1), 50_000, "it is in the generation before");
        (0..GENERATION).for_each(|_| loads.record(1, 300));
        assert_eq!(loads.largest(1), 300);
    }
}
