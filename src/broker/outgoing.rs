//! A message to be published, and why publishing it failed.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::ShortString;

use crate::events::{CONTENT_TYPE, Event};

/// A message to be published. It is always persistent and mandatory.
#[derive(Debug)]
pub struct Outgoing {
    /// The exchange; empty for the default one, whose routing keys are names of queues.
    pub exchange: String,
    /// The routing key, at most 255 bytes.
    pub key: String,
    /// Properties, headers among them.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

impl Outgoing {
    /// An event, under its id.
    pub fn event(event: &Event, exchange: String, key: String) -> Self {
        let mut properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        if let Ok(id) = ShortString::try_new(event.id.as_str()) {
            properties = properties.with_message_id(id);
        }
        Self { exchange, key, properties, body: event.to_bytes() }
    }
}

/// Why a message was not confirmed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It was unroutable. RabbitMQ confirms such a message, so it is published as `mandatory`, to be returned.
    #[error("no queue takes messages from exchange {exchange:?} with routing key {key:?} ({text})")]
    Returned {
        /// The exchange published to.
        exchange: String,
        /// The routing key.
        key: String,
        /// The broker's words.
        text: String,
    },
    /// A queue rejected it: full, or without a majority.
    #[error(
        "a queue behind exchange {exchange:?} rejected the message with routing key {key:?}: it is full, as a policy may have it, or without a majority"
    )]
    Rejected {
        /// The exchange published to.
        exchange: String,
        /// The routing key.
        key: String,
    },
    /// The broker closed the channel over it, or over a message published with it: the exchange does not exist, or a
    /// permission is missing.
    #[error("the broker refuses messages to exchange {exchange:?}: {source}")]
    Forbidden {
        /// The exchange published to.
        exchange: String,
        /// The broker's words.
        source: lapin::Error,
    },
    /// Neither a confirm nor a refusal came: it is unknown whether the message arrived.
    #[error("RabbitMQ has not confirmed a message to exchange {exchange:?} within {patience:?}: it may have arrived")]
    Unconfirmed {
        /// The exchange published to.
        exchange: String,
        /// How long the confirm was awaited.
        patience: Duration,
    },
    /// The connection broke: it is unknown whether the message arrived.
    #[error(transparent)]
    Broken(lapin::Error),
}

impl PublishError {
    pub(super) fn unconfirmed(message: &Outgoing, patience: Duration) -> Self {
        Self::Unconfirmed { exchange: message.exchange.clone(), patience }
    }

    /// Whether an exchange, a queue or a binding may be missing, rather than room in a queue.
    pub(super) fn is_for_want_of_something(&self) -> bool {
        matches!(self, Self::Returned { .. } | Self::Forbidden { .. })
    }
}
