//! Which announced batches are done, by the events of the log. Pure: no clock, no broker.
//!
//! A batch of a lane is open from its first announcement on, until as many distinct jobs of it have ended as were announced; then
//! its completion is an event. Announcements that come while it is open add to it, as [`Announced`] says. One that comes later
//! opens a batch of its own under the same name, and so do the jobs that end from then on belong to that one. All this follows from
//! the order of the log and from nothing else, so each replica that reads the log comes to the same events.
//!
//! A replay of a job that failed is no further job of the batch: its end takes the place of that of the old one.
//!
//! **Commands.** An announcement can say how many jobs may fail. Where more of them do while the batch is open, a command to cancel
//! the rest is due, once: jobs that failed, expired or were rejected count, and not those that were cancelled. The latest
//! announcement that says a number counts, and a part is of all that are announced then. What is announced after that is not
//! cancelled: its waves start, and the jobs that fail from then on count for it.
//!
//! Where an announcement has waves, a command to start the first one is due at once, and for each later one when all jobs of those
//! before have ended, unless it was cancelled. Each announcement of a batch has commands of its own: a name comes again.
//!
//! **Memory.** A hash for each ended job of an open batch, some 20 bytes, as much again for one that failed, and announcements by
//! their weight: about 80 MB for [`MOST_REMEMBERED`]. Anybody who may publish outcomes can announce batches that never end. So the
//! batch that was opened first is forgotten where there are too many of them, or they weigh too much; and so is one of which nothing
//! was heard for as long as the log keeps an event. Where jobs of it wait for their waves, a command to cancel them is due.

mod open;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};

use self::open::Open;
use crate::config::LaneName;
use crate::events::{Batch, Data, Event, JobEvent};
use crate::job::BATCH_ID_LIMIT;

/// Ended jobs of all open batches together, and announcements by their weight.
const MOST_REMEMBERED: usize = 4_000_000;
/// Open batches.
const MOST_OPEN: usize = 10_000;
/// Announcements of completed batches, of which copies may follow.
const MOST_CLOSED: usize = 10_000;
/// Commands of batches that are not open any more, and are not given yet. Beyond these none are kept.
const MOST_LAST: usize = 10_000;
/// As the log keeps events.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_hours(7 * 24);

/// The open batches.
#[derive(Debug)]
pub(super) struct Batches {
    open: HashMap<Name, Open>,
    /// By the offset of the announcement that opened it.
    order: BTreeMap<u64, Name>,
    /// Jobs and announcements of all of them, by weight.
    remembered: usize,
    /// Open batches that may have commands to be given.
    due: BTreeSet<Name>,
    /// Commands of batches that are not open any more.
    last: VecDeque<(Name, Event)>,
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
            due: BTreeSet::new(),
            last: VecDeque::new(),
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
            self.give_up(name, "nothing was heard of it for seven days");
        }
        silent
    }

    fn announce(&mut self, offset: u64, id: String, at: Timestamp, batch: Batch, now: Timestamp) -> Option<Heard> {
        // No job can have such a batch or such a lane.
        if batch.batch_id.len() > BATCH_ID_LIMIT || LaneName::parse(&batch.lane).is_none() {
            return None;
        }
        let name = Name { lane: batch.lane.clone(), batch: batch.batch_id.clone() };
        let announcing = Announcing { id: self.hasher.hash_one((&name, &id)), size: batch.size, at };
        if !self.open.contains_key(&name) && self.is_late(announcing) {
            return None;
        }
        let open = match self.open.get_mut(&name) {
            Some(open) => open,
            None => {
                self.order.insert(offset, name.clone());
                self.open.entry(name.clone()).or_insert(Open::new(offset, &name, &id, at, at.min(now)))
            }
        };
        open.heard = open.heard.max(at.min(now));
        let before = open.remembered();
        open.announce(&id, announcing, &batch);
        self.remembered += open.remembered() - before;
        self.conclude(&name, at.min(now))
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
        let before = open.remembered();
        open.job(job, at, &self.hasher);
        // A replay that is heard takes the place of a failure.
        self.remembered = self.remembered + open.remembered() - before;
        self.conclude(&name, at.min(now))
    }

    /// What follows for a batch of which something was heard `at` a time.
    fn conclude(&mut self, name: &Name, at: Timestamp) -> Option<Heard> {
        let open = self.open.get_mut(name)?;
        let may_be_due = open.conclude(name, at);
        if !open.is_done() {
            if may_be_due {
                self.due.insert(name.clone());
            }
            return None;
        }
        let mut open = self.close(name)?;
        // Its jobs have ended, but copies of them may wait for their wave.
        while self.last.len() < MOST_LAST
            && let Some(command) = open.start_command(name)
        {
            self.last.push_back((name.clone(), command));
        }
        let Name { lane, batch } = name.clone();
        Some(Heard::Completed(Box::new(open.completed(lane, batch))))
    }

    /// The next command to be given: to start a wave, or to cancel the rest of a batch of which too many jobs have failed.
    pub(super) fn pop_command(&mut self) -> Option<(Name, Event)> {
        while let Some(name) = self.due.first() {
            if let Some(command) = self.open.get_mut(name).and_then(|open| open.pop_command(name)) {
                return Some((name.clone(), command));
            }
            self.due.pop_first();
        }
        self.last.pop_front()
    }

    fn close(&mut self, name: &Name) -> Option<Open> {
        let open = self.open.remove(name)?;
        self.order.remove(&open.offset);
        self.due.remove(name);
        self.remembered -= open.remembered();
        self.closed.extend(&open.announcements);
        let surplus = self.closed.len().saturating_sub(MOST_CLOSED);
        self.closed.drain(..surplus);
        Some(open)
    }

    /// Forgets a batch that is not done, and has jobs end that would wait for a wave without end.
    fn give_up(&mut self, name: &Name, why: &str) {
        if let Some(command) = self.close(name).and_then(|open| open.give_up(name, why))
            && self.last.len() < MOST_LAST
        {
            self.last.push_back((name.clone(), command));
        }
    }

    /// Forgets the batches that were opened first, while there is too much to remember.
    fn forget_surplus(&mut self) -> Vec<Heard> {
        let mut forgotten = Vec::new();
        while self.open.len() > self.limits.open || self.remembered > self.limits.remembered {
            let Some(name) = self.order.first_key_value().map(|(_, name)| name.clone()) else { break };
            self.give_up(&name, "too many batches are open");
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

#[cfg(test)]
mod tests;
