//! Follows the log of outcomes over a connection of its own, and publishes what follows from it.
//!
//! Where to begin, a holder learns from the one before, which wrote it into the log: all batches that were announced earlier are done
//! ([`SchedulerHeld`]). It is written again and again, so that it is found among the last messages. Without it the whole log is read.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::HELD_KEY;
use super::appointments::Appointments;
use super::batches::{Batches, Heard, Name};
use crate::broker::connection::ConnectError;
use crate::broker::names::COMMAND;
use crate::broker::{
    Connection, ConnectionKind, Entry, Names, Outgoing, Position, Publisher, Stream, StreamError, Traffic, connect,
};
use crate::config::{Broker, Schedule};
use crate::control::Control;
use crate::events::{Action, Command, Data, Event, SchedulerHeld};
use crate::ownership::{Interrupted, Lease};
use crate::retry::half_jitter;
use crate::telemetry::SchedulerMetrics;

/// After so many messages it is written down anew from where on the log has to be read …
const WRITE_EVERY: u64 = 2_000;
/// … and among so many last ones it is looked for: read in a tenth of a second.
const LOOK_BACK: u64 = 2 * WRITE_EVERY;
/// How long RabbitMQ may take over the next message of those that are there: it can have a hundred megabytes, and the network be slow.
const PATIENCE: Duration = Duration::from_secs(90);
/// Completions that wait for the end of the replay: the log may have them.
const MOST_UNPUBLISHED: usize = 1_000;
/// Commands on their way to RabbitMQ at a time. One that it refuses is tried again until it is taken.
const GIVING: usize = 32;
/// Between two looks for batches of which nothing is heard any more.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Between two looks for what is due.
const TICK: Duration = Duration::from_secs(1);
/// Backoff before the log is read anew: first ceiling, and the largest.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Why the log is read no further.
#[derive(Debug, thiserror::Error)]
enum LogError {
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("RabbitMQ sent nothing for {PATIENCE:?}")]
    Silent,
}

/// Why the duty is interrupted.
#[derive(Debug)]
enum Problem {
    /// The log is to be read anew.
    Log(LogError),
    /// Nothing more can be published over the connection.
    Outbox(lapin::Error),
}

impl<E: Into<LogError>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self::Log(error.into())
    }
}

/// Publishes events.
#[derive(Debug)]
pub(super) struct Outbox<'a> {
    publisher: Publisher,
    /// Where commands are refused, completions go on.
    commands: Publisher,
    /// Nor where what is said of schedules is.
    schedules: Publisher,
    names: &'a Names,
}

/// A command that was given.
type Given = Result<(Name, Command), lapin::Error>;

impl<'a> Outbox<'a> {
    pub(super) fn new(connection: &Connection, names: &'a Names) -> Self {
        let publisher = || connection.publisher(Traffic::Outcomes, 1);
        Self { publisher: publisher(), commands: publisher(), schedules: publisher(), names }
    }

    /// Publishes an event among the outcomes, until the broker confirms it.
    ///
    /// # Errors
    /// The connection broke.
    async fn event(&self, key: String, event: &Event) -> Result<(), lapin::Error> {
        self.publisher.publish(Outgoing::event(event, self.names.outcomes(), key)).await.map(drop)
    }

    /// Publishes an event of a schedule in the background, until the broker confirms it.
    pub(super) fn later(&self, key: String, event: &Event) -> impl Future<Output = Result<(), lapin::Error>> + use<> {
        let (publisher, outgoing) = (self.schedules.clone(), Outgoing::event(event, self.names.outcomes(), key));
        async move { publisher.publish(outgoing).await.map(drop) }
    }

    /// Gives a command in the background, until the broker confirms it. `None`: the event is no command.
    fn give(&self, name: Name, event: Event) -> Option<impl Future<Output = Given> + use<>> {
        let Data::Command(command) = &event.data else { return None };
        let key = format!("{COMMAND}.{}", command.action.name());
        let (outgoing, command) = (Outgoing::event(&event, self.names.control(), key), command.clone());
        let publisher = self.commands.clone();
        Some(async move {
            let _confirmed = publisher.publish(outgoing).await?;
            Ok((name, command))
        })
    }

    /// Publishes that this replica is the holder, and from where on the next one has to read the log.
    async fn write_down(&self, held: SchedulerHeld) -> Result<(), lapin::Error> {
        let event = Event::of_scheduler(Data::SchedulerHeld(held), Timestamp::now());
        self.event(HELD_KEY.to_owned(), &event).await
    }
}

/// What a holder does during a term.
#[derive(Debug)]
pub(super) struct Duty<'a> {
    broker: &'a Arc<Broker>,
    log: String,
    outbox: Outbox<'a>,
    metrics: &'a SchedulerMetrics,
    batches: Batches,
    /// Completions that are not known to be published, by id.
    unpublished: BTreeMap<String, Event>,
    giving: JoinSet<Given>,
    appointments: Appointments,
    lease: &'a Lease,
    /// Offset of the next message to be read, once that is known.
    next: Option<u64>,
    written: Written,
}

/// What was last written down.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    /// Offset of the next message then.
    at: u64,
    resume_from: u64,
}

impl Written {
    /// Whether to write again: otherwise it is not found any more, or there is far less to be read by now.
    fn is_outdated(self, now: Self) -> bool {
        let has_moved = |then: u64, now: u64| now.saturating_sub(then) >= WRITE_EVERY;
        has_moved(self.at, now.at) || has_moved(self.resume_from, now.resume_from)
    }
}

impl<'a> Duty<'a> {
    pub(super) fn new(
        broker: &'a Arc<Broker>,
        outbox: Outbox<'a>,
        schedules: Arc<[Schedule]>,
        control: Arc<Control>,
        lease: &'a Lease,
        metrics: &'a SchedulerMetrics,
    ) -> Self {
        let log = outbox.names.outcomes_log();
        let appointments = Appointments::new(broker.clone(), outbox.names, schedules, control, &metrics.schedules);
        let (unpublished, giving, next, written) = Default::default();
        let batches = Batches::new();
        Self { broker, log, outbox, metrics, batches, unpublished, giving, appointments, lease, next, written }
    }

    /// Reads the log, and publishes, until the term's connection breaks.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(super) async fn run(&mut self) -> Result<Infallible, Interrupted> {
        // After this the log is not empty, so it has an end that can be found.
        self.outbox.write_down(self.appointments.state(None)).await?;
        let (mut failures, mut told) = (0, String::new());
        loop {
            let before = self.next;
            let error = match self.read().await {
                Err(Problem::Log(error)) => error.to_string(),
                Err(Problem::Outbox(error)) => return Err(error.into()),
                Ok(never) => match never {},
            };
            failures = if self.next == before { failures + 1 } else { 1 };
            if told != error {
                warn!(
                    "the log of outcomes cannot be read, so no batch is published as completed; trying again: {error}"
                );
                told = error;
            }
            sleep(half_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
        }
    }

    async fn read(&mut self) -> Result<Infallible, Problem> {
        let connection = connect(self.broker, ConnectionKind::Scheduler).await?;
        let end = soon(Stream::end(&connection, &self.log)).await?;
        let from = match self.next {
            Some(next) => next,
            None => self.resume_from(&connection, end).await?,
        };
        let mut next = from;
        let mut stream = soon(Stream::open(&connection, &self.log, Position::Offset(from))).await?;
        while next <= end {
            next = self.take(soon(stream.next()).await?);
            if self.unpublished.len() > MOST_UNPUBLISHED {
                self.publish().await?;
            }
        }
        info!(from, to = end, open = self.batches.open(), unpublished = self.unpublished.len(), "the log is read back");
        let (mut look, mut tick) = (interval(LOOK_EVERY), interval(TICK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is due may be paused.
        let control = self.appointments.control.clone();
        let (mut known, mut is_known) = (pin!(control.known()), false);
        loop {
            self.publish().await?;
            self.give();
            self.write_down(next).await?;
            tokio::select! {
                entry = stream.next() => next = self.take(entry?),
                Some(given) = self.giving.join_next() => self.has_given(given).map_err(Problem::Outbox)?,
                fired = self.appointments.next() => {
                    self.appointments.took(&self.outbox, fired).map_err(Problem::Outbox)?;
                }
                () = &mut known, if !is_known => is_known = true,
                // A holder that was suspended may not be one any more, and learns that with its next baton.
                _ = tick.tick(), if is_known => if self.lease.is_valid() {
                    self.appointments.look(&self.outbox);
                },
                _ = look.tick() => self.forget_silent(),
            }
        }
    }

    /// The offset that the last holder wrote down, among the last messages up to `end`.
    async fn resume_from(&self, connection: &Connection, end: u64) -> Result<u64, LogError> {
        let from = end.saturating_sub(LOOK_BACK);
        let mut stream = soon(Stream::open(connection, &self.log, Position::Offset(from))).await?;
        let mut found = None;
        loop {
            let Entry { offset, key, message } = soon(stream.next()).await?;
            if key == HELD_KEY
                && let Some(Event { data: Data::SchedulerHeld(held), .. }) = Event::read(&message.body)
            {
                // A holder knows of nothing that comes later.
                found = held.resume_from.filter(|from| *from <= offset).or(found);
            }
            if offset >= end {
                return Ok(found.unwrap_or(0));
            }
        }
    }

    /// Takes a message of the log. Returns the offset of the next one.
    fn take(&mut self, entry: Entry) -> u64 {
        let next = entry.offset.saturating_add(1);
        self.next = Some(next);
        // What cannot be read is no event.
        if let Some(event) = Event::read(&entry.message.body) {
            self.appointments.hear(&entry.key, &event.data, event.time);
            for heard in self.batches.hear(entry.offset, &entry.key, event, Timestamp::now()) {
                match heard {
                    Heard::Completed(event) => drop(self.unpublished.insert(event.id.clone(), *event)),
                    Heard::Published(id) => drop(self.unpublished.remove(&id)),
                    Heard::Forgotten(name) => {
                        debug!(lane = name.lane, batch = name.batch, "forgotten: there are too many open batches");
                        self.metrics.forgotten.inc();
                    }
                }
            }
            self.show_open();
        }
        next
    }

    fn forget_silent(&mut self) {
        for name in self.batches.forget_silent(Timestamp::now()) {
            info!(lane = name.lane, batch = name.batch, "forgotten: nothing was heard of the batch for seven days");
            self.metrics.forgotten.inc();
        }
        self.show_open();
    }

    fn show_open(&self) {
        self.metrics.open.set(i64::try_from(self.batches.open()).unwrap_or(i64::MAX));
    }

    /// Publishes the completions of batches that are done.
    async fn publish(&mut self) -> Result<(), Problem> {
        while let Some((id, event)) = self.unpublished.first_key_value() {
            if let Data::BatchCompleted(completed) = &event.data {
                self.outbox.event(format!("{}.completed", completed.lane), event).await.map_err(Problem::Outbox)?;
                debug!(lane = completed.lane, batch = completed.batch_id, "batch completed");
                self.metrics.completed.inc();
            }
            let id = id.clone();
            self.unpublished.remove(&id);
        }
        Ok(())
    }

    /// Gives the commands that are due.
    fn give(&mut self) {
        while self.giving.len() < GIVING
            && let Some((name, command)) = self.batches.pop_command()
        {
            if let Some(giving) = self.outbox.give(name, command) {
                self.giving.spawn(giving);
            }
        }
    }

    fn has_given(&mut self, given: Result<Given, JoinError>) -> Result<(), lapin::Error> {
        let (Name { lane, batch }, Command { action, reason, .. }) = match given {
            Ok(given) => given?,
            Err(error) => {
                warn!("a command of the scheduler was not given: {error}");
                return Ok(());
            }
        };
        match action {
            Action::StartWave { wave, waiting, .. } => {
                info!(lane, batch, "wave {wave} of the batch may start; {waiting} jobs wait for later ones");
            }
            _ => {
                warn!(lane, batch, reason, "the rest of the batch is cancelled");
                self.metrics.cancelled.inc();
            }
        }
        Ok(())
    }

    /// Writes down from where on a next holder has to read, if that is needed. All completions are published.
    async fn write_down(&mut self, next: u64) -> Result<(), Problem> {
        let now = Written { at: next, resume_from: self.batches.oldest().unwrap_or(next) };
        if self.written.is_outdated(now) {
            let held = self.appointments.state(Some(now.resume_from));
            self.outbox.write_down(held).await.map_err(Problem::Outbox)?;
            self.written = now;
        }
        Ok(())
    }
}

/// Waits for what RabbitMQ has.
async fn soon<T>(reading: impl Future<Output = Result<T, StreamError>>) -> Result<T, LogError> {
    timeout(PATIENCE, reading).await.map_err(|_| LogError::Silent)?.map_err(LogError::from)
}
