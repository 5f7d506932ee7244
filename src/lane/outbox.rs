//! What a lane publishes over one connection.

use lapin::types::FieldTable;

use crate::broker::{Confirmed, Connection, Message, Outgoing, Publisher, Traffic};

/// Groups of messages of each of a lane's two publishers that are on their way at a time, each over a channel.
const GROUPS: usize = 4;

/// A lane's publishers.
#[derive(Debug)]
pub struct Outbox {
    /// For events. Apart from the next one, since each can be held up by queues of its own.
    events: Publisher,
    /// For parked jobs and dead letters.
    jobs: Publisher,
    /// What is published has to fit into: bytes.
    frame_max: usize,
}

impl Outbox {
    /// Over `connection`.
    pub fn new(connection: &Connection) -> Self {
        let publisher = |traffic| connection.publisher(traffic, GROUPS);
        let (events, jobs) = (publisher(Traffic::Outcomes), publisher(Traffic::Jobs));
        Self { events, jobs, frame_max: connection.frame_max() }
    }

    /// Publishes an event, until the broker has it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn event(&self, event: Outgoing) -> Result<Confirmed, lapin::Error> {
        self.events.publish(event).await
    }

    /// Publishes a copy of `message` with `headers` of ours, until the broker has it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn copy(
        &self,
        message: &Message,
        headers: FieldTable,
        exchange: String,
        key: String,
    ) -> Result<Confirmed, lapin::Error> {
        let (properties, body) = (message.forward(headers, self.frame_max), message.body.clone());
        self.jobs.publish(Outgoing { exchange, key, properties, body }).await
    }
}
