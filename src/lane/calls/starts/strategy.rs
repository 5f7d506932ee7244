//! How a batch is likely to cost the fewest calls.
//!
//! The API starts all instances of a call or none. In a fleet, instances that are not stopped come in rows, and not at
//! random. So one bit decides: was the last batch refused, or did its list show an instance in another state? Then the
//! next one's states are listed before it is called. A batch that is refused costs a list as well, and then a call for
//! those that are stopped. Of `n` instances, each with the chance `p` of being in another state, `P = 1 − (1 − p)ⁿ`:
//!
//! | choice | calls |
//! |---|---|
//! | together or asking first, by the bit | `1 + 3P − 2P² + n·p` |
//! | together, where states cannot be listed | `1 + n·P` |
//! | singly | `n` |
//!
//! For `n` = 20, where single calls are 20 (simulated, 20,000 batches each):
//!
//! | `p` | calls by the bit |
//! |---|---|
//! | 0 | 1 |
//! | 1 in 380 | 1.20 |
//! | 1 % | 1.68 |
//! | 10 % | 4.1 |
//! | 50 % | 12 |
//! | 100 % | 21 |
//! | a row of 5 % of the fleet | 2.1 |
//!
//! Where hardly any instance is stopped, each job costs a call, and a prefetch of one second's batches takes a minute.
//! So `p` is estimated too, from about the last hundred instances, and where the bit would cost no less the lane calls
//! singly, with a far smaller prefetch. Single calls go on until the bit costs a tenth less: else a lane in between
//! would change its prefetch every few jobs. It returns to batches by itself after some hundred stopped instances.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::bce::Answer;
use crate::retry::ceiling;

/// Weight of one more instance in the estimate: about the last hundred decide.
const WEIGHT: f64 = 0.01;
/// How long states are not listed after a list that failed; twice as long after each that follows, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// How long they are not listed after a list that was refused, since the permission is missing.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// The cost of single calls while they are made counts as this part.
const HYSTERESIS: f64 = 0.9;

/// How to call some instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    /// All in one call.
    Together,
    /// Those in one call that a list shows as stopped.
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
    /// The last batch held an instance that was not stopped.
    was_refused: bool,
    /// Share of the recent instances that were not stopped, from 0 to 1.
    others: f64,
    no_asking_until: Option<Instant>,
    /// Lists that failed since the last one that did not.
    failed_lists: u32,
    /// Whether the last choice was to call singly.
    singly: bool,
}

impl Strategy {
    /// How to call `count` instances.
    pub(super) fn choose(&self, count: usize) -> Choice {
        let mut state = self.state();
        let may_ask = state.may_ask();
        let factor = if state.singly { HYSTERESIS } else { 1.0 };
        let singly = are_single_calls_cheaper(count, state.others, may_ask, factor);
        if count > 1 {
            state.singly = singly;
        }
        match state.was_refused && may_ask {
            _ if singly => Choice::Singly,
            true => Choice::AskFirst,
            false => Choice::Together,
        }
    }

    /// Whether states can be listed, as far as is known.
    pub(super) fn may_ask(&self) -> bool {
        self.state().may_ask()
    }

    /// A shared call started so many instances.
    pub(super) fn called_together(&self, started: usize) {
        let mut state = self.state();
        (0..started).for_each(|_| state.saw(false));
    }

    /// A shared call was refused because of one instance.
    pub(super) fn refused(&self) {
        self.state().was_refused = true;
    }

    /// The states of a batch were listed.
    pub(super) fn asked(&self, are_all_stopped: bool) {
        let mut state = self.state();
        state.was_refused = !are_all_stopped;
        state.failed_lists = 0;
    }

    /// A list showed no states: it was refused, or it failed.
    pub(super) fn asked_in_vain(&self, is_refused: bool) {
        let mut state = self.state();
        state.failed_lists = state.failed_lists.saturating_add(1);
        let pause = if is_refused { LONGEST_PAUSE } else { ceiling(FIRST_PAUSE, LONGEST_PAUSE, state.failed_lists) };
        state.no_asking_until = Some(Instant::now() + pause);
    }

    /// One instance was called by itself. An answer that does not show its state does not count.
    pub(super) fn called_singly(&self, answer: &Answer) {
        match answer.status {
            _ if answer.from_proxy => {}
            200..=299 => self.state().saw(false),
            // It would have been refused, and all others with it.
            403 | 404 | 409 => self.state().saw(true),
            _ => {}
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_ask(&self) -> bool {
        self.no_asking_until.is_none_or(|until| until <= Instant::now())
    }

    fn saw(&mut self, is_other: bool) {
        self.others += (f64::from(u8::from(is_other)) - self.others) * WEIGHT;
    }
}

/// Whether single calls, whose cost is multiplied by `factor`, are the fewest to be expected for `count` instances, of
/// which the share `others` is not stopped.
fn are_single_calls_cheaper(count: usize, others: f64, may_ask: bool, factor: f64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
    let n = count as f64;
    let refused = 1.0 - (1.0 - others).powf(n);
    let shared = if may_ask { 1.0 + 3.0 * refused - 2.0 * refused * refused + n * others } else { 1.0 + n * refused };
    n * factor <= shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    fn saw(strategy: &Strategy, stopped: usize, others: usize) {
        (0..stopped).for_each(|_| strategy.called_singly(&answer(200)));
        (0..others).for_each(|_| strategy.called_singly(&answer(409)));
    }

    fn calling_singly() -> Strategy {
        let strategy = Strategy::default();
        strategy.refused();
        saw(&strategy, 0, 300);
        assert_eq!(strategy.choose(20), Choice::Singly);
        strategy
    }

    #[test]
    fn the_fewest_calls_decide() {
        let cases = [
            // All are stopped, as far as is known.
            (20, 0.0, false),
            (2, 0.0, false),
            (1, 0.0, true),
            // 2 + 20·p against 20.
            (20, 0.89, false),
            (20, 0.9, true),
            // Two cost two calls in any case where a list is needed.
            (2, 0.15, false),
            (2, 0.16, true),
            (100, 0.001, false),
            (100, 0.97, false),
            (100, 0.99, true),
        ];
        for (count, others, singly) in cases {
            assert_eq!(are_single_calls_cheaper(count, others, true, 1.0), singly, "{count} with {others}");
        }
        assert!(!are_single_calls_cheaper(20, 0.01, false, 1.0));
        assert!(are_single_calls_cheaper(20, 0.2, false, 1.0), "each refused batch costs a call for each");
    }

    #[test]
    fn the_last_batch_decides_whether_the_next_ones_states_are_listed() {
        let strategy = Strategy::default();
        assert_eq!(strategy.choose(20), Choice::Together);
        strategy.refused();
        assert_eq!(strategy.choose(20), Choice::AskFirst);
        strategy.asked(false);
        strategy.called_together(19);
        assert_eq!(strategy.choose(20), Choice::AskFirst);
        strategy.asked(true);
        strategy.called_together(20);
        assert_eq!(strategy.choose(20), Choice::Together);
    }

    #[test]
    fn a_lane_learns_to_call_singly_and_finds_back() {
        let strategy = calling_singly();
        // Nothing is learned from these.
        for status in [429, 500, 401] {
            strategy.called_singly(&answer(status));
        }
        strategy.called_singly(&Answer { from_proxy: true, ..answer(200) });
        assert_eq!(strategy.choose(20), Choice::Singly);
        saw(&strategy, 50, 0);
        assert_eq!(strategy.choose(20), Choice::AskFirst);
        strategy.asked(true);
        assert_eq!(strategy.choose(20), Choice::Together);
    }

    #[test]
    fn a_lane_between_two_choices_does_not_change_with_every_job() {
        let strategy = calling_singly();
        let mut changes = 0;
        let mut last = Choice::Singly;
        // Nine in ten are not stopped, where single calls begin to cost less.
        for number in 0..1000 {
            saw(&strategy, usize::from(number % 10 == 0), usize::from(number % 10 != 0));
            let choice = strategy.choose(20);
            changes += usize::from(choice != last);
            last = choice;
        }
        assert!(changes <= 1, "{changes} changes");
        // The last few of a lane's jobs do not change its choice.
        assert_eq!(strategy.choose(1), Choice::Singly);
        saw(&strategy, 600, 0);
        assert_eq!(strategy.choose(20), Choice::AskFirst);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_gets_no_states_does_not_ask_for_a_while() {
        let strategy = Strategy::default();
        strategy.refused();
        for (is_refused, seconds) in [(false, 2), (false, 4), (false, 8), (true, 60), (false, 32), (false, 60)] {
            strategy.asked_in_vain(is_refused);
            tokio::time::advance(Duration::from_secs(seconds - 1)).await;
            assert_eq!(strategy.choose(20), Choice::Together, "within {seconds} s");
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(strategy.choose(20), Choice::AskFirst);
        }
        strategy.asked(false);
        strategy.asked_in_vain(false);
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(strategy.may_ask());
    }
}
