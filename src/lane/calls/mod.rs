//! The calls of a lane: [`api`] makes one, [`starts`] decides which jobs share one, [`polls`] asks for the states of
//! started instances.

mod api;
mod polls;
mod starts;

use std::sync::Arc;

use self::api::Api;
pub use self::polls::Observed;
use self::polls::Polls;
use self::starts::Starts;
pub(super) use self::starts::{Called, Entry, NotCalled, Origin, Wanted};
use super::quota::Gate;
use crate::bce::Client;
use crate::config;
use crate::telemetry::LaneMetrics;

/// See the module.
#[derive(Debug)]
pub struct Calls {
    pub(super) api: Arc<Api>,
    pub(super) starts: Starts,
    pub(super) polls: Polls,
}

impl Calls {
    /// Over `client`, through `gate`. `prefetch`: jobs of each queue that may be in hand at the lane's full rate.
    pub fn new(lane: &config::Lane, client: Client, gate: &Arc<Gate>, prefetch: u16, metrics: &LaneMetrics) -> Self {
        let api = Arc::new(Api::new(client, gate.clone(), metrics.clone()));
        Self {
            starts: Starts::new(api.clone(), lane.batch as usize),
            polls: Polls::new(api.clone(), lane.confirm_share, lane.concurrency, prefetch),
            api,
        }
    }
}
