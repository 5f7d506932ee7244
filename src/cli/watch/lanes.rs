//! Whether the lanes of a batch make calls, by the events of the log and by the consumers of their batons. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::events::Data;
use crate::text::Shown;

/// Paused lanes that are remembered: far more than there are. Anybody who may publish events can make up others.
const MOST: usize = 1_000;

/// The lanes of what is watched, and those that are paused or not run.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Whose announcements name the lanes. `None`: they are known.
    batch: Option<String>,
    ours: BTreeSet<String>,
    /// Of whichever batch, with the cause.
    paused: BTreeMap<String, String>,
    /// Those of ours that no replica runs.
    idle: BTreeSet<String>,
}

impl Lanes {
    /// The lanes that announcements of `batch` name.
    pub(super) fn of_batch(batch: &str) -> Self {
        Self { batch: Some(batch.to_owned()), ours: BTreeSet::new(), paused: BTreeMap::new(), idle: BTreeSet::new() }
    }

    /// The lane of a submission, and why it was paused before that, if it was.
    pub(super) fn of_submission(lane: &str, paused: Option<String>) -> Self {
        let paused = paused.map(|cause| (lane.to_owned(), cause));
        let ours = BTreeSet::from([lane.to_owned()]);
        Self { batch: None, ours, paused: paused.into_iter().collect(), idle: BTreeSet::new() }
    }

    /// The lanes so far.
    pub(super) fn ours(&self) -> impl Iterator<Item = &str> {
        self.ours.iter().map(String::as_str)
    }

    /// Takes what an event of the log says. Returns what changes, for a person.
    pub(super) fn hear(&mut self, data: &Data) -> Option<String> {
        match data {
            Data::BatchSubmitted(announced)
                if self.batch.as_ref() == Some(&announced.batch_id) && self.ours.len() < MOST =>
            {
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

    /// Takes whether a replica runs one of the lanes. Returns what changes, for a person.
    pub(super) fn is_run(&mut self, lane: &str, is_run: bool) -> Option<String> {
        if !self.ours.contains(lane) {
            return None;
        }
        if is_run {
            self.idle.remove(lane).then(|| format!("a daemon runs lane {} again", Shown(lane)))
        } else {
            self.idle.insert(lane.to_owned()).then(|| not_run(lane))
        }
    }

    /// Why lanes of the batch make no calls now.
    pub(super) fn pauses(&self) -> impl Iterator<Item = String> {
        self.ours.iter().filter_map(|lane| self.pause_of(lane))
    }

    /// The same in a few words, for the first such lane. A lane that no replica runs is no more paused than it works.
    pub(super) fn trouble(&self) -> Option<String> {
        let idle = self.idle.first().map(|lane| format!("no daemon runs lane {}", Shown(lane)));
        let paused = || self.ours.iter().find(|lane| self.paused.contains_key(*lane));
        idle.or_else(|| paused().map(|lane| format!("lane {} is paused", Shown(lane))))
    }

    fn pause_of(&self, lane: &str) -> Option<String> {
        let cause = self.paused.get(lane)?;
        Some(is_paused(lane, cause))
    }

    fn works(&mut self, lane: &str) -> Option<String> {
        self.paused.remove(lane)?;
        self.ours.contains(lane).then(|| format!("lane {} is not paused any more", Shown(lane)))
    }
}

/// For a person: a lane is paused.
pub(in crate::cli) fn is_paused(lane: &str, cause: &str) -> String {
    format!("lane {} is paused, and its jobs wait: {}", Shown(lane), Shown(cause))
}

/// For a person: no replica runs a lane.
pub(in crate::cli) fn not_run(lane: &str) -> String {
    format!("no daemon runs lane {}: its jobs wait in RabbitMQ until `reveille run` runs with it", Shown(lane))
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
        let mut lanes = Lanes::of_batch("morning");
        let mut hear = |data: &Data| lanes.hear(data);
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
    fn a_lane_that_is_not_run_is_told_once_and_goes_before_a_pause() {
        let mut lanes = Lanes::of_submission("prod", Some("by ops".to_owned()));
        assert_eq!(lanes.pauses().collect::<Vec<_>>(), ["lane prod is paused, and its jobs wait: by ops"]);
        assert_eq!(lanes.trouble().unwrap(), "lane prod is paused");
        assert_eq!(lanes.is_run("prod", true), None, "as was to be expected");
        assert!(lanes.is_run("prod", false).unwrap().starts_with("no daemon runs lane prod: its jobs wait"));
        assert_eq!((lanes.is_run("prod", false), lanes.is_run("other", false)), (None, None));
        assert_eq!(lanes.trouble().unwrap(), "no daemon runs lane prod");
        assert_eq!(lanes.is_run("prod", true).unwrap(), "a daemon runs lane prod again");
        lanes.hear(&announced("morning", "other"));
        assert_eq!(lanes.ours().collect::<Vec<_>>(), ["prod"], "a submission has one lane");
        assert!(lanes.hear(&Data::LaneResumed(LaneResumed { lane: "prod".to_owned() })).is_some());
        assert_eq!(lanes.trouble(), None);
    }

    #[test]
    fn made_up_lanes_cost_little() {
        let mut lanes = Lanes::of_batch("morning");
        for number in 0..2 * MOST {
            lanes.hear(&announced("morning", &number.to_string()));
            lanes.hear(&paused(&number.to_string(), "x"));
        }
        assert_eq!((lanes.ours.len(), lanes.paused.len(), lanes.pauses().count()), (MOST, MOST, MOST));
    }
}
