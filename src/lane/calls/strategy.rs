//! Batch strategy: the way to call several jobs that is likely to cost the fewest calls.
//!
//! The API starts all instances of a call or none. So the likelier one of them is not stopped, the less a shared call
//! pays. Of `n` instances, each with the probability `p` of not being stopped:
//!
//! | way | calls |
//! |---|---|
//! | together, and singly after a 409 | `1 + n·(1 − (1 − p)ⁿ)` |
//! | ask for their states first, then the stopped ones together, and each other one singly, for its own answer | `2 + p·n` |
//! | singly | `n` |
//!
//! Every way shows for each instance whether it was stopped, so `p` is learned whichever is chosen, and no call is made
//! only to learn it.
//!
//! Verifying 409s costs the same in each case. `p` is the share among about the last hundred instances. For `n` = 20:
//!
//! | `p` | together | asking first | singly |
//! |---|---|---|---|
//! | 0 | **1** | 2 | 20 |
//! | 1 in 380 | 2.0 | 2.1 | 20 |
//! | 1 % | 4.6 | **2.2** | 20 |
//! | 10 % | 18.6 | **4** | 20 |
//! | 50 % | 21 | **12** | 20 |
//! | above 90 % | 21 | above 20 | **20** |
//!
//! Single calls go on until another way is cheaper by a tenth: else a lane near the threshold would change its way, and
//! its prefetch, with every few jobs. It returns to batches by itself after some hundred stopped instances.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bce::Answer;

/// Weight of one more instance in the moving average: about the last hundred decide.
const WEIGHT: f64 = 0.01;
/// How long states are not listed after a list showed none: the permission may be missing, or the API down.
const NO_ASKING: Duration = Duration::from_secs(60);

/// Hysteresis: leave single calls only for a 10 % gain.
const STAYS: f64 = 0.9;

/// How to call several instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// All in one call.
    Together,
    /// One call for those that a list shows as stopped.
    AskFirst,
    /// Each in a call of its own.
    Singly,
}

/// What a lane has learned of its instances.
#[derive(Debug, Default)]
pub(super) struct Strategy {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The share of the instances seen lately that were not stopped, from 0 to 1.
    others: f64,
    no_asking_until: Option<Instant>,
    /// Whether the last choice was single calls.
    singly: bool,
}

impl Strategy {
    /// The way to call `count` instances.
    pub(super) fn way(&self, count: usize) -> Way {
        let mut state = self.state();
        let may_ask = state.no_asking_until.is_none_or(|until| until <= Instant::now());
        // Hysteresis: the prefetch is far smaller with single calls, and should not change with every job.
        let singly = if state.singly { STAYS } else { 1.0 };
        let way = cheapest(count, state.others, may_ask, singly);
        if count > 1 {
            state.singly = way == Way::Singly;
        }
        way
    }

    /// Records how many instances were stopped, and how many were not.
    pub(super) fn saw(&self, stopped: usize, others: usize) {
        let mut state = self.state();
        for (count, is_other) in [(stopped, 0.0), (others, 1.0)] {
            for _ in 0..count {
                state.others += (is_other - state.others) * WEIGHT;
            }
        }
    }

    /// Records a single call. An answer that does not show the state counts for nothing.
    pub(super) fn saw_one(&self, answer: &Answer) {
        match answer.status {
            _ if answer.foreign => {}
            200..=299 => self.saw(1, 0),
            // A shared call would have been refused because of this instance.
            403 | 404 | 409 => self.saw(0, 1),
            _ => {}
        }
    }

    /// Records that a list did not show the states.
    pub(super) fn asked_in_vain(&self) {
        self.state().no_asking_until = Some(Instant::now() + NO_ASKING);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way with the lowest expected number of calls for `count` instances, of which the share `others` is not stopped.
/// A single call is weighted with `singly`.
fn cheapest(count: usize, others: f64, may_ask: bool, singly: f64) -> Way {
    #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
    let n = count as f64;
    let (singly, together) = (n * singly, 1.0 + n * (1.0 - (1.0 - others).powf(n)));
    let ask_first = if may_ask { 2.0 + others * n } else { f64::INFINITY };
    if singly <= together.min(ask_first) {
        Way::Singly
    } else if together <= ask_first {
        Way::Together
    } else {
        Way::AskFirst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_calls_decide() {
        let cases = [
            // All are stopped, as far as is known.
            (20, 0.0, Way::Together),
            (2, 0.0, Way::Together),
            (1, 0.0, Way::Singly),
            // 1 + 400·p against 2 + 20·p: they meet at one in 380.
            (20, 1.0 / 400.0, Way::Together),
            (20, 1.0 / 350.0, Way::AskFirst),
            // 2 + 20·p against 20.
            (20, 0.89, Way::AskFirst),
            (20, 0.9, Way::Singly),
            // Two cost two calls in any case where one has to ask.
            (2, 0.29, Way::Together),
            (2, 0.30, Way::Singly),
            (100, 0.001, Way::AskFirst),
            (100, 1.0, Way::Singly),
        ];
        for (count, others, way) in cases {
            assert_eq!(cheapest(count, others, true, 1.0), way, "{count} with {others}");
        }
        assert_eq!(cheapest(20, 0.01, false, 1.0), Way::Together);
        assert_eq!(cheapest(20, 0.2, false, 1.0), Way::Singly);
    }

    #[test]
    fn a_lane_learns_which_way_and_finds_back() {
        let strategy = Strategy::default();
        assert_eq!(strategy.way(20), Way::Together);
        let answer = |status| Answer { status, ..Answer::default() };
        strategy.saw_one(&answer(409));
        assert_eq!(strategy.way(20), Way::AskFirst);
        strategy.saw(0, 300);
        assert_eq!(strategy.way(20), Way::Singly);
        // Nothing is learned from these.
        for status in [429, 500, 401] {
            strategy.saw_one(&answer(status));
        }
        strategy.saw_one(&Answer { foreign: true, ..answer(200) });
        assert_eq!(strategy.way(20), Way::Singly);
        for _ in 0..50 {
            strategy.saw_one(&answer(200));
        }
        assert_eq!(strategy.way(20), Way::AskFirst);
        strategy.saw(600, 0);
        assert_eq!(strategy.way(20), Way::Together);
    }

    #[test]
    fn a_lane_between_two_ways_does_not_change_with_every_job() {
        let strategy = Strategy::default();
        strategy.saw(0, 300);
        assert_eq!(strategy.way(20), Way::Singly);
        let mut changes = 0;
        let mut last = Way::Singly;
        // Nine in ten are not stopped, where single calls begin to cost less.
        for number in 0..1000 {
            strategy.saw(usize::from(number % 10 == 0), usize::from(number % 10 != 0));
            let way = strategy.way(20);
            changes += usize::from(way != last);
            last = way;
        }
        assert!(changes <= 1, "{changes} changes");
        // The last few of a lane's jobs are not called otherwise for it.
        assert_eq!(strategy.way(1), Way::Singly);
        strategy.saw(600, 0);
        assert_eq!(strategy.way(20), Way::Together);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_is_not_told_states_does_not_ask_for_a_while() {
        let strategy = Strategy::default();
        strategy.saw(90, 10);
        strategy.asked_in_vain();
        assert_eq!(strategy.way(20), Way::Together, "dearer than to ask, and still cheaper than each alone");
        tokio::time::advance(NO_ASKING).await;
        assert_eq!(strategy.way(20), Way::AskFirst);
    }
}
