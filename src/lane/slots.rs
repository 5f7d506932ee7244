//! The right to one of the lane's calls at a time.
//!
//! A job gives its slot back before it waits for confirms, which take longer than a call.

use std::sync::Arc;

use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};

use super::Lane;

/// As many as the lane may have calls in flight. Fewer are given out while calls fail in a row, and on trial.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Arc<Semaphore>,
    /// One at a time is given its slot. What the others wait for is not in flight.
    line: Mutex<()>,
}

impl Slots {
    /// `count` of them.
    pub(super) fn new(count: usize) -> Self {
        Self { slots: Arc::new(Semaphore::new(count)), line: Mutex::default() }
    }

    #[cfg(test)]
    pub(super) fn take_one(&self) -> OwnedSemaphorePermit {
        self.slots.clone().try_acquire_owned().expect("one is free")
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.slots.available_permits()
    }

    /// Waits until no call is in flight.
    pub(super) async fn all_free(&self, lane: &Lane) {
        drop(self.slots.acquire_many(lane.concurrency).await);
    }

    /// Waits for one.
    pub(super) async fn take(&self, lane: &Lane) -> OwnedSemaphorePermit {
        let _first = self.line.lock().await;
        loop {
            let withheld = lane.breaker.withheld();
            let Some(free) = u32::try_from(withheld).ok().filter(|free| *free < lane.concurrency) else {
                lane.probe_once().await;
                continue;
            };
            // Those withheld are free then, and stay free.
            let all = self.slots.clone().acquire_many_owned(free + 1);
            tokio::select! {
                biased;
                all = all => {
                    let mut all = all.expect("the semaphore is never closed");
                    // The call that gave back the last of them may have failed.
                    if lane.breaker.withheld() <= withheld {
                        return all.split(1).expect("at least one was acquired");
                    }
                }
                () = lane.breaker.withholds_other_than(withheld) => {}
            }
        }
    }
}
