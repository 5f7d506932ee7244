//! Which replica runs what. One replica at a time holds a *role*, a lane or the scheduler; the others stand by
//! for it.
//!
//! ```text
//!            subscribe                baton comes, and the share allows it
//! waiting ─────────────► standing by ─────────────────────────────────────► term
//!    ▲                     ▲     ▲                                          │ │ │
//!    │                     │     └── given back: a stop, or another replica ┘ │ │
//!    │                     └── a channel broke: after a moment, anew ─────────┘ │
//!    └── the connection is lost ────────────────────────────────────────────────┘
//! ```
//!
//! - [`Baton`] is the message whose holder has the role: RabbitMQ delivers it to one replica at a time, and to the next
//!   one once that replica's channel is closed.
//! - [`Lease`] says how long the role is surely ours. During a term the holder adds a baton twice per heartbeat; each
//!   one it receives renews the lease for a heartbeat.
//! - [`Sharing`] spreads lanes evenly over the replicas. The scheduler is not shared, and stays where it is.
//!
//! **What a holder can rely on.** While its lease is valid, another replica's term can have begun at most [`OVERLAP`]
//! ago. RabbitMQ gives a baton away when it has heard nothing from its holder for two heartbeats, or at once if the
//! rest of a cluster lost the holder's node. In the latter case that node first stops itself and then drops its
//! clients, up to 0.7 s later. So a new holder makes no call for a second, and an old one none without a valid lease. A
//! process, machine or clock that stood still meanwhile finds its lease ended on waking. Nothing else is relied on: two
//! holders at a time lose no job, and cost no more than some calls beyond the quota.

mod baton;
mod lease;
mod replicas;
mod sharing;
mod term;

use std::time::Duration;

use self::baton::Baton;
pub use self::lease::{Lease, Moment};
pub use self::sharing::Sharing;
pub use self::term::{OVERLAP, Role, Standing, Term, hold};

/// Ceilings of the backoff before a role whose channel broke is resumed.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Timeout of subscribing to the baton. Nothing is in hand then, so a retry costs nothing.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a role was lost without a stop.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// The channel or the connection broke.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker cancelled a subscription: its queue was deleted, its node went down, or, since RabbitMQ 4.3, a
    /// delivery was held for too long.
    #[error(
        "the broker ended the subscription to {0}: was the queue deleted, or a delivery held longer than its consumer_timeout?"
    )]
    Cancelled(String),
    /// The subscription to the baton has ended without notice from the broker.
    #[error("the broker forgot the subscription to {0}: was the queue deleted?")]
    Forgotten(String),
    /// Subscribing to the baton took too long.
    #[error("the broker did not let us subscribe to {0} within {SUBSCRIBE_TIMEOUT:?}")]
    NoBaton(String),
}
