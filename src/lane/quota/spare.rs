//! What jobs without capacity may use. Hundreds of them may wait, and each call is likely to be in vain, so others go
//! first: these use a token that no call wants, or a small share of the rate, and no more than that share of the calls
//! in flight. A job that gets neither is put back, with nothing charged.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::limiter::Limiter;
use super::share::Share;

/// The part of the rate, and of the calls in flight, that such jobs may take while others wait.
const PART: f64 = 0.1;

/// See the module.
#[derive(Debug)]
pub(super) struct Spare {
    share: Share,
    calls: Arc<Semaphore>,
}

impl Spare {
    /// For `concurrency` calls in flight.
    pub(super) fn new(concurrency: u32) -> Self {
        let share = Share::new(PART);
        let calls = Arc::new(Semaphore::new(share.of(concurrency)));
        Self { share, calls }
    }

    /// The right to one call, released on drop. The token of the limiter is still to be taken.
    pub(super) fn take(&self, limiter: &Limiter) -> Option<OwnedSemaphorePermit> {
        let call = self.calls.clone().try_acquire_owned().ok()?;
        (limiter.is_free() || self.share.take(limiter.rate(), Instant::now())).then_some(call)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn jobs_that_wait_for_capacity_take_what_no_call_wants_or_a_tenth() {
        let (limiter, spare) = (Limiter::new(20.0, 1), Spare::new(32));
        assert!(limiter.is_free() && spare.take(&limiter).is_some());
        assert!(limiter.is_free(), "to look takes nothing");
        let (mut starts, mut taken) = (0, 0);
        let busy = async {
            loop {
                limiter.acquire().await;
                starts += 1;
                // As often as the lane consumes a delivery.
                taken += usize::from(spare.take(&limiter).is_some());
            }
        };
        let _: Result<(), _> = tokio::time::timeout(Duration::from_secs(100), busy).await;
        assert!((150..=210).contains(&taken) && starts > 1_990, "{taken} beside {starts}");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!((0..9).all(|_| spare.take(&limiter).is_some()), "no call wants it");
    }

    #[tokio::test(start_paused = true)]
    async fn of_the_calls_in_flight_they_take_a_tenth() {
        let (limiter, spare) = (Limiter::new(1000.0, 1000), Spare::new(32));
        let held: Vec<_> = (0..9).filter_map(|_| spare.take(&limiter)).collect();
        assert_eq!(held.len(), 4);
        drop(held);
        assert!(spare.take(&limiter).is_some());
    }
}
