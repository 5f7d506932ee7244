//! RabbitMQ: connection, topology, confirmed publishing, the delay ladder. Knows nothing of BCC.

mod client;
pub mod connection;
pub mod delay;
pub mod delivery;
mod group;
mod inbound;
pub mod names;
pub mod publisher;
mod read_back;
mod remedy;
pub mod replies;
pub mod subscription;
pub mod topology;

pub use client::Role;
pub use connection::{Connection, OpenError, Room, connect, is_access_refused, is_not_found, open};
pub use delivery::{Delivery, Message, Unacked};
pub use inbound::SEEN;
pub use names::{Names, urgent_key};
pub use publisher::{Confirmed, Outgoing, PublishError, Publisher};
pub use read_back::Reader;
pub use replies::{Replies, Reply};
pub use subscription::{Subscription, hang_up};
pub use topology::Topology;
