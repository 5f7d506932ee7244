//! Who runs what. Of all replicas one at a time holds a *role*, such as a lane; the others stand by for it.
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
//! - [`Baton`] is the message whose holder has the role: RabbitMQ hands it to one replica at a time, and to the next one once
//!   that replica's channel is gone.
//! - [`Lease`] says for how long the role is surely ours. During a term the holder asks for another baton twice a heartbeat;
//!   each that comes renews the lease for a heartbeat.
//! - [`Sharing`] spreads roles evenly over the replicas.
//!
//! **What a holder can rely on.** While the lease is valid, a term that another replica may have begun is no older than
//! [`OVERLAP`]. RabbitMQ gives a baton away when it has heard nothing from its holder for two heartbeats, or at once where the
//! rest of a cluster lost sight of the holder's node. In the latter case that node first stops itself and then drops its
//! clients, up to 0.7 s later. So a new holder calls nothing for a second, and an old one nothing without a valid lease. A process,
//! a machine or a clock that stood still meanwhile finds its lease ended as it wakes. Nothing else is relied on: two holders at a time
//! lose no job, and cost no more than some calls beyond the quota.

mod baton;
mod lease;
mod replicas;
mod sharing;
mod term;

use std::time::Duration;

use self::baton::Baton;
pub use self::lease::Lease;
pub use self::sharing::Sharing;
pub use self::term::{OVERLAP, Role, Standing, Term, hold};

/// Ceilings of the delay before a role whose channel broke is taken up again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// How long subscribing to the baton may take. Nothing is in hand then, so it costs nothing to begin anew.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a role was not held on to, although there was no stop.
#[derive(Debug, thiserror::Error)]
pub enum Interrupted {
    /// The channel or the connection broke.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker ended a subscription: its queue was deleted, its node went, or, from RabbitMQ 4.3 on, a delivery was held
    /// for too long.
    #[error(
        "the broker ended the subscription to {0}: was the queue deleted, or a delivery held longer than its consumer_timeout?"
    )]
    Cancelled(String),
    /// The subscription to the baton has ended without a word of the broker's.
    #[error("the broker forgot the subscription to {0}: was the queue deleted?")]
    Forgotten(String),
    /// Subscribing to the baton took too long.
    #[error("the broker did not let us subscribe to {0} within {SUBSCRIBE_TIMEOUT:?}")]
    NoBaton(String),
}
