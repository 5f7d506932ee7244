//! The baton: the message whose holder runs the lane.
//!
//! Its queue has a single active consumer, so the broker hands batons to one replica at a time, and to the next one
//! once that replica's channel is gone. Every replica adds a baton as it subscribes, so there is always one; the
//! holder keeps the newest, unacked, and acks the others.
//!
//! RabbitMQ does not always say that a subscription has ended with its queue, nor at once that the others have lost sight
//! of the node we talk to. So the holder adds batons, and must be given them: that alone proves, by a majority of the
//! queue's members, that the lane is still ours, and renews its [`Lease`]. And who stands by looks whether there are
//! batons that nobody is given.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::time::{MissedTickBehavior, interval, sleep};
use uuid::Uuid;

use super::LaneError;
use super::lease::Lease;
use crate::broker::{Connection, Outgoing, Publisher, Subscription, is_not_found};

/// After the confirm of a baton: who is not given it by then was forgotten.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// Between two looks of one that stands by.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The one that is kept and the one that replaces it.
const PREFETCH: u16 = 2;

/// A subscription to a lane's batons, on a channel of its own: closing that gives the baton back.
#[derive(Debug)]
pub struct Baton {
    batons: Batons,
    subscription: Subscription,
    kept: Option<Delivery>,
}

/// A lane's batons, as anybody sees them.
#[derive(Debug, Clone)]
struct Batons {
    queue: String,
    publisher: Publisher,
}

impl Batons {
    /// Adds one that can be told by its `id`.
    async fn add(&self, id: &ShortString) -> Result<(), LaneError> {
        let baton = Outgoing {
            exchange: String::new(),
            key: self.queue.clone(),
            properties: BasicProperties::default().with_message_id(id.clone()),
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
                (0, 0) => self.add(&new_id()).await?,
            }
        }
    }
}

impl Baton {
    /// Subscribes to `queue` and adds a baton.
    pub async fn subscribe(connection: &Connection, queue: String) -> Result<Self, LaneError> {
        let channel = connection.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let subscription = Subscription::open(channel, &queue, options, none).await?;
        let batons = Batons { queue, publisher: connection.publisher(1) };
        batons.add(&new_id()).await?;
        Ok(Self { batons, subscription, kept: None })
    }

    /// Waits until this replica holds the baton.
    pub async fn held(&mut self, connection: &Connection) -> Result<(), LaneError> {
        let batons = self.batons.clone();
        tokio::select! {
            biased;
            held = self.next() => held.map(drop),
            forsaken = batons.forsaken(connection) => forsaken.and(Err(LaneError::Forgotten(batons.queue.clone()))),
        }
    }

    /// Keeps the baton, for as long as that goes well: another one is asked for twice in `length`, which is how long each
    /// is good for. That also replaces the one held before RabbitMQ closes its channel over it, after 30 minutes.
    pub async fn keep(&mut self, lease: &Lease, length: Duration) -> Result<(), LaneError> {
        lease.end();
        let batons = self.batons.clone();
        let mut renewal = interval(length / 2);
        // The one after one that was long in coming is due at once.
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                lost = self.given_others() => match lost? {},
                _ = renewal.tick() => {}
            }
            let (asked, id) = (SystemTime::now(), new_id());
            // However long the broker takes to confirm it: only then is it to come.
            let overdue = async {
                batons.add(&id).await?;
                sleep(GIVEN_WITHIN).await;
                Err(LaneError::Forgotten(batons.queue.clone()))
            };
            tokio::select! {
                biased;
                given = self.given(&id) => given?,
                overdue = overdue => return overdue,
            }
            lease.renew(asked, length);
        }
    }

    /// Takes what batons come until the one with this id does.
    async fn given(&mut self, id: &ShortString) -> Result<(), LaneError> {
        while self.next().await?.as_ref() != Some(id) {}
        Ok(())
    }

    /// Takes what batons come: of other replicas, and those that came twice.
    async fn given_others(&mut self) -> Result<Infallible, LaneError> {
        loop {
            self.next().await?;
        }
    }

    /// Takes the next baton, and acks the one held before: not acked is only the newest. Returns its id.
    async fn next(&mut self) -> Result<Option<ShortString>, LaneError> {
        let Some(baton) = self.subscription.next().await else {
            return Err(LaneError::Cancelled(self.batons.queue.clone()));
        };
        let baton = baton?;
        let id = baton.properties.message_id().clone();
        if let Some(older) = self.kept.replace(baton) {
            older.ack(BasicAckOptions::default()).await?;
        }
        Ok(id)
    }

    /// Gives the baton to the next replica.
    pub async fn give_back(self) {
        self.subscription.close().await;
    }
}

fn new_id() -> ShortString {
    Uuid::now_v7().to_string().into()
}
