//! The connection to RabbitMQ.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::{Channel, ConnectionState, ErrorKind, Event};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::channels::{Lent, Shares, Traffic, open_channel};
use super::client::{Role, properties};
use super::group::publish_alone;
use super::inbound::{self, Loads, MOST_LOAD};
use super::losses;
use super::outgoing::{Outgoing, PublishError};
use super::publisher::Publisher;
use super::refusal::DeclareError;
use super::remedy::{is_vhost_refused, remedy};
use super::topology::Topology;
use crate::config::{Broker, FileFault, SMALLEST_FRAME};

/// How long one try may take, TLS and handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long declaring may take, and how much longer for each queue: new quorum queues take from 5 to 20 ms each.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);
const DECLARE_TIMEOUT_OF_A_QUEUE: Duration = Duration::from_millis(100);
/// For the messages that all lanes have in hand, in bytes. With what the daemon takes without any, less than 64 MiB.
const ROOM: usize = 47 * 1024 * 1024;
/// Between two looks whether the connection stands.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// What stands for the heartbeat where neither side wants one.
const WITHOUT_HEARTBEAT: Duration = Duration::from_secs(5);
/// Channels to publish over where no lanes are served: replies that wait have one each. And how many of them are kept.
const UNDIVIDED: usize = 32;
const UNDIVIDED_KEPT: usize = 4;
/// Channels that declare at the same time, at most: RabbitMQ takes most of its time over a new queue to wait for disks.
const DECLARING: usize = 8;

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    inner: Arc<lapin::Connection>,
    /// Publishers tell by it that an exchange or a queue seems to be missing.
    missing: Arc<Notify>,
    shares: Shares,
    is_closing: AtomicBool,
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

/// How many channels a user may have in all, or those of the whole node, where the connection was lost over one more.
/// RabbitMQ says so in words alone.
pub(super) fn limit_of_channels(error: &lapin::Error) -> Option<usize> {
    let ErrorKind::ProtocolError(error) = error.kind() else { return None };
    most_channels(error.get_message().as_str())
}

/// The number at the end; up to 4.0 it is in parentheses.
fn most_channels(text: &str) -> Option<usize> {
    let (_, told) = text.split_once("number of channels opened")?;
    told.trim_end_matches(')').rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
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
    let inner = Arc::new(inner);
    let channels = UNDIVIDED.min(inner.configuration().channel_max().into());
    let shares = Shares::undivided(&inner, channels, UNDIVIDED_KEPT);
    let (missing, is_closing) = Default::default();
    Ok(Connection { inner, missing, shares, is_closing, loads, room: ROOM })
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

/// Why something is not declared.
#[derive(Debug, thiserror::Error)]
pub enum DeclareFailure {
    /// The broker refused it.
    #[error(transparent)]
    Refused(#[from] DeclareError),
    /// The channel for it broke.
    #[error("no channel of RabbitMQ's to declare exchanges and queues: {source}")]
    Broken {
        /// Why.
        source: lapin::Error,
    },
    /// The broker took too long over it.
    #[error("RabbitMQ did not declare exchanges and queues within {patience:?}")]
    TimedOut {
        /// How long it was waited for.
        patience: Duration,
    },
}

impl Connection {
    /// Opens a channel.
    ///
    /// # Errors
    /// The broker's.
    pub async fn channel(&self) -> Result<Channel, lapin::Error> {
        open_channel(&self.inner).await
    }

    /// A publisher, whose messages wait for no other's as long as there are channels for its traffic. While the messages of one group wait for their confirms,
    /// those of the next are on their way: up to so many `groups`, one or more.
    pub fn publisher(&self, traffic: Traffic, groups: usize) -> Publisher {
        Publisher::new(&self.shares, traffic, groups, self.missing.clone())
    }

    /// Makes it the connection of up to `places` lanes of `lanes` in all, which make do with `channels`, and share the memory for
    /// messages in hand with the others. `missing` is notified where a message is refused for want of an exchange or a queue.
    pub(super) fn for_lanes(&mut self, channels: usize, places: usize, lanes: usize, missing: Arc<Notify>) {
        self.shares = Shares::divide(&self.inner, channels, places);
        self.room = ROOM / lanes.max(1);
        self.missing = missing;
    }

    /// Lends a channel for a moment, to look at a queue.
    ///
    /// # Errors
    /// The broker's.
    pub async fn lend(&self) -> Result<Lent, lapin::Error> {
        self.shares.looks.lend().await
    }

    /// How many channels the broker lets the connection have.
    pub fn channel_max(&self) -> usize {
        self.inner.configuration().channel_max().into()
    }

    /// The largest frame agreed on, in bytes: 8,192 to 1,048,576.
    pub fn frame_max(&self) -> usize {
        self.inner.configuration().frame_max() as usize
    }

    /// For the messages of a lane.
    pub fn room(&self) -> Room {
        Room { loads: self.loads.clone(), bytes: self.room }
    }

    /// Has [`Connections::keep_declared`](super::Connections::keep_declared) see to what seems to be missing.
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
            // Where we have closed it ourselves lapin tells of nothing.
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

    /// Declares `topology` at `broker`, which the connection leads to.
    ///
    /// # Errors
    /// [`DeclareFailure`].
    pub(super) async fn declare(&self, topology: &Topology, broker: &Broker) -> Result<(), DeclareFailure> {
        let declaring = async {
            let lost = losses::find(topology, self, broker).await;
            let broken = |source| DeclareFailure::Broken { source };
            let mut lent = vec![self.lend().await.map_err(broken)?];
            while lent.len() < DECLARING
                && let Some(more) = self.shares.again.lend_more().await
            {
                lent.push(more.map_err(broken)?);
            }
            let channels: Vec<&Channel> = lent.iter().map(Lent::channel).collect();
            topology.declare(&channels).await?;
            lent.into_iter().for_each(Lent::keep);
            losses::tell(topology, &lost);
            Ok(())
        };
        let patience =
            DECLARE_TIMEOUT + DECLARE_TIMEOUT_OF_A_QUEUE * u32::try_from(topology.queues.len()).unwrap_or(u32::MAX);
        timeout(patience, declaring).await.map_err(|_| DeclareFailure::TimedOut { patience })?
    }

    /// Whether the broker takes no messages at present.
    pub fn is_blocked(&self) -> bool {
        self.inner.status().blocked()
    }

    /// Whether we have closed it, or are about to.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Closes the connection: what is unacked goes back to its queue.
    pub async fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        if self.is_blocked() {
            // Nothing would be sent.
            return;
        }
        // Whatever goes wrong while closing, the broker does the same when the socket goes.
        let _ = timeout(CONNECT_TIMEOUT, self.inner.close(200, "bye".into())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_on_channels_is_read_from_the_words_of_rabbitmq() {
        let told = "NOT_ALLOWED - number of channels opened for user 'guest' has reached the maximum allowed user limit of (5)";
        assert_eq!(most_channels(told), Some(5));
        let by_4_3 =
            "NOT_ALLOWED - number of channels opened for user 'u7' has reached the maximum allowed user limit of 12";
        assert_eq!(most_channels(by_4_3), Some(12));
        let other = "NOT_ALLOWED - connection refused for user 'guest': user connection limit (1) is reached";
        assert_eq!(most_channels(other), None);
    }
}
