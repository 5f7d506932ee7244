//! The baton: the message whose holder has the role.
//!
//! Its queue has a single active consumer, so the broker hands batons to one replica at a time, and to the next one
//! once that replica's channel is gone. Every replica adds a baton as it subscribes, so there is always one; the
//! holder keeps the newest, unacked, and acks the others.
//!
//! RabbitMQ does not always say that a subscription has ended with its queue, nor at once that the others have lost sight
//! of the node we talk to. So the holder adds batons, and must be given them: that alone proves, by a majority of the
//! queue's members, that the role is still ours, and renews its [`Lease`]. And a standby checks for
//! batons that are delivered to no consumer.
//!
//! Whoever may write to the queue can put a hundred thousand messages before the one that the holder waits for. So the
//! holder has those removed, and asks anew.

use std::mem::replace;
use std::pin::pin;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, BasicProperties, Channel, Queue};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tracing::warn;
use uuid::Uuid;

use super::Interrupted;
use super::lease::{Lease, Moment};
use crate::broker::{Connection, Outgoing, Publisher, Subscription, Traffic, is_not_found};

/// After the confirm of a baton, or the last one that came: a replica that is given none by then was forgotten.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// More batons that nobody asked for than replicas add as they come: somebody else writes them.
const CROWD: usize = 32;
/// Between two removals of those.
const BETWEEN_PURGES: Duration = Duration::from_millis(100);
/// Between two looks of one that stands by.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The one that is kept and the one that replaces it.
const PREFETCH: u16 = 2;

/// A subscription to a role's batons, on a channel of its own: closing that gives the baton back.
#[derive(Debug)]
pub struct Baton {
    batons: Batons,
    subscription: Subscription,
    kept: Option<Acker>,
    /// Somebody else's batons were removed before.
    is_crowded: bool,
}

/// A role's batons, as anybody sees them.
#[derive(Debug, Clone)]
struct Batons {
    queue: String,
    publisher: Publisher,
}

impl Batons {
    /// Adds one that can be told by its `id`.
    async fn add(&self, id: &ShortString) -> Result<(), Interrupted> {
        let baton = Outgoing {
            exchange: String::new(),
            key: self.queue.clone(),
            properties: BasicProperties::default().with_message_id(id.clone()),
            body: b"baton".to_vec(),
        };
        Ok(self.publisher.publish(baton).await.map(drop)?)
    }

    async fn look(&self, channel: &Channel) -> Result<Queue, lapin::Error> {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        channel.queue_declare(self.queue.as_str().into(), passive, FieldTable::default()).await
    }

    /// Waits until they are in no queue, or in one that no replica is subscribed to.
    async fn forsaken(&self, connection: &Connection) -> Result<(), Interrupted> {
        loop {
            sleep(LOOK_EVERY).await;
            // Not that of the subscription, since it is closed where the queue is gone.
            let lent = connection.lend().await?;
            let queue = match self.look(lent.channel()).await {
                Ok(queue) => queue,
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            lent.keep();
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
    pub async fn subscribe(connection: &Connection, queue: String) -> Result<Self, Interrupted> {
        let channel = connection.channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
        let batons = Batons { queue, publisher: connection.publisher(Traffic::Batons, 1) };
        let subscription = Subscription::open(channel, &batons.queue, options, none).await?;
        batons.add(&new_id()).await?;
        Ok(Self { batons, subscription, kept: None, is_crowded: false })
    }

    /// Waits until this replica holds the baton.
    pub async fn held(&mut self, connection: &Connection) -> Result<(), Interrupted> {
        let batons = self.batons.clone();
        tokio::select! {
            biased;
            next = self.subscription.next() => self.take(next).await.map(drop),
            forsaken = batons.forsaken(connection) => forsaken.and(Err(Interrupted::Forgotten(batons.queue.clone()))),
        }
    }

    /// Keeps the baton, for as long as that goes well: another one is asked for twice in `length`, which is how long each
    /// is good for. That also replaces the one held before RabbitMQ closes its channel over it, after 30 minutes.
    pub async fn keep(&mut self, lease: &Lease, length: Duration) -> Result<(), Interrupted> {
        lease.end();
        let mut renewal = interval(length / 2);
        // The one after one that was long in coming is due at once.
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.rest(&mut renewal).await?;
            let asked = self.ask().await?;
            lease.renew(asked, length);
        }
    }

    /// Takes what batons come until another one is to be asked for: those of other replicas, and those that came twice.
    async fn rest(&mut self, renewal: &mut Interval) -> Result<(), Interrupted> {
        let mut others = 0;
        loop {
            tokio::select! {
                biased;
                next = self.subscription.next() => self.take(next).await.map(drop)?,
                _ = renewal.tick() => return Ok(()),
            }
            others += 1;
            if others % CROWD == 0 {
                self.disperse().await?;
                // Whoever goes on adding them does not keep RabbitMQ at it.
                sleep(BETWEEN_PURGES).await;
            }
        }
    }

    /// Adds a baton, and takes what batons come until that one does. Returns when it was asked for.
    async fn ask(&mut self) -> Result<Moment, Interrupted> {
        let mut crowd = CROWD;
        loop {
            let (asked, id) = (Moment::now(), new_id());
            if self.given(&id, crowd).await? {
                return Ok(asked);
            }
            // Ours may go with the others. Where they go on coming, the next one may have as many before it, and is to be
            // waited for: so each time more are taken than the time before.
            self.disperse().await?;
            crowd = crowd.saturating_mul(2);
        }
    }

    /// Adds a baton with this id. Returns whether it has come, or a crowd of others instead.
    ///
    /// # Errors
    /// None has come for long, whoever added it.
    async fn given(&mut self, id: &ShortString, crowd: usize) -> Result<bool, Interrupted> {
        let batons = self.batons.clone();
        let mut adding = pin!(batons.add(id));
        let (mut is_added, mut others) = (false, 0);
        while others < crowd {
            tokio::select! {
                biased;
                next = self.subscription.next() => {
                    if self.take(next).await?.as_ref() == Some(id) {
                        return Ok(true);
                    }
                    others += 1;
                }
                // However long the broker takes to confirm it: only then is it to come.
                added = &mut adding, if !is_added => {
                    added?;
                    is_added = true;
                }
                () = sleep(GIVEN_WITHIN), if is_added => return Err(Interrupted::Forgotten(batons.queue.clone())),
            }
        }
        Ok(false)
    }

    /// Removes all batons but those that were handed to us: each costs an ack, and ours comes after them. A replica that stands by
    /// waits for any, and is given ours where we go.
    async fn disperse(&mut self) -> Result<(), Interrupted> {
        let queue = &self.batons.queue;
        let count =
            self.subscription.channel().queue_purge(queue.as_str().into(), QueuePurgeOptions::default()).await?;
        if !replace(&mut self.is_crowded, true) {
            warn!(
                "{queue} had more batons than replicas ask for, {count} of which were removed: does anybody else write to it?"
            );
        }
        Ok(())
    }

    /// Takes the baton that came, and acks the one held before: not acked is only the newest. Returns its id.
    async fn take(&mut self, next: Option<Result<Delivery, lapin::Error>>) -> Result<Option<ShortString>, Interrupted> {
        let baton = next.ok_or_else(|| Interrupted::Cancelled(self.batons.queue.clone()))??;
        let id = baton.properties.message_id().clone();
        // Without what somebody else may have written into it.
        if let Some(older) = self.kept.replace(baton.acker) {
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
