//! RabbitMQ: connection, topology, confirmed publishing, the delay ladder. Knows nothing of BCC.

pub mod connection;
pub mod delay;
pub mod delivery;
pub mod headers;
pub mod publisher;
pub mod replies;
pub mod topology;

pub use connection::{Connection, connect, connect_patiently};
pub use delivery::{Delivery, Message, Unacked};
pub use headers::Headers;
pub use publisher::{Confirmed, PublishError, Publisher};
pub use replies::Replies;
pub use topology::{Names, Topology};
