//! Jobs that leave the delay ladder before their delay is over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::error;

use crate::broker::Message;
use crate::lane::parts::Lane;

/// How often that is logged at most.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// Checks jobs that come from the delay ladder.
#[derive(Debug, Default)]
pub(in crate::lane) struct Descents {
    said: Mutex<Option<Instant>>,
}

impl Descents {
    /// Counts a job that RabbitMQ released too early, and logs it now and then. The job is done all the same: only its
    /// delay is lost.
    pub fn look_at(&self, message: &Message, lane: &Lane) {
        let Some(cut_short) = message.cut_short(&lane.settings.names) else { return };
        lane.metrics.delays_cut_short.inc();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            *said = Some(Instant::now());
            error!(
                lane = %lane.name(),
                "{cut_short}: a policy with message-ttl, max-length or overflow is over its queues, and what waits in others may be \
                 dropped by it. See rabbitmqctl list_policies, list_operator_policies. docs/rabbitmq.md has a policy that protects \
                 them"
            );
        }
    }
}
