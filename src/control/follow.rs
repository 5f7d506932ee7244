//! Reads the stream of commands, from its beginning, and follows it, over a connection of its own.
//!
//! A stream has no end that could be seen, so the reader publishes a message of its own and reads until that comes. After
//! a lost connection all is read again, into a copy of what is known, so that nothing is in force twice or in between.
//!
//! Lanes come first: a connection is opened once each of them has its own, and none where RabbitMQ limits the channels of a
//! user or a node.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::Control;
use crate::broker::connection::ConnectError;
use crate::broker::names::COMMAND;
use crate::broker::{
    ConnectionKind, Connections, Names, Outgoing, Position, PublishError, Publisher, Stream, StreamError, Traffic,
    connect, limit_of_channels,
};
use crate::config::Broker;
use crate::events::{Applied, Command, Data, Event};
use crate::replica::Replica;
use crate::retry::half_jitter;

/// The reader's own message, with which it finds the end of the stream. It says nothing else.
const MARK: &str = "io.reveille.control.read.v1";
/// How long RabbitMQ may take over the next message while the stream is read to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a limit of channels is believed that this connection met.
const LIMITED: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether lanes need the connection.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Backoff before the next try: first and last ceiling.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// Longest sleep until a pause ends by itself: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// `control.applied` that wait for their confirm at a time: a full queue that is bound to the outcomes confirms nothing.
const PUBLISHING: usize = 32;

/// What a reader of the commands needs.
pub struct Follower {
    /// How to connect.
    pub broker: Arc<Broker>,
    /// Names of exchanges and queues.
    pub names: Names,
    /// Where the commands are kept.
    pub control: Arc<Control>,
    /// Called whenever pauses by hand may have changed, before `control.applied` is published.
    pub changed: Box<dyn Fn() + Send + Sync>,
    /// The lanes that this replica holds now, for `control.applied`.
    pub held: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Called with whether the commands are followed at present.
    pub show: Box<dyn Fn(bool) + Send + Sync>,
}

/// Why the commands are not followed at present.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("RabbitMQ sent nothing for {PATIENCE:?}")]
    Silent,
    #[error("RabbitMQ limits channels, and lanes need them")]
    Limited,
}

impl FollowError {
    fn is_limit(&self) -> bool {
        match self {
            Self::Limited => true,
            Self::Stream(StreamError::Broken(error)) | Self::Publish(PublishError::Broken(error)) => {
                limit_of_channels(error).is_some()
            }
            _ => false,
        }
    }
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Follower")
    }
}

/// A command as it was read.
struct Given {
    id: String,
    at: Timestamp,
    command: Command,
}

impl Follower {
    /// Reads and follows the commands for as long as the process lives, beside the `connections` of lanes.
    pub async fn follow(&self, connections: &Connections) -> Infallible {
        tokio::select! {
            never = self.read(connections) => never,
            never = self.watch_ends() => never,
        }
    }

    /// Tells when a pause ends by itself.
    async fn watch_ends(&self) -> Infallible {
        let mut state = self.control.state.subscribe();
        loop {
            let now = Timestamp::now();
            let end = state.borrow_and_update().next_end(now);
            // One may have ended just before.
            (self.changed)();
            let passed = async {
                match end {
                    Some(end) => {
                        let left = Duration::try_from(end.duration_since(now)).unwrap_or_default();
                        sleep(left.min(LONGEST_SLEEP)).await;
                    }
                    None => pending().await,
                }
            };
            tokio::select! {
                () = passed => {}
                Ok(()) = state.changed() => {}
            }
        }
    }

    async fn read(&self, connections: &Connections) -> Infallible {
        // Applied before, by the ids of their events.
        let mut applied = HashSet::new();
        let (mut failures, mut said) = (0_u32, String::new());
        let mut is_left = false;
        loop {
            if connections.are_limited_now() || !connections.are_enough() {
                if connections.are_limited_now() {
                    self.leave_to_lanes(&mut is_left);
                }
                sleep(LOOK_EVERY).await;
                continue;
            }
            let Err(error) = tokio::select! {
                () = limited(connections) => Err(FollowError::Limited),
                ended = self.read_once(&mut applied, &mut failures) => ended,
            };
            (self.show)(false);
            if error.is_limit() {
                self.leave_to_lanes(&mut is_left);
                sleep(LIMITED).await;
                continue;
            }
            is_left = false;
            failures = failures.saturating_add(1);
            let error = error.to_string();
            if error != said {
                warn!("the commands are not followed, and what is known of them stays in force: {error}");
                said = error;
            }
            sleep(half_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
        }
    }

    /// Leaves the channels to lanes, for a while.
    fn leave_to_lanes(&self, is_left: &mut bool) {
        if !std::mem::replace(is_left, true) {
            warn!("commands, as by `reveille pause`, take no effect here for now: RabbitMQ allows too few channels");
        }
        // Nothing is left to wait for.
        self.control.known.send_replace(true);
    }

    /// Reads and follows over one connection. `failures` is reset once the end was reached.
    async fn read_once(&self, applied: &mut HashSet<String>, failures: &mut u32) -> Result<Infallible, FollowError> {
        let connection = connect(&self.broker, ConnectionKind::Control).await?;
        let publisher = connection.publisher(Traffic::Outcomes, 4);
        let is_first = !*self.control.known.borrow();
        let mark = self.mark(&publisher).await?;
        let log = self.names.control_log();
        let mut stream = within(Stream::open(&connection, &log, Position::Offset(0))).await??;
        let mut state = self.control.state.borrow().clone();
        let (now, mut read, mut news) = (Timestamp::now(), HashSet::new(), Vec::new());
        loop {
            let Some(event) = Event::read(&within(stream.next()).await??.message.body) else { continue };
            if event.id == mark {
                break;
            }
            let Some(given) = given(event) else { continue };
            if !read.insert(given.id.clone()) {
                continue;
            }
            state.apply(&given.id, given.command.clone(), given.at, now);
            if !is_first && !applied.contains(&given.id) {
                news.push(given);
            }
        }
        *applied = read;
        self.control.state.send_replace(state);
        (self.changed)();
        if is_first {
            info!(commands = applied.len(), "the commands of the last 30 days are known");
        }
        self.control.known.send_replace(true);
        (self.show)(true);
        *failures = 0;

        let mut publishing = JoinSet::new();
        for given in news {
            self.has_applied(given, &publisher, &mut publishing);
        }
        loop {
            let Some(given) = Event::read(&stream.next().await?.message.body).and_then(given) else { continue };
            if !applied.insert(given.id.clone()) {
                continue;
            }
            self.control
                .state
                .send_modify(|state| state.apply(&given.id, given.command.clone(), given.at, Timestamp::now()));
            (self.changed)();
            self.has_applied(given, &publisher, &mut publishing);
        }
    }

    /// Publishes the message that stands for the end of the stream, and returns its id.
    async fn mark(&self, publisher: &Publisher) -> Result<String, FollowError> {
        let mark = Data::Unknown { kind: MARK.to_owned(), data: serde_json::Value::Null };
        let event = Event::of_process(mark, Timestamp::now());
        let outgoing = Outgoing::event(&event, self.names.control(), format!("{COMMAND}.control.read"));
        let _confirmed = within(publisher.try_publish(Arc::new(outgoing))).await??;
        Ok(event.id)
    }

    /// Logs that a command has taken effect, and publishes it in the background.
    fn has_applied(&self, Given { id, command, .. }: Given, publisher: &Publisher, publishing: &mut JoinSet<()>) {
        let Command { action, by, reason } = command;
        info!(by, reason, "command {}: {action}", action.name());
        while publishing.try_join_next().is_some() {}
        if publishing.len() >= PUBLISHING {
            warn!(command_id = id, "not published that a command was applied: too many wait to be");
            return;
        }
        let (command, replica, lanes) = (action.name().to_owned(), Replica::this(), (self.held)());
        let applied = Data::ControlApplied(Applied { command_id: id.clone(), command, replica, lanes, by, reason });
        let event = Event::of_process(applied, Timestamp::now());
        let outgoing = Outgoing::event(&event, self.names.outcomes(), APPLIED_KEY.to_owned());
        let publisher = publisher.clone();
        publishing.spawn(async move {
            if let Err(error) = publisher.try_publish(Arc::new(outgoing)).await {
                warn!(command_id = id, "not published that a command was applied: {error}");
            }
        });
    }
}

/// The routing key of `control.applied` at the exchange of outcomes: its first word is no lane's name.
const APPLIED_KEY: &str = "_control.applied";

/// Waits until RabbitMQ limits channels.
async fn limited(connections: &Connections) {
    while !connections.are_limited_now() {
        sleep(LOOK_EVERY).await;
    }
}

async fn within<T>(reading: impl Future<Output = T>) -> Result<T, FollowError> {
    timeout(PATIENCE, reading).await.map_err(|_| FollowError::Silent)
}

fn given(event: Event) -> Option<Given> {
    match event.data {
        Data::Command(command) => Some(Given { id: event.id, at: event.time, command }),
        Data::Unknown { kind, .. } => {
            debug!(kind, "a message of the commands that this version does not know");
            None
        }
        _ => None,
    }
}
