//! What a lane publishes over one connection.

use lapin::types::FieldTable;

use crate::broker::{Confirmed, Connection, Message, Outgoing, Publisher, Traffic};

/// Groups of messages that each of a lane's two publishers has in flight at a time, one channel each.
const GROUPS: usize = 4;

/// A lane's publishers.
#[derive(Debug)]
pub struct Outbox {
    /// For events. Separate from jobs, since each can be blocked by its own queues.
    events: Publisher,
    /// For parked jobs and dead letters.
    jobs: Publisher,
    /// The frame size that a message's headers have to fit into, in bytes.
    frame_max: usize,
}

impl Outbox {
    /// Over `connection`.
    pub fn new(connection: &Connection) -> Self {
        let publisher = |traffic| connection.publisher(traffic, GROUPS);
        let (events, jobs) = (publisher(Traffic::Outcomes), publisher(Traffic::Jobs));
        Self { events, jobs, frame_max: connection.frame_max() }
    }

    /// Publishes an event. Returns once the broker has confirmed it.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn event(&self, event: Outgoing) -> Result<Confirmed, lapin::Error> {
        self.events.publish(event).await
    }

    /// Publishes a copy of `message` with our `headers`. Returns once the broker has confirmed it.
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
