//! Jobs that wait for a moment, to be called together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until};

use super::Tenure;
use super::company::Ticket;
use super::run::Job;
use super::serve::{Jobs, slot, start};

/// How long a job waits for others to be called with.
const COMPANY: Duration = Duration::from_millis(50);

/// Jobs that wait to be called together.
#[derive(Default)]
pub(super) struct Gathering {
    jobs: Vec<Job>,
    /// When the first of them has waited long enough.
    until: Option<Instant>,
}

impl Gathering {
    pub(super) fn add(&mut self, job: Job) {
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

    /// Waits for the limiter, once for all of them, and has them run.
    pub(super) async fn start(&mut self, tenure: &Arc<Tenure>, slots: &Arc<Semaphore>, jobs: &mut Jobs) {
        if self.jobs.is_empty() {
            return;
        }
        let slot = slot(slots).await;
        // Paused or not is asked before the call.
        let _ = tenure.lane.limited().await;
        let Self { jobs: company, .. } = std::mem::take(self);
        let tickets = Ticket::together(company.len(), slot, slots);
        for (job, ticket) in company.into_iter().zip(tickets) {
            start(tenure, job, ticket, jobs);
        }
    }
}
