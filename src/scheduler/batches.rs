//! Which announced batches are done, by the events of the log. Pure: no clock, no broker.
//!
//! A batch of a lane is open from its first announcement on, until as many distinct jobs of it have ended as were announced; then
//! its completion is an event. Announcements that come while it is open add to it, as [`Announced`] says. One that comes later
//! opens a batch of its own under the same name, and so do the jobs that end from then on belong to that one. All this follows from
//! the order of the log and from nothing else, so each replica that reads the log comes to the same events.
//!
//! An announcement can say how many jobs may fail. Where more of them do while the batch is open, a command to cancel the rest is due,
//! once: jobs that failed, expired or were rejected count, and not those that were cancelled. The latest announcement that says a
//! number counts.
//!
//! **Memory.** A hash for each ended job of an open batch, some 20 bytes: about 80 MB for [`MOST_REMEMBERED`]. Anybody who may
//! publish outcomes can announce batches that never end. So the batch that was opened first is forgotten where there are too many
//! of them, or too many of their jobs; and so is one of which nothing was heard for as long as the log keeps an event.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};

use crate::config::LaneName;
use crate::events::{
    Action, Announced, Announcement, Batch, BatchCompleted, Command, Data, Event, JobEvent, batch_key,
};
use crate::job::BATCH_ID_LIMIT;

/// Jobs and announcements of all open batches together.
const MOST_REMEMBERED: usize = 4_000_000;
/// Open batches.
const MOST_OPEN: usize = 10_000;
/// Announcements of completed batches, of which copies may follow.
const MOST_CLOSED: usize = 10_000;
/// Kinds of outcomes of one batch, and the length of a name of them. There are fewer, but for events that were forged.
const MOST_KINDS: usize = 64;
const LONGEST_NAME: usize = 64;
/// What stands for a kind beyond those.
const OTHER: &str = "other";
/// The outcome of what a command cancelled.
const CANCELLED: &str = "cancelled";
/// As the log keeps events.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The open batches.
#[derive(Debug)]
pub(super) struct Batches {
    open: HashMap<Name, Open>,
    /// By the offset of the announcement that opened it.
    order: BTreeMap<u64, Name>,
    /// Jobs and announcements of all of them.
    remembered: usize,
    /// Commands to cancel the rest of an open batch.
    cancels: BTreeMap<Name, Event>,
    /// Announcements of batches that are not open any more, the latest last.
    closed: VecDeque<Announcing>,
    /// Its keys are random, so that nobody can choose ids with equal hashes.
    hasher: RandomState,
    limits: Limits,
}

/// An announcement of a batch, of which a copy or a correction may follow.
#[derive(Debug, Clone, Copy)]
struct Announcing {
    /// Hash of the batch's name and the announcement's id.
    id: u64,
    size: usize,
    at: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    remembered: usize,
    open: usize,
}

/// Of a batch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) lane: String,
    pub(super) batch: String,
}

#[derive(Debug)]
struct Open {
    /// Offset of the announcement that opened it.
    offset: u64,
    /// Its [`batch_key`].
    key: String,
    submitted_at: Timestamp,
    announced: Announced,
    /// Those that are no copies.
    announcements: Vec<Announcing>,
    /// Hashes of the ids of ended jobs.
    ended: HashSet<u64>,
    up: usize,
    failed: usize,
    max_failures: Option<usize>,
    /// The command to cancel the rest was due.
    is_cancelled: bool,
    /// By outcome and reason.
    kinds: BTreeMap<(String, String), usize>,
    first_event_at: Option<Timestamp>,
    last_event_at: Option<Timestamp>,
    heard: Timestamp,
}

/// What an event has led to.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// A batch is done: this is to be published.
    Completed(Box<Event>),
    /// The completion with this id is published.
    Published(String),
    /// The batch is not followed any more: there are too many open ones.
    Forgotten(Name),
}

impl Batches {
    pub(super) fn new() -> Self {
        Self::with(Limits { remembered: MOST_REMEMBERED, open: MOST_OPEN })
    }

    fn with(limits: Limits) -> Self {
        Self {
            open: HashMap::new(),
            order: BTreeMap::new(),
            remembered: 0,
            cancels: BTreeMap::new(),
            closed: VecDeque::new(),
            hasher: RandomState::new(),
            limits,
        }
    }

    /// Takes the event at `offset` of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, offset: u64, key: &str, event: Event, now: Timestamp) -> Vec<Heard> {
        let heard = match event.data {
            Data::BatchSubmitted(batch) if is_key(key, &batch.lane, "submitted") => {
                self.announce(offset, event.id, event.time, batch, now)
            }
            Data::Job(job) if is_key(key, &job.lane, &job.outcome) => self.job(*job, event.time, now),
            Data::BatchCompleted(completed) if is_key(key, &completed.lane, "completed") => {
                Some(Heard::Published(event.id))
            }
            _ => None,
        };
        heard.into_iter().chain(self.forget_surplus()).collect()
    }

    /// How many batches are open.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Where the log has to be read from on to know all open batches; `None` if there is none.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.order.first_key_value().map(|(offset, _)| *offset)
    }

    /// Forgets batches of which nothing was heard for as long as the log keeps events.
    pub(super) fn forget_silent(&mut self, now: Timestamp) -> Vec<Name> {
        let is_silent = |open: &Open| now.duration_since(open.heard) > FORGOTTEN_AFTER;
        let silent: Vec<Name> =
            self.open.iter().filter(|(_, open)| is_silent(open)).map(|(name, _)| name.clone()).collect();
        for name in &silent {
            self.close(name);
        }
        silent
    }

    fn announce(&mut self, offset: u64, id: String, at: Timestamp, batch: Batch, now: Timestamp) -> Option<Heard> {
        // No job can have such a batch or such a lane.
        if batch.batch_id.len() > BATCH_ID_LIMIT || LaneName::parse(&batch.lane).is_none() {
            return None;
        }
        let name = Name { lane: batch.lane, batch: batch.batch_id };
        let announcing = Announcing { id: self.hasher.hash_one((&name, &id)), size: batch.size, at };
        if !self.open.contains_key(&name) && self.is_late(announcing) {
            return None;
        }
        let open = match self.open.get_mut(&name) {
            Some(open) => open,
            None => {
                self.order.insert(offset, name.clone());
                self.open.entry(name.clone()).or_insert(Open {
                    offset,
                    key: batch_key(&name.lane, &name.batch, &id, at),
                    submitted_at: at,
                    announced: Announced::default(),
                    announcements: Vec::new(),
                    ended: HashSet::new(),
                    up: 0,
                    failed: 0,
                    max_failures: None,
                    is_cancelled: false,
                    kinds: BTreeMap::new(),
                    first_event_at: None,
                    last_event_at: None,
                    heard: at.min(now),
                })
            }
        };
        open.heard = open.heard.max(at.min(now));
        open.max_failures = batch.max_failures.or(open.max_failures);
        if open.announced.hear(&id, batch.size, at) != Announcement::Copy {
            open.announcements.push(announcing);
            self.remembered += 1;
        }
        self.complete_or_cancel(&name, at.min(now))
    }

    /// Whether this is a copy or a correction of an announcement of a batch that is not open any more. The same again, made at
    /// another time, is a new batch.
    fn is_late(&self, new: Announcing) -> bool {
        let mut earlier = self.closed.iter().filter(|closed| closed.id == new.id);
        earlier.any(|earlier| earlier.at == new.at || new.size < earlier.size)
    }

    fn job(&mut self, job: JobEvent, at: Timestamp, now: Timestamp) -> Option<Heard> {
        let name = Name { batch: job.batch_id.clone()?, lane: job.lane.clone() };
        let open = self.open.get_mut(&name)?;
        open.heard = open.heard.max(at.min(now));
        open.first_event_at = Some(open.first_event_at.map_or(at, |first| first.min(at)));
        open.last_event_at = Some(open.last_event_at.map_or(at, |last| last.max(at)));
        if !job.is_final || !open.ended.insert(self.hasher.hash_one(&job.job_id)) {
            return None;
        }
        self.remembered += 1;
        let is_up = job.is_up();
        open.up += usize::from(is_up);
        open.failed += usize::from(!is_up && job.outcome != CANCELLED);
        open.count(job.outcome, job.reason.unwrap_or_default());
        self.complete_or_cancel(&name, at.min(now))
    }

    fn complete_or_cancel(&mut self, name: &Name, at: Timestamp) -> Option<Heard> {
        let completed = self.complete(name);
        if let Some(open) = self.open.get_mut(name)
            && let Some(command) = open.cancel(name, at)
        {
            self.cancels.insert(name.clone(), command);
        }
        completed
    }

    /// The next command to cancel the rest of a batch of which too many jobs have failed.
    pub(super) fn pop_cancel(&mut self) -> Option<(Name, Event)> {
        self.cancels.pop_first()
    }

    /// The batch's completion, if it is done. It is not open any more then.
    fn complete(&mut self, name: &Name) -> Option<Heard> {
        let open = self.open.get(name)?;
        if open.announced.jobs()? > open.ended.len() {
            return None;
        }
        let open = self.close(name)?;
        let Name { lane, batch } = name.clone();
        Some(Heard::Completed(Box::new(open.completed(lane, batch))))
    }

    fn close(&mut self, name: &Name) -> Option<Open> {
        let open = self.open.remove(name)?;
        self.order.remove(&open.offset);
        self.cancels.remove(name);
        self.remembered -= open.announcements.len() + open.ended.len();
        self.closed.extend(&open.announcements);
        let surplus = self.closed.len().saturating_sub(MOST_CLOSED);
        self.closed.drain(..surplus);
        Some(open)
    }

    /// Forgets the batches that were opened first, while there is too much to remember.
    fn forget_surplus(&mut self) -> Vec<Heard> {
        let mut forgotten = Vec::new();
        while self.open.len() > self.limits.open || self.remembered > self.limits.remembered {
            let Some(name) = self.order.first_key_value().map(|(_, name)| name.clone()) else { break };
            self.close(&name);
            forgotten.push(Heard::Forgotten(name));
        }
        forgotten
    }
}

/// Whether `key` is the routing key under which reveille publishes what happens in the lane: RabbitMQ lets a user publish under some
/// keys and not under others, and what stands in an event it does not read.
pub(super) fn is_key(key: &str, lane: &str, what: &str) -> bool {
    key.strip_prefix(lane).and_then(|rest| rest.strip_prefix('.')) == Some(what)
}

impl Open {
    /// The command to cancel the rest, if it is due and was not before. All copies are equal, and so is what they cancel: jobs that
    /// were submitted up to `at`.
    fn cancel(&mut self, Name { lane, batch }: &Name, at: Timestamp) -> Option<Event> {
        let (failed, most) = (self.failed, self.max_failures?);
        if failed <= most || self.is_cancelled {
            return None;
        }
        self.is_cancelled = true;
        let reason = format!("{failed} jobs have failed, and max_failures is {most}");
        let action = Action::CancelBatch { batch_id: batch.clone(), lane: Some(lane.clone()) };
        let command = Data::Command(Command { action, by: "reveille scheduler".to_owned(), reason: Some(reason) });
        Some(Event { id: format!("{}/cancel", self.key), ..Event::of_scheduler(command, at) })
    }

    fn count(&mut self, outcome: String, reason: String) {
        let kind = (outcome, reason);
        let is_usual = kind.0.len() <= LONGEST_NAME && kind.1.len() <= LONGEST_NAME;
        let is_kept = is_usual && (self.kinds.len() < MOST_KINDS || self.kinds.contains_key(&kind));
        let kind = if is_kept { kind } else { (OTHER.to_owned(), OTHER.to_owned()) };
        *self.kinds.entry(kind).or_default() += 1;
    }

    fn completed(self, lane: String, batch_id: String) -> Event {
        let (mut outcomes, mut reasons) = (BTreeMap::new(), BTreeMap::new());
        for ((outcome, reason), count) in self.kinds {
            *outcomes.entry(outcome).or_default() += count;
            if !reason.is_empty() {
                *reasons.entry(reason).or_default() += count;
            }
        }
        let completed = BatchCompleted {
            batch_id,
            lane,
            size: self.announced.jobs().unwrap_or_default(),
            ended: self.ended.len(),
            up: self.up,
            outcomes,
            reasons,
            submitted_at: self.submitted_at,
            first_event_at: self.first_event_at,
            last_event_at: self.last_event_at,
        };
        Event::of_completion(&self.key, completed)
    }
}

#[cfg(test)]
mod tests;
