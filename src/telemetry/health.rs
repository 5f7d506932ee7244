//! Whether the daemon is ready, and if not, why.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// How a lane stands with this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// Not subscribed yet.
    Waiting,
    /// Another replica runs it; this one takes over when that one goes.
    StandingBy,
    /// This replica runs it.
    Held,
}

/// What `/readyz` answers from.
#[derive(Debug)]
pub struct Readiness(Mutex<Report>);

/// The body of `/readyz`.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    ready: bool,
    /// `connected`, or why not.
    broker: String,
    lanes: BTreeMap<String, LaneState>,
}

impl Readiness {
    /// Not ready yet: no connection, and no lane held.
    pub fn new<'a>(lanes: impl IntoIterator<Item = &'a str>) -> Self {
        let lanes = lanes.into_iter().map(|lane| (lane.to_owned(), LaneState::Waiting)).collect();
        Self(Mutex::new(Report { ready: false, broker: "not connected yet".to_owned(), lanes }))
    }

    /// Notes how the connection stands: `connected`, or why there is none.
    pub fn broker(&self, state: &str) {
        self.change(|report| state.clone_into(&mut report.broker));
    }

    /// Notes how a lane stands.
    pub fn lane(&self, lane: &str, state: LaneState) {
        self.change(|report| {
            report.lanes.insert(lane.to_owned(), state);
        });
    }

    /// The present state. Ready is who is connected and holds, or stands by for, every lane.
    pub fn report(&self) -> (bool, Report) {
        let report = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (report.ready, report)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut report);
        report.ready = report.broker == CONNECTED && report.lanes.values().all(|state| *state != LaneState::Waiting);
    }
}

/// What the broker's state is called when all is well.
pub const CONNECTED: &str = "connected";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_is_connected_and_stands_by_for_every_lane() {
        let readiness = Readiness::new(["a", "b"]);
        readiness.lane("a", LaneState::Held);
        readiness.lane("b", LaneState::StandingBy);
        assert!(!readiness.report().0);
        readiness.broker(CONNECTED);
        assert!(readiness.report().0);
        readiness.lane("b", LaneState::Waiting);
        assert!(!readiness.report().0);
        let json = serde_json::to_value(readiness.report().1).unwrap();
        assert_eq!(json["lanes"]["b"], "waiting");
    }
}
