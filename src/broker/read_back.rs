//! Reading back the end of a stream.

use std::ops::ControlFlow;

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};

use super::Connection;
use crate::headers::Headers;

/// Messages on their way to us at most: a stream sends none to who does not set a bound.
const PREFETCH: u16 = 500;
/// The argument to consume from somewhere, and the header that tells where a message is.
const OFFSET: &str = "x-stream-offset";

/// Hands the messages of `stream` to `each`, from about `count` before the last one on, until that breaks it off.
///
/// # Errors
/// The broker's.
pub async fn read_back(
    connection: &Connection,
    stream: &str,
    count: u32,
    mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), lapin::Error> {
    // A channel for each of the two: where one channel consumes a stream a second time, while others write to it,
    // RabbitMQ 3.10 at times sends nothing at all, about one time in five as measured.
    let channel = connection.channel().await?;
    let mut end = consume(&channel, stream, AMQPValue::LongString("last".into())).await?;
    let Some(last) = end.next().await.transpose()? else { return Ok(()) };
    let last = Headers(last.properties.headers().as_ref()).integer(OFFSET).unwrap_or(0);
    channel.close(200, "read".into()).await?;

    let channel = connection.channel().await?;
    let from = AMQPValue::LongLongInt((last - i64::from(count)).max(0));
    let mut messages = consume(&channel, stream, from).await?;
    while let Some(message) = messages.next().await.transpose()? {
        if each(&message.data).is_break() {
            break;
        }
        // Asks for the next one; of a stream nothing is taken away.
        message.acker.ack(BasicAckOptions::default()).await?;
    }
    channel.close(200, "read".into()).await
}

async fn consume(channel: &Channel, stream: &str, from: AMQPValue) -> Result<Consumer, lapin::Error> {
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(OFFSET.into(), from);
    channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), arguments).await
}
