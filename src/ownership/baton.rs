//! The baton: the message whose holder has the role.
//!
//! Its queue has a single active consumer, so the broker delivers batons to one replica at a time, and to the next one
//! once that replica's channel is closed. Every replica adds a baton as it subscribes, so there is always one; the
//! holder keeps the newest, unacked, and acks the others.
//!
//! RabbitMQ does not always report that a subscription has ended with its queue, nor at once that the cluster has lost
//! the node we talk to. So the holder adds batons, and must receive them: only that proves, by a majority of the
//! queue's members, that the role is still ours, and renews its [`Lease`]. And a replica that stands by checks for
//! batons that are delivered to no consumer.
//!
//! Any client that may write to the queue can put a hundred thousand messages before the one that the holder waits for.
//! So the holder purges the queue, and adds another.

use std::mem::replace;
use std::pin::pin;
use std::time::Duration;

use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueuePurgeOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, BasicProperties};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};
use tracing::warn;
use uuid::Uuid;

use super::Interrupted;
use super::lease::{Lease, Moment};
use crate::broker::{self, Connection, Outgoing, Publisher, Subscription, Traffic, is_not_found};

/// Time to receive a baton after its confirm, or after another baton: then the broker has forgotten this consumer.
const GIVEN_WITHIN: Duration = Duration::from_secs(10);
/// Batons not added by us, more than replicas add as they come: another client writes them.
const CROWD: usize = 32;
/// Between two purges of those.
const BETWEEN_PURGES: Duration = Duration::from_millis(100);
/// Between two checks while standing by.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// The baton that is kept, and the one that replaces it.
const PREFETCH: u16 = 2;

/// A subscription to a role's batons, on a channel of its own: closing that gives the baton back.
#[derive(Debug)]
pub struct Baton {
    batons: Batons,
    subscription: Subscription,
    kept: Option<Acker>,
    /// The queue was purged before.
    is_crowded: bool,
}

/// A role's batons, held or not.
#[derive(Debug, Clone)]
struct Batons {
    queue: String,
    publisher: Publisher,
}

impl Batons {
    /// Adds one with this `id`.
    async fn add(&self, id: &ShortString) -> Result<(), Interrupted> {
        let baton = Outgoing {
            exchange: String::new(),
            key: self.queue.clone(),
            properties: BasicProperties::default().with_message_id(id.clone()),
            body: b"baton".to_vec(),
        };
        Ok(self.publisher.publish(baton).await.map(drop)?)
    }

    /// Waits until their queue is gone, or has batons but no consumer.
    async fn forsaken(&self, connection: &Connection) -> Result<(), Interrupted> {
        loop {
            sleep(LOOK_EVERY).await;
            // Not over the subscription's channel, which this closes if the queue is gone.
            let lent = connection.lend().await?;
            let counts = match broker::count(lent.channel(), &self.queue).await {
                Ok(counts) => counts,
                Err(error) if is_not_found(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            lent.keep();
            // With a single active consumer RabbitMQ counts only that one, and activates the next one when it goes.
            match (counts.consumers, counts.messages) {
                (1.., _) => {}
                (0, 1..) => return Ok(()),
                // Also said while the queue's leader is unreachable. With a baton in it, the next check decides.
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

    /// Waits until this replica receives a baton.
    pub async fn held(&mut self, connection: &Connection) -> Result<(), Interrupted> {
        let batons = self.batons.clone();
        tokio::select! {
            biased;
            next = self.subscription.next() => self.receive(next).await.map(drop),
            forsaken = batons.forsaken(connection) => forsaken.and(Err(Interrupted::Forgotten(batons.queue.clone()))),
        }
    }

    /// Keeps the baton as long as possible: adds another twice in `length`, which is how long each renews the lease.
    /// That also replaces the held one before RabbitMQ closes the channel over it, after 30 minutes.
    pub async fn keep(&mut self, lease: &Lease, length: Duration) -> Result<(), Interrupted> {
        lease.end();
        let mut renewal = interval(length / 2);
        // If one took long, the next one is due at once.
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.rest(&mut renewal).await?;
            let asked = self.ask().await?;
            lease.renew(asked, length);
        }
    }

    /// Receives batons until the next one is to be added: those of other replicas, and redelivered ones.
    async fn rest(&mut self, renewal: &mut Interval) -> Result<(), Interrupted> {
        let mut others = 0;
        loop {
            tokio::select! {
                biased;
                next = self.subscription.next() => self.receive(next).await.map(drop)?,
                _ = renewal.tick() => return Ok(()),
            }
            others += 1;
            if others % CROWD == 0 {
                self.disperse().await?;
                // A client that goes on adding them must not keep RabbitMQ busy.
                sleep(BETWEEN_PURGES).await;
            }
        }
    }

    /// Adds a baton, and receives batons until that one comes. Returns when it was added.
    async fn ask(&mut self) -> Result<Moment, Interrupted> {
        let mut crowd = CROWD;
        loop {
            let (asked, id) = (Moment::now(), new_id());
            if self.given(&id, crowd).await? {
                return Ok(asked);
            }
            // Ours may be purged with the others. If they keep coming, the next one may have as many before it, so each
            // round receives twice as many.
            self.disperse().await?;
            crowd = crowd.saturating_mul(2);
        }
    }

    /// Adds a baton with this id. Returns `true` once it is received, `false` after `crowd` others.
    ///
    /// # Errors
    /// No baton at all came in time.
    async fn given(&mut self, id: &ShortString, crowd: usize) -> Result<bool, Interrupted> {
        let batons = self.batons.clone();
        let mut adding = pin!(batons.add(id));
        let (mut is_added, mut others) = (false, 0);
        while others < crowd {
            tokio::select! {
                biased;
                next = self.subscription.next() => {
                    if self.receive(next).await?.as_ref() == Some(id) {
                        return Ok(true);
                    }
                    others += 1;
                }
                // Time counts from the broker's confirm, however long that takes.
                added = &mut adding, if !is_added => {
                    added?;
                    is_added = true;
                }
                () = sleep(GIVEN_WITHIN), if is_added => return Err(Interrupted::Forgotten(batons.queue.clone())),
            }
        }
        Ok(false)
    }

    /// Purges all batons but the delivered ones: each would cost an ack, and ours comes after them. A replica that
    /// stands by needs just any, and receives ours if we go.
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

    /// Keeps the received baton, and acks the one held before: only the newest stays unacked. Returns its id.
    async fn receive(
        &mut self,
        next: Option<Result<Delivery, lapin::Error>>,
    ) -> Result<Option<ShortString>, Interrupted> {
        let baton = next.ok_or_else(|| Interrupted::Cancelled(self.batons.queue.clone()))??;
        let id = baton.properties.message_id().clone();
        // Only the acker: another client may have written anything into it.
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
