//! Queries: what only a running replica knows, asked over RabbitMQ.
//!
//! ```text
//! requester ───── ask.… ───────► exchange <prefix>.control ──► a queue of each replica ──► responder
//!     ▲                                                                                       │
//!     └────────────────────────── direct reply-to, the default exchange ◄─────────────────────┘
//! ```
//!
//! Commands go to the same exchange and are kept in a stream; queries are not kept, and change nothing. A replica that does
//! not answer is no fault of a lane: it may be starting, or have no permission for its queue.
//!
//! **Queries are hostile input.** Any client that may write to the exchange can send them, as many and as large as
//! RabbitMQ takes. So a replica
//!
//! - has a connection of its own for them, which takes two channels at most and is given up while a lane lacks a connection, or once
//!   RabbitMQ was found to limit channels: RabbitMQ closes the whole connection over some values of `reply_to`;
//! - has RabbitMQ keep the newest few, and none for longer than their asker waits ([`responder`]);
//! - takes one at a time, and at most twenty a second, with a few answers under way;
//! - sends answers to direct reply-to addresses alone, so that no client has it publish to a queue that the client itself may
//!   not write to.
//!
//! An answer fits into 64 KiB, or comes in parts. That to `ask.status` is no more than what `/readyz` and `/metrics` show.
//! `ask.select` has the holder of a lane list instances with the lane's keys, at the rate of polls, so it shows what the
//! account has: its routing key is one to permit apart ([`select`]).

mod parts;
mod requester;
mod responder;
pub mod select;
mod selected;
mod status;

pub use self::requester::{AskError, Asked, ask, ask_statuses, knock};
pub use self::responder::{Answer, Responder};
pub use self::selected::{SelectError, ask_selected};
pub use self::status::{LaneStatus, Standing, Statuses, answer};
use crate::broker::names::ASK;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// The state of the replica's lanes: see [`answer`].
    Status,
    /// Instances of a lane that meet conditions: see [`select`].
    Select,
}

impl Query {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Status, Self::Select];

    /// The last word of the routing key.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Select => "select",
        }
    }

    /// The routing key at the exchange of commands and queries.
    pub fn routing_key(self) -> String {
        format!("{ASK}.{}", self.as_str())
    }

    /// The query with this routing key. `None`: only another version knows it.
    pub fn read(key: &str) -> Option<Self> {
        let name = key.strip_prefix(ASK)?.strip_prefix('.')?;
        Self::ALL.into_iter().find(|query| query.as_str() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_from_its_routing_key_and_from_no_other() {
        for query in Query::ALL {
            assert_eq!(Query::read(&query.routing_key()), Some(query));
        }
        for other in ["", "ask", "ask.", "ask.stat", "ask.status.", "ask.status.x", "askstatus", "command.status"] {
            assert_eq!(Query::read(other), None, "{other}");
        }
    }
}
