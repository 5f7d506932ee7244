//! Which batches the log tells of, and how far each is. Pure: no clock, no broker.
//!
//! Of more than twice [`MOST`] batches those that were heard of longest ago are dropped, so memory is bounded by these and by
//! the ids of their jobs: some 40 bytes for each job at most, and the log keeps 1 GiB, which is 1.5 million events of the
//! daemon's. What is longer than the daemon writes it is no event of a batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::columns::Columns;
use crate::cli::watch::progress::Progress;
use crate::config::LaneName;
use crate::events::{Data, Event};
use crate::job::BATCH_ID_LIMIT;
use crate::text::Shown;

/// The most batches that can be listed.
pub(super) const MOST: i64 = 1_000;
/// When the oldest of the batches are dropped, down to [`MOST`].
const CROWD: usize = 2 * MOST as usize;
/// Longest name of an outcome or reason, in bytes.
const WORD_LIMIT: usize = 64;
/// Longest id of a job, in bytes: of `message_id`.
const ID_LIMIT: usize = 255;
/// Lanes whose names are kept, for hints.
const MOST_LANES: usize = 1_000;
/// Lanes of a batch that are listed.
const LANES_OF_BATCH: usize = 20;

/// The batches that events have told of so far.
#[derive(Debug)]
pub(super) struct Listing {
    /// Only its jobs count; `None`: those of all lanes.
    lane: Option<LaneName>,
    now: Timestamp,
    batches: HashMap<String, Batch>,
    lanes: BTreeSet<LaneName>,
    /// Events of batches so far.
    heard: u64,
}

#[derive(Debug)]
struct Batch {
    progress: Progress,
    lanes: BTreeSet<LaneName>,
    first: Timestamp,
    last: Timestamp,
    /// The number of its latest event, in the order of the log.
    heard: u64,
}

/// A batch as it is listed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Row {
    batch: String,
    lanes: Vec<String>,
    /// Jobs of all announcements; `null` where none was read.
    announced: Option<usize>,
    /// Jobs that have ended.
    ended: usize,
    /// Jobs whose start was accepted, and whose instance was not seen running yet.
    accepted: usize,
    /// All announced jobs have ended.
    done: bool,
    /// Ended jobs by outcome.
    outcomes: BTreeMap<String, usize>,
    /// The times of the earliest and the latest event that was read.
    first_event: Timestamp,
    last_event: Timestamp,
}

impl Listing {
    pub(super) fn new(lane: Option<LaneName>, now: Timestamp) -> Self {
        Self { lane, now, batches: HashMap::new(), lanes: BTreeSet::new(), heard: 0 }
    }

    /// Takes the next event of the log.
    pub(super) fn take(&mut self, mut event: Event) {
        let Some((name, lane)) = batch_and_lane(&event) else { return };
        let Some(lane) = LaneName::parse(lane) else { return };
        let (name, time) = (name.to_owned(), event.time);
        if self.lanes.len() < MOST_LANES {
            self.lanes.insert(lane.clone());
        }
        let is_of_another = self.lane.as_ref().is_some_and(|only| *only != lane);
        if is_of_another || name.len() > BATCH_ID_LIMIT || !abridge(&mut event) {
            return;
        }
        self.heard += 1;
        let batch = self.batches.entry(name).or_insert_with_key(|name| Batch {
            progress: Progress::new(name, self.now),
            lanes: BTreeSet::new(),
            first: time,
            last: time,
            heard: 0,
        });
        batch.progress.hear(event, self.now);
        if batch.lanes.len() < LANES_OF_BATCH {
            batch.lanes.insert(lane);
        }
        (batch.first, batch.last, batch.heard) = (batch.first.min(time), batch.last.max(time), self.heard);
        if self.batches.len() > CROWD {
            self.thin();
        }
    }

    /// Drops the batches that were heard of longest ago.
    fn thin(&mut self) {
        let mut heard: Vec<u64> = self.batches.values().map(|batch| batch.heard).collect();
        heard.sort_unstable();
        let least = heard[heard.len() - MOST as usize];
        self.batches.retain(|_, batch| batch.heard >= least);
    }

    /// The lanes that the log tells of.
    pub(super) fn lanes(&self) -> impl Iterator<Item = &LaneName> {
        self.lanes.iter()
    }

    /// The `number` batches that were heard of last, the latest first.
    pub(super) fn rows(&self, number: usize) -> Vec<Row> {
        let mut batches: Vec<_> = self.batches.iter().collect();
        batches.sort_unstable_by_key(|(_, batch)| std::cmp::Reverse(batch.heard));
        batches.into_iter().take(number).map(|(name, batch)| batch.row(name)).collect()
    }
}

/// The names of the batch and the lane that an event is about.
fn batch_and_lane(event: &Event) -> Option<(&str, &str)> {
    match &event.data {
        Data::BatchSubmitted(batch) => Some((&batch.batch_id, &batch.lane)),
        Data::Job(job) => Some((job.batch_id.as_deref()?, &job.lane)),
        _ => None,
    }
}

/// Leaves no more of an event than counts here. Returns whether it may be the daemon's.
fn abridge(event: &mut Event) -> bool {
    let Data::Job(job) = &mut event.data else { return true };
    (job.labels, job.error_code, job.error_message, job.bce_request_id) = (None, None, None, None);
    let is_short = |text: &str| text.len() <= WORD_LIMIT;
    job.job_id.len() <= ID_LIMIT && is_short(&job.outcome) && job.reason.as_deref().is_none_or(is_short)
}

impl Batch {
    fn row(&self, name: &str) -> Row {
        let (announced, ended) = (self.progress.announced(), self.progress.ended());
        let outcomes = self.progress.report().outcomes().into_iter();
        Row {
            batch: name.to_owned(),
            lanes: self.lanes.iter().map(ToString::to_string).collect(),
            announced,
            ended,
            accepted: self.progress.accepted(),
            done: announced.is_some_and(|announced| ended >= announced),
            outcomes: outcomes.map(|(outcome, count)| (outcome.to_owned(), count)).collect(),
            first_event: self.first,
            last_event: self.last,
        }
    }
}

/// For people: a line each.
pub(super) fn table(rows: &[Row]) -> Columns<6> {
    let mut columns = Columns::new(["BATCH", "LANE", "ENDED", "OUTCOMES", "FIRST EVENT", "LAST EVENT"]);
    for row in rows {
        let ended = match row.announced {
            Some(announced) => format!("{} of {announced}", row.ended),
            None => format!("{}, not announced", row.ended),
        };
        let mut outcomes: Vec<String> =
            row.outcomes.iter().map(|(outcome, count)| format!("{count} {}", Shown(outcome))).collect();
        if row.accepted > 0 {
            outcomes.push(format!("{} accepted", row.accepted));
        }
        let outcomes = if outcomes.is_empty() { "-".to_owned() } else { outcomes.join(", ") };
        let (name, lanes) = (Shown(&row.batch).to_string(), row.lanes.join(","));
        columns.add([name, lanes, ended, outcomes, second(row.first_event), second(row.last_event)]);
    }
    columns
}

/// `2026-11-25T07:30:00Z`
fn second(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

#[cfg(test)]
mod tests;
