//! The replica count: a queue to which nothing is ever published. Every replica consumes it, so it has as many consumers as
//! there are replicas. The baton's queue cannot tell: with a single active consumer RabbitMQ counts that one alone.
//!
//! A replica is counted once it stands in line for all its lanes, and as long as it consumes `<prefix>.replicas`. Counted
//! before, it would be given lanes that it cannot take yet. A dead one is counted until RabbitMQ drops its connection: at
//! once after SIGKILL, after two heartbeats where it froze.

use std::time::Duration;

use lapin::Channel;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::Interrupted;
use crate::broker::{Connection, Subscription};

/// Our answer, on a channel of its own: dropping it takes it back.
#[derive(Debug)]
pub(super) struct ReplicaCount {
    queue: String,
    subscription: Subscription,
}

impl ReplicaCount {
    /// Has this replica counted.
    pub async fn answer(connection: &Connection, queue: &str) -> Result<Self, Interrupted> {
        let channel = connection.channel().await?;
        // Should anybody publish something all the same, it is taken and dropped.
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let subscription = Subscription::open(channel, queue, options, FieldTable::default()).await?;
        Ok(Self { queue: queue.to_owned(), subscription })
    }

    /// Counts the replicas, as [`count`].
    pub async fn count(&self) -> Result<Option<usize>, Interrupted> {
        count(self.subscription.channel(), &self.queue).await
    }

    /// Waits for `pause`.
    ///
    /// # Errors
    /// Meanwhile the broker has ceased to count us.
    pub async fn rest(&mut self, pause: Duration) -> Result<(), Interrupted> {
        let ended = async {
            while let Some(message) = self.subscription.next().await {
                message?;
            }
            Err(Interrupted::Cancelled(self.queue.clone()))
        };
        timeout(pause, ended).await.unwrap_or(Ok(()))
    }
}

/// How many replicas there are, or `None` where the broker cannot tell at present: one that does not reach the queue's
/// leader says 0.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<Option<usize>, Interrupted> {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
    Ok(usize::try_from(queue.consumer_count()).ok().filter(|count| *count > 0))
}
