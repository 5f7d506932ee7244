//! The concurrency limit of a lane, as slots for calls in flight.
//!
//! A job gives its slot back before it waits for confirms, which take longer than a call.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use crate::lane::breaker::Breaker;

/// The right to have one call in flight, released on drop.
#[derive(Debug)]
#[must_use = "dropped, it is given back"]
pub struct Slot(#[expect(dead_code, reason = "held until the call is over")] Option<OwnedSemaphorePermit>);

impl Slot {
    /// For calls that are bounded separately from starts: polls and probes.
    pub(super) fn apart() -> Self {
        Self(None)
    }

    /// The one of a lane with a single slot.
    #[cfg(test)]
    pub(in crate::lane) fn only(slots: &Arc<Semaphore>) -> Self {
        Self(Some(slots.clone().try_acquire_owned().expect("it is free")))
    }
}

/// The slots of a lane, one for each call in flight. Fewer are given out while calls fail in a row, and on trial.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    count: u32,
    /// Serves one waiter at a time, so that what one collects is not split among several.
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

    /// Waits for a slot. If all are withheld, awaits `probe`, to learn whether calls can succeed.
    pub(super) async fn take<F: Future<Output = ()>>(&self, breaker: &Breaker, probe: impl Fn() -> F) -> Slot {
        let _first = self.line.lock().await;
        loop {
            let withheld = breaker.withheld();
            let Some(free) = u32::try_from(withheld).ok().filter(|free| *free < self.count) else {
                probe().await;
                continue;
            };
            // One more than are withheld is acquired, and only one of them kept: the others stay free.
            let all = self.slots.clone().acquire_many_owned(free + 1);
            tokio::select! {
                biased;
                all = all => {
                    let mut all = all.expect("the semaphore is never closed");
                    // The call that released the last of them may have failed.
                    if breaker.withheld() <= withheld {
                        return Slot(Some(all.split(1).expect("at least one was acquired")));
                    }
                }
                () = breaker.withholds_other_than(withheld) => {}
            }
        }
    }
}
