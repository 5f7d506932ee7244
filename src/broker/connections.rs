//! The daemon's connections, and the places of lanes on them.
//!
//! RabbitMQ limits the channels of a connection. Lanes that find no place on one are served over the next. Lanes are
//! independent: if a connection is lost its lanes get places on another, and lanes on other connections notice nothing.
//!
//! A connection has one place per three channels that RabbitMQ allows: 676 at its default of 2,047. A connection per
//! lane, or per fifty, would cost 8 MiB each. lapin does not reuse the number of a channel that the broker closed with
//! an error, so some channels are spare, and a connection without any left is closed.

use std::convert::Infallible;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::allowance::Allowance;
use super::channels::{FEWEST, lanes_for};
use super::client::ConnectionKind;
use super::connection::{ConnectError, Connection, connect};
use super::declaring::{DeclareFailure, declare};
use super::errors::limit_of_channels;
use super::places::{Link, Place, Size};
use super::reconnect::Retries;
use super::topology::Topology;
use crate::config::Broker;

/// How often everything is declared again, even if no message was refused.
const DECLARE_EVERY: Duration = Duration::from_secs(60);
/// Minimum time between two declarations, however many messages are refused.
const DECLARE_PAUSE: Duration = Duration::from_secs(1);
/// How often to check for a connection while none may be opened or there is none.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long RabbitMQ may still count the channels of a closed connection.
pub(super) const COUNTED: Duration = Duration::from_secs(1);

/// The problem shown while a lane waits and nothing is wrong.
const OPENING: &str = "connecting";

/// The state of the daemon's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerState {
    /// Every lane has an open connection.
    Connected,
    /// The same, but the broker accepts no messages at present, for this reason.
    Blocked(String),
    /// At least one lane has no connection, for this reason.
    Disconnected(String),
}

/// Why there is no connection with everything declared.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Something could not be declared.
    #[error(transparent)]
    Declare(#[from] DeclareFailure),
    /// Not even one lane can be served.
    #[error(
        "RabbitMQ at {address} lets a connection have {channels} channels, and a lane needs {}: raise its channel_max",
        FEWEST + 1
    )]
    TooFewChannels {
        /// Where.
        address: String,
        /// How many.
        channels: usize,
    },
}

impl OpenError {
    /// Whether a retry cannot help.
    fn is_final(&self) -> bool {
        match self {
            Self::Connect(_) => false,
            Self::Declare(error) => matches!(error, DeclareFailure::Refused(error) if error.is_refusal()),
            Self::TooFewChannels { .. } => true,
        }
    }

    /// The broker's error, if one ended the attempt.
    fn said(&self) -> Option<&lapin::Error> {
        match self {
            Self::Declare(DeclareFailure::Broken { source }) => Some(source),
            Self::Declare(DeclareFailure::Refused(error)) => Some(error.said()),
            _ => None,
        }
    }
}

/// All connections that lanes are served over.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

struct Shared {
    broker: Arc<Broker>,
    topology: Topology,
    lanes: usize,
    /// Notified when a message is refused because an exchange or a queue is missing.
    missing: Arc<Notify>,
    /// Held while a connection is opened: other lanes wait for the same one.
    opening: Mutex<()>,
    state: std::sync::Mutex<State>,
    observer: Box<dyn Fn(&BrokerState) + Send + Sync>,
}

#[derive(Default)]
struct State {
    open: Vec<Arc<Link>>,
    /// Lanes that wait for a place.
    waiting: usize,
    /// Why lanes wait: the last connection was lost, none can be opened, or one is being opened.
    problem: String,
    shown: Option<BrokerState>,
    retries: Retries,
    allowance: Allowance,
}

impl Connections {
    /// No connection yet. Declares the topology of so many `lanes`. `observer` is called on every change.
    pub fn new(
        broker: Arc<Broker>,
        topology: Topology,
        lanes: usize,
        observer: impl Fn(&BrokerState) + Send + Sync + 'static,
    ) -> Self {
        let (missing, opening) = Default::default();
        let state = std::sync::Mutex::new(State { problem: OPENING.to_owned(), ..State::default() });
        Self(Arc::new(Shared { broker, topology, lanes, missing, opening, state, observer: Box::new(observer) }))
    }

    /// Opens the first connection, and retries until that succeeds: a broker that has just started listens before it
    /// has its queues.
    ///
    /// # Errors
    /// [`OpenError`], if a retry cannot help.
    pub async fn open_first(&self) -> Result<(), OpenError> {
        let _opening = self.0.opening.lock().await;
        loop {
            match self.open().await {
                Some(error) if error.is_final() && !self.0.topology.was_declared() => return Err(error),
                _ if self.any().is_some() => return Ok(()),
                _ => {}
            }
        }
    }

    /// Waits for a place for a lane. A refusal is waited out: the first connection was accepted.
    pub async fn place(&self) -> Place {
        if let Some(place) = self.free_place() {
            return place;
        }
        let _waiting = Waiting::new(self.0.clone());
        let _opening = self.0.opening.lock().await;
        loop {
            if let Some(place) = self.free_place() {
                return place;
            }
            self.open().await;
        }
    }

    /// Waits for the place that a connection has to spare, for the scheduler. Lanes come first: none is opened for it, and
    /// it waits for ever where RabbitMQ allows too few channels.
    pub async fn spare_place(&self) -> Place {
        loop {
            if let Some(place) = self.0.state().open.iter().find_map(Link::spare_place) {
                return place;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn free_place(&self) -> Option<Place> {
        self.0.state().open.iter().find_map(Link::place)
    }

    /// Tries once to open one more connection, if the broker is known to allow it. Returns why it is not open.
    async fn open(&self) -> Option<OpenError> {
        let (pause, is_first, allowed) = {
            let mut state = self.0.state();
            state.open.retain(|link| link.connection.is_open());
            let taken: usize = state.open.iter().map(|link| link.size.channels).sum();
            let allowed = state.allowance.channels(Instant::now()).map(|channels| channels.saturating_sub(taken));
            (state.retries.pause(), state.open.is_empty(), allowed)
        };
        if allowed.is_some_and(|channels| lanes_for(channels) == 0) {
            self.0.change(|state| {
                let places: usize = state.open.iter().map(|link| link.size.places).sum();
                state.problem = format!(
                    "RabbitMQ allows too few channels, which are enough for {places} of {} lanes: raise max-channels of the user, or \
                     channel_max_per_node",
                    self.0.lanes
                );
            });
            sleep(LOOK_EVERY).await;
            return None;
        }
        // With a limit, the channels of a lost connection are counted for a moment more.
        sleep(if allowed.is_some() { pause.max(COUNTED) } else { pause }).await;
        match self.try_open(is_first, allowed).await {
            Ok((connection, size)) => {
                info!(broker = self.0.broker.address(), "connected");
                let link = self.watched(connection, size);
                self.0.change(|state| {
                    state.retries.opened();
                    state.problem = OPENING.to_owned();
                    state.open.push(link);
                });
                None
            }
            Err(error) => {
                warn!("{error}; trying again");
                self.0.change(|state| {
                    state.retries.failures += 1;
                    state.problem = error.to_string();
                    state.learn(error.said());
                });
                Some(error)
            }
        }
    }

    async fn try_open(&self, is_first: bool, allowed: Option<usize>) -> Result<(Connection, Size), OpenError> {
        let Shared { broker, topology, lanes, missing, .. } = &*self.0;
        let mut connection = connect(broker, ConnectionKind::Run).await?;
        let channels = connection.channel_max();
        let size = Size::new(channels, allowed, *lanes);
        if size.places == 0 {
            return Err(OpenError::TooFewChannels { address: broker.address(), channels });
        }
        connection.for_lanes(size.for_lanes(), size.places, *lanes, missing.clone());
        if is_first {
            declare(&connection, topology, broker).await?;
        }
        Ok((connection, size))
    }

    /// Watches a connection until it is lost.
    fn watched(&self, connection: Connection, size: Size) -> Arc<Link> {
        let (tell, lost) = watch::channel(false);
        let link = Arc::new(Link::new(connection, size, lost));
        let (watched, shared) = (link.clone(), self.0.clone());
        tokio::spawn(async move {
            let blocked = |reason: Option<String>| {
                match &reason {
                    Some(reason) => warn!("RabbitMQ takes no messages, waiting: {reason}"),
                    None => info!("RabbitMQ takes messages again"),
                }
                watched.set_blocked(reason);
                shared.change(|_| {});
            };
            let error = watched.connection.lost(blocked).await;
            if !watched.connection.is_closing() {
                // What was in flight is dropped: the broker redelivers it to the replica that holds the baton next.
                error!("the connection to RabbitMQ is lost, connecting again: {error}");
                shared.change(|state| {
                    state.open.retain(|link| !Arc::ptr_eq(link, &watched));
                    state.retries.is_lost = true;
                    state.problem = format!("lost: {error}");
                    state.learn(Some(&error));
                });
            }
            tell.send_replace(true);
        });
        link
    }

    /// Uses one of the connections, once there is one, while it lasts. `None` if it was lost.
    pub async fn over_any<T>(&self, using: impl AsyncFnOnce(&Connection) -> T) -> Option<T> {
        let link = loop {
            if let Some(link) = self.any() {
                break link;
            }
            sleep(LOOK_EVERY).await;
        };
        tokio::select! {
            used = using(&link.connection) => Some(used),
            () = link.lost() => None,
        }
    }

    fn any(&self) -> Option<Arc<Link>> {
        self.0.state().open.iter().find(|link| link.connection.is_open()).cloned()
    }

    /// Declares the topology again when a publisher finds something missing, and once a minute, since a level of the
    /// delay ladder can be missing without any publish to it. Never ends.
    pub async fn keep_declared(&self) -> Infallible {
        let mut told: Option<String> = None;
        loop {
            tokio::select! {
                () = self.0.missing.notified() => {}
                () = sleep(DECLARE_EVERY) => {}
            }
            let Shared { topology, broker, .. } = &*self.0;
            let declared = self.over_any(async |connection| declare(connection, topology, broker).await).await;
            let failure = declared.and_then(Result::err).map(|error| error.to_string());
            // Logged when it begins and when it changes: what is not mended is tried every second.
            if let Some(failure) = failure.as_ref().filter(|failure| told.as_ref() != Some(failure)) {
                warn!("what seems to be missing cannot be declared again: {failure}");
            }
            told = failure;
            sleep(DECLARE_PAUSE).await;
        }
    }

    /// Whether any connection is blocked at present.
    pub fn is_blocked(&self) -> bool {
        self.0.state().open.iter().all(|link| link.connection.is_blocked())
    }

    /// Whether each lane has a connection, so that a further one takes nothing from lanes.
    pub fn are_enough(&self) -> bool {
        let state = self.0.state();
        state.waiting == 0 && state.open.iter().any(|link| link.connection.is_open())
    }

    /// Whether a limit was met within the last ten minutes that counts the channels of all connections of a user or a node.
    pub fn are_limited_now(&self) -> bool {
        self.0.state().allowance.channels(Instant::now()).is_some()
    }

    /// Closes all: unacked messages go back to their queues.
    pub async fn close(&self) {
        let open = std::mem::take(&mut self.0.state().open);
        join_all(open.iter().map(|link| link.connection.close())).await;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and notifies the observer if the shown state differs.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let now = state.summary();
        // Under the lock, so that the last notification is the current state.
        if state.shown.as_ref() != Some(&now) {
            (self.observer)(&now);
            state.shown = Some(now);
        }
    }
}

impl State {
    fn summary(&self) -> BrokerState {
        if self.waiting > 0 || self.open.is_empty() {
            BrokerState::Disconnected(self.problem.clone())
        } else {
            self.open.iter().find_map(|link| link.blocked()).map_or(BrokerState::Connected, BrokerState::Blocked)
        }
    }

    fn learn(&mut self, said: Option<&lapin::Error>) {
        let Some((said, most)) = said.and_then(|said| Some((said, limit_of_channels(said)?))) else { return };
        let now = Instant::now();
        self.allowance.learn(most, now);
        let left = self.allowance.channels(now).unwrap_or_default();
        warn!(
            "RabbitMQ allows {most} channels in all: reveille makes do with {left}, which are enough for {} lanes, and tries more after \
             ten minutes; raise max-channels of the user (rabbitmqctl set_user_limits) or channel_max_per_node: {said}",
            lanes_for(left)
        );
    }
}

/// A lane that waits for a place, as long as this is held.
struct Waiting(Arc<Shared>);

impl Waiting {
    fn new(shared: Arc<Shared>) -> Self {
        shared.change(|state| state.waiting += 1);
        Self(shared)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.change(|state| state.waiting -= 1);
    }
}
