//! Whether the lanes of a batch make calls, by the events of the log. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::events::Data;
use crate::text::Shown;

/// Paused lanes that are remembered: far more than there are. Anybody who may publish events can make up others.
const MOST: usize = 1_000;

/// The lanes of a batch, and those that are paused.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    ours: BTreeSet<String>,
    /// Of whichever batch, with the cause.
    paused: BTreeMap<String, String>,
}

impl Lanes {
    /// Takes what an event of the log says. Returns what changes for `batch`, for a person.
    pub(super) fn hear(&mut self, data: &Data, batch: &str) -> Option<String> {
        match data {
            Data::BatchSubmitted(announced) if announced.batch_id == batch && self.ours.len() < MOST => {
                let is_new = self.ours.insert(announced.lane.clone());
                if is_new { self.pause_of(&announced.lane) } else { None }
            }
            Data::LanePaused(pause) if self.paused.len() < MOST => {
                self.paused.insert(pause.lane.clone(), pause.text.clone());
                if self.ours.contains(&pause.lane) { self.pause_of(&pause.lane) } else { None }
            }
            Data::LaneResumed(resumed) => self.works(&resumed.lane),
            // Another replica says anew that the lane is paused, where it is.
            Data::LaneHeld(held) => self.works(&held.lane),
            _ => None,
        }
    }

    /// Why lanes of the batch make no calls now.
    pub(super) fn pauses(&self) -> impl Iterator<Item = String> {
        self.ours.iter().filter_map(|lane| self.pause_of(lane))
    }

    fn pause_of(&self, lane: &str) -> Option<String> {
        let cause = self.paused.get(lane)?;
        Some(format!("lane {} is paused, and its jobs wait: {}", Shown(lane), Shown(cause)))
    }

    fn works(&mut self, lane: &str) -> Option<String> {
        self.paused.remove(lane)?;
        self.ours.contains(lane).then(|| format!("lane {} is not paused any more", Shown(lane)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Batch, LaneHeld, LanePaused, LaneResumed};

    fn announced(batch: &str, lane: &str) -> Data {
        Data::BatchSubmitted(Batch::new(batch.to_owned(), 1, lane.to_owned()))
    }

    fn paused(lane: &str, text: &str) -> Data {
        Data::LanePaused(LanePaused { lane: lane.to_owned(), cause: "by_hand".to_owned(), text: text.to_owned() })
    }

    #[test]
    fn a_pause_is_told_where_it_concerns_the_batch() {
        let mut lanes = Lanes::default();
        let mut hear = |data: &Data| lanes.hear(data, "morning");
        let told = |cause: &str| Some(format!("lane prod is paused, and its jobs wait: {cause}"));
        assert_eq!(hear(&paused("prod", "by ops")), None, "whose batch it is is not known yet");
        assert_eq!(hear(&announced("evening", "prod")), None);
        assert_eq!(hear(&announced("morning", "prod")), told("by ops"));
        assert_eq!(hear(&announced("morning", "prod")), None, "once");
        assert_eq!(hear(&paused("other", "by ops")), None);
        let works = Some("lane prod is not paused any more".to_owned());
        let prod = "prod".to_owned();
        assert_eq!(hear(&Data::LaneResumed(LaneResumed { lane: prod.clone() })), works);
        assert_eq!(hear(&Data::LaneHeld(LaneHeld { lane: prod.clone(), replica: None })), None);
        assert_eq!(hear(&paused("prod", "\u{1b}[2J")), told(r"\u{1b}[2J"));
        assert_eq!(hear(&Data::LaneHeld(LaneHeld { lane: prod, replica: None })), works, "by another replica");
        assert_eq!(lanes.pauses().count(), 0);
    }

    #[test]
    fn made_up_lanes_cost_little() {
        let mut lanes = Lanes::default();
        for number in 0..2 * MOST {
            lanes.hear(&announced("morning", &number.to_string()), "morning");
            lanes.hear(&paused(&number.to_string(), "x"), "morning");
        }
        assert_eq!((lanes.ours.len(), lanes.paused.len(), lanes.pauses().count()), (MOST, MOST, MOST));
    }
}
