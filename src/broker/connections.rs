//! The daemon's connections, and the places of lanes on them.
//!
//! RabbitMQ lets a connection have so many channels. Lanes that find no place on one are served over the next. Each lane stands
//! by itself: where its connection is lost it has a place on another, and the lanes on the others notice nothing.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, watch};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::channels::{FEWEST, lanes_for};
use super::connection::{ConnectError, Connection, DeclareFailure, channels_of_the_user, connect};
use super::topology::Topology;
use crate::config::Broker;
use crate::retry::full_jitter;

/// Ceilings of the delay between tries to connect.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// A connection that lasted this long was a good one: the next loss is the first of its kind.
const GOOD_WHILE: Duration = Duration::from_secs(60);
/// First ceiling of the delay before a connection that was lost is replaced.
const FIRST_REPLACED: Duration = Duration::from_millis(200);
/// How soon what was deleted is declared again although no message was refused for want of it.
const DECLARE_EVERY: Duration = Duration::from_secs(60);
/// Between two declarations at least, however many messages are refused.
const DECLARE_PAUSE: Duration = Duration::from_secs(1);
/// Between two looks for a place where the broker lets the user have no more channels.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How the daemon stands with the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerState {
    /// All that are asked for are there.
    Connected,
    /// It takes no messages at present, for this reason.
    Blocked(String),
    /// There is none, or none for some lanes, for this reason.
    Disconnected(String),
}

/// Why there is no connection with everything declared on it.
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
        "RabbitMQ at {address} lets a connection have {channels} channels, and a lane needs {FEWEST}: raise its channel_max"
    )]
    TooFewChannels {
        /// Where.
        address: String,
        /// How many.
        channels: usize,
    },
}

impl OpenError {
    /// Whether the broker will say the same however often it is asked.
    fn is_final(&self) -> bool {
        match self {
            Self::Connect(_) => false,
            Self::Declare(error) => matches!(error, DeclareFailure::Refused(error) if error.is_refusal()),
            Self::TooFewChannels { .. } => true,
        }
    }

    /// The broker's own words, where it ended what was begun.
    fn source(&self) -> Option<&lapin::Error> {
        match self {
            Self::Declare(DeclareFailure::Broken { source }) => Some(source),
            Self::Declare(DeclareFailure::Refused(error)) => Some(error.said()),
            _ => None,
        }
    }
}

type Observer = Arc<dyn Fn(&BrokerState) + Send + Sync>;

/// See the module.
pub struct Connections {
    broker: Arc<Broker>,
    topology: Topology,
    lanes: usize,
    missing: Arc<Notify>,
    /// Locked while a connection is opened: whoever needs one waits for that one.
    open: Mutex<Vec<Arc<Open>>>,
    record: Arc<std::sync::Mutex<Record>>,
    observer: Observer,
}

/// What the losses so far say of the next connection.
#[derive(Debug, Default)]
struct Record {
    /// There was one since a connection was last opened.
    is_fresh: bool,
    /// In a row, none of which had lasted.
    count: u32,
    opened: Option<Instant>,
    /// How many channels to do with, where the broker has lost a connection over more.
    channels: Option<usize>,
}

/// A connection, as long as it lasts.
#[derive(Debug)]
struct Open {
    connection: Arc<Connection>,
    /// Lanes that have a place on it, and how many can have.
    taken: AtomicUsize,
    places: usize,
    /// Why it was lost.
    lost: watch::Receiver<Option<String>>,
}

/// A lane's place on a connection. Dropped, it is another's.
#[derive(Debug)]
pub struct Place(Arc<Open>);

impl Place {
    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.0.connection
    }

    /// Waits until the connection is lost.
    pub async fn lost(&self) {
        lost(&self.0).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn lost(open: &Open) {
    // That nobody is left to tell of it says the same.
    let _ = open.lost.clone().wait_for(Option::is_some).await;
}

impl Connections {
    /// None yet. Serves so many `lanes`, whose topology is declared. `observer` is told of every change.
    pub fn new(
        broker: Arc<Broker>,
        topology: Topology,
        lanes: usize,
        observer: impl Fn(&BrokerState) + Send + Sync + 'static,
    ) -> Self {
        let (missing, open, record) = Default::default();
        Self { broker, topology, lanes, missing, open, record, observer: Arc::new(observer) }
    }

    /// Opens the first one, and tries again until that succeeds: a broker that just started has its listeners before its
    /// queues.
    ///
    /// # Errors
    /// [`OpenError`], where trying again is of no use.
    pub async fn open_first(&self) -> Result<(), OpenError> {
        let mut open = self.open.lock().await;
        let mut failures = 0;
        let first = loop {
            match self.try_open(true).await {
                Ok(first) => break first,
                Err(error) if error.is_final() && !self.topology.was_declared() => return Err(error),
                Err(error) => self.failed(&error, &mut failures).await,
            }
        };
        open.push(first);
        Ok(())
    }

    /// A place for a lane, once there is one. What the broker refuses is waited for: it let us in before.
    pub async fn place(&self) -> Place {
        loop {
            if let Some(place) = self.find_or_open().await {
                if !place.connection().is_blocked() {
                    (self.observer)(&BrokerState::Connected);
                }
                return place;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn find_or_open(&self) -> Option<Place> {
        let mut open = self.open.lock().await;
        open.retain(|open| open.connection.is_open());
        let free = |open: &&Arc<Open>| open.taken.load(Ordering::Relaxed) < open.places;
        if let Some(open) = open.iter().find(free) {
            return Some(take(open));
        }
        let is_first = open.is_empty();
        if let Some(channels) = self.record().channels.filter(|_| !is_first) {
            // They are of the user, and not of each connection.
            let places: usize = open.iter().map(|open| open.places).sum();
            (self.observer)(&BrokerState::Disconnected(format!(
                "RabbitMQ lets the user have too few channels: {channels} are enough for {places} of {} lanes; raise max-channels of \
                 the user",
                self.lanes
            )));
            return None;
        }
        let mut failures = 0;
        let pause = self.record().pause();
        sleep(pause).await;
        let opened = loop {
            match self.try_open(is_first).await {
                Ok(opened) => break opened,
                Err(error) => self.failed(&error, &mut failures).await,
            }
        };
        let place = take(&opened);
        open.push(opened);
        Some(place)
    }

    async fn failed(&self, error: &OpenError, failures: &mut u32) {
        *failures += 1;
        warn!("{error}; trying again");
        if let Some(most) = error.source().and_then(channels_of_the_user) {
            self.record().learn(most);
        }
        (self.observer)(&BrokerState::Disconnected(error.to_string()));
        sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, *failures, rand::random())).await;
    }

    async fn try_open(&self, is_first: bool) -> Result<Arc<Open>, OpenError> {
        let mut connection = connect(&self.broker, "reveille").await?;
        let channels = connection.channel_max().min(self.record().channels.unwrap_or(usize::MAX));
        let places = lanes_for(channels);
        if places == 0 {
            return Err(OpenError::TooFewChannels { address: self.broker.address(), channels });
        }
        connection.divide_channels(channels, places.min(self.lanes));
        connection.set_lanes(self.lanes);
        connection.tell_of_missing(self.missing.clone());
        if is_first {
            connection.declare(&self.topology).await?;
        }
        info!(broker = self.broker.address(), "connected");
        self.record().opened = Some(Instant::now());
        Ok(self.watched(connection, places))
    }

    /// Follows how a connection does, until it is lost.
    fn watched(&self, connection: Connection, places: usize) -> Arc<Open> {
        let (tell, lost) = watch::channel(None);
        let connection = Arc::new(connection);
        let open = Open { connection: connection.clone(), taken: AtomicUsize::new(0), places, lost };
        let (observer, record) = (self.observer.clone(), self.record.clone());
        tokio::spawn(async move {
            let blocked = |reason: Option<String>| match reason {
                Some(reason) => {
                    warn!("RabbitMQ takes no messages, waiting: {reason}");
                    observer(&BrokerState::Blocked(reason));
                }
                None => {
                    info!("RabbitMQ takes messages again");
                    observer(&BrokerState::Connected);
                }
            };
            let lost = connection.lost(blocked).await;
            if connection.is_closing() {
                return;
            }
            // What was in flight is dropped: the broker gives it to whoever holds the baton next.
            error!("the connection to RabbitMQ is lost, connecting again: {lost}");
            let mut record = record.lock().unwrap_or_else(PoisonError::into_inner);
            record.is_fresh = true;
            if let Some(most) = channels_of_the_user(&lost) {
                record.learn(most);
            }
            drop(record);
            observer(&BrokerState::Disconnected(format!("lost: {lost}")));
            tell.send_replace(Some(lost.to_string()));
        });
        Arc::new(open)
    }

    fn record(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses one of the connections for as long as that lasts, once there is one. `None` where it was lost.
    pub async fn over_any<T>(&self, using: impl AsyncFnOnce(&Connection) -> T) -> Option<T> {
        let open = loop {
            if let Some(open) = self.any().await {
                break open;
            }
            sleep(LOOK_EVERY).await;
        };
        tokio::select! {
            used = using(&open.connection) => Some(used),
            () = lost(&open) => None,
        }
    }

    async fn any(&self) -> Option<Arc<Open>> {
        self.open.lock().await.iter().find(|open| open.connection.is_open()).cloned()
    }

    /// Declares the topology again when a publisher misses something of it, and once a minute, since a level of the delay
    /// ladder can be missing without anybody publishing to it. Never ends.
    pub async fn keep_declared(&self) -> Infallible {
        let mut told: Option<String> = None;
        loop {
            tokio::select! {
                () = self.missing.notified() => {}
                () = sleep(DECLARE_EVERY) => {}
            }
            let declared = self.over_any(async |connection| connection.declare(&self.topology).await).await;
            let failure = declared.and_then(Result::err).map(|error| error.to_string());
            // Told when it begins and when it changes: what nobody mends is tried every second.
            if let Some(failure) = failure.as_ref().filter(|failure| told.as_ref() != Some(failure)) {
                warn!("what seems to be missing cannot be declared again: {failure}");
            }
            told = failure;
            sleep(DECLARE_PAUSE).await;
        }
    }

    /// Whether the broker takes no messages at present.
    pub async fn is_blocked(&self) -> bool {
        self.open.lock().await.iter().any(|open| open.connection.is_blocked())
    }

    /// Closes all: what is unacked goes back to its queue.
    pub async fn close(&self) {
        let open = std::mem::take(&mut *self.open.lock().await);
        futures_util::future::join_all(open.iter().map(|open| open.connection.close())).await;
    }
}

fn take(open: &Arc<Open>) -> Place {
    open.taken.fetch_add(1, Ordering::Relaxed);
    Place(open.clone())
}

impl Record {
    /// How long to wait before the next connection.
    fn pause(&mut self) -> Duration {
        if !std::mem::take(&mut self.is_fresh) {
            return Duration::ZERO;
        }
        let has_lasted = self.opened.is_none_or(|opened| opened.elapsed() > GOOD_WHILE);
        self.count = if has_lasted { 1 } else { self.count + 1 };
        full_jitter(FIRST_REPLACED, LONGEST_RETRY, self.count, rand::random())
    }

    /// The broker lets the user have so many channels in all. Those of replies, of `submit` and of other replicas count too:
    /// so it is fewer each time.
    fn learn(&mut self, most: usize) {
        let fewer = self.channels.map_or(most.saturating_sub(1), |channels| channels - channels / 4);
        let fewer = fewer.min(most).max(FEWEST);
        self.channels = Some(fewer);
        warn!(
            "RabbitMQ lets the user have {most} channels in all (max-channels): reveille makes do with {fewer}, which are enough \
             for {} lanes; raise it with rabbitmqctl set_user_limits, and restart reveille",
            lanes_for(fewer)
        );
    }
}
