//! Jobs that linger for a moment in order to share a call.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::lane::calls::Entry;
use crate::lane::job::{Admitted, Tasks};
use crate::lane::parts::Session;

/// Linger time: how long a job waits for others to share its call.
const LINGER: Duration = Duration::from_millis(50);

/// Jobs that wait to share a call.
pub(in crate::lane) struct Coalescer<J = Admitted> {
    jobs: Vec<J>,
    /// When the linger time of the first one is over.
    until: Option<Instant>,
}

impl<J> Default for Coalescer<J> {
    fn default() -> Self {
        Self { jobs: Vec::new(), until: None }
    }
}

impl<J> Coalescer<J> {
    pub(in crate::lane) fn add(&mut self, job: J) {
        self.until.get_or_insert_with(|| Instant::now() + LINGER);
        self.jobs.push(job);
    }

    /// Waits until there are `enough` jobs, or the linger time of the first one is over.
    pub(in crate::lane) async fn ready(&self, enough: usize) {
        match self.until {
            Some(until) if self.jobs.len() < enough => sleep_until(until).await,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

impl Coalescer {
    /// Waits for one permit for all of them, and spawns the jobs.
    pub(in crate::lane) async fn flush(&mut self, session: &Arc<Session>, tasks: &mut Tasks) {
        if self.jobs.is_empty() {
            return;
        }
        let lane = &session.lane;
        let permit = lane.gate.enter(lane.calls.api.slot().await).await;
        let Self { jobs: together, .. } = std::mem::take(self);
        match permit {
            Ok(permit) => {
                let entries = Entry::shared(together.len(), permit);
                together.into_iter().zip(entries).for_each(|(job, entry)| job.spawn(session, entry, tasks));
            }
            Err(_paused) => together.into_iter().for_each(|job| job.spawn(session, Entry::None, tasks)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const ENOUGH: usize = 3;

    /// How long a coalescer waits from now on.
    async fn wait(coalescer: &Coalescer<u32>) -> Duration {
        let since = Instant::now();
        coalescer.ready(ENOUGH).await;
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_for_others_and_not_for_long() {
        let mut coalescer = Coalescer::default();
        coalescer.add(1);
        assert_eq!(wait(&coalescer).await, LINGER);
        assert_eq!(wait(&coalescer).await, Duration::ZERO, "it has waited");
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_job_does_not_make_the_first_wait_longer() {
        let mut coalescer = Coalescer::default();
        coalescer.add(1);
        advance(LINGER * 4 / 5).await;
        coalescer.add(2);
        assert_eq!(wait(&coalescer).await, LINGER / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn enough_of_them_wait_for_no_other() {
        let mut coalescer = Coalescer::default();
        for _ in 0..ENOUGH {
            coalescer.add(1);
        }
        assert_eq!(wait(&coalescer).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn no_job_is_no_call() {
        let coalescer = Coalescer::<u32>::default();
        let waited = timeout(Duration::from_secs(3600), coalescer.ready(ENOUGH)).await;
        assert!(waited.is_err(), "with no job there is nothing to call");
    }
}
