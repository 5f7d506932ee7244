//! Answers to producers who set `reply_to`.

use std::sync::Arc;

use lapin::BasicProperties;
use tokio::sync::Mutex;

use super::connection::{ConnectError, Connection, connect};
use super::publisher::{PublishError, Publisher};
use crate::config::Broker;

/// A reply is tried again on a new connection, since another's may have broken the one it was on.
const TRIES: u32 = 3;

/// Sends replies over a connection of their own, opened with the first one.
///
/// `reply_to` is whatever the producer wrote, and RabbitMQ closes the whole connection over some of it: a name that
/// begins like a direct reply-to address and is none ends in an internal error.
#[derive(Debug)]
pub struct Replies {
    broker: Arc<Broker>,
    connection: Mutex<Option<Connection>>,
}

impl Replies {
    /// Nothing is opened yet.
    pub fn new(broker: Arc<Broker>) -> Self {
        Self { broker, connection: Mutex::new(None) }
    }

    /// Sends a reply, if anybody is there to take it.
    ///
    /// # Errors
    /// Why it could not be delivered; the caller decides nothing by it.
    pub async fn send(&self, to: &str, properties: &BasicProperties, body: &[u8]) -> anyhow::Result<()> {
        let mut tries = 1;
        loop {
            match self.publisher().await?.try_publish("", to, properties.clone(), body).await {
                Ok(_) => return Ok(()),
                Err(PublishError::Broken(_)) if tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn publisher(&self) -> Result<Publisher, ConnectError> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|connection| connection.is_open()) {
            return Ok(connection.publisher());
        }
        let connection = connect(&self.broker, "reveille replies").await?;
        Ok(kept.insert(connection).publisher())
    }
}
