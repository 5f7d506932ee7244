//! Jobs that leave the delay ladder before their delay is over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use crate::broker::Message;
use crate::lane::parts::Lane;

/// How often that is logged at most.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Checks jobs that come from the delay ladder.
#[derive(Debug, Default)]
pub(in crate::lane) struct Descents {
    logged_at: Mutex<Option<Instant>>,
}

impl Descents {
    /// Counts a job that RabbitMQ released too early, and logs it now and then. The job is done all the same: only its
    /// delay is lost.
    pub fn look_at(&self, message: &Message, lane: &Lane) {
        let Some(cut_short) = message.cut_short(&lane.settings.names) else { return };
        lane.metrics.delays_cut_short.inc();
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
