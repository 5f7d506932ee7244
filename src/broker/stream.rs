//! Reads a stream from a position, and then follows it.
//!
//! A stream keeps what was read, numbers its messages by offset, and sends all of them to every reader. A reader says by an argument
//! where it begins, has to bound how many messages are on their way, and asks for more with acks
//! (<https://www.rabbitmq.com/docs/streams#consuming>).
//!
//! Anybody who may write to the stream may have written what is read. A message that lapin cannot read comes with an empty body
//! ([`inbound`](super::inbound)). At most 100 messages are in memory, each bounded by what is passed on of one.

use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use tokio::task::JoinSet;

use super::{Connection, Message, Subscription};
use crate::headers::Headers;

/// Messages on their way to us at most, which may be large: a stream sends none to a consumer that does not set a bound.
const PREFETCH: u16 = 100;
/// The argument to consume from somewhere, and the header that tells where a message is.
const OFFSET: &str = "x-stream-offset";

/// Where a reading begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// At this offset, clamped to those from the first message that is left to the next one to come.
    Offset(u64),
    /// At the first message that was written then or later, or some before it: RabbitMQ knows the time to the second, and of
    /// messages that it wrote together as one.
    Time(Timestamp),
    /// About so many messages before the last one. RabbitMQ begins with messages that it wrote together.
    Last(u32),
}

/// A message of a stream.
#[derive(Debug)]
pub struct Entry {
    /// Its offset; if unreadable, the previous offset plus one.
    pub offset: u64,
    /// The routing key that it was published with.
    pub key: String,
    /// What it says: with an empty body where it cannot be read.
    pub message: Message,
}

/// A stream is read no further.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The broker refused it, or the channel or the connection broke: a stream that is not there is among these
    /// ([`is_not_found`](super::is_not_found)), and so is a missing permission ([`is_access_refused`](super::is_access_refused)).
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker ended the subscription.
    #[error("RabbitMQ sends no more of the stream: it was deleted, or its leader is gone")]
    Ended,
}

/// A stream that is read. Dropped, it asks for no more.
#[derive(Debug)]
pub struct Stream {
    subscription: Subscription,
    /// Where the next message is, unless it says otherwise.
    next: u64,
    acks: JoinSet<()>,
}

impl Stream {
    /// Begins to read `name`, over `connection`: best one of its own, since a stream delivers its messages faster than anything
    /// else has use of the connection meanwhile. Of an empty stream, [`Position::Last`] waits for the first message.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open(connection: &Connection, name: &str, from: Position) -> Result<Self, StreamError> {
        let next = match from {
            Position::Offset(offset) => offset,
            Position::Time(time) => {
                let seconds = u64::try_from(time.as_second()).unwrap_or(0);
                return Self::consume(connection, name, AMQPValue::Timestamp(seconds), 0).await;
            }
            Position::Last(count) => Self::end(connection, name).await?.saturating_sub(count.into()),
        };
        let from = AMQPValue::LongLongInt(i64::try_from(next).unwrap_or(i64::MAX));
        Self::consume(connection, name, from, next).await
    }

    /// The offset of the last message, or of one shortly before it: RabbitMQ begins with messages that it wrote together. Of an
    /// empty stream, it waits for the first message.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn end(connection: &Connection, name: &str) -> Result<u64, StreamError> {
        Self::last(connection, name).await.map(|last| last.offset)
    }

    /// The message at [`Stream::end`].
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn last(connection: &Connection, name: &str) -> Result<Entry, StreamError> {
        let last = AMQPValue::LongString("last".into());
        let mut end = Self::consume(connection, name, last, 0).await?;
        let last = end.next().await?;
        // A broker that lets the user have few channels is asked for one after the other.
        end.subscription.close().await;
        Ok(last)
    }

    async fn consume(connection: &Connection, name: &str, from: AMQPValue, next: u64) -> Result<Self, StreamError> {
        // A channel for each look at the stream: where one channel consumes it a second time, while others write to it,
        // RabbitMQ 3.10 at times sends nothing at all, about one time in five as measured.
        let channel = connection.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let mut arguments = FieldTable::default();
        arguments.insert(OFFSET.into(), from);
        let subscription = Subscription::open(channel, name, BasicConsumeOptions::default(), arguments).await?;
        Ok(Self { subscription, next, acks: JoinSet::new() })
    }

    /// The next message, once there is one. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamError`]: no more will come.
    pub async fn next(&mut self) -> Result<Entry, StreamError> {
        let next = self.subscription.next().await.ok_or(StreamError::Ended)?;
        let Delivery { routing_key, properties, data: body, acker, .. } = next?;
        // An ack only asks for one more: streams keep messages. Nothing waits for it: lapin leaves some unanswered that
        // are on their way as the connection ends, and messages that came before that are yet to be read.
        self.acks.spawn(async move { drop(acker.ack(BasicAckOptions::default()).await) });
        while self.acks.try_join_next().is_some() {}
        let offset = Headers(properties.headers().as_ref()).integer(OFFSET);
        let offset = offset.and_then(|offset| u64::try_from(offset).ok()).unwrap_or(self.next);
        self.next = offset.saturating_add(1);
        Ok(Entry { offset, key: routing_key.to_string(), message: Message { properties, body } })
    }
}
