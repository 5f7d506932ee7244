//! Publishing with proof.
//!
//! Publishers that must not wait for each other are apart: outcomes, parked jobs with dead letters, and the baton, for
//! each lane. A queue without a majority confirms nothing, and holds up its group for half a minute.

use std::sync::Arc;
use std::time::Duration;

use lapin::{ConnectionState, ErrorKind};
use tokio::sync::{Notify, Semaphore, mpsc, oneshot};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::channels::{Channels, Shares, Traffic};
use super::group::{Request, publish_alone, publish_groups, within};
use super::outgoing::{Outgoing, PublishError};
use crate::retry::full_jitter;

/// Proof that the broker has taken charge of a message: it was routed to a queue, and every such queue has it safe.
///
/// Only [`Publisher`] makes one, and [`super::Unacked::ack`] asks for one: so nothing is acked before what stands for
/// it is confirmed.
#[derive(Debug)]
#[must_use = "an unacked delivery stands behind every confirm"]
pub struct Confirmed(());

impl Confirmed {
    /// One proof for two messages, where there is another.
    pub fn with(self, _other: Option<Self>) -> Self {
        self
    }
}

/// Ceilings of the delay between tries of a message the broker refuses.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How long a confirm may take at last before the message is published once more, from `FIRST_PATIENCE` on: six times in the
/// half hour that RabbitMQ leaves a delivery unacked. Where no majority of a queue is left, each may be one more copy.
const LAST_PATIENCE: Duration = Duration::from_secs(10 * 60);

/// Publishes what waits at the same time together, and judges it together.
///
/// A message whose queues do not confirm holds up those published with it, for half a minute: what is to be independent
/// of each other needs publishers of its own.
#[derive(Debug, Clone)]
pub struct Publisher {
    requests: mpsc::UnboundedSender<Request>,
    /// Channels for what is published once more.
    again: Arc<Channels>,
    /// How many of them may be in use at a time.
    again_turns: Arc<Semaphore>,
    /// Wakes what declares.
    missing: Arc<Notify>,
}

impl Publisher {
    pub(super) fn new(shares: &Shares, traffic: Traffic, groups: usize, missing: Arc<Notify>) -> Self {
        // Bounded by whoever publishes: each waits for the broker's word.
        let (requests, requested) = mpsc::unbounded_channel();
        tokio::spawn(publish_groups(shares.of(traffic).clone(), groups.max(1), requested));
        let again_turns = Arc::new(Semaphore::new(shares.again_each));
        Self { requests, again: shares.again.clone(), again_turns, missing }
    }

    /// Publishes once and waits for the broker's word.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn try_publish(&self, message: Arc<Outgoing>) -> Result<Confirmed, PublishError> {
        let closed = || PublishError::Broken(ErrorKind::InvalidConnectionState(ConnectionState::Closed).into());
        let (waiting, word) = oneshot::channel();
        self.requests.send(Request { message, waiting }).map_err(|_| closed())?;
        word.await.map_err(|_| closed())?.map(Confirmed)
    }

    /// Publishes a message that was not confirmed, over a channel of its own: where its queue confirms nothing for long,
    /// it would hold up a group for as long.
    async fn publish_once_more(&self, message: Arc<Outgoing>, patience: Duration) -> Result<Confirmed, PublishError> {
        let _turn = self.again_turns.acquire().await.expect("nobody closes the semaphore");
        let lent = self.again.lend().await.map_err(PublishError::Broken)?;
        let connection = lent.connection();
        let word = within(patience, &connection, publish_alone(lent, message.clone())).await;
        word.unwrap_or_else(|| Err(PublishError::unconfirmed(&message, patience))).map(Confirmed)
    }

    /// Publishes until the broker takes charge. While it refuses, the delivery this stands for stays unacked, so its
    /// job waits and is not lost; it goes on when the queue is mended. What it does not confirm in time is published
    /// once more over a channel of its own, and so may come twice: RabbitMQ can forget a message when a queue's leader
    /// changes (<https://github.com/rabbitmq/rabbitmq-server/pull/14589>).
    ///
    /// # Errors
    /// The connection broke.
    pub async fn publish(&self, message: Outgoing) -> Result<Confirmed, lapin::Error> {
        let message = Arc::new(message);
        let mut refusals = 0;
        let mut patience = None;
        loop {
            let word = match patience {
                None => self.try_publish(message.clone()).await,
                Some(patience) => self.publish_once_more(message.clone(), patience).await,
            };
            match word {
                Ok(confirmed) => {
                    if refusals > 0 {
                        info!(exchange = message.exchange, key = message.key, "the broker takes the message now");
                    }
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
                    if refusals == 0 {
                        error!("{refused}; its job waits until that is mended");
                    }
                    refusals += 1;
                    sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, refusals, rand::random())).await;
                }
            }
        }
    }
}
