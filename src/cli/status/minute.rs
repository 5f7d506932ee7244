//! What came of a lane's jobs in the last minute, by the log.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use crate::config::LaneName;
use crate::events::{Data, Event};

/// How far the log is read back.
pub(super) const LENGTH: SignedDuration = SignedDuration::from_secs(60);
/// Lanes and outcomes that are counted, and the longest name of an outcome, in bytes: more than a daemon has. A client that may
/// write events can make up others.
const MOST_LANES: usize = 10_000;
const MOST_OUTCOMES: usize = 16;
const WORD_LIMIT: usize = 64;

/// Jobs that ended, by lane and outcome.
#[derive(Debug, Default)]
pub(super) struct Minute(BTreeMap<LaneName, BTreeMap<String, u64>>);

impl Minute {
    /// Takes an event of the last minute.
    pub(super) fn take(&mut self, event: Event) {
        let Data::Job(job) = event.data else { return };
        let Some(lane) = LaneName::parse(&job.lane).filter(|_| job.is_final) else { return };
        if self.0.len() >= MOST_LANES && !self.0.contains_key(&lane) {
            return;
        }
        let outcomes = self.0.entry(lane).or_default();
        let is_counted =
            outcomes.contains_key(&job.outcome) || outcomes.len() < MOST_OUTCOMES && job.outcome.len() <= WORD_LIMIT;
        *outcomes.entry(if is_counted { job.outcome } else { "others".to_owned() }).or_default() += 1;
    }

    /// The counts of a lane.
    pub(super) fn of(&self, lane: &LaneName) -> BTreeMap<String, u64> {
        self.0.get(lane).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn event(lane: &str, outcome: &str, is_final: bool) -> Event {
        let now = Timestamp::UNIX_EPOCH;
        let job = json!({"job_id": "j", "lane": lane, "outcome": outcome, "final": is_final, "attempts": 1,
            "ambiguous": false, "received_at": now, "finished_at": now, "duration_ms": 0});
        Event::new(lane, Data::Job(serde_json::from_value(job).unwrap()), now)
    }

    #[test]
    fn final_outcomes_are_counted_by_lane_in_bounded_memory() {
        let mut minute = Minute::default();
        for (lane, outcome, is_final) in [
            ("a", "started", true),
            ("a", "started", false),
            ("a", "failed", true),
            ("b", "started", true),
            ("A", "x", true),
        ] {
            minute.take(event(lane, outcome, is_final));
        }
        minute.take(event("a", &"x".repeat(65), true));
        for number in 0..99 {
            minute.take(event("a", "failed", true));
            minute.take(event("b", &format!("made-up-{number}"), true));
        }
        let of = |lane| minute.of(&LaneName::parse(lane).unwrap());
        let counts =
            [("failed", 100), ("others", 1), ("started", 1)].map(|(outcome, count)| (outcome.to_owned(), count));
        assert_eq!(of("a"), counts.into());
        assert_eq!((of("b").len(), of("b")["others"], of("c").len()), (MOST_OUTCOMES + 1, 99 - 15, 0));
    }
}
