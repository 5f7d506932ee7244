//! Reading back the end of a stream.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use lapin::message::Delivery as Delivered;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connection::{ConnectError, connect};
use super::{Connection, ConnectionKind, Message, Subscription};
use crate::config::Broker;
use crate::headers::Headers;

/// Messages on their way to us at most, which may be large: a stream sends none to who does not set a bound.
const PREFETCH: u16 = 100;
/// Messages on their way to one lane.
const IN_HAND: usize = 16;
/// How long RabbitMQ may take over the next message. Large ones take long all together.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a whole reading may take: a lane whose announcement is not in the log would keep all others waiting.
const LONGEST: Duration = Duration::from_secs(60);
/// The argument to consume from somewhere, and the header that tells where a message is.
const OFFSET: &str = "x-stream-offset";

/// A stream that was not read to the end.
#[derive(Debug, thiserror::Error)]
pub enum ReadBackError {
    /// No connection to read it over.
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    /// The channel or the connection broke.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// Nothing came for long.
    #[error("RabbitMQ sent nothing for {PATIENCE:?}")]
    Silent,
    /// What was looked for did not come.
    #[error("it was read for {LONGEST:?}")]
    TimedOut,
}

/// Reads back the end of the outcomes' log, over a connection of its own: a stream delivers its messages faster than
/// anything else has use of the connection meanwhile.
///
/// Lanes that ask while it is read are served together by the next reading, so that a replica which takes over hundreds of
/// them reads the log a few times. The connection goes with the last of them: lapin takes eight MiB of memory for each.
#[derive(Debug)]
pub struct Reader {
    broker: Arc<Broker>,
    stream: String,
    /// How many messages are read back.
    count: u32,
    asked: std::sync::Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// By lane: the first word of the routing keys of its messages.
    lanes: HashMap<String, Lane>,
    /// There is a task that serves them.
    is_served: bool,
}

type Lane = mpsc::Sender<Result<Message, Arc<ReadBackError>>>;

/// The messages of a lane, as they are read. Dropped, it asks for no more of them.
#[derive(Debug)]
pub struct ReadBack(mpsc::Receiver<Result<Message, Arc<ReadBackError>>>);

impl ReadBack {
    /// The next one; `None` where the reading ended. One that cannot be read comes with an empty body.
    ///
    /// # Errors
    /// [`ReadBackError`]; what came before was handed over.
    pub async fn next(&mut self) -> Option<Result<Message, Arc<ReadBackError>>> {
        self.0.recv().await
    }
}

impl Reader {
    /// Reads about the last `count` messages of `stream`. Nothing is opened yet.
    pub fn new(broker: Arc<Broker>, stream: String, count: u32) -> Self {
        Self { broker, stream, count, asked: std::sync::Mutex::default() }
    }

    /// Reads back what has to do with a lane, until whoever asks has what is wanted. The stream has no end to be seen: what
    /// is written to it meanwhile comes too.
    pub fn read_back(self: &Arc<Self>, lane: &str) -> ReadBack {
        let (sender, receiver) = mpsc::channel(IN_HAND);
        let mut asked = self.asked();
        asked.lanes.insert(lane.to_owned(), sender);
        if !std::mem::replace(&mut asked.is_served, true) {
            tokio::spawn(self.clone().serve());
        }
        ReadBack(receiver)
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads for those who asked, and again for those who did meanwhile.
    async fn serve(self: Arc<Self>) {
        let mut kept = None;
        loop {
            let lanes = {
                let mut asked = self.asked();
                asked.is_served = !asked.lanes.is_empty();
                std::mem::take(&mut asked.lanes)
            };
            if lanes.is_empty() {
                return;
            }
            let read = timeout(LONGEST, self.read(&mut kept, &lanes)).await;
            if let Err(error) = read.unwrap_or(Err(ReadBackError::TimedOut)) {
                let error = Arc::new(error);
                for lane in lanes.values() {
                    // Whoever has what is wanted does not listen any more.
                    let _ = lane.send(Err(error.clone())).await;
                }
            }
        }
    }

    async fn read(&self, kept: &mut Option<Connection>, lanes: &HashMap<String, Lane>) -> Result<(), ReadBackError> {
        let connection = match kept.take().filter(Connection::is_open) {
            Some(connection) => kept.insert(connection),
            None => kept.insert(connect(&self.broker, ConnectionKind::Log).await?),
        };
        let opening = open(connection, &self.stream, self.count);
        let Some(mut messages) = timeout(PATIENCE, opening).await.map_err(|_| ReadBackError::Silent)?? else {
            return Ok(());
        };
        let mut all_have_theirs = std::pin::pin!(join_all(lanes.values().map(mpsc::Sender::closed)));
        let mut acks = JoinSet::new();
        loop {
            let next = tokio::select! {
                biased;
                _ = &mut all_have_theirs => return Ok(()),
                next = timeout(PATIENCE, messages.next()) => next.map_err(|_| ReadBackError::Silent)?,
            };
            let Some(next) = next else { return Ok(()) };
            let Delivered { routing_key, properties, data: body, acker, .. } = next?;
            let lane = routing_key.as_str().split('.').next().and_then(|lane| lanes.get(lane));
            if let Some(lane) = lane {
                // Whoever has what is wanted does not listen any more.
                let _ = lane.send(Ok(Message { properties, body })).await;
            }
            // Asks for the next one; of a stream nothing is taken away. Nobody waits for it: lapin leaves some unanswered
            // that are on their way as the connection ends, and messages that came before that are yet to be read.
            acks.spawn(async move { acker.ack(BasicAckOptions::default()).await });
            while acks.try_join_next().is_some() {}
        }
    }
}

/// Subscribes to a stream from `count` before the last message on. `None` where there is none.
async fn open(connection: &Connection, stream: &str, count: u32) -> Result<Option<Subscription>, lapin::Error> {
    let mut end = consume(connection, stream, AMQPValue::LongString("last".into())).await?;
    let Some(last) = end.next().await.transpose()? else { return Ok(None) };
    // A broker that lets the user have few channels is asked for one after the other.
    end.close().await;
    let last = Headers(last.properties.headers().as_ref()).integer(OFFSET).unwrap_or(0);
    let from = AMQPValue::LongLongInt((last - i64::from(count)).max(0));
    consume(connection, stream, from).await.map(Some)
}

async fn consume(connection: &Connection, stream: &str, from: AMQPValue) -> Result<Subscription, lapin::Error> {
    // A channel for each look at the stream: where one channel consumes it a second time, while others write to it,
    // RabbitMQ 3.10 at times sends nothing at all, about one time in five as measured.
    let channel = connection.channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), from);
    Subscription::open(channel, stream, BasicConsumeOptions::default(), arguments).await
}
