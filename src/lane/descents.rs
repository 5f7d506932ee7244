//! Jobs that leave the delay ladder before their delay is over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use crate::broker::{Message, Names};
use crate::telemetry::LaneMetrics;

/// How often that is logged at most.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Checks jobs that come from the delay ladder.
#[derive(Debug, Default)]
pub(super) struct Descents {
    logged_at: Mutex<Option<Instant>>,
}

impl Descents {
    /// Counts a job that RabbitMQ released too early, and logs it now and then. The job is done all the same: only its
    /// delay is lost.
    pub(super) fn check(&self, message: &Message, names: &Names, metrics: &LaneMetrics) {
        let Some(cut_short) = message.cut_short(names) else { return };
        metrics.delays_cut_short.inc();
        let mut logged_at = self.logged_at.lock().unwrap_or_else(PoisonError::into_inner);
        if logged_at.is_none_or(|logged_at| logged_at.elapsed() >= LOGGED_EVERY) {
            *logged_at = Some(Instant::now());
            error!(
                "{cut_short}: a policy with message-ttl, max-length or overflow is over its queues, and what waits in others may be \
                 dropped by it. See rabbitmqctl list_policies, list_operator_policies. docs/rabbitmq.md has a policy that protects \
                 them"
            );
        }
    }
}
