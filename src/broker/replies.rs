//! Replies to producers that set `reply_to`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::client::ConnectionKind;
use super::connection::{ConnectError, Connection, connect};
use super::connections::COUNTED;
use super::errors::limit_of_channels;
use super::outgoing::{Outgoing, PublishError};
use crate::config::Broker;

/// A reply is retried on a new connection, since another reply may have broken the one it was on.
const TRIES: u32 = 3;
/// Timeout of a reply. Its queue may be one that confirms nothing at present.
const PATIENCE: Duration = Duration::from_secs(10);
/// Replies in flight at a time, each over a channel of its own.
const AT_A_TIME: usize = 32;
/// The beginning of direct reply-to addresses, which are no queues.
const DIRECT: &str = "amq.rabbitmq.reply-to.";
/// Memory for waiting replies, in KiB.
const ROOM: u32 = 4 * 1024;

/// Sends a lane's replies, each over a channel of its own, on one connection that is opened for the first.
///
/// `reply_to` is any text of a producer's. Over some RabbitMQ closes the whole connection: an invalid name that begins
/// like a direct reply-to address ends in an internal error. And a queue may never confirm. So replies hold up nothing
/// else, no other lane's replies, and use no more than [`ROOM`].
#[derive(Debug)]
pub struct Replies {
    broker: Arc<Broker>,
    connection: Mutex<Option<Arc<Connection>>>,
    permits: Semaphore,
    /// The broker was found to allow too few channels: replies use one, one by one.
    is_limited: AtomicBool,
    one_by_one: Semaphore,
    room: Arc<Semaphore>,
}

/// A reply, and its queue.
#[derive(Debug)]
pub struct Reply {
    /// The queue, by its name.
    pub to: String,
    /// Properties, the correlation id among them.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a reply was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum ReplyError {
    /// The daemon's own queues are no reply queues: a message in the middle of the delay ladder would stay there.
    #[error("{0} is a queue of the daemon itself")]
    OwnQueue(String),
    /// No room is left for another reply that waits.
    #[error("too many other replies wait for queues that take none")]
    TooMany,
    /// The queue, or the connection, took too long.
    #[error("not taken within {PATIENCE:?}")]
    TimedOut,
    /// No connection to send it over.
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    /// The broker did not accept it.
    #[error(transparent)]
    Refused(#[from] PublishError),
}

impl Replies {
    /// Opens nothing yet.
    pub fn new(broker: Arc<Broker>) -> Self {
        let (permits, room) = (Semaphore::new(AT_A_TIME), Arc::new(Semaphore::new(ROOM as usize)));
        let (is_limited, one_by_one) = (AtomicBool::default(), Semaphore::new(1));
        Self { broker, connection: Mutex::new(None), permits, is_limited, one_by_one, room }
    }

    /// Sends a reply in a task of its own, and calls `failed` if it cannot be delivered. Nothing depends on it: the
    /// outcome event itself is published.
    pub fn send(self: &Arc<Self>, reply: Reply, failed: impl FnOnce(ReplyError) + Send + 'static) {
        let size = u32::try_from(reply.body.len() / 1024 + 1).unwrap_or(ROOM);
        let Ok(room) = self.room.clone().try_acquire_many_owned(size) else { return failed(ReplyError::TooMany) };
        let replies = self.clone();
        tokio::spawn(async move {
            let _room = room;
            if let Err(error) =
                timeout(PATIENCE, replies.send_when_free(reply)).await.unwrap_or(Err(ReplyError::TimedOut))
            {
                failed(error);
            }
        });
    }

    /// Waits until pending replies were sent or have failed.
    pub async fn sent(&self) {
        let _all = self.room.acquire_many(ROOM).await;
    }

    async fn send_when_free(&self, reply: Reply) -> Result<(), ReplyError> {
        let Reply { to, properties, body } = reply;
        if to.strip_prefix(self.broker.prefix.as_str()).is_some_and(|rest| rest.starts_with('.')) {
            return Err(ReplyError::OwnQueue(to));
        }
        let _permit = self.permits.acquire().await.expect("the semaphore is never closed");
        let _only = match self.is_limited.load(Ordering::Relaxed) {
            true => Some(self.one_by_one.acquire().await.expect("the semaphore is never closed")),
            false => None,
        };
        self.try_send(Arc::new(Outgoing { exchange: String::new(), key: to, properties, body })).await
    }

    async fn try_send(&self, message: Arc<Outgoing>) -> Result<(), ReplyError> {
        let mut tries = 1;
        loop {
            match self.connection().await?.publish_alone(message.clone()).await {
                // The broker counts the channels of the connection for a moment more: retry until the timeout. From now
                // on replies are sent one by one.
                Err(PublishError::Broken(error)) if limit_of_channels(&error).is_some() => {
                    self.is_limited.store(true, Ordering::Relaxed);
                    sleep(COUNTED).await;
                }
                Err(PublishError::Broken(_)) if tries < TRIES => tries += 1,
                // RabbitMQ returns even delivered ones as unroutable.
                Err(PublishError::Returned { .. }) if message.key.starts_with(DIRECT) => return Ok(()),
                word => return Ok(word?),
            }
        }
    }

    async fn connection(&self) -> Result<Arc<Connection>, ConnectError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(connect(&self.broker, ConnectionKind::Replies).await?);
        Ok(kept.insert(connection).clone())
    }
}
