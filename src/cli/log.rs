//! The log of outcomes, or of commands: opened, and read to its end as that was.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::timeout;

use super::Failure;
use crate::broker::connection::ConnectError;
use crate::broker::{self, Connection, ConnectionKind, Entry, Names, Position, Stream, StreamError};
use crate::config::{Broker, Config};
use crate::events::Event;

/// How long to look for the last message. RabbitMQ does not say that there is none.
const EMPTY: Duration = Duration::from_secs(5);
/// How long to wait for the first message. There is none where the log was last written to before the time that is asked for.
pub(super) const QUIET: Duration = Duration::from_secs(3);
/// How long RabbitMQ may send nothing between the first message and the end of the log.
const STALLED: Duration = Duration::from_secs(30);
/// How long to wait for messages that RabbitMQ wrote together with the last one that was looked for: they come at once.
const WRITTEN_TOGETHER: Duration = Duration::from_millis(250);
/// More messages than RabbitMQ writes together.
const MOST_TOGETHER: u64 = 10_000;
/// How many messages before the end are read where the last one is too old.
const NEIGHBOURS: u64 = 2_000;
/// How much earlier than asked for a replay begins: RabbitMQ goes by its own clock, and events have the daemon's.
const CLOCKS_APART: SignedDuration = SignedDuration::from_secs(60);

/// The log of outcomes, or of commands.
#[derive(Debug)]
pub(super) struct Log {
    broker: Arc<Broker>,
    name: String,
    /// Of which it is.
    of: &'static str,
    kind: ConnectionKind,
}

/// The log as it is read.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) stream: Stream,
    pub(super) connection: Connection,
    /// The last message, or one that RabbitMQ wrote together with it; `None` if there was no message.
    last: Option<Entry>,
}

impl Opened {
    /// The offset of [`Opened::last`].
    pub(super) fn end(&self) -> Option<u64> {
        self.last.as_ref().map(|last| last.offset)
    }
}

/// The log cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("RabbitMQ sent nothing of the log for {STALLED:?}, before its end")]
    Stalled,
}

impl Log {
    /// The log at the broker of `config`, for a command that connects as `kind`.
    pub(super) fn new(config: &Config, kind: ConnectionKind) -> Self {
        Self {
            broker: config.broker.clone(),
            name: Names::new(&config.broker.prefix).outcomes_log(),
            of: "outcomes",
            kind,
        }
    }

    /// The log of commands.
    pub(super) fn of_commands(config: &Config, kind: ConnectionKind) -> Self {
        let name = Names::new(&config.broker.prefix).control_log();
        Self { name, of: "commands", ..Self::new(config, kind) }
    }

    /// Begins to read `from` there on, over a connection of its own.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) async fn open(&self, from: Position) -> Result<Opened, LogError> {
        self.open_by(|_| from).await
    }

    /// Begins to read at the last message, or at one that RabbitMQ wrote together with it: whatever is written after the call is
    /// read.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) async fn open_at_end(&self) -> Result<Opened, LogError> {
        self.open_by(|last| Position::Offset(last.map_or(0, |last| last.offset))).await
    }

    /// The same, from where `choose` says by the last message.
    async fn open_by(&self, choose: impl FnOnce(Option<&Entry>) -> Position) -> Result<Opened, LogError> {
        let connection = broker::connect(&self.broker, self.kind).await?;
        let last = timeout(EMPTY, Stream::last(&connection, &self.name)).await.ok().transpose()?;
        let stream = Stream::open(&connection, &self.name, choose(last.as_ref())).await?;
        Ok(Opened { stream, connection, last })
    }

    /// Reads to the end of the log as it is at the call, or some messages beyond that. `take` gets each event whose time is
    /// `from` or later. Memory is bounded by what `take` keeps.
    ///
    /// # Errors
    /// [`LogError`].
    pub(super) async fn replay(&self, from: Timestamp, mut take: impl FnMut(Event)) -> Result<(), LogError> {
        let began = Timestamp::now();
        let mut opened = self.open_by(|last| position(from, last)).await?;
        // Where there is no message, nothing was written before.
        let Some(end) = opened.end() else {
            opened.connection.close().await;
            return Ok(());
        };
        let mut patience = QUIET;
        loop {
            let entry = match timeout(patience, opened.stream.next()).await {
                Ok(next) => next?,
                Err(_) if patience == STALLED => return Err(LogError::Stalled),
                Err(_) => break,
            };
            let is_at_end = entry.offset >= end;
            patience = if is_at_end { WRITTEN_TOGETHER } else { STALLED };
            let event = Event::read(&entry.message.body);
            let is_later = event.as_ref().is_some_and(|event| event.time > began);
            if let Some(event) = event.filter(|event| event.time >= from) {
                take(event);
            }
            if is_at_end && (is_later || entry.offset - end > MOST_TOGETHER) {
                break;
            }
        }
        opened.connection.close().await;
        Ok(())
    }

    /// What it means for a command that the log could not be read.
    pub(super) fn failure(&self, error: LogError) -> Failure {
        let Self { broker, name, of, .. } = self;
        match error {
            LogError::Connect(error) => error.into(),
            LogError::Stream(StreamError::Broken(error)) if broker::is_access_refused(&error) => Failure::Usage(
                format!("cannot read the log of {of}: {error}; the user needs permission to read {name}"),
            ),
            LogError::Stream(StreamError::Broken(error)) if broker::is_not_found(&error) => Failure::Usage(format!(
                "there is no log of {of} at {}: {error}; it exists once `reveille run` has run there",
                broker.address()
            )),
            error => Failure::Unreachable(format!("cannot read the log of {of}: {error}")),
        }
    }
}

/// Where a replay of all events `from` a time on begins. RabbitMQ sends nothing from a time behind the end of the log, so where
/// the last event is earlier, it is shortly before the end. Its neighbours can be later: events that are published again.
fn position(from: Timestamp, last: Option<&Entry>) -> Position {
    let is_earlier = |last: &&Entry| Event::read(&last.message.body).is_some_and(|event| event.time < from);
    match last.filter(is_earlier) {
        Some(last) => Position::Offset(last.offset.saturating_sub(NEIGHBOURS)),
        None => Position::Time(from.checked_sub(CLOCKS_APART).unwrap_or(Timestamp::MIN)),
    }
}
