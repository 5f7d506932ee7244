//! The connection to RabbitMQ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::{Channel, ConnectionState, ErrorKind, Event};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::channels::{Lent, Shares, Traffic, open_channel};
use super::client::{ConnectionKind, properties};
use super::errors::is_access_refused;
use super::group::publish_alone;
use super::inbound::{self, Greeting, Loads, MOST_LOAD};
use super::outgoing::{Outgoing, PublishError};
use super::publisher::Publisher;
use super::remedy::{is_vhost_refused, remedy};
use crate::config::{Broker, FileFault, SMALLEST_FRAME};

/// Timeout of one try, TLS and handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Memory for the unacked messages of all lanes, in bytes. With what the daemon needs anyway, less than 64 MiB.
const ROOM: usize = 47 * 1024 * 1024;
/// How often to check whether the connection is open.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Assumed heartbeat where neither side wants one.
const WITHOUT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Channels to publish over where no lanes are served (each reply waits on one), and how many of them are kept.
const UNDIVIDED: usize = 32;
const UNDIVIDED_KEPT: usize = 4;
/// An open connection.
#[derive(Debug)]
pub struct Connection {
    inner: Arc<lapin::Connection>,
    /// Notified by publishers when an exchange or a queue seems to be missing.
    missing: Arc<Notify>,
    shares: Shares,
    is_closing: AtomicBool,
    loads: Arc<Loads>,
    /// Memory for the unacked messages of each lane, in bytes.
    room: usize,
}

/// How many unacked messages a lane may hold.
#[derive(Debug)]
pub struct Room {
    loads: Arc<Loads>,
    bytes: usize,
}

impl Room {
    /// How many messages of the size of those that came over `channel` lately.
    pub fn holds(&self, channel: &Channel) -> usize {
        self.bytes / self.loads.largest(channel.id()).max(1)
    }

    /// How many messages of the largest possible size.
    pub fn holds_unseen(&self) -> usize {
        self.bytes / MOST_LOAD
    }

    /// How many messages ever came over `channel`. After [`SEEN`](super::SEEN) more, their size is known.
    pub fn seen(&self, channel: &Channel) -> u64 {
        self.loads.seen(channel.id())
    }
}

/// Connecting failed.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Refused by the network or by the broker.
    #[error("cannot connect to RabbitMQ at {address}: {source}{}", .remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default())]
    Refused {
        /// Where.
        address: String,
        /// Why.
        source: lapin::Error,
        /// What to check.
        remedy: Option<String>,
    },
    /// A password or certificate file cannot be used at present.
    #[error("cannot connect to RabbitMQ at {address}: {source}")]
    Unusable {
        /// Where.
        address: String,
        /// Why.
        source: FileFault,
    },
    /// What is published about a job does not fit into the broker's frames.
    #[error(
        "cannot work with RabbitMQ at {address}: its frame_max is {largest}, which is too small for the headers of a job; \
         set it to {SMALLEST_FRAME} at least, or to 131072, its default"
    )]
    SmallFrames {
        /// Where.
        address: String,
        /// Bytes.
        largest: u32,
    },
    /// No answer came in time.
    #[error("cannot connect to RabbitMQ at {address}: no answer within {CONNECT_TIMEOUT:?}")]
    TimedOut {
        /// Where.
        address: String,
    },
}

impl ConnectError {
    /// Whether a configured file cannot be used, or RabbitMQ was reached and does not admit this user and password, or
    /// not to this vhost.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { source, .. } => is_access_refused(source) || is_vhost_refused(source),
            Self::Unusable { .. } => true,
            Self::SmallFrames { .. } | Self::TimedOut { .. } => false,
        }
    }
}

/// Connects, once, with the present password and certificates.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(broker: &Broker, kind: ConnectionKind) -> Result<Connection, ConnectError> {
    connect_seeing(broker, kind, Arc::default()).await
}

/// As [`connect`], with what the broker shows of itself in `greeting`, also where connecting fails after that.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect_seeing(
    broker: &Broker,
    kind: ConnectionKind,
    greeting: Arc<Greeting>,
) -> Result<Connection, ConnectError> {
    let address = broker.address();
    let dialled = timeout(CONNECT_TIMEOUT, dial(broker, kind, greeting)).await;
    let (inner, loads) = dialled.map_err(|_| ConnectError::TimedOut { address: address.clone() })??;
    let largest = inner.configuration().frame_max();
    if largest < SMALLEST_FRAME {
        return Err(ConnectError::SmallFrames { address, largest });
    }
    let inner = Arc::new(inner);
    let channels = UNDIVIDED.min(inner.configuration().channel_max().into());
    let shares = Shares::undivided(&inner, channels, UNDIVIDED_KEPT);
    let (missing, is_closing) = Default::default();
    Ok(Connection { inner, missing, shares, is_closing, loads, room: ROOM })
}

async fn dial(
    broker: &Broker,
    kind: ConnectionKind,
    greeting: Arc<Greeting>,
) -> Result<(lapin::Connection, Arc<Loads>), ConnectError> {
    let asked = broker.clone();
    let access = spawn_blocking(move || asked.access()).await.expect("reading files does not panic");
    let access = access.map_err(|source| ConnectError::Unusable { address: broker.address(), source })?;
    let loads = Arc::new(Loads::default());
    let connected = inbound::connect(access, properties(kind), loads.clone(), greeting).await;
    let connection = connected.map_err(|source| {
        let remedy = remedy(&source, broker);
        ConnectError::Refused { address: broker.address(), source, remedy }
    })?;
    Ok((connection, loads))
}

impl Connection {
    /// Opens a channel.
    ///
    /// # Errors
    /// The broker's.
    pub async fn channel(&self) -> Result<Channel, lapin::Error> {
        open_channel(&self.inner).await
    }

    /// A publisher. Its messages wait for no other publisher's as long as there are channels for its traffic. Up to
    /// `groups` groups of messages, one or more, are in flight at a time, each waiting for its confirms.
    pub fn publisher(&self, traffic: Traffic, groups: usize) -> Publisher {
        Publisher::new(&self.shares, traffic, groups, self.missing.clone())
    }

    /// Makes this the connection of up to `places` lanes, which share `channels`, and memory with all `lanes`.
    /// `missing` is notified when a message is refused because an exchange or a queue is missing.
    pub(super) fn for_lanes(&mut self, channels: usize, places: usize, lanes: usize, missing: Arc<Notify>) {
        self.shares = Shares::divide(&self.inner, channels, places);
        self.room = ROOM / lanes.max(1);
        self.missing = missing;
    }

    /// Lends a channel for a moment, to check a queue.
    ///
    /// # Errors
    /// The broker's.
    pub async fn lend(&self) -> Result<Lent, lapin::Error> {
        self.shares.looks.lend().await
    }

    /// Lends one more channel, if one is available at once.
    pub(super) async fn lend_more(&self) -> Option<Result<Lent, lapin::Error>> {
        self.shares.again.lend_more().await
    }

    /// How many channels the broker allows on the connection.
    pub fn channel_max(&self) -> usize {
        self.inner.configuration().channel_max().into()
    }

    /// The negotiated largest frame, in bytes: 8,192 to 1,048,576.
    pub fn frame_max(&self) -> usize {
        self.inner.configuration().frame_max() as usize
    }

    /// For a lane's unacked messages.
    pub fn room(&self) -> Room {
        Room { loads: self.loads.clone(), bytes: self.room }
    }

    /// Makes [`Connections::keep_declared`](super::Connections::keep_declared) declare what seems to be missing.
    pub fn something_is_missing(&self) {
        self.missing.notify_one();
    }

    /// Publishes one message over a channel of its own.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_alone(&self, message: Arc<Outgoing>) -> Result<(), PublishError> {
        publish_alone(self.shares.again.lend().await.map_err(PublishError::Broken)?, message).await
    }

    /// The negotiated heartbeat. A broker that hears nothing for two of them takes the connection for dead.
    pub fn heartbeat(&self) -> Duration {
        // Without one, only the network shows that the peer is gone.
        match self.inner.configuration().heartbeat() {
            0 => WITHOUT_HEARTBEAT,
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// Whether the connection is open.
    pub fn is_open(&self) -> bool {
        self.inner.status().connected()
    }

    /// Waits until the connection is lost, and returns why. Meanwhile `blocked` is called with the reason when the
    /// broker accepts no messages (an alarm: memory or disk are short), and with `None` when it accepts them again.
    ///
    /// A channel that the broker closed is no lost connection: its user gets the error.
    pub async fn lost(&self, mut blocked: impl FnMut(Option<String>)) -> lapin::Error {
        let mut events = std::pin::pin!(self.inner.events_listener());
        while self.is_open() {
            // If we have closed it ourselves, lapin sends no event.
            let Ok(event) = timeout(LOOK_EVERY, events.next()).await else { continue };
            match event {
                Some(Event::Error(error)) if error.is_amqp_soft_error() => {}
                Some(Event::Error(error)) => return error,
                Some(Event::ConnectionBlocked(reason)) => blocked(Some(reason)),
                Some(Event::ConnectionUnblocked) => blocked(None),
                Some(_) => {}
                None => break,
            }
        }
        ErrorKind::InvalidConnectionState(ConnectionState::Closed).into()
    }

    /// Whether the broker accepts no messages at present.
    pub fn is_blocked(&self) -> bool {
        self.inner.status().blocked()
    }

    /// Whether we have closed it, or are about to.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Closes the connection: unacked messages go back to their queues.
    pub async fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        if self.is_blocked() {
            // Nothing would be sent.
            return;
        }
        // If closing fails, the broker closes it when the socket goes.
        let _ = timeout(CONNECT_TIMEOUT, self.inner.close(200, "bye".into())).await;
    }
}
