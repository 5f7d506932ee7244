//! The replica count: every replica consumes a queue to which nothing is ever published, so it has as many consumers as
//! there are replicas. The baton's queue cannot show that: with a single active consumer RabbitMQ counts only that one.
//!
//! A replica is counted while it consumes `<prefix>.replicas`, once it stands in line for all its lanes: counted
//! earlier, it would be given lanes that it cannot take yet. A dead one is counted until RabbitMQ drops its connection:
//! at once after SIGKILL, after two heartbeats if it froze.

use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use tokio::time::timeout;

use super::Interrupted;
use crate::broker::{self, Connection, Subscription};

/// This replica's consumer, on a channel of its own: dropping it ends that.
#[derive(Debug)]
pub(super) struct ReplicaCount {
    queue: String,
    subscription: Subscription,
}

impl ReplicaCount {
    /// Makes this replica count.
    pub async fn answer(connection: &Connection, queue: &str) -> Result<Self, Interrupted> {
        let channel = connection.channel().await?;
        // If a client publishes something all the same, it is consumed and dropped.
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
    /// The broker cancelled our consumer meanwhile.
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

/// The number of replicas, or `None` if the broker does not know it at present: one that cannot reach the queue's
/// leader says 0.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<Option<usize>, Interrupted> {
    let counts = broker::count(channel, queue).await?;
    Ok(usize::try_from(counts.consumers).ok().filter(|count| *count > 0))
}
