//! Reading back the end of a stream.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError, Weak};

use lapin::message::Delivery as Delivered;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::connection::{ConnectError, connect};
use super::{Connection, Message, Role, Subscription};
use crate::config::Broker;
use crate::headers::Headers;

/// Messages on their way to us at most, which may be large: a stream sends none to who does not set a bound.
const PREFETCH: u16 = 100;
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
}

/// Reads streams back, over a connection of its own: a stream delivers its messages faster than anything else has use of the
/// connection meanwhile.
///
/// Reads that come together take turns on one connection, which goes with the last of them: lapin takes eight MiB of
/// memory for each, and a replica may take fifty lanes over at once.
#[derive(Debug)]
pub struct Reader {
    broker: Arc<Broker>,
    shared: std::sync::Mutex<Weak<Turns>>,
}

/// Whoever has the lock reads.
type Turns = Mutex<Option<Connection>>;

impl Reader {
    /// Nothing is opened yet.
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker, shared: std::sync::Mutex::default() }
    }

    /// Hands the messages of `stream` to `each`, from about `count` before the last one on, until that breaks it off.
    /// One that cannot be read comes with an empty body.
    ///
    /// # Errors
    /// [`ReadBackError`]; what came before was handed over.
    pub async fn read_back(
        &self,
        stream: &str,
        count: u32,
        mut each: impl FnMut(&Message) -> ControlFlow<()>,
    ) -> Result<(), ReadBackError> {
        let turns = self.turns();
        let mut shared = turns.lock().await;
        Ok(read(self.connection(&mut shared).await?, stream, count, &mut each).await?)
    }

    fn turns(&self) -> Arc<Turns> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let turns = Arc::default();
            *shared = Arc::downgrade(&turns);
            turns
        })
    }

    async fn connection<'a>(&self, shared: &'a mut Option<Connection>) -> Result<&'a Connection, ConnectError> {
        match shared.take().filter(Connection::is_open) {
            Some(connection) => Ok(shared.insert(connection)),
            None => Ok(shared.insert(connect(&self.broker, Role::Log).await?)),
        }
    }
}

/// The offset of one of the last messages.
async fn last(connection: &Connection, stream: &str) -> Result<Option<i64>, lapin::Error> {
    let mut end = consume(connection, stream, AMQPValue::LongString("last".into())).await?;
    let last = end.next().await.transpose()?;
    Ok(last.map(|last| Headers(last.properties.headers().as_ref()).integer(OFFSET).unwrap_or(0)))
}

/// Reads from `count` before the last message on.
async fn read(
    connection: &Connection,
    stream: &str,
    count: u32,
    each: &mut impl FnMut(&Message) -> ControlFlow<()>,
) -> Result<(), lapin::Error> {
    let Some(last) = last(connection, stream).await? else { return Ok(()) };
    let from = AMQPValue::LongLongInt((last - i64::from(count)).max(0));
    let mut messages = consume(connection, stream, from).await?;
    let mut acks = JoinSet::new();
    while let Some(message) = messages.next().await {
        let Delivered { properties, data: body, acker, .. } = message?;
        if each(&Message { properties, body }).is_break() {
            break;
        }
        // Asks for the next one; of a stream nothing is taken away. Nobody waits for it: lapin leaves some unanswered
        // that are on their way as the connection ends, and messages that came before that are yet to be read.
        acks.spawn(async move { acker.ack(BasicAckOptions::default()).await });
    }
    Ok(())
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
