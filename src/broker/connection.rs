//! The connection to RabbitMQ.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::{Channel, ConnectionState, ErrorKind, Event};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::client::{Role, properties};
use super::group::publish_alone;
use super::inbound::{self, Loads, MOST_LOAD};
use super::publisher::{Outgoing, PublishError, Publisher};
use super::remedy::{is_vhost_refused, remedy};
use super::topology::{DeclareError, Topology};
use crate::config::{Broker, FileFault, SMALLEST_FRAME};
use crate::retry::full_jitter;

/// Ceilings of the delay between tries to connect.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long one try may take, TLS and handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long declaring may take: two seconds where 24 quorum queues are new, and more for every further lane.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);
/// For the messages that all lanes have in hand, in bytes. With what the daemon takes without any, less than 64 MiB.
const ROOM: usize = 47 * 1024 * 1024;
/// What stands for the heartbeat where neither side wants one.
const WITHOUT_HEARTBEAT: Duration = Duration::from_secs(5);
/// How soon what was deleted is declared again although no message was refused for want of it.
const DECLARE_EVERY: Duration = Duration::from_secs(60);
/// Between two declarations at least, however many messages are refused.
const DECLARE_PAUSE: Duration = Duration::from_secs(1);
/// Channels of a publisher for what is published once more, at most: each may be one more copy in a queue that confirms
/// nothing.
const MOST_ALONE: usize = 64;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    inner: Arc<lapin::Connection>,
    /// Publishers tell by it that an exchange or a queue seems to be missing.
    missing: Arc<Notify>,
    /// Channels of each publisher for what is published once more.
    alone: usize,
    loads: Arc<Loads>,
    /// For the messages that each lane has in hand, in bytes.
    room: usize,
}

/// How many messages a lane may have in hand.
#[derive(Debug)]
pub struct Room {
    loads: Arc<Loads>,
    bytes: usize,
}

impl Room {
    /// So many such as came over `channel` lately.
    pub fn holds(&self, channel: &Channel) -> usize {
        self.bytes / self.loads.largest(channel.id()).max(1)
    }

    /// So many messages of the largest size that there can be.
    pub fn holds_unseen(&self) -> usize {
        self.bytes / MOST_LOAD
    }

    /// How many messages ever came over `channel`. After [`SEEN`](super::SEEN) more, it is known how large they are.
    pub fn seen(&self, channel: &Channel) -> u64 {
        self.loads.seen(channel.id())
    }
}

/// No connection came about.
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
    /// A file with a password or certificate is of no use at present.
    #[error("cannot connect to RabbitMQ at {address}: {source}")]
    Unusable {
        /// Where.
        address: String,
        /// Why.
        source: FileFault,
    },
    /// What is said of a job does not fit into the broker's frames.
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
    /// Nobody answered.
    #[error("cannot connect to RabbitMQ at {address}: no answer within {CONNECT_TIMEOUT:?}")]
    TimedOut {
        /// Where.
        address: String,
    },
}

impl ConnectError {
    /// Whether a file that the configuration names is of no use, or RabbitMQ was reached and lets nobody in with this user
    /// and password, or not into this vhost.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { source, .. } => is_access_refused(source) || is_vhost_refused(source),
            Self::Unusable { .. } => true,
            Self::SmallFrames { .. } | Self::TimedOut { .. } => false,
        }
    }
}

/// Whether the broker says that the user lacks a permission, or, at the login, that the password is wrong.
pub fn is_access_refused(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED))
}

/// Whether the broker says that there is no such queue or exchange.
pub fn is_not_found(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

pub(super) fn kind(error: &lapin::Error) -> Option<&AMQPErrorKind> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.kind()),
        _ => None,
    }
}

/// Connects, once, with the password and the certificates of now.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(broker: &Broker, role: Role) -> Result<Connection, ConnectError> {
    let address = broker.address();
    let dialled = timeout(CONNECT_TIMEOUT, dial(broker, role)).await;
    let (inner, loads) = dialled.map_err(|_| ConnectError::TimedOut { address: address.clone() })??;
    let largest = inner.configuration().frame_max();
    if largest < SMALLEST_FRAME {
        return Err(ConnectError::SmallFrames { address, largest });
    }
    Ok(Connection { inner: Arc::new(inner), missing: Arc::default(), alone: 1, loads, room: ROOM })
}

async fn dial(broker: &Broker, role: Role) -> Result<(lapin::Connection, Arc<Loads>), ConnectError> {
    let asked = broker.clone();
    let access = spawn_blocking(move || asked.access()).await.expect("reading files does not panic");
    let access = access.map_err(|source| ConnectError::Unusable { address: broker.address(), source })?;
    let loads = Arc::new(Loads::default());
    let connected = inbound::connect(access, properties(role), loads.clone()).await;
    let connection = connected.map_err(|source| {
        let remedy = remedy(&source, broker);
        ConnectError::Refused { address: broker.address(), source, remedy }
    })?;
    Ok((connection, loads))
}

/// Why there is no connection with everything declared on it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Something could not be declared.
    #[error(transparent)]
    Declare(#[from] DeclareError),
    /// The channel for it broke.
    #[error("no channel of RabbitMQ's to declare exchanges and queues: {source}")]
    Broken {
        /// Why.
        source: lapin::Error,
    },
    /// The broker took too long over it.
    #[error("RabbitMQ did not declare exchanges and queues within {DECLARE_TIMEOUT:?}")]
    TimedOut,
}

impl OpenError {
    /// Whether the broker will say the same however often it is asked.
    fn is_final(&self) -> bool {
        matches!(self, Self::Declare(error) if error.is_refusal())
    }
}

/// Connects and declares `topology`, and tries again until that succeeds: a broker that just started has its
/// listeners before its queues. `failed` is told of every failure.
///
/// # Errors
/// [`OpenError`], where trying again is of no use.
pub async fn open(
    broker: &Broker,
    topology: &Topology,
    mut failed: impl FnMut(&OpenError),
) -> Result<Connection, OpenError> {
    let mut failures = 0;
    loop {
        match try_open(broker, topology).await {
            Ok(connection) => {
                info!(broker = broker.address(), "connected");
                return Ok(connection);
            }
            Err(error) if error.is_final() => return Err(error),
            Err(error) => {
                failures += 1;
                warn!("{error}; trying again");
                failed(&error);
                sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
            }
        }
    }
}

async fn try_open(broker: &Broker, topology: &Topology) -> Result<Connection, OpenError> {
    let connection = connect(broker, Role::Run).await?;
    connection.declare(topology).await?;
    Ok(connection)
}

impl Connection {
    /// Opens a channel.
    ///
    /// # Errors
    /// The broker's.
    pub async fn channel(&self) -> Result<Channel, lapin::Error> {
        self.inner.create_channel().await
    }

    /// A publisher, whose messages wait for no other publisher's. `channels`, one or more, take turns: while the messages
    /// of one wait for their confirms, those of the next are on their way.
    pub fn publisher(&self, channels: usize) -> Publisher {
        Publisher::new(&self.inner, self.missing.clone(), channels.max(1), self.alone)
    }

    /// Lets each publisher have so many channels, up to 64, for what is published once more; one, where nobody says so.
    /// What finds none free waits for its turn.
    pub fn set_alone(&mut self, channels: usize) {
        self.alone = channels.clamp(1, MOST_ALONE);
    }

    /// How many channels the broker lets the connection have.
    pub fn channel_max(&self) -> usize {
        self.inner.configuration().channel_max().into()
    }

    /// The largest frame agreed on, in bytes: 8,192 to 1,048,576.
    pub fn frame_max(&self) -> usize {
        self.inner.configuration().frame_max() as usize
    }

    /// Shares the memory for messages in hand among so many lanes, one or more.
    pub fn set_lanes(&mut self, lanes: usize) {
        self.room = ROOM / lanes.max(1);
    }

    /// For the messages of a lane.
    pub fn room(&self) -> Room {
        Room { loads: self.loads.clone(), bytes: self.room }
    }

    /// Has [`Connection::keep_declared`] see to what seems to be missing.
    pub fn something_is_missing(&self) {
        self.missing.notify_one();
    }

    /// Publishes one message over a channel of its own.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish_alone(&self, message: Arc<Outgoing>) -> Result<(), PublishError> {
        publish_alone(&self.inner, message).await
    }

    /// The heartbeat agreed on. A broker that hears nothing for two of them takes the connection for dead.
    pub fn heartbeat(&self) -> Duration {
        // With none agreed on, only the network tells that a peer is gone.
        match self.inner.configuration().heartbeat() {
            0 => WITHOUT_HEARTBEAT,
            seconds => Duration::from_secs(seconds.into()),
        }
    }

    /// Whether the connection stands.
    pub fn is_open(&self) -> bool {
        self.inner.status().connected()
    }

    /// Waits until the connection is lost, and says why. Meanwhile `blocked` is told when the broker takes no messages,
    /// with its reason (an alarm: memory or disk are short), and when it takes them again, with `None`.
    ///
    /// A channel that the broker closed is no lost connection: whoever uses it has the error.
    pub async fn lost(&self, mut blocked: impl FnMut(Option<String>)) -> lapin::Error {
        let mut events = std::pin::pin!(self.inner.events_listener());
        while self.is_open() {
            match events.next().await {
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

    /// Declares `topology` again when a publisher misses something of it, and once a minute, since a level of the delay
    /// ladder can be missing without anybody publishing to it. Never ends.
    pub async fn keep_declared(&self, topology: &Topology) -> Infallible {
        let mut told: Option<String> = None;
        loop {
            tokio::select! {
                () = self.missing.notified() => {}
                () = sleep(DECLARE_EVERY) => {}
            }
            let failure = self.declare(topology).await.err().map(|error| error.to_string());
            // Told when it begins and when it changes: what nobody mends is tried every second.
            if let Some(failure) = failure.as_ref().filter(|failure| told.as_ref() != Some(failure)) {
                warn!("what seems to be missing cannot be declared again: {failure}");
            }
            told = failure;
            sleep(DECLARE_PAUSE).await;
        }
    }

    async fn declare(&self, topology: &Topology) -> Result<(), OpenError> {
        let channel = self.channel().await.map_err(|source| OpenError::Broken { source })?;
        // Its work is done with this, and a channel goes with its last handle.
        Ok(timeout(DECLARE_TIMEOUT, topology.declare(&channel)).await.map_err(|_| OpenError::TimedOut)??)
    }

    /// Whether the broker takes no messages at present.
    pub fn is_blocked(&self) -> bool {
        self.inner.status().blocked()
    }

    /// Closes the connection: what is unacked goes back to its queue.
    pub async fn close(self) {
        if self.is_blocked() {
            // Nothing would be sent.
            return;
        }
        // Whatever goes wrong while closing, the broker does the same when the socket goes.
        let _ = timeout(CONNECT_TIMEOUT, self.inner.close(200, "bye".into())).await;
    }
}
