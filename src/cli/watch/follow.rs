//! The log of outcomes, replayed from a time on and then followed, whatever becomes of the connection.

use std::convert::Infallible;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::broker::{ConnectionKind, Position, StreamError};
use crate::cli::Failure;
use crate::cli::log::{Log, Opened, QUIET};
use crate::config::Config;
use crate::events::Event;
use crate::retry::half_jitter;

/// Events on their way to the watch.
const IN_HAND: usize = 100;
/// How long the connection may take to be closed.
const CLOSING: Duration = Duration::from_secs(1);
/// Between two tries to connect again: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

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
}

/// The reading of the log, in a task of its own.
#[derive(Debug)]
pub(super) struct Following {
    news: mpsc::Receiver<News>,
    task: JoinHandle<()>,
}

impl Following {
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
    let (sender, news) = mpsc::channel(IN_HAND);
    let task = tokio::spawn(async move {
        let Err(GoneAway) = Reading { log, news: sender }.follow(opened, from).await;
    });
    Ok(Following { news, task })
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
}

impl Reading {
    async fn follow(&self, mut opened: Opened, mut from: Position) -> Result<Infallible, GoneAway> {
        loop {
            let lost = self.read(opened, &mut from).await?;
            self.news.send(News::Lost(lost.to_string())).await?;
            opened = self.open_again(from).await?;
            self.news.send(News::Back).await?;
        }
    }

    /// Reads until that fails, and returns why. `from` is where to read on.
    async fn read(&self, mut opened: Opened, from: &mut Position) -> Result<StreamError, GoneAway> {
        let Self { news, .. } = self;
        let mut is_replayed = false;
        loop {
            let patience = if is_replayed { Duration::MAX } else { QUIET };
            let next = tokio::select! {
                next = timeout(patience, opened.stream.next()) => next,
                () = news.closed() => {
                    opened.connection.close().await;
                    return Err(GoneAway);
                }
            };
            let is_at_end = match next {
                Ok(Ok(entry)) => {
                    *from = Position::Offset(entry.offset.saturating_add(1));
                    if let Some(event) = Event::read(&entry.message.body) {
                        news.send(News::Event(Box::new(event))).await?;
                    }
                    opened.end().is_none_or(|end| entry.offset >= end)
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
