//! The answer to [`Query::Status`](super::Query::Status).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::parts::{self, bytes};
use crate::replica::Replica;
use crate::telemetry::LaneState;

/// Longest cause of a pause, in characters: it quotes what the API answered.
const CAUSE_LIMIT: usize = 500;
/// Most replicas whose answers are kept, and most parts of one answer: more than anybody runs.
const MOST_REPLICAS: usize = 1_000;
const MOST_PARTS: usize = 100;

/// What a lane is to a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// The replica holds the lane.
    Held,
    /// The same, and the lane makes no calls.
    Paused,
    /// The replica takes the lane over when its holder goes.
    StandingBy,
    /// The replica is not in line for the lane yet.
    Waiting,
    /// Another version's word.
    #[serde(other)]
    Unknown,
}

/// What a replica says of a lane.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneStatus {
    /// Its name.
    pub lane: String,
    /// What it is to the replica.
    pub state: Standing,
    /// Why it is paused: a text for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Calls per second that it may make now: fewer than configured while the API throttles.
    pub rate: f64,
    /// Calls per second that it is configured with.
    pub rate_configured: f64,
    /// Jobs that are being called, published or acked.
    pub in_flight: u64,
    /// The replica has jobs of a later wave wait. Earlier versions, which start them at once, do not say so.
    #[serde(default)]
    pub waves: bool,
}

impl LaneStatus {
    /// Of a lane in this state, with the rates now and configured, and so many jobs in flight.
    pub fn new(lane: &str, state: &LaneState, rate: f64, rate_configured: f64, in_flight: u64) -> Self {
        let (standing, cause) = match state {
            LaneState::Waiting => (Standing::Waiting, None),
            LaneState::StandingBy => (Standing::StandingBy, None),
            LaneState::Held => (Standing::Held, None),
            LaneState::Paused(cause) => (Standing::Paused, Some(cause.chars().take(CAUSE_LIMIT).collect())),
        };
        Self { lane: lane.to_owned(), state: standing, cause, rate, rate_configured, in_flight, waves: true }
    }

    /// Whether the replica that says so holds the lane.
    pub fn is_held(&self) -> bool {
        matches!(self.state, Standing::Held | Standing::Paused)
    }
}

/// A part of an answer.
#[derive(Debug, Serialize, Deserialize)]
struct Part {
    replica: Replica,
    /// From 0 on.
    part: usize,
    /// How many there are.
    parts: usize,
    lanes: Vec<LaneStatus>,
}

/// The answer of `replica`, as the bodies of one message or more.
pub fn answer(replica: &Replica, lanes: Vec<LaneStatus>) -> Vec<Vec<u8>> {
    let split = parts::split(lanes);
    let parts = split.len();
    let part = |(part, lanes)| bytes(&Part { replica: replica.clone(), part, parts, lanes });
    split.into_iter().enumerate().map(part).collect()
}

/// The answers of all replicas, as their parts come in.
#[derive(Debug, Default)]
pub struct Statuses(BTreeMap<Replica, Parts>);

#[derive(Debug, Default)]
struct Parts {
    parts: usize,
    lanes: BTreeMap<usize, Vec<LaneStatus>>,
}

impl Parts {
    fn is_complete(&self) -> bool {
        self.lanes.len() == self.parts
    }
}

impl Statuses {
    /// Takes a message. What is no part of an answer is dropped, and so is a part that came already.
    pub fn take(&mut self, body: &[u8]) {
        let Ok(Part { replica, part, parts, lanes }) = serde_json::from_slice(body) else { return };
        if part >= parts || parts > MOST_PARTS || (self.0.len() >= MOST_REPLICAS && !self.0.contains_key(&replica)) {
            return;
        }
        let of = self.0.entry(replica).or_default();
        if of.parts == 0 {
            of.parts = parts;
        }
        if of.parts == parts {
            of.lanes.entry(part).or_insert(lanes);
        }
    }

    /// How many replicas have answered in full.
    pub fn complete(&self) -> usize {
        self.0.values().filter(|parts| parts.is_complete()).count()
    }

    /// What the replica that holds `lane` said of it, if that came.
    pub fn holder_of(&self, lane: &str) -> Option<&LaneStatus> {
        self.lanes().find(|status| status.lane == lane && status.is_held())
    }

    /// What replicas said of lanes so far.
    pub fn lanes(&self) -> impl Iterator<Item = &LaneStatus> {
        self.0.values().flat_map(|parts| parts.lanes.values().flatten())
    }

    /// What each replica said, in part where parts are missing.
    pub fn into_replicas(self) -> Vec<(Replica, Vec<LaneStatus>)> {
        self.0.into_iter().map(|(replica, parts)| (replica, parts.lanes.into_values().flatten().collect())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(pid: u32) -> Replica {
        Replica { host: "host-1".to_owned(), pid, version: "0.1.0".to_owned() }
    }

    fn lanes(count: usize) -> Vec<LaneStatus> {
        let cause = LaneState::Paused("\u{1b}".repeat(9_999));
        (0..count).map(|number| LaneStatus::new(&format!("lane-{number:04}"), &cause, 1.5, 20.0, 3)).collect()
    }

    #[test]
    fn an_answer_comes_in_parts_that_fit_and_is_whole_again_in_any_order() {
        let said = lanes(700);
        assert_eq!(said[0].cause.as_ref().map(String::len), Some(CAUSE_LIMIT));
        let mut parts = answer(&replica(7), said.clone());
        assert!(parts.len() > 1 && parts.iter().all(|part| part.len() < 64 * 1024), "{}", parts.len());
        parts.reverse();
        let mut statuses = Statuses::default();
        for part in &parts {
            assert_eq!(statuses.complete(), 0);
            statuses.take(part);
            statuses.take(part);
        }
        assert_eq!(statuses.complete(), 1);
        statuses.take(&answer(&replica(8), Vec::new())[0]);
        assert_eq!(statuses.complete(), 2);
        assert_eq!(statuses.into_replicas(), [(replica(7), said), (replica(8), Vec::new())]);
    }

    #[test]
    fn what_is_no_answer_is_dropped_and_what_another_version_adds_is_read_past() {
        let mut statuses = Statuses::default();
        let replica = r#""replica":{"host":"h","pid":1,"version":"9"}"#;
        for noise in [
            "noise".to_owned(),
            "{}".to_owned(),
            format!(r#"{{{replica},"part":1,"parts":1,"lanes":[]}}"#),
            format!(r#"{{{replica},"part":0,"parts":0,"lanes":[]}}"#),
            format!(r#"{{{replica},"part":0,"parts":9999999,"lanes":[]}}"#),
            format!(r#"{{{replica},"part":-1,"parts":1,"lanes":[]}}"#),
        ] {
            statuses.take(noise.as_bytes());
        }
        assert_eq!(statuses.0.len(), 0);
        let lane = r#"{"lane":"prod","state":"asleep","rate":1,"rate_configured":2,"in_flight":0,"more":[]}"#;
        statuses.take(format!(r#"{{{replica},"part":0,"parts":1,"lanes":[{lane}],"more":{{}}}}"#).as_bytes());
        assert_eq!(statuses.complete(), 1);
        let told = &statuses.into_replicas()[0].1[0];
        assert_eq!((told.state, told.waves), (Standing::Unknown, false));
    }

    #[test]
    fn a_flood_of_forged_answers_takes_bounded_memory() {
        let mut statuses = Statuses::default();
        for pid in 0..2_000 {
            statuses.take(&answer(&replica(pid), Vec::new())[0]);
        }
        assert_eq!(statuses.complete(), MOST_REPLICAS);
    }
}
