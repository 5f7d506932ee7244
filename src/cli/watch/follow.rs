//! The log of outcomes, read from a place on and then followed, whatever becomes of the connection; and beside it, whether the
//! lanes in question are run.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::broker::{Connection, ConnectionKind, Look, Names, Position, Stream, StreamError, look};
use crate::cli::Failure;
use crate::cli::log::{Log, Opened, QUIET};
use crate::config::{Config, LaneName};
use crate::events::Event;
use crate::query::knock;
use crate::retry::half_jitter;

/// Events on their way to the watch.
const IN_HAND: usize = 100;
/// How long the connection may take to be closed.
const CLOSING: Duration = Duration::from_secs(1);
/// Between two tries to connect again: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How often it is looked whether the lanes are run.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Looks in a row that find no consumer of a lane's baton before the lane counts as not run: RabbitMQ counts none, too, where
/// the queue's leader is slow to answer.
const IDLE_LOOKS: u32 = 2;
/// Lanes that are looked for: anybody who may publish events can have a batch announced in others.
const MOST_LANES: usize = 20;

/// How often RabbitMQ is given an occasion to say that it takes no messages, and how often it is looked whether it has.
const KNOCK_EVERY: Duration = Duration::from_secs(10);
const HEAR_EVERY: Duration = Duration::from_secs(1);

/// What comes of the log.
#[derive(Debug)]
pub(super) enum News {
    /// The next event. Messages that are none are left out.
    Event(Box<Event>),
    /// What was there when the reading began, or went on, has come.
    Replayed,
    /// RabbitMQ is lost, for this reason. It is tried again until there are further news.
    Lost(String),
    /// It is there again. The log is read on from where it was.
    Back,
    /// Whether a replica runs this lane, where that is not as it was.
    IsRun(LaneName, bool),
    /// Whether RabbitMQ takes messages, where that is not as it was. After [`News::Lost`] it counts as taking them.
    Takes(bool),
}

/// The reading of the log, in a task of its own.
#[derive(Debug)]
pub(super) struct Following {
    news: mpsc::Receiver<News>,
    lanes: watch::Sender<Vec<LaneName>>,
    task: JoinHandle<()>,
}

impl Following {
    /// Looks from now on whether these lanes are run, twenty of them at most. A text that is no lane's name is left out.
    pub(super) fn look_for<'a>(&self, lanes: impl Iterator<Item = &'a str>) {
        let lanes: Vec<LaneName> = lanes.filter_map(LaneName::parse).take(MOST_LANES).collect();
        self.lanes.send_if_modified(|known| {
            let is_new = *known != lanes;
            *known = lanes;
            is_new
        });
    }

    /// The next news. `None`: there will be no more. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }

    /// Closes the connection.
    pub(super) async fn close(self) {
        drop(self.news);
        // RabbitMQ closes it, where that takes too long.
        let _ = timeout(CLOSING, self.task).await;
    }
}

/// Begins to read the log `from` a time on.
///
/// # Errors
/// RabbitMQ cannot be reached, or the log cannot be read. Later on, both are waited for.
pub(super) async fn follow(config: &Config, from: Timestamp) -> Result<Following, Failure> {
    let log = Log::new(config, ConnectionKind::Watch);
    let from = Position::Time(from);
    let opened = log.open(from).await.map_err(|error| log.failure(error))?;
    Ok(begin(config, log, opened, from))
}

/// Begins to read the log from its end on: all that is written after the call comes, and maybe some of what was there.
///
/// # Errors
/// As [`follow`].
pub(super) async fn follow_from_end(config: &Config) -> Result<Following, Failure> {
    let log = Log::new(config, ConnectionKind::Submit);
    let opened = log.open_at_end().await.map_err(|error| log.failure(error))?;
    // Not a time, since clocks differ: the connection may be lost before anything was read.
    let from = Position::Offset(opened.end().unwrap_or(0));
    Ok(begin(config, log, opened, from))
}

fn begin(config: &Config, log: Log, opened: Opened, from: Position) -> Following {
    let (sender, news) = mpsc::channel(IN_HAND);
    let (lanes, looked_for) = watch::channel(Vec::new());
    let reading = Reading { log, news: sender, names: Names::new(&config.broker.prefix), lanes: looked_for };
    let task = tokio::spawn(async move {
        let Err(GoneAway) = reading.follow(opened, from).await;
    });
    Following { news, lanes, task }
}

/// The watch is over: nothing takes the news.
struct GoneAway;

impl<T> From<mpsc::error::SendError<T>> for GoneAway {
    fn from(_: mpsc::error::SendError<T>) -> Self {
        Self
    }
}

struct Reading {
    log: Log,
    news: mpsc::Sender<News>,
    names: Names,
    lanes: watch::Receiver<Vec<LaneName>>,
}

impl Reading {
    async fn follow(&self, mut opened: Opened, mut from: Position) -> Result<Infallible, GoneAway> {
        loop {
            let end = opened.end();
            let ended = tokio::select! {
                lost = self.read(&mut opened.stream, end, &mut from) => lost,
                gone = self.look(&opened.connection) => gone.map(|never| match never {}),
                gone = self.knock(&opened.connection) => gone.map(|never| match never {}),
            };
            let lost = match ended {
                Ok(lost) => lost,
                Err(gone) => {
                    opened.connection.close().await;
                    return Err(gone);
                }
            };
            self.news.send(News::Lost(lost.to_string())).await?;
            opened = self.open_again(from).await?;
            self.news.send(News::Back).await?;
        }
    }

    /// Reads until that fails, and returns why. `end` is that of the log as it was opened; `from` is where to read on.
    async fn read(&self, stream: &mut Stream, end: Option<u64>, from: &mut Position) -> Result<StreamError, GoneAway> {
        let Self { news, .. } = self;
        let mut is_replayed = false;
        loop {
            let patience = if is_replayed { Duration::MAX } else { QUIET };
            let next = tokio::select! {
                next = timeout(patience, stream.next()) => next,
                () = news.closed() => return Err(GoneAway),
            };
            let is_at_end = match next {
                Ok(Ok(entry)) => {
                    *from = Position::Offset(entry.offset.saturating_add(1));
                    if let Some(event) = Event::read(&entry.message.body) {
                        news.send(News::Event(Box::new(event))).await?;
                    }
                    end.is_none_or(|end| entry.offset >= end)
                }
                Ok(Err(error)) => return Ok(error),
                Err(_) => true,
            };
            if is_at_end && !is_replayed {
                is_replayed = true;
                news.send(News::Replayed).await?;
            }
        }
    }

    /// Looks now and then whether the lanes are run, for as long as the connection is there. What the user may not see is not
    /// told.
    async fn look(&self, connection: &Connection) -> Result<Infallible, GoneAway> {
        let mut lanes = self.lanes.clone();
        // By lane: looks in a row without a consumer, and what was told last.
        let mut seen: HashMap<LaneName, (u32, Option<bool>)> = HashMap::new();
        loop {
            let looked_for = lanes.borrow_and_update().clone();
            for lane in looked_for {
                let is_run = match look(connection, &self.names.baton_of(&lane)).await {
                    Ok(Look::There(counts)) => counts.consumers > 0,
                    Ok(Look::Missing) => false,
                    Ok(Look::Refused) => continue,
                    // The reading ends with the connection, too.
                    Err(_) => return pending().await,
                };
                let (idle, told) = seen.entry(lane.clone()).or_default();
                *idle = if is_run { 0 } else { *idle + 1 };
                if (is_run || *idle >= IDLE_LOOKS) && told.replace(is_run) != Some(is_run) {
                    self.news.send(News::IsRun(lane, is_run)).await?;
                }
            }
            tokio::select! {
                () = sleep(LOOK_EVERY) => {}
                Ok(()) = lanes.changed() => {}
            }
        }
    }

    /// Tells whether RabbitMQ takes messages, where the user may ask replicas.
    async fn knock(&self, connection: &Connection) -> Result<Infallible, GoneAway> {
        let Ok(channel) = connection.channel().await else { return pending().await };
        let (mut was_blocked, mut knocked) = (false, None::<Instant>);
        loop {
            let is_due = knocked.is_none_or(|knocked| knocked.elapsed() >= KNOCK_EVERY);
            if is_due && !was_blocked && channel.status().connected() {
                knocked = Some(Instant::now());
                // A refusal closes the channel. It is told to nobody: whatever else is to be seen is seen without it.
                let _ = knock(&channel, &self.names).await;
            }
            sleep(HEAR_EVERY).await;
            let is_blocked = connection.is_blocked();
            if std::mem::replace(&mut was_blocked, is_blocked) != is_blocked {
                self.news.send(News::Takes(!is_blocked)).await?;
            }
        }
    }

    /// Tries until the log is read again. What is refused was allowed before, so the broker is being worked on.
    async fn open_again(&self, from: Position) -> Result<Opened, GoneAway> {
        let (mut tries, mut said) = (1_u32, String::new());
        loop {
            sleep(half_jitter(FIRST_WAIT, LONGEST_WAIT, tries, rand::random())).await;
            match self.log.open(from).await {
                Ok(opened) => return Ok(opened),
                Err(error) => {
                    let error = error.to_string();
                    if said != error {
                        self.news.send(News::Lost(error.clone())).await?;
                        said = error;
                    }
                }
            }
            tries = tries.saturating_add(1);
        }
    }
}
