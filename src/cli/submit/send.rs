//! Sends a batch: the announcement of its size, and then the jobs, each confirmed.
//!
//! A broker that goes away is tried again for a while, and what it had not confirmed is sent once more: under its id, by which
//! the daemon knows a copy. Where sending ends before all is sent, that is said, and the size is announced anew.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval, sleep, timeout};

use super::bar::progress_bar;
use super::errors::refused;
use crate::broker::{self, Connection, ConnectionKind, Names, Outgoing, PublishError, Publisher, Traffic};
use crate::cli::signals::Signals;
use crate::cli::watch::{TAKES_AGAIN, TAKES_NOTHING};
use crate::cli::{Failure, tell};
use crate::config::Broker;
use crate::events::{Batch, Event, MaxFailures, Wave};
use crate::fleet::{Checked, IN_FLIGHT, Identity, Input, Item, Part, announced, announcement, outgoing};
use crate::retry::half_jitter;
use crate::text::Shown;

/// Groups of them that wait for confirms.
const GROUPS: usize = 4;
/// How long a broker that is away is tried again.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the connection is made anew without a confirm in between.
const FRUITLESS: u32 = 3;
/// Between two tries to connect again: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long the last confirms, and that of a corrected size, may take where sending has ended before its time.
const CLOSING: Duration = Duration::from_secs(5);
/// Batches that a report names.
const MOST_NAMED: usize = 5;
/// How often to look whether the broker takes messages at all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Where jobs go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route<'a> {
    pub(super) broker: &'a Broker,
    pub(super) names: &'a Names,
    pub(super) identity: &'a Identity,
    pub(super) max_failures: Option<MaxFailures>,
    pub(super) settle_seconds: Option<u32>,
    /// The time of the announcements, and of the messages of all jobs: by it a command to start a wave names them.
    pub(super) announced_at: Timestamp,
}

/// Why sending is over.
enum Over {
    Sent,
    /// The broker does not take what it got.
    Refused(PublishError),
    /// The broker is away, and this is the last error.
    Away(String),
    /// A file was changed since it was checked.
    Changed(String),
    /// By a signal, with this exit code.
    Stopped(u8),
}

type Flight = FuturesUnordered<BoxFuture<'static, (Item, Result<(), PublishError>)>>;

struct Sending<'a> {
    route: Route<'a>,
    connection: Connection,
    publisher: Publisher,
    flight: Flight,
    /// Not confirmed before the connection broke.
    again: Vec<Item>,
    /// Confirmed jobs by batch and wave.
    sent: BTreeMap<Arc<str>, BTreeMap<Option<Wave>, usize>>,
    bar: ProgressBar,
    /// Connections since the last confirm.
    fruitless: u32,
}

/// All jobs were sent.
#[derive(Debug)]
pub(super) struct Sent {
    /// The connection over which the last one went.
    pub(super) connection: Connection,
    /// The id and the time of the last announcement, which was confirmed before the first job was sent.
    pub(super) announced: (String, Timestamp),
}

/// Announces and sends the jobs of `input`.
///
/// # Errors
/// Not all jobs were sent; it says how many were, and how to go on. Where a signal ended it, the exit code is returned.
pub(super) async fn send(
    route: Route<'_>,
    connection: Connection,
    input: Input,
    checked: &Arc<Checked>,
    signals: &mut Signals,
) -> Result<ControlFlow<u8, Sent>, Failure> {
    let publisher = connection.publisher(Traffic::Jobs, GROUPS);
    let mut last = (String::new(), Timestamp::UNIX_EPOCH);
    for (batch, part) in &checked.parts {
        let waves = part.waves(route.identity.ramp);
        let announcement = route.announcement(batch, part, part.size, waves, route.announced_at);
        let announced = publisher.try_publish(Arc::new(route.outgoing(&announcement))).await;
        announced
            .map(drop)
            .map_err(|error| refused(route.names, "cannot announce the batch; no job was submitted", error))?;
        last = (announcement.id, announcement.time);
    }
    let mut sending = Sending {
        route,
        publisher,
        connection,
        flight: Flight::new(),
        again: Vec::new(),
        sent: BTreeMap::new(),
        bar: progress_bar(checked.size(), "submitting"),
        fruitless: 0,
    };
    let mut items = outgoing(input, checked.clone(), route.names.jobs(), route.announced_at);
    let over = tokio::select! {
        biased;
        code = signals.next() => Over::Stopped(code),
        over = sending.all(&mut items) => over,
    };
    let sent = sending.sent();
    let over = match over {
        Over::Sent if sent != checked.size() => Over::Changed(format!("{sent} jobs were read")),
        over => over,
    };
    drop(items);
    sending.bar.finish_and_clear();
    match over {
        Over::Sent => Ok(ControlFlow::Continue(Sent { connection: sending.connection, announced: last })),
        over => sending.close(over, checked).await.map(ControlFlow::Break),
    }
}

impl Route<'_> {
    /// The announcement of a batch, or of the size that it has after all.
    fn announcement(
        &self,
        batch: &str,
        part: &Part,
        size: usize,
        waves: BTreeMap<Wave, usize>,
        at: Timestamp,
    ) -> Event {
        let batch = Batch {
            max_failures: self.max_failures,
            waves,
            settle_seconds: self.settle_seconds,
            ..Batch::new(batch.to_owned(), size, self.identity.lane.to_string())
        };
        announcement(self.identity.of_part(&batch.batch_id, part), batch, at)
    }

    fn outgoing(&self, announcement: &Event) -> Outgoing {
        announced(self.names.outcomes(), &self.identity.lane, announcement)
    }
}

impl Sending<'_> {
    /// Sends all items. Cancel-safe: what is under way is in `flight`, and what is to be sent once more in `again`.
    async fn all(&mut self, items: &mut mpsc::Receiver<Result<Item, String>>) -> Over {
        let (mut is_read, mut lost, mut is_blocked) = (false, None, false);
        let mut look = interval(LOOK_EVERY);
        loop {
            if self.flight.is_empty() {
                if let Some(error) = lost.take() {
                    if let Err(error) = self.connect_again(error).await {
                        return Over::Away(error);
                    }
                    while let Some(item) = self.again.pop() {
                        self.publish(item);
                    }
                } else if is_read {
                    return Over::Sent;
                }
            }
            tokio::select! {
                Some((item, result)) = self.flight.next(), if !self.flight.is_empty() => match result {
                    Ok(()) => self.count(item),
                    Err(error @ (PublishError::Broken(_) | PublishError::Unconfirmed { .. })) => {
                        self.again.push(item);
                        lost = Some(error.to_string());
                    }
                    Err(error) => return Over::Refused(error),
                },
                item = items.recv(), if !is_read && lost.is_none() && self.flight.len() < IN_FLIGHT => match item {
                    Some(Ok(item)) => self.publish(item),
                    Some(Err(problem)) => return Over::Changed(problem),
                    None => is_read = true,
                },
                _ = look.tick() => {
                    let blocks = self.connection.is_blocked();
                    if blocks != is_blocked {
                        is_blocked = blocks;
                        self.tell(if blocks { TAKES_NOTHING } else { TAKES_AGAIN });
                    }
                }
            }
        }
    }

    fn publish(&mut self, item: Item) {
        let publisher = self.publisher.clone();
        let publishing = async move {
            let result = publisher.try_publish(item.message.clone()).await.map(drop);
            (item, result)
        };
        self.flight.push(publishing.boxed());
    }

    fn count(&mut self, item: Item) {
        *self.sent.entry(item.batch).or_default().entry(item.wave).or_default() += 1;
        self.bar.inc(1);
        self.fruitless = 0;
    }

    /// Confirmed jobs.
    fn sent(&self) -> usize {
        self.sent.values().flat_map(BTreeMap::values).sum()
    }

    fn tell(&self, line: &str) {
        self.bar.suspend(|| tell(line));
    }

    /// Connects again.
    ///
    /// # Errors
    /// The last error, once the broker has been away, or has confirmed nothing, for too long.
    async fn connect_again(&mut self, mut error: String) -> Result<(), String> {
        self.fruitless += 1;
        if self.fruitless > FRUITLESS {
            return Err(error);
        }
        self.tell(&format!("RabbitMQ is away, and tried again: {error}"));
        let (began, mut tries) = (Instant::now(), 0);
        while began.elapsed() < PATIENCE {
            tries += 1;
            sleep(half_jitter(FIRST_WAIT, LONGEST_WAIT, tries, rand::random())).await;
            match broker::connect(self.route.broker, ConnectionKind::Submit).await {
                Ok(connection) => {
                    self.publisher = connection.publisher(Traffic::Jobs, GROUPS);
                    self.connection = connection;
                    self.tell("RabbitMQ is there again: the rest is submitted");
                    return Ok(());
                }
                Err(failure) => error = failure.to_string(),
            }
        }
        Err(error)
    }

    /// Waits for the last confirms, corrects the announced sizes, and says what was sent and how to go on. Returns the exit
    /// code of a signal.
    async fn close(mut self, over: Over, checked: &Checked) -> Result<u8, Failure> {
        let mut deadline = pin!(sleep(CLOSING));
        loop {
            tokio::select! {
                next = self.flight.next() => match next {
                    Some((item, Ok(()))) => self.count(item),
                    Some((_, Err(_))) => {}
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        let sent = self.sent();
        let is_corrected = match over {
            Over::Away(_) => false,
            _ => timeout(CLOSING, self.correct(checked)).await.unwrap_or(false),
        };
        let (size, batches) = (checked.size(), checked.parts.keys().map(|batch| Shown(batch).to_string()));
        let batches = batches.take(MOST_NAMED).collect::<Vec<_>>().join(", ");
        let announced = if is_corrected {
            "The announced size is corrected".to_owned()
        } else {
            format!("The announced size could not be corrected: `watch` waits for all {size}")
        };
        let then = |why: &str| {
            format!(
                "submitted {sent} of {size} jobs as batch {batches}, then {why}. {announced}. To go on, submit the same with \
                 --batch: no job that the daemon still knows is started twice"
            )
        };
        match over {
            Over::Sent => Ok(0),
            Over::Stopped(code) => {
                tell(then("stopped by a signal"));
                Ok(code)
            }
            Over::Refused(error) => Err(refused(self.route.names, &then("failed"), error)),
            Over::Away(error) => {
                Err(Failure::Unreachable(then(&format!("the connection to RabbitMQ is lost: {error}"))))
            }
            Over::Changed(problem) => {
                Err(Failure::Usage(then(&format!("a file was changed since it was checked: {problem}"))))
            }
        }
    }

    /// Announces how many jobs of each batch were sent. Returns whether the broker has confirmed it.
    async fn correct(&self, checked: &Checked) -> bool {
        for (batch, part) in &checked.parts {
            let sent = self.sent.get(batch.as_str());
            let size = sent.map_or(0, |sent| sent.values().sum());
            if size < part.size {
                let waves = sent.into_iter().flatten().filter_map(|(wave, jobs)| Some(((*wave)?, *jobs))).collect();
                let correction = self.route.announcement(batch, part, size, waves, Timestamp::now());
                let correction = self.route.outgoing(&correction);
                if self.publisher.try_publish(Arc::new(correction)).await.is_err() {
                    return false;
                }
            }
        }
        true
    }
}
