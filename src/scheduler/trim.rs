//! Counts the dead letters, and discards the oldest where a setting bounds them.
//!
//! The bound cannot be an argument of the queue, whose arguments cannot change once it is declared. So the scheduler looks at the
//! queue every [`LOOK_EVERY`], and gets what is too much from its head, one letter at a time, without acks: RabbitMQ deletes a letter
//! as it hands it out. One that was to be acked would come back behind others if this process were killed, and RabbitMQ can forget acks
//! (see [`walk`](crate::broker::walk)).
//!
//! `reveille dead` holds the head of the queue while it reads, so what is ready then is not the oldest. Therefore letters are only
//! discarded under the lock that such a command takes, for [`STEP`] at a time: a command waits for the lock for longer than that. Of
//! two holders of the scheduler at a time only one has the lock, and each counts again once it has it.

use std::convert::Infallible;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::options::BasicGetOptions;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::broker::connection::ConnectError;
use crate::broker::{Connection, ConnectionKind, Counts, Look, Names, connect, count, look, walk};
use crate::config::Broker;
use crate::dead_letter::DeadLetter;
use crate::ownership::Interrupted;
use crate::telemetry::SchedulerMetrics;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long letters are discarded under one lock.
const STEP: Duration = Duration::from_secs(2);
/// Between two steps, for a command to get the lock.
const BREATH: Duration = Duration::from_secs(1);
/// How long a step may take in all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two lines of the log.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// Why letters stay that are too many.
#[derive(Debug, thiserror::Error)]
enum TrimError {
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    #[error("RabbitMQ did not answer within {PATIENCE:?}")]
    Silent,
}

/// The dead letters, as the holder of the scheduler looks after them.
#[derive(Debug)]
pub(super) struct Trim<'a> {
    broker: &'a Arc<Broker>,
    names: &'a Names,
    metrics: &'a SchedulerMetrics,
    /// Letters that may stay; `None`: all.
    most: Option<u32>,
}

impl<'a> Trim<'a> {
    pub(super) fn new(
        broker: &'a Arc<Broker>,
        names: &'a Names,
        metrics: &'a SchedulerMetrics,
        most: Option<u32>,
    ) -> Self {
        Self { broker, names, metrics, most }
    }

    /// Looks after them until the term's connection breaks.
    ///
    /// # Errors
    /// [`Interrupted`].
    pub(super) async fn run(&self, connection: &Connection) -> Result<Infallible, Interrupted> {
        let queue = self.names.dead();
        let (mut tally, mut told) = (Tally::default(), String::new());
        loop {
            let mut pause = LOOK_EVERY;
            // Where it is missing, it is declared again, or the log says why not.
            if let Look::There(Counts { messages, .. }) = look(connection, &queue).await? {
                self.metrics.dead_letters.set(messages.into());
                if let Some(most) = self.most.filter(|most| messages > *most) {
                    match self.step(&queue, most, &mut tally).await {
                        Ok(is_more) => {
                            told.clear();
                            pause = if is_more { BREATH } else { LOOK_EVERY };
                        }
                        Err(error) if told == error.to_string() => {}
                        Err(error) => {
                            told = error.to_string();
                            warn!("dead letters are too many and cannot be discarded; trying again: {told}");
                        }
                    }
                }
            }
            tally.say_at_times();
            sleep(pause).await;
        }
    }

    /// Discards some letters. Returns whether there are more than may stay.
    async fn step(&self, queue: &str, most: u32, tally: &mut Tally) -> Result<bool, TrimError> {
        let connection = connect(self.broker, ConnectionKind::Scheduler).await?;
        let step = timeout(PATIENCE, self.discard(&connection, queue, most, tally)).await;
        // With it the lock ends.
        connection.close().await;
        step.map_err(|_| TrimError::Silent)?.map_err(TrimError::from)
    }

    async fn discard(
        &self,
        connection: &Connection,
        queue: &str,
        most: u32,
        tally: &mut Tally,
    ) -> Result<bool, lapin::Error> {
        if !walk::lock(connection, &self.names.dead_lock()).await? {
            debug!("dead letters are too many, and are being read just now: none is discarded until that ends");
            return Ok(false);
        }
        let (channel, until) = (connection.channel().await?, Instant::now() + STEP);
        let mut letters = count(&channel, queue).await?.messages;
        while letters > most && Instant::now() < until {
            let deleting = BasicGetOptions { no_ack: true };
            let Some(got) = channel.basic_get(queue.into(), deleting).await? else { return Ok(false) };
            letters = got.message_count;
            self.metrics.letters_discarded.inc();
            let (properties, key) = (&got.delivery.properties, got.delivery.routing_key.as_str());
            let letter = DeadLetter::read(properties).unwrap_or_else(|| DeadLetter::by_rabbitmq(properties, key));
            tally.add(letter.dead_at);
        }
        Ok(letters > most)
    }
}

/// What was discarded and not said yet. Dropped, it says the rest.
#[derive(Debug, Default)]
struct Tally {
    discarded: u64,
    /// When they died, as far as they tell: the first and the last.
    died: Option<(Timestamp, Timestamp)>,
    said: Option<Instant>,
}

impl Tally {
    fn add(&mut self, dead_at: Option<Timestamp>) {
        self.discarded += 1;
        if let Some(dead_at) = dead_at {
            let (first, last) = self.died.unwrap_or((dead_at, dead_at));
            self.died = Some((first.min(dead_at), last.max(dead_at)));
        }
    }

    /// Says it, unless something was said just before.
    fn say_at_times(&mut self) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            self.say();
        }
    }

    fn say(&mut self) {
        let (discarded, died) = (take(&mut self.discarded), self.died.take());
        if discarded > 0 {
            let (oldest, newest) = died.map(|(first, last)| (first.to_string(), last.to_string())).unzip();
            let told = "the oldest dead letters were discarded: there were more than dead_letters.max_length";
            info!(discarded, oldest, newest, "{told}");
            self.said = Some(Instant::now());
        }
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        self.say();
    }
}
