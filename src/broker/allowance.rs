//! How many channels may be open if the broker limits them over all connections of a user or of a node. Such a limit
//! shows only by the loss of the connection that opens one channel too many.
//!
//! After such a loss the daemon uses one channel fewer than the limit, and no more than its lanes need, so that as many
//! replicas as possible can share them. Each further loss leaves a quarter more to others. Lanes without a place wait
//! and log it. After ten minutes the limit is tried again.

use std::time::{Duration, Instant};

use super::channels::FEWEST;

/// RabbitMQ counts the channels of a lost connection for a moment: another loss within this time has the same cause.
const SAME: Duration = Duration::from_secs(5);
/// How long a limit is assumed to hold. It may be raised, and clients that share it may go.
const BELIEVED: Duration = Duration::from_secs(10 * 60);

/// What past losses showed.
#[derive(Debug, Default)]
pub(super) struct Allowance(Option<Lesson>);

#[derive(Debug, Clone, Copy)]
struct Lesson {
    /// Channels of all our connections together.
    channels: usize,
    learned: Instant,
}

impl Allowance {
    /// The limit for the channels of all our connections together; `None` where none is known.
    pub fn channels(&self, now: Instant) -> Option<usize> {
        self.0.filter(|lesson| now.duration_since(lesson.learned) < BELIEVED).map(|lesson| lesson.channels)
    }

    /// A connection was lost over a limit of `most` channels. One is left to the log's reader, replies and `submit`.
    /// Other replicas may need more, so each further loss leaves a quarter more, but never the last lane's.
    pub fn learn(&mut self, most: usize, now: Instant) {
        let channels = match self.0 {
            Some(lesson) if now.duration_since(lesson.learned) < SAME => lesson.channels,
            Some(_) if let Some(channels) = self.channels(now) => channels - channels / 4,
            _ => most.saturating_sub(1),
        };
        let fewest = if most < FEWEST { 0 } else { FEWEST };
        self.0 = Some(Lesson { channels: channels.min(most).max(fewest), learned: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_made_do_with_and_believed_for_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut allowance = Allowance::default();
        assert_eq!(allowance.channels(start), None);
        allowance.learn(65, start);
        assert_eq!(allowance.channels(start), Some(64));
        allowance.learn(65, at(1));
        assert_eq!(allowance.channels(at(1)), Some(64), "it is the same loss, as good as");
        allowance.learn(65, at(60));
        assert_eq!(allowance.channels(at(60)), Some(48));
        assert_eq!(allowance.channels(at(659)), Some(48));
        assert_eq!(allowance.channels(at(660)), None);
        allowance.learn(65, at(700));
        assert_eq!(allowance.channels(at(700)), Some(64));
    }

    #[test]
    fn a_lane_is_left_what_it_needs_where_there_is_as_much() {
        let start = Instant::now();
        let later = start + SAME;
        for (most, left) in [(FEWEST + 1, FEWEST), (FEWEST, FEWEST), (FEWEST - 1, 2), (0, 0)] {
            let mut allowance = Allowance::default();
            allowance.learn(most, start);
            assert_eq!(allowance.channels(start), Some(left), "of {most}");
            allowance.learn(most, later);
            assert!(allowance.channels(later).is_some_and(|channels| most < FEWEST || channels == FEWEST), "of {most}");
        }
    }
}
