//! The right to one of the lane's calls at a time.
//!
//! A job gives its slot back before it waits for confirms, which take longer than a call.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::lane::breaker::Breaker;

/// The right to have one call in flight. Dropped, it is given back.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Slot(#[expect(dead_code, reason = "held until the call is over")] Option<OwnedSemaphorePermit>);

impl Slot {
    /// For calls that are bounded apart from starts: polls and probes.
    pub(super) fn apart() -> Self {
        Self(None)
    }

    /// The one of a lane with a single slot.
    #[cfg(test)]
    pub(in crate::lane) fn only(slots: &Arc<Semaphore>) -> Self {
        Self(Some(slots.clone().try_acquire_owned().expect("it is free")))
    }
}

/// As many as the lane may have calls in flight. Fewer are given out while calls fail in a row, and on trial.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    count: u32,
    /// One at a time is given its slot. What the others wait for is not in flight.
    line: Mutex<()>,
}

impl Slots {
    /// `count` of them.
    pub(super) fn new(count: u32) -> Self {
        Self { slots: Arc::new(Semaphore::new(count as usize)), count, line: Mutex::default() }
    }

    /// Waits until no call is in flight.
    pub(super) async fn all_free(&self) {
        drop(self.slots.acquire_many(self.count).await);
    }

    /// Waits for one. Where all are withheld, a `probe` has to tell first whether calls are of use.
    pub(super) async fn take<F: Future<Output = ()>>(&self, breaker: &Breaker, probe: impl Fn() -> F) -> Slot {
        let _first = self.line.lock().await;
        loop {
            let withheld = breaker.withheld();
            let Some(free) = u32::try_from(withheld).ok().filter(|free| *free < self.count) else {
                probe().await;
                continue;
            };
            // Those withheld are free then, and stay free.
            let all = self.slots.clone().acquire_many_owned(free + 1);
            tokio::select! {
                biased;
                all = all => {
                    let mut all = all.expect("the semaphore is never closed");
                    // The call that gave back the last of them may have failed.
                    if breaker.withheld() <= withheld {
                        return Slot(Some(all.split(1).expect("at least one was acquired")));
                    }
                }
                () = breaker.withholds_other_than(withheld) => {}
            }
        }
    }
}
