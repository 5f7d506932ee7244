//! Publishing with proof.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::time::sleep;
use tracing::{error, info};

use crate::retry::full_jitter;

/// Proof that the broker has taken charge of a message: it was routed to a queue, and every such queue has it safe.
///
/// Only [`Publisher`] makes one, and [`super::Unacked::ack`] asks for one: so nothing is acked before what stands for
/// it is confirmed.
#[derive(Debug)]
#[must_use = "an unacked delivery stands behind every confirm"]
pub struct Confirmed(());

impl Confirmed {
    /// One proof for two messages.
    pub fn and(self, _other: Self) -> Self {
        self
    }
}

/// A message that the broker did not take charge of.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// No queue took it. RabbitMQ confirms such a message, so it was published as `mandatory` to have it returned.
    #[error("no queue takes messages from exchange {exchange:?} with routing key {key:?} ({text})")]
    Returned {
        /// The exchange published to.
        exchange: String,
        /// The routing key.
        key: String,
        /// The broker's words.
        text: String,
    },
    /// A queue rejected it: full, or without a majority.
    #[error("a queue behind exchange {exchange:?} rejected the message with routing key {key:?}")]
    Rejected {
        /// The exchange published to.
        exchange: String,
        /// The routing key.
        key: String,
    },
    /// The broker closed the channel over it: there is no such exchange, or no permission.
    #[error("the broker refuses messages to exchange {exchange:?}: {source}")]
    Forbidden {
        /// The exchange published to.
        exchange: String,
        /// The broker's words.
        source: lapin::Error,
    },
    /// The connection broke: whether the message arrived is not known.
    #[error(transparent)]
    Broken(lapin::Error),
}

/// Ceilings of the delay between tries of a message the broker refuses.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Publishes over channels that have one message under way each.
///
/// One each, because lapin hands a returned message to whichever confirm of its channel comes next, and RabbitMQ may
/// confirm others first: with several under way a message that no queue took could pass for confirmed. It also keeps
/// a refusal that closes the channel from striking other messages.
#[derive(Debug, Clone)]
pub struct Publisher {
    connection: Arc<lapin::Connection>,
    idle: Arc<Mutex<Vec<Channel>>>,
}

impl Publisher {
    pub(super) fn new(connection: Arc<lapin::Connection>) -> Self {
        Self { connection, idle: Arc::default() }
    }

    /// Publishes once, persistently, and waits for the broker's word.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn try_publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmed, PublishError> {
        let channel = self.channel().await.map_err(PublishError::Broken)?;
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let published = async {
            channel
                .basic_publish(exchange.into(), key.into(), options, body, properties.with_delivery_mode(PERSISTENT))
                .await?
                .await
        };
        let confirmation = match published.await {
            Ok(confirmation) => confirmation,
            Err(source) if source.is_amqp_soft_error() => {
                return Err(PublishError::Forbidden { exchange: exchange.to_owned(), source });
            }
            Err(error) => return Err(PublishError::Broken(error)),
        };
        self.lock_idle().push(channel);
        let (exchange, key) = (exchange.to_owned(), key.to_owned());
        match confirmation {
            Confirmation::Ack(None) => Ok(Confirmed(())),
            Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                Err(PublishError::Returned { exchange, key, text: returned.reply_text.to_string() })
            }
            Confirmation::Nack(None) | Confirmation::NotRequested => Err(PublishError::Rejected { exchange, key }),
        }
    }

    /// Publishes until the broker takes charge. While it refuses, the delivery this stands for stays unacked, so its
    /// job waits and is not lost; it goes on when the queue is mended.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn publish(
        &self,
        exchange: &str,
        key: &str,
        properties: BasicProperties,
        body: &[u8],
    ) -> Result<Confirmed, lapin::Error> {
        let mut refusals = 0;
        loop {
            match self.try_publish(exchange, key, properties.clone(), body).await {
                Ok(confirmed) => {
                    if refusals > 0 {
                        info!(exchange, key, "the broker takes the message now");
                    }
                    return Ok(confirmed);
                }
                Err(PublishError::Broken(error)) => return Err(error),
                Err(refused) => {
                    if refusals == 0 {
                        error!("{refused}; its job waits until that is mended");
                    }
                    refusals += 1;
                    sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, refusals, rand::random())).await;
                }
            }
        }
    }

    async fn channel(&self) -> Result<Channel, lapin::Error> {
        let idle = self.lock_idle().pop();
        if let Some(channel) = idle {
            return Ok(channel);
        }
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    fn lock_idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `delivery_mode` of AMQP: written to disk.
const PERSISTENT: u8 = 2;
