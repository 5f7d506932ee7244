//! RabbitMQ: connection, topology, confirmed publishing, the delay ladder. Knows nothing of BCC.

mod allowance;
pub mod channels;
mod client;
pub mod connection;
pub mod connections;
pub mod delay;
pub mod delivery;
mod descent;
mod group;
mod inbound;
mod losses;
pub mod names;
pub mod outgoing;
pub mod publisher;
mod read_back;
mod refusal;
mod remedy;
pub mod replies;
mod stream;
pub mod subscription;
pub mod topology;

pub use channels::{Lent, Traffic};
pub use client::ConnectionKind;
pub use connection::{Connection, Room, connect, is_access_refused, is_not_found};
pub use connections::{BrokerState, Connections, OpenError, Place};
pub use delivery::{Delivery, Message, Unacked};
pub use descent::CutShort;
pub use inbound::SEEN;
pub use names::{Names, urgent_key};
pub use outgoing::{Outgoing, PublishError};
pub use publisher::{Confirmed, Publisher};
pub use read_back::{ReadBack, ReadBackError, Reader};
pub use replies::{Replies, Reply};
pub use stream::{Entry, Position, Stream, StreamError};
pub use subscription::{Subscription, hang_up};
pub use topology::Topology;
