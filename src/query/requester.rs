//! Sends a query, and receives its answers.

use std::time::Duration;

use lapin::options::{BasicConsumeOptions, BasicPublishOptions};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Query, Statuses};
use crate::broker::{Connection, Names, Subscription};

/// RabbitMQ's name for the channel that consumes it: "direct reply-to", which needs no queue and no permission
/// (<https://www.rabbitmq.com/docs/direct-reply-to>).
pub(super) const DIRECT: &str = "amq.rabbitmq.reply-to";

/// No answer can be received.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The broker refused the query, or the connection broke: an exchange that is not there is among these
    /// ([`is_not_found`](crate::broker::is_not_found)), and so is a missing permission
    /// ([`is_access_refused`](crate::broker::is_access_refused)).
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker ended the subscription.
    #[error("RabbitMQ passes on no more answers")]
    Ended,
}

/// A query that was sent.
#[derive(Debug)]
pub struct Asked {
    answers: Subscription,
    id: ShortString,
}

/// Asks all replicas for the state of their lanes, until the answers are `enough`. Returns those that came, and whether they
/// are: not, where they took longer than `within`.
///
/// # Errors
/// [`AskError`], beside the answers that came before.
pub async fn ask_statuses(
    connection: &Connection,
    names: &Names,
    within: Duration,
    enough: impl Fn(&Statuses) -> bool,
) -> (Statuses, Result<bool, AskError>) {
    let mut statuses = Statuses::default();
    let asking = async {
        let mut asked = ask(connection, names, Query::Status, b"").await?;
        while !enough(&statuses) {
            statuses.take(&asked.next().await?);
        }
        Ok(true)
    };
    let asked = timeout(within, asking).await.unwrap_or(Ok(false));
    (statuses, asked)
}

/// Sends `query` with this body to all replicas, over a channel of its own.
///
/// # Errors
/// [`AskError`]. RabbitMQ's refusal of the query itself comes from [`Asked::next`].
pub async fn ask(connection: &Connection, names: &Names, query: Query, body: &[u8]) -> Result<Asked, AskError> {
    let channel = connection.channel().await?;
    let unacked = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let answers = Subscription::open(channel, DIRECT, unacked, FieldTable::default()).await?;
    let id: ShortString = Uuid::now_v7().to_string().into();
    let properties = BasicProperties::default().with_reply_to(DIRECT.into()).with_correlation_id(id.clone());
    let (exchange, key) = (names.control(), query.routing_key());
    let options = BasicPublishOptions::default();
    answers.channel().basic_publish(exchange.into(), key.into(), options, body, properties).await?;
    Ok(Asked { answers, id })
}

/// Publishes a query over `channel` that no replica answers, since no asker is named.
///
/// RabbitMQ tells a client that it takes no messages, short of memory or disk, only once the client publishes
/// (<https://www.rabbitmq.com/docs/connection-blocked>): then
/// [`is_blocked`](Connection::is_blocked) shows it. A missing permission closes the channel.
///
/// # Errors
/// The channel is closed.
pub async fn knock(channel: &Channel, names: &Names) -> Result<(), lapin::Error> {
    let (exchange, key) = (names.control(), Query::Status.routing_key());
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    channel.basic_publish(exchange.into(), key.into(), options, b"", properties).await.map(drop)
}

impl Asked {
    /// The body of the next message that answers the query. Waits for ever if there is none. Cancel-safe.
    ///
    /// # Errors
    /// [`AskError`]: none will come.
    pub async fn next(&mut self) -> Result<Vec<u8>, AskError> {
        loop {
            let answer = self.answers.next().await.ok_or(AskError::Ended)??;
            if answer.properties.correlation_id().as_ref() == Some(&self.id) {
                return Ok(answer.data);
            }
        }
    }
}
