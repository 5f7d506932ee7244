//! A broker client like a producer's or consumer's.

use std::time::Duration;

use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{PATIENCE, eventually_within};

pub struct Queues {
    pub connection: Connection,
    channel: Channel,
}

impl Queues {
    pub async fn connect(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await;
        Self::over(connection.expect("the private node takes clients")).await
    }

    pub async fn over(connection: Connection) -> Self {
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(ConfirmSelectOptions::default()).await.expect("confirms");
        Self { connection, channel }
    }

    pub async fn publish(&self, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        let confirm = self
            .channel
            .basic_publish(exchange.into(), key.into(), options, body, properties.with_delivery_mode(2))
            .await
            .expect("published")
            .await
            .expect("confirmed");
        assert!(confirm.is_ack() && confirm.take_message().is_none(), "{exchange} {key}: not taken");
    }

    /// Publishes an event like `genuine` to the log, with its headers, that claims another job's end.
    pub async fn forge(&self, genuine: &Delivery, job: &str, outcome: &str, at: Timestamp) {
        let mut event: Value = serde_json::from_slice(&genuine.data).expect("an event is JSON");
        event["id"] = json!(format!("{job}/start"));
        for (field, value) in [("job_id", json!(job)), ("instance_id", json!(job)), ("outcome", json!(outcome))] {
            event["data"][field] = value;
        }
        event["data"]["reason"] = if outcome == "failed" { json!("exhausted") } else { json!(null) };
        event["data"]["finished_at"] = json!(at);
        self.publish("", "reveille.outcomes.log", genuine.properties.clone(), event.to_string().as_bytes()).await;
    }

    /// Waits until a queue has so many ready messages, and so many consumers.
    pub async fn has(&self, queue: &str, messages: usize, consumers: u32) {
        self.has_within(PATIENCE, queue, messages, consumers).await;
    }

    /// The same, within so long.
    pub async fn has_within(&self, patience: Duration, queue: &str, messages: usize, consumers: u32) {
        let wanted = (u32::try_from(messages).expect("some hundreds"), consumers);
        let what = format!("{queue} has {messages} messages and {consumers} consumers");
        eventually_within(patience, &what, async || (self.count(queue).await == wanted).then_some(())).await;
    }

    /// Ready messages of a queue, and its consumers. RabbitMQ also says zero if the queue's leader has not answered
    /// within a quarter of a second.
    pub async fn count(&self, queue: &str) -> (u32, u32) {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue =
            self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await.expect("the queue is there");
        (queue.message_count(), queue.consumer_count())
    }

    /// Takes all ready messages of a queue.
    pub async fn take_all(&self, queue: &str) -> Vec<Delivery> {
        let (taken, end) = self.take(queue).await;
        end.expect("the queue is there");
        taken
    }

    /// Takes the ready messages of a queue until the broker fails. Unconfirmed ones are redelivered.
    pub async fn take(&self, queue: &str) -> (Vec<Delivery>, Result<(), lapin::Error>) {
        let mut taken = Vec::new();
        loop {
            match self.channel.basic_get(queue.into(), BasicGetOptions::default()).await {
                Ok(Some(message)) => taken.push(message.delivery),
                Ok(None) => break,
                Err(error) => return (taken, Err(error)),
            }
        }
        let all = BasicAckOptions { multiple: true };
        let end = match taken.last() {
            Some(last) => last.ack(all).await.map(drop),
            None => Ok(()),
        };
        (taken, end)
    }

    /// Declares an empty stream.
    pub async fn declare_stream(&self, name: &str) {
        let mut kind = FieldTable::default();
        kind.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
        self.channel.queue_declare(name.into(), QueueDeclareOptions::durable(), kind).await.expect("declared");
    }

    /// Reads a stream from offset `from` on, and moves `from` behind what was read.
    pub async fn read_stream(&self, stream: &str, from: &mut i64) -> Vec<Delivery> {
        let channel = self.connection.create_channel().await.expect("a channel");
        channel.basic_qos(1000, BasicQosOptions::default()).await.expect("a stream wants a prefetch");
        let mut offset = FieldTable::default();
        offset.insert("x-stream-offset".into(), AMQPValue::LongLongInt(*from));
        let consumer = channel.basic_consume(stream.into(), "".into(), BasicConsumeOptions::default(), offset).await;
        let mut consumer = consumer.expect("the stream is there");
        let mut read = Vec::new();
        // Anything later is read the next time.
        while let Ok(Some(delivery)) = timeout(Duration::from_millis(300), consumer.next()).await {
            let delivery = delivery.expect("the stream is there");
            delivery.ack(BasicAckOptions::default()).await.expect("acked");
            let headers = delivery.properties.headers().as_ref().map(FieldTable::inner);
            let Some(AMQPValue::LongLongInt(at)) = headers.and_then(|headers| headers.get("x-stream-offset")) else {
                panic!("a stream's message without an offset: {delivery:?}");
            };
            *from = at + 1;
            read.push(delivery);
        }
        read
    }

    /// Consumes, without acks, what is published to `exchange` from now on.
    pub async fn listen(&self, exchange: &str, key: &str) -> Consumer {
        let channel = self.connection.create_channel().await.expect("a channel");
        let ours = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue =
            channel.queue_declare("".into(), ours, FieldTable::default()).await.expect("a queue").name().clone();
        if !exchange.is_empty() {
            channel
                .queue_bind(
                    queue.clone(),
                    exchange.into(),
                    key.into(),
                    QueueBindOptions::default(),
                    FieldTable::default(),
                )
                .await
                .expect("bound");
        }
        let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
        channel.basic_consume(queue, "".into(), no_ack, FieldTable::default()).await.expect("consumed")
    }
}

/// A header's string, number or flag, as text; empty if it is absent.
pub fn header(properties: &BasicProperties, name: &str) -> String {
    match properties.headers().as_ref().and_then(|headers| headers.inner().get(name)) {
        None => String::new(),
        Some(AMQPValue::LongString(text)) => text.to_string(),
        Some(AMQPValue::LongLongInt(number)) => number.to_string(),
        Some(AMQPValue::Boolean(flag)) => flag.to_string(),
        Some(other) => panic!("{name}: {other:?}"),
    }
}
