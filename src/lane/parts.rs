//! The parts of a lane, and what is added while it is held over one connection.

use std::sync::Arc;

use secrecy::ExposeSecret;
use tracing::{Span, error_span};

use super::calls::Calls;
use super::descents::Descents;
use super::history::History;
use super::key_check;
use super::outbox::Outbox;
use super::prefetch;
use super::quarantine::Quarantine;
use super::quota::Gate;
use crate::bce::{Client, Credentials};
use crate::broker::{Connection, Names, Reader, Replies, Room};
use crate::config::{self, LaneName};
use crate::control::Control;
use crate::telemetry::LaneMetrics;

/// The parts of a lane that outlive connections.
#[derive(Debug)]
pub struct Lane {
    pub(super) settings: Settings,
    pub(super) gate: Arc<Gate>,
    pub(super) calls: Calls,
    pub(super) history: History,
    pub(super) quarantine: Quarantine,
    pub(super) descents: Descents,
    /// What commands say of its jobs.
    pub(super) control: Arc<Control>,
    pub(super) replies: Arc<Replies>,
    /// Reads the lane's published events back.
    pub(super) reader: Arc<Reader>,
    pub(super) metrics: LaneMetrics,
}

/// The configuration of a lane.
#[derive(Debug)]
pub struct Settings {
    /// Its own settings.
    pub lane: config::Lane,
    /// How failed calls are retried.
    pub retry: config::Retry,
    /// Names of exchanges and queues.
    pub names: Names,
}

impl Lane {
    /// The lane that `settings` describe.
    ///
    /// # Errors
    /// The API client cannot be built: its keys, or TLS.
    pub fn new(
        settings: Settings,
        replies: Arc<Replies>,
        reader: Arc<Reader>,
        control: Arc<Control>,
        metrics: LaneMetrics,
    ) -> anyhow::Result<Self> {
        let lane = &settings.lane;
        let credentials = lane.credentials.load()?;
        let history = History::new(lane.name.as_str(), credentials.secret_access_key.expose_secret());
        let client = Client::new(lane.endpoint.clone(), credentials, lane.timeouts, lane.concurrency as usize)?
            .with_reading(lane.reading.clone());
        let gate = Arc::new(Gate::new(lane, &metrics, span(&lane.name)));
        // Each result is present from the start, at 0.
        key_check::show(&metrics, None);
        let calls = Calls::new(lane, client, &gate, prefetch::full(lane), &metrics);
        Ok(Self {
            settings,
            gate,
            calls,
            history,
            quarantine: Quarantine::default(),
            descents: Descents::default(),
            control,
            replies,
            reader,
            metrics,
        })
    }

    /// Follows the credentials file and puts new keys into force, for as long as the process lives.
    pub async fn follow_keys(&self) {
        let in_force = |credentials: &Credentials| {
            self.history.seals.replace(credentials.secret_access_key.expose_secret());
            self.metrics.credentials_expire.set(credentials.expires_at.map_or(0, |expires_at| expires_at.as_second()));
        };
        self.calls.api.follow_keys(&self.settings.lane.credentials, in_force).await;
    }

    /// Pauses the lane, or ends such a pause, as commands say by now.
    pub fn obey(&self) {
        self.gate.obey(self.control.pause_of(self.name()).as_ref());
    }

    /// Whether the lane is this replica's at present.
    pub fn is_held(&self) -> bool {
        self.gate.lease().is_valid()
    }

    /// Waits until pending replies were sent or have failed: ten seconds at most.
    pub async fn replies_sent(&self) {
        self.replies.sent().await;
    }

    /// The span in which the lane's tasks run, which names it in their lines in the log. Jobs have spans of their own.
    pub fn span(&self) -> Span {
        self.gate.span().clone()
    }

    /// The lane's name.
    pub fn name(&self) -> &str {
        self.settings.lane.name.as_str()
    }
}

/// A lane held by this replica, over one connection.
#[derive(Debug)]
pub struct Session {
    pub(super) lane: Arc<Lane>,
    pub(super) outbox: Outbox,
    /// Memory budget for unacked messages.
    pub(super) room: Room,
}

impl Session {
    /// Of `lane`, over `connection`.
    pub fn new(lane: Arc<Lane>, connection: &Connection) -> Self {
        Self { lane, outbox: Outbox::new(connection), room: connection.room() }
    }
}

/// A span's level is that of errors, so that it is there for lines of every level.
fn span(lane: &LaneName) -> Span {
    error_span!(parent: None, "lane", lane = lane.as_str())
}
