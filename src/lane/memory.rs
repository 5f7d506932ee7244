//! What the lane remembers of the jobs it lately had in hand, so that two copies of one job never tell different tales.
//!
//! A crash between the confirm of a parked copy and the ack of its original leaves both. Each is a whole job: they come
//! back at the same moment, one can start the instance and the other meet a 409, or one give up and the other succeed.
//! So they take turns, the one that ends first is believed, and where one was called, no other is a clean first touch.
//!
//! This is memory and no more: a second crash in between, or another replica taking over, forgets it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::seal::Mark;
use crate::bce::InstanceId;
use crate::outcome::Outcome;

/// A job is remembered for this long at least, and for twice as long at most: a parked copy is back by then, unless the
/// API itself asked for more patience.
const LASTS: Duration = Duration::from_secs(10 * 60);
/// … unless more than this is to be remembered, two of it for each job: about 6 MB.
const LIMIT: usize = 100_000;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    pub(super) outcome: Outcome,
    pub(super) ambiguous: bool,
}

/// What a job is known by here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// Its id and its instance, since producers have been known to use one id for several machines. Others can use them
    /// as well: so it tells only that there was a call, after which more care is taken, and which job is parked for a second.
    name: u64,
    /// Its order: how that ended, only a copy of it may repeat.
    order: u64,
}

#[derive(Debug, Clone, Copy)]
enum Known {
    Called,
    /// The start was accepted at this instant, and was said to be. The job goes on.
    Started {
        since: Timestamp,
        ambiguous: bool,
    },
    Ended(End),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    names: RandomState,
    jobs: Mutex<Jobs>,
}

/// Two generations: when the younger one is old or large enough, the older one is dropped whole.
#[derive(Debug)]
struct Jobs {
    young: HashMap<u64, Known>,
    old: HashMap<u64, Known>,
    since: Instant,
    in_hand: HashSet<u64>,
    /// What is noted of these was decided, and is not known to have been said.
    unsaid: HashSet<u64>,
}

/// The right to be the one copy of a job that is in hand, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    memory: &'a Memory,
    key: Key,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut jobs = self.memory.jobs();
        jobs.in_hand.remove(&self.key.name);
        jobs.in_hand.remove(&self.key.order);
    }
}

impl Memory {
    pub(super) fn new() -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        let jobs = Jobs { young, old, since: Instant::now(), in_hand: HashSet::new(), unsaid: HashSet::new() };
        Self { names: RandomState::new(), jobs: Mutex::new(jobs) }
    }

    pub(super) fn key(&self, job_id: &str, instance: &InstanceId, order: &Mark) -> Key {
        Key { name: self.names.hash_one((job_id, instance)), order: self.names.hash_one(order) }
    }

    /// Takes the job in hand, unless a copy of it is.
    pub(super) fn turn(&self, key: Key) -> Option<Turn<'_>> {
        let mut jobs = self.jobs();
        let is_free = jobs.in_hand.insert(key.name);
        if is_free {
            jobs.in_hand.insert(key.order);
        }
        drop(jobs);
        // Not `then_some`: it would make a turn, and give it back, where there is none to have.
        is_free.then(|| Turn { memory: self, key })
    }

    /// How a copy of the job ended, as far as is remembered.
    pub(super) fn end(&self, key: Key) -> Option<End> {
        match self.jobs().get(key.order) {
            Some(Known::Ended(end)) => Some(end),
            Some(Known::Called | Known::Started { .. }) | None => None,
        }
    }

    /// When a copy of the job was said to have been started, and whether that was ambiguous, as far as is remembered.
    pub(super) fn started(&self, key: Key) -> Option<(Timestamp, bool)> {
        match self.jobs().get(key.order) {
            Some(Known::Started { since, ambiguous }) => Some((since, ambiguous)),
            Some(Known::Called | Known::Ended(_)) | None => None,
        }
    }

    /// Notes that the job is about to be said to have been started at `since`, and goes on.
    pub(super) fn start(&self, key: Key, since: Timestamp, ambiguous: bool) {
        let mut jobs = self.jobs();
        // Of two copies' events the first is believed, and so is an end.
        if jobs.get(key.order).is_none() {
            jobs.set(key.order, Known::Started { since, ambiguous });
            jobs.unsaid.insert(key.order);
        }
    }

    /// Whether a copy of this order ended, or was said to have been started.
    pub(super) fn knows(&self, order: &Mark) -> bool {
        self.jobs().get(self.names.hash_one(order)).is_some()
    }

    /// Whether the job, or another of its name, was called before.
    pub(super) fn is_known(&self, key: Key) -> bool {
        self.jobs().get(key.name).is_some()
    }

    /// Notes that the job is about to be called, and tells whether it, or another of its name, was before.
    pub(super) fn call(&self, key: Key) -> bool {
        let mut jobs = self.jobs();
        let known = jobs.get(key.name).is_some();
        if !known {
            jobs.set(key.name, Known::Called);
        }
        known
    }

    /// Takes back what [`Memory::call`] noted, where it knew of no call before: none was made after all.
    pub(super) fn not_called(&self, key: Key) {
        let mut jobs = self.jobs();
        if jobs.get(key.order).is_none() {
            jobs.remove(key.name);
        }
    }

    /// Notes how the job ends, and tells how it is to end: as the first copy did.
    pub(super) fn settle(&self, key: Key, end: End) -> End {
        let mut jobs = self.jobs();
        if let Some(Known::Ended(first)) = jobs.get(key.order) {
            return first;
        }
        jobs.set(key.order, Known::Ended(end));
        jobs.unsaid.insert(key.order);
        end
    }

    /// Notes that the broker has confirmed what was to be said of the job.
    pub(super) fn said(&self, key: Key) {
        self.jobs().unsaid.remove(&key.order);
    }

    /// Forgets what was decided and is not known to have been said: while the lane was elsewhere, its jobs may have gone
    /// on and ended otherwise. That they were called is not forgotten.
    pub(super) fn forget_unsaid(&self) {
        let mut jobs = self.jobs();
        for key in std::mem::take(&mut jobs.unsaid) {
            jobs.remove(key);
        }
    }

    /// Forgets how the order ended: it has come in a new message, and so it was given anew.
    pub(super) fn forget_end(&self, key: Key) {
        self.jobs().remove(key.order);
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Jobs {
    fn get(&self, key: u64) -> Option<Known> {
        self.young.get(&key).or_else(|| self.old.get(&key)).copied()
    }

    fn remove(&mut self, key: u64) {
        self.young.remove(&key);
        self.old.remove(&key);
    }

    fn set(&mut self, key: u64, known: Known) {
        if self.young.len() >= LIMIT / 2 || self.since.elapsed() >= LASTS {
            let oldest = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
            self.since = Instant::now();
            // Who is still in hand may wait for long, and comes again if it is dropped.
            let kept = oldest.into_iter().filter(|(key, _)| self.in_hand.contains(key) && !self.old.contains_key(key));
            self.young.extend(kept);
            let Self { young, old, unsaid, .. } = self;
            unsaid.retain(|key| young.contains_key(key) || old.contains_key(key));
        }
        self.young.insert(key, known);
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::Seals;
    use super::*;
    use crate::outcome::Reason;

    const STARTED: End = End { outcome: Outcome::Started, ambiguous: false };
    const FAILED: End = End { outcome: Outcome::Failed(Reason::Conflict), ambiguous: false };

    fn key(memory: &Memory, job: &str) -> Key {
        ordered(memory, job, "i-0000", "")
    }

    fn ordered(memory: &Memory, job: &str, instance: &str, body: &str) -> Key {
        let order = Seals::new("prod", "secret").orders(job, body.as_bytes(), "").0.mark();
        memory.key(job, &InstanceId::parse(instance).unwrap(), &order)
    }

    #[test]
    fn the_copy_that_ends_first_is_believed() {
        let memory = Memory::new();
        let job = key(&memory, "j");
        assert!(!memory.call(job), "the first touch");
        assert!(memory.call(job) && memory.end(job).is_none());
        assert_eq!(memory.settle(job, STARTED), STARTED);
        assert_eq!(memory.settle(job, FAILED), STARTED);
        assert_eq!((memory.end(job), memory.end(key(&memory, "k"))), (Some(STARTED), None));
        let another = ordered(&memory, "j", "i-0001", "other");
        assert!(memory.end(another).is_none() && !memory.is_known(another), "one id for two machines is two jobs");
    }

    #[test]
    fn another_order_under_a_jobs_id_and_instance_ends_nothing_but_itself() {
        let memory = Memory::new();
        let (job, forged) = (key(&memory, "j"), ordered(&memory, "j", "i-0000", "with a deadline gone by"));
        assert_eq!(memory.settle(forged, FAILED), FAILED);
        memory.start(forged, Timestamp::UNIX_EPOCH, true);
        assert_eq!((memory.end(job), memory.started(job), memory.is_known(job)), (None, None, false));
        memory.call(forged);
        assert!(memory.is_known(job), "but a 409 may be due to its call");
        assert_eq!(memory.settle(job, STARTED), STARTED);
        assert_eq!(memory.end(forged), Some(FAILED));
        let turn = memory.turn(forged);
        assert!(turn.is_some() && memory.turn(job).is_none(), "one is called at a time");
    }

    #[test]
    fn a_call_that_was_not_made_is_none_but_one_that_was_is() {
        let memory = Memory::new();
        let job = key(&memory, "j");
        memory.call(job);
        memory.not_called(job);
        assert!(!memory.is_known(job) && !memory.call(job), "the first touch");
        memory.settle(job, STARTED);
        memory.not_called(job);
        assert_eq!(memory.end(job), Some(STARTED));
    }

    #[test]
    fn copies_take_turns() {
        let memory = Memory::new();
        let (job, other) = (key(&memory, "j"), key(&memory, "k"));
        let turn = memory.turn(job);
        assert!(turn.is_some() && memory.turn(job).is_none() && memory.turn(other).is_some());
        drop(turn);
        assert!(memory.turn(job).is_some());
    }

    #[test]
    fn a_new_message_is_a_new_order_but_no_clean_first_touch() {
        let memory = Memory::new();
        let job = key(&memory, "j");
        memory.call(job);
        memory.settle(job, FAILED);
        memory.forget_end(job);
        assert!(memory.call(job));
        assert_eq!(memory.settle(job, STARTED), STARTED);
    }

    #[test]
    fn a_start_that_was_said_is_said_again_until_the_job_ends_or_is_ordered_anew() {
        let memory = Memory::new();
        let (job, since) = (key(&memory, "j"), Timestamp::UNIX_EPOCH);
        memory.call(job);
        memory.start(job, since, false);
        memory.start(job, Timestamp::MAX, true);
        assert_eq!((memory.started(job), memory.end(job)), (Some((since, false)), None));
        assert!(memory.call(job), "and it was called");
        assert_eq!(memory.started(job), Some((since, false)));
        memory.forget_end(job);
        assert_eq!(memory.started(job), None);
        memory.settle(job, FAILED);
        memory.start(job, since, false);
        assert_eq!((memory.started(job), memory.end(job)), (None, Some(FAILED)));
    }

    #[test]
    fn what_was_decided_and_not_said_is_forgotten_where_the_lane_begins_anew() {
        let memory = Memory::new();
        let [unsaid, said, gone_on] = ["unsaid", "said", "gone on"].map(|job| key(&memory, job));
        for job in [unsaid, said, gone_on] {
            memory.call(job);
        }
        memory.settle(unsaid, FAILED);
        memory.settle(said, FAILED);
        memory.said(said);
        memory.start(gone_on, Timestamp::UNIX_EPOCH, false);
        assert_eq!(memory.end(unsaid), Some(FAILED), "as long as the lane is ours");
        memory.forget_unsaid();
        assert_eq!((memory.end(unsaid), memory.end(said), memory.started(gone_on)), (None, Some(FAILED), None));
        assert!(memory.is_known(unsaid) && memory.is_known(gone_on), "no clean first touch");
        memory.start(unsaid, Timestamp::UNIX_EPOCH, true);
        assert_eq!(memory.started(unsaid), Some((Timestamp::UNIX_EPOCH, true)), "what the log says is believed");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_hand_is_remembered_however_long() {
        let memory = Memory::new();
        let (job, other) = (key(&memory, "j"), key(&memory, "k"));
        let turn = memory.turn(job);
        memory.settle(job, FAILED);
        for number in 0..5 {
            tokio::time::advance(LASTS).await;
            memory.settle(other, STARTED);
            memory.call(key(&memory, &number.to_string()));
        }
        assert_eq!(memory.end(job), Some(FAILED));
        drop(turn);
        for _ in 0..3 {
            tokio::time::advance(LASTS).await;
            memory.settle(key(&memory, "last"), STARTED);
            memory.forget_end(key(&memory, "last"));
        }
        assert_eq!(memory.end(job), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_ago_or_one_of_too_many_is_forgotten() {
        let memory = Memory::new();
        let (first, second) = (key(&memory, "first"), key(&memory, "second"));
        memory.settle(first, STARTED);
        tokio::time::advance(LASTS).await;
        memory.settle(second, STARTED);
        assert_eq!((memory.end(first), memory.end(second)), (Some(STARTED), Some(STARTED)));
        tokio::time::advance(LASTS).await;
        memory.call(key(&memory, "third"));
        assert_eq!((memory.end(first), memory.end(second)), (None, Some(STARTED)));
        for number in 0..LIMIT {
            memory.call(key(&memory, &number.to_string()));
        }
        assert_eq!(memory.end(second), None);
        let jobs = memory.jobs();
        assert!(jobs.young.len() + jobs.old.len() <= LIMIT);
    }
}
