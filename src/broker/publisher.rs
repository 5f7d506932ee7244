//! Publishing with proof of the broker's confirm.
//!
//! Messages that must not wait for each other have publishers of their own: for each lane, outcomes, parked jobs with
//! dead letters, and the baton. A queue without a majority confirms nothing, and holds up its group for half a minute.

use std::sync::Arc;
use std::time::Duration;

use lapin::{ConnectionState, ErrorKind};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tracing::warn;

use super::channels::{Channels, Shares, Traffic};
use super::group::{Request, publish_alone, publish_groups, within};
use super::outgoing::{Outgoing, PublishError};
use super::refused::{Refused, Retried};
use crate::retry::full_jitter;

/// Proof of a publisher confirm: the message was routed to a queue, and every such queue has stored it.
///
/// Only [`Publisher`] makes one, and [`super::Unacked::ack`] requires one: so no delivery is acked before what replaces
/// it is confirmed.
#[derive(Debug)]
#[must_use = "an unacked delivery stands behind every confirm"]
pub struct Confirmed(());

impl Confirmed {
    /// One proof for two messages, if there is another.
    pub fn with(self, _other: Option<Self>) -> Self {
        self
    }
}

/// Ceilings of the backoff between tries of a message that the broker refuses.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Longest timeout of a confirm before the message is published again, `FIRST_PATIENCE` being the first: six times in
/// the half hour that RabbitMQ leaves a delivery unacked. Without a majority each may be one more copy.
const LAST_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Publishes messages that wait at the same time together, and judges them together.
///
/// A message whose queues do not confirm holds up those published with it, for half a minute: messages that must be
/// independent of each other need separate publishers.
#[derive(Debug, Clone)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<Request>,
    /// Channels for republished messages.
    again: Arc<Channels>,
    /// How many of them may be in use at a time.
    again_permits: Arc<Semaphore>,
    /// Wakes the task that declares the topology.
    missing: Arc<Notify>,
    refused: Refused,
}

impl Publisher {
    pub(super) fn new(shares: &Shares, traffic: Traffic, groups: usize, missing: Arc<Notify>) -> Self {
        // Bounded by the publishing tasks, each of which waits for its confirm.
        let (requests, requested) = mpsc::unbounded_channel();
        tokio::spawn(publish_groups(shares.of(traffic).clone(), groups.max(1), requested));
        let again_permits = Arc::new(Semaphore::new(shares.again_each));
        Self { requests, again: shares.again.clone(), again_permits, missing, refused: Refused::default() }
    }

    /// Publishes once and waits for the confirm.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn try_publish(&self, message: Arc<Outgoing>) -> Result<Confirmed, PublishError> {
        let closed = || PublishError::Broken(ErrorKind::InvalidConnectionState(ConnectionState::Closed).into());
        let (waiting, word) = oneshot::channel();
        self.requests.send(Request { message, waiting }).map_err(|_| closed())?;
        word.await.map_err(|_| closed())?.map(Confirmed)
    }

    /// Publishes an unconfirmed message again, over a channel of its own: if its queue confirms nothing for long, it
    /// would hold up its group for as long.
    async fn publish_once_more(&self, message: Arc<Outgoing>, patience: Duration) -> Result<Confirmed, PublishError> {
        let _permit = self.again_permits.acquire().await.expect("the semaphore is never closed");
        let lent = self.again.lend().await.map_err(PublishError::Broken)?;
        let connection = lent.connection();
        let word = within(patience, &connection, publish_alone(lent, message.clone())).await;
        word.unwrap_or_else(|| Err(PublishError::unconfirmed(&message, patience))).map(Confirmed)
    }

    /// Publishes until the broker confirms. While it refuses, the delivery that this replaces stays unacked, so its job
    /// waits and is not lost, and goes on when the queue is mended. A message that is not confirmed in time is
    /// published again over a channel of its own, and so may arrive twice: RabbitMQ can lose a message when a queue's
    /// leader changes (<https://github.com/rabbitmq/rabbitmq-server/pull/14589>).
    ///
    /// # Errors
    /// The connection broke.
    pub async fn publish(&self, message: Outgoing) -> Result<Confirmed, lapin::Error> {
        let message = Arc::new(message);
        let (mut refusals, mut retried) = (0, None);
        let mut patience = None;
        loop {
            let word = match patience {
                None => self.try_publish(message.clone()).await,
                Some(patience) => self.publish_once_more(message.clone(), patience).await,
            };
            match word {
                Ok(confirmed) => {
                    retried.into_iter().for_each(Retried::taken);
                    return Ok(confirmed);
                }
                Err(PublishError::Broken(error)) => return Err(error),
                Err(unconfirmed @ PublishError::Unconfirmed { patience: waited, .. }) => {
                    warn!("{unconfirmed}; it is published once more");
                    patience = Some((waited * 2).min(LAST_PATIENCE));
                }
                Err(refused) => {
                    if refused.is_for_want_of_something() {
                        self.missing.notify_one();
                    }
                    retried.get_or_insert_with(|| self.refused.add(&message, &refused));
                    refusals += 1;
                    sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, refusals, rand::random())).await;
                }
            }
        }
    }
}
