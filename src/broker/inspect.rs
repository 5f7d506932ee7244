//! How many messages and consumers a queue has.

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use super::{Connection, is_access_refused, is_not_found};

/// What RabbitMQ counts of a queue. Both are 0, too, while the queue's leader does not answer within a quarter second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that no consumer has in hand. Of a stream, 0.
    pub messages: u32,
    /// Consumers. Of a queue with a single active consumer, that one alone.
    pub consumers: u32,
}

/// What was found in the place of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The queue.
    There(Counts),
    /// No queue of this name.
    Missing,
    /// The user may not see the queue: RabbitMQ 4.3 wants some permission on it.
    Refused,
}

/// Counts by a passive declare, which closes `channel` if there is no such queue.
///
/// # Errors
/// The broker's.
pub async fn count(channel: &Channel, queue: &str) -> Result<Counts, lapin::Error> {
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let queue = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
    Ok(Counts { messages: queue.message_count(), consumers: queue.consumer_count() })
}

/// As [`count`], over a channel that is lent.
///
/// # Errors
/// The connection is lost.
pub async fn look(connection: &Connection, queue: &str) -> Result<Look, lapin::Error> {
    let lent = connection.lend().await?;
    match count(lent.channel(), queue).await {
        Ok(counts) => {
            lent.keep();
            Ok(Look::There(counts))
        }
        Err(error) if is_not_found(&error) => Ok(Look::Missing),
        Err(error) if is_access_refused(&error) => Ok(Look::Refused),
        Err(error) => Err(error),
    }
}
