//! Whether the daemon is ready, and if not, why.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::{Serialize, Serializer};

use crate::text::Shown;

/// The state of a lane on this replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneState {
    /// Not subscribed yet.
    Waiting,
    /// Another replica holds it; this one takes over when that one goes.
    StandingBy,
    /// This replica holds it.
    Held,
    /// This replica holds it, and makes no calls, for this reason (a text for people). No other replica would fare
    /// better, so this one counts as ready.
    Paused(String),
}

impl fmt::Display for LaneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => f.write_str("waiting"),
            Self::StandingBy => f.write_str("standing_by"),
            Self::Held => f.write_str("held"),
            Self::Paused(reason) => write!(f, "paused: {}", Shown(reason)),
        }
    }
}

impl Serialize for LaneState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The state behind `/readyz`.
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

    /// Records the state of the connection: `connected`, or why there is none.
    pub fn broker(&self, state: &str) {
        self.change(|report| report.broker = Shown(state).to_string());
    }

    /// Records the state of a lane.
    pub fn lane(&self, lane: &str, state: LaneState) {
        self.change(|report| {
            report.lanes.insert(lane.to_owned(), state);
        });
    }

    /// The present state of a lane that is configured here.
    pub fn state_of(&self, lane: &str) -> Option<LaneState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lanes.get(lane).cloned()
    }

    /// The present state. A replica is ready if it is connected and holds, or stands by for, every lane.
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

/// The broker's state if all is well.
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
        readiness.lane("b", LaneState::Paused("no keys".to_owned()));
        let (ready, report) = readiness.report();
        assert!(ready);
        assert_eq!(serde_json::to_value(report).unwrap()["lanes"]["b"], "paused: no keys");
    }

    #[test]
    fn what_others_said_is_escaped_in_it() {
        let readiness = Readiness::new(["a"]);
        readiness.broker("lost: \u{9b}2J\u{202e}gone");
        readiness.lane("a", LaneState::Paused("HTTP 401, \u{1b}]0;\u{7}\n\u{2028}".to_owned()));
        let report = serde_json::to_value(readiness.report().1).unwrap();
        assert_eq!(report["broker"], r"lost: \u{9b}2J\u{202e}gone");
        assert_eq!(report["lanes"]["a"], r"paused: HTTP 401, \u{1b}]0;\u{7}\n\u{2028}");
    }
}
