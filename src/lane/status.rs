//! What this replica knows of its lanes, as queries are answered.

use std::sync::Arc;

use super::parts::Lane;
use crate::query::LaneStatus;
use crate::telemetry::{LaneState, Readiness};

/// The status of each of `lanes`, by what `readiness` shows.
pub fn statuses(lanes: &[Arc<Lane>], readiness: &Readiness) -> Vec<LaneStatus> {
    let status = |lane: &Arc<Lane>| {
        let (state, in_flight) = (readiness.state_of(lane.name())?, lane.metrics.count_in_flight());
        // A pause by hand is in force before the lane has said so, and whoever gave it knows that it is.
        let state = match (state, lane.gate.breaker().by_hand_for()) {
            (LaneState::Held, Some(cause)) => LaneState::Paused(cause.text),
            (state, _) => state,
        };
        Some(LaneStatus::new(lane.name(), &state, lane.gate.rate(), lane.settings.lane.rate, in_flight))
    };
    lanes.iter().filter_map(status).collect()
}
