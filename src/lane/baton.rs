//! The baton: the message whose holder runs the lane.
//!
//! Its queue has a single active consumer, so the broker hands batons to one replica at a time, and to the next one
//! once that replica's channel is gone. Every replica adds a baton as it subscribes, so there is always one; the
//! holder keeps the newest, unacked, and acks the others.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Consumer};
use tokio::time::{MissedTickBehavior, interval};

use super::LaneError;
use crate::broker::{Connection, Outgoing, Publisher};

/// RabbitMQ closes a channel that holds a delivery unacked for 30 minutes, so the baton is changed for a new one well
/// before.
const RENEW_EVERY: Duration = Duration::from_secs(10 * 60);
/// The one that is kept and the one that replaces it.
const PREFETCH: u16 = 2;

/// A subscription to a lane's batons, on a channel of its own: closing that gives the baton back.
#[derive(Debug)]
pub struct Baton {
    queue: String,
    channel: Channel,
    consumer: Consumer,
    publisher: Publisher,
    kept: Option<Delivery>,
}

impl Baton {
    /// Subscribes to `queue` and adds a baton.
    pub async fn subscribe(connection: &Connection, queue: String) -> Result<Self, LaneError> {
        let channel = connection.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await?;
        let baton = Self { queue, channel, consumer, publisher: connection.publisher(1), kept: None };
        baton.add().await?;
        Ok(baton)
    }

    async fn add(&self) -> Result<(), LaneError> {
        let baton = Outgoing {
            exchange: String::new(),
            key: self.queue.clone(),
            properties: BasicProperties::default(),
            body: b"baton".to_vec(),
        };
        Ok(self.publisher.publish(baton).await.map(drop)?)
    }

    /// Waits until this replica holds the baton.
    pub async fn held(&mut self) -> Result<(), LaneError> {
        self.next().await
    }

    /// Keeps the baton, for as long as that goes well.
    pub async fn keep(&mut self) -> Result<(), LaneError> {
        let mut renewal = interval(RENEW_EVERY);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renewal.reset();
        loop {
            tokio::select! {
                next = self.next() => next?,
                _ = renewal.tick() => self.add().await?,
            }
        }
    }

    /// Takes the next baton, and acks the one held before: not acked is only the newest.
    async fn next(&mut self) -> Result<(), LaneError> {
        let Some(baton) = self.consumer.next().await else { return Err(LaneError::Cancelled(self.queue.clone())) };
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
