//! The baton: the message whose holder runs the lane.
//!
//! Its queue has a single active consumer, so the broker hands batons to one replica at a time, and to the next one
//! once that replica's channel is gone. Every replica adds a baton as it subscribes, so there is always one; the
//! holder keeps the newest, unacked, and acks the others.
//!
//! RabbitMQ does not always say that a subscription has ended with its queue. So the holder adds batons, and must be
//! given some; and who stands by looks whether there are batons that nobody is given.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Consumer};
use tokio::time::sleep;

use super::LaneError;
use crate::broker::{Connection, Outgoing, Publisher, is_not_found};

/// How soon the holder adds another baton, and so learns whether it is given any: two heartbeats, as RabbitMQ takes no
/// less to learn that a replica is gone. It closes a channel that holds a delivery unacked for 30 minutes.
const RENEW_EVERY: Duration = Duration::from_secs(10);
/// Between two looks of one that stands by.
const LOOK_EVERY: Duration = RENEW_EVERY;
/// The one that is kept and the one that replaces it.
const PREFETCH: u16 = 2;

/// A subscription to a lane's batons, on a channel of its own: closing that gives the baton back.
#[derive(Debug)]
pub struct Baton {
    batons: Batons,
    channel: Channel,
    consumer: Consumer,
    kept: Option<Delivery>,
}

/// A lane's batons, as anybody sees them.
#[derive(Debug, Clone)]
struct Batons {
    queue: String,
    publisher: Publisher,
}

impl Batons {
    async fn add(&self) -> Result<(), LaneError> {
        let baton = Outgoing {
            exchange: String::new(),
            key: self.queue.clone(),
            properties: BasicProperties::default(),
            body: b"baton".to_vec(),
        };
        Ok(self.publisher.publish(baton).await.map(drop)?)
    }

    /// Waits until they are in no queue, or in one that nobody is subscribed to.
    async fn forsaken(&self, connection: &Connection) -> Result<(), LaneError> {
        loop {
            sleep(LOOK_EVERY).await;
            // Of its own, since it is closed where the queue is gone.
            let channel = connection.channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let queue = match channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default()).await {
                Ok(queue) => queue,
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            // With a single active consumer RabbitMQ counts that one alone, and makes the next one active in its place.
            match (queue.consumer_count(), queue.message_count()) {
                (1.., _) => {}
                (0, 1..) => return Ok(()),
                // Also said by a broker that does not reach the queue's leader. With a baton in it the next look tells.
                (0, 0) => self.add().await?,
            }
        }
    }
}

impl Baton {
    /// Subscribes to `queue` and adds a baton.
    pub async fn subscribe(connection: &Connection, queue: String) -> Result<Self, LaneError> {
        let channel = connection.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        let batons = Batons { queue, publisher: connection.publisher(1) };
        batons.add().await?;
        Ok(Self { batons, channel, consumer, kept: None })
    }

    /// Waits until this replica holds the baton.
    pub async fn held(&mut self, connection: &Connection) -> Result<(), LaneError> {
        let batons = self.batons.clone();
        tokio::select! {
            biased;
            held = self.next() => held,
            forsaken = batons.forsaken(connection) => forsaken.and(Err(LaneError::Forgotten(batons.queue.clone()))),
        }
    }

    /// Keeps the baton, for as long as that goes well.
    pub async fn keep(&mut self) -> Result<(), LaneError> {
        loop {
            let batons = self.batons.clone();
            // However long the broker takes to confirm one: only then is it to come.
            let renewal = async {
                batons.add().await?;
                sleep(RENEW_EVERY).await;
                Ok(())
            };
            if !self.given_until(renewal).await? {
                return Err(LaneError::Forgotten(self.batons.queue.clone()));
            }
        }
    }

    /// Takes what batons come until `end`, and says whether any did.
    async fn given_until(&mut self, end: impl Future<Output = Result<(), LaneError>>) -> Result<bool, LaneError> {
        let (mut end, mut given) = (std::pin::pin!(end), false);
        loop {
            tokio::select! {
                biased;
                next = self.next() => next?,
                ended = &mut end => return ended.map(|()| given),
            }
            given = true;
        }
    }

    /// Takes the next baton, and acks the one held before: not acked is only the newest.
    async fn next(&mut self) -> Result<(), LaneError> {
        let Some(baton) = self.consumer.next().await else {
            return Err(LaneError::Cancelled(self.batons.queue.clone()));
        };
        if let Some(older) = self.kept.replace(baton?) {
            older.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }

    /// The channel the baton was given on.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Gives the baton to the next replica.
    pub async fn give_back(self) {
        // If the channel cannot be closed it is gone already, and the baton with it.
        let _ = self.channel.close(200, "given back".into()).await;
    }
}
