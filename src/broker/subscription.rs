//! A subscription that ends with its channel.

use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

/// A subscription, on a channel of its own that is closed on drop.
#[derive(Debug)]
pub struct Subscription {
    channel: Channel,
    consumer: Consumer,
}

impl Subscription {
    /// Subscribes to a queue.
    ///
    /// # Errors
    /// The broker's.
    pub async fn open(
        channel: Channel,
        queue: &str,
        options: BasicConsumeOptions,
        arguments: FieldTable,
    ) -> Result<Self, lapin::Error> {
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments).await?;
        Ok(Self { channel, consumer })
    }

    /// The next delivery, or `None` once the broker has cancelled the subscription.
    pub async fn next(&mut self) -> Option<Result<Delivery, lapin::Error>> {
        self.consumer.next().await
    }

    /// Its channel.
    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Closes the channel, and waits until the broker has closed it.
    pub async fn close(self) {
        // If it cannot be closed it is gone already, and its deliveries are requeued.
        let _ = self.channel.close(200, "done".into()).await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        hang_up(&self.channel);
    }
}

/// Closes a channel without waiting. Then lapin does not cancel its consumers one by one as they are dropped: RabbitMQ
/// 3.10 confirms such a cancel twice if the queue was just deleted, over which lapin ends the connection.
pub fn hang_up(channel: &Channel) {
    // The first poll sends it, or finds that the channel is closed already.
    let _ = channel.close(200, "done".into()).now_or_never();
}
