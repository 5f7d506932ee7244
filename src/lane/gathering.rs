//! Jobs that wait for a moment, to be called together.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::Tenure;
use super::company::Ticket;
use super::run::Job;
use super::serve::{Jobs, start};
use super::slots::Slots;

/// How long a job waits for others to be called with.
const COMPANY: Duration = Duration::from_millis(50);

/// Jobs that wait to be called together.
pub(super) struct Gathering<J = Job> {
    jobs: Vec<J>,
    /// When the first of them has waited long enough.
    until: Option<Instant>,
}

impl<J> Default for Gathering<J> {
    fn default() -> Self {
        Self { jobs: Vec::new(), until: None }
    }
}

impl<J> Gathering<J> {
    pub(super) fn add(&mut self, job: J) {
        self.until.get_or_insert_with(|| Instant::now() + COMPANY);
        self.jobs.push(job);
    }

    /// Waits until there are enough of them, or the first has waited long enough.
    pub(super) async fn over(&self, enough: usize) {
        match self.until {
            Some(until) if self.jobs.len() < enough => sleep_until(until).await,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

impl Gathering {
    /// Waits for the limiter, once for all of them, and has them run.
    pub(super) async fn start(&mut self, tenure: &Arc<Tenure>, slots: &Arc<Slots>, jobs: &mut Jobs) {
        if self.jobs.is_empty() {
            return;
        }
        let slot = slots.take(&tenure.lane).await;
        // Paused or not is asked before the call.
        let _ = tenure.lane.limited().await;
        let Self { jobs: company, .. } = std::mem::take(self);
        let tickets = Ticket::together(company.len(), slot, slots);
        for (job, ticket) in company.into_iter().zip(tickets) {
            start(tenure, job, ticket, jobs);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const ENOUGH: usize = 3;

    /// How long these wait from now on.
    async fn wait(gathering: &Gathering<u32>) -> Duration {
        let since = Instant::now();
        gathering.over(ENOUGH).await;
        since.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_waits_for_company_and_not_for_long() {
        let mut gathering = Gathering::default();
        gathering.add(1);
        assert_eq!(wait(&gathering).await, COMPANY);
        assert_eq!(wait(&gathering).await, Duration::ZERO, "it has waited");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_later_does_not_make_the_first_wait_longer() {
        let mut gathering = Gathering::default();
        gathering.add(1);
        advance(COMPANY * 4 / 5).await;
        gathering.add(2);
        assert_eq!(wait(&gathering).await, COMPANY / 5);
    }

    #[tokio::test(start_paused = true)]
    async fn enough_of_them_wait_for_nobody() {
        let mut gathering = Gathering::default();
        for _ in 0..ENOUGH {
            gathering.add(1);
        }
        assert_eq!(wait(&gathering).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_no_company() {
        let gathering = Gathering::<u32>::default();
        let waited = timeout(Duration::from_secs(3600), gathering.over(ENOUGH)).await;
        assert!(waited.is_err(), "with nobody there is nothing to call");
    }
}
