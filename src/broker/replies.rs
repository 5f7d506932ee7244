//! Answers to producers who set `reply_to`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lapin::BasicProperties;
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{sleep, timeout};

use super::client::Role;
use super::connection::{ConnectError, Connection, connect, limit_of_channels};
use super::connections::COUNTED;
use super::outgoing::{Outgoing, PublishError};
use crate::config::Broker;

/// A reply is tried again on a new connection, since another's may have broken the one it was on.
const TRIES: u32 = 3;
/// How long a reply is waited for. Its queue may be one that confirms nothing at present.
const PATIENCE: Duration = Duration::from_secs(10);
/// Replies that are on their way at a time, each over a channel of its own.
const AT_A_TIME: usize = 32;
/// What the addresses of direct reply-to begin with, which are no queues.
const DIRECT: &str = "amq.rabbitmq.reply-to.";
/// For replies that wait, in KiB.
const ROOM: u32 = 4 * 1024;

/// Sends a lane's replies, over a connection of their own that is opened with the first, each over a channel of its own.
///
/// `reply_to` is whatever the producer wrote. RabbitMQ closes the whole connection over some of it: a name that begins
/// like a direct reply-to address and is none ends in an internal error. And a queue can be one that never confirms. So replies
/// hold up nothing else, no other lane's replies, and not more than [`ROOM`].
#[derive(Debug)]
pub struct Replies {
    broker: Arc<Broker>,
    connection: Mutex<Option<Arc<Connection>>>,
    turns: Semaphore,
    /// The broker was found to allow too few channels: replies have one, one by one.
    is_limited: AtomicBool,
    one_by_one: Semaphore,
    room: Arc<Semaphore>,
}

/// A reply, and to whom.
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
    /// The daemon's own queues are for the daemon: a message in the middle of the delay ladder would stay there.
    #[error("{0} is a queue of the daemon itself")]
    OwnQueue(String),
    /// So many wait already that there is no room for another.
    #[error("too many other replies wait for queues that take none")]
    TooMany,
    /// The queue, or the connection, took too long.
    #[error("not taken within {PATIENCE:?}")]
    TimedOut,
    /// No connection to send it over.
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    /// The broker did not take it.
    #[error(transparent)]
    Refused(#[from] PublishError),
}

impl Replies {
    /// Nothing is opened yet.
    pub fn new(broker: Arc<Broker>) -> Self {
        let (turns, room) = (Semaphore::new(AT_A_TIME), Arc::new(Semaphore::new(ROOM as usize)));
        let (is_limited, one_by_one) = (AtomicBool::default(), Semaphore::new(1));
        Self { broker, connection: Mutex::new(None), turns, is_limited, one_by_one, room }
    }

    /// Sends a reply in a task of its own, if anybody is there to take it; `failed` is told where nobody is. Nothing is decided
    /// by it, for the outcome's own event is out.
    pub fn send(self: &Arc<Self>, reply: Reply, failed: impl FnOnce(ReplyError) + Send + 'static) {
        let size = u32::try_from(reply.body.len() / 1024 + 1).unwrap_or(ROOM);
        let Ok(room) = self.room.clone().try_acquire_many_owned(size) else { return failed(ReplyError::TooMany) };
        let replies = self.clone();
        tokio::spawn(async move {
            let _room = room;
            if let Err(error) =
                timeout(PATIENCE, replies.send_in_turn(reply)).await.unwrap_or(Err(ReplyError::TimedOut))
            {
                failed(error);
            }
        });
    }

    /// Waits until those that were to be sent are, or cannot be.
    pub async fn sent(&self) {
        let _all = self.room.acquire_many(ROOM).await;
    }

    async fn send_in_turn(&self, reply: Reply) -> Result<(), ReplyError> {
        let Reply { to, properties, body } = reply;
        if to.strip_prefix(self.broker.prefix.as_str()).is_some_and(|rest| rest.starts_with('.')) {
            return Err(ReplyError::OwnQueue(to));
        }
        let _turn = self.turns.acquire().await.expect("nobody closes the semaphore");
        let _only = match self.is_limited.load(Ordering::Relaxed) {
            true => Some(self.one_by_one.acquire().await.expect("nobody closes the semaphore")),
            false => None,
        };
        self.try_send(Arc::new(Outgoing { exchange: String::new(), key: to, properties, body })).await
    }

    async fn try_send(&self, message: Arc<Outgoing>) -> Result<(), ReplyError> {
        let mut tries = 1;
        loop {
            match self.connection().await?.publish_alone(message.clone()).await {
                // The broker counts the channels of the connection for a moment more. It is waited for as long as there is
                // patience: others come one by one from now on.
                Err(PublishError::Broken(error)) if limit_of_channels(&error).is_some() => {
                    self.is_limited.store(true, Ordering::Relaxed);
                    sleep(COUNTED).await;
                }
                Err(PublishError::Broken(_)) if tries < TRIES => tries += 1,
                // RabbitMQ says so of those it has delivered too: that no queue took them.
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
        let connection = Arc::new(connect(&self.broker, Role::Replies).await?);
        Ok(kept.insert(connection).clone())
    }
}
