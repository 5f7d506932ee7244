//! The connection to RabbitMQ.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::{Channel, ConnectionProperties, Event};
use tokio::time::sleep;
use tracing::{info, warn};

use super::publisher::Publisher;
use crate::config::Broker;
use crate::retry::full_jitter;

/// Ceilings of the delay between tries to connect.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// How long one try may take, TLS and handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    inner: Arc<lapin::Connection>,
    publisher: Publisher,
}

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Refused by the network or by the broker.
    #[error("cannot connect to RabbitMQ at {address}: {source}")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        source: lapin::Error,
    },
    /// Nobody answered.
    #[error("cannot connect to RabbitMQ at {address}: no answer within {CONNECT_TIMEOUT:?}")]
    TimedOut {
        /// Where.
        address: String,
    },
}

/// Connects, once. `name` is what the connection is called in RabbitMQ's lists.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(broker: &Broker, name: &str) -> Result<Connection, ConnectError> {
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connecting = lapin::Connection::connect_uri(broker.uri.clone(), properties);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(inner)) => {
            let inner = Arc::new(inner);
            Ok(Connection { publisher: Publisher::new(inner.clone()), inner })
        }
        Ok(Err(source)) => Err(ConnectError::Refused { address: broker.address(), source }),
        Err(_) => Err(ConnectError::TimedOut { address: broker.address() }),
    }
}

/// Connects, and tries again until it succeeds. `failed` is told of every failure.
pub async fn connect_patiently(broker: &Broker, name: &str, mut failed: impl FnMut(&ConnectError)) -> Connection {
    let mut failures = 0;
    loop {
        match connect(broker, name).await {
            Ok(connection) => {
                info!(broker = broker.address(), "connected");
                return connection;
            }
            Err(error) => {
                failures += 1;
                warn!("{error}; trying again");
                failed(&error);
                sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
            }
        }
    }
}

impl Connection {
    /// Opens a channel.
    ///
    /// # Errors
    /// The broker's.
    pub async fn channel(&self) -> Result<Channel, lapin::Error> {
        self.inner.create_channel().await
    }

    /// The publisher over this connection.
    pub fn publisher(&self) -> Publisher {
        self.publisher.clone()
    }

    /// Whether the connection stands.
    pub fn is_open(&self) -> bool {
        self.inner.status().connected()
    }

    /// Waits until the connection is lost, and says why.
    pub async fn lost(&self) -> String {
        let mut events = std::pin::pin!(self.inner.events_listener());
        while self.is_open() {
            match events.next().await {
                Some(Event::Error(error)) => return error.to_string(),
                Some(_) => {}
                None => break,
            }
        }
        "the connection is closed".to_owned()
    }

    /// Closes the connection: what is unacked goes back to its queue.
    pub async fn close(self) {
        // Whatever goes wrong while closing, the broker does the same when the socket goes.
        let _ = tokio::time::timeout(CONNECT_TIMEOUT, self.inner.close(200, "bye".into())).await;
    }
}
