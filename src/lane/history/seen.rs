//! Remembers the jobs that the lane lately had in hand, so that two copies of a job never publish different outcomes.
//!
//! A crash between the confirm of a parked copy and the ack of its original leaves both. Each is a whole job, and both
//! return together: one can start the instance and the other meet a 409, or one give up and the other succeed. So one
//! at a time is in hand, the first end stands, and once one was called no other is a clean first touch.
//!
//! It is in memory only: a second crash in between, or a take-over by another replica, loses it.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Mark;
use crate::bce::InstanceId;
use crate::events::Outcome;

/// A job is remembered for this long at least and twice as long at most: a parked copy is back by then, unless the API
/// itself asked for a longer wait.
const LASTS: Duration = Duration::from_secs(10 * 60);
/// … unless there are more entries than this, two per job: about 6 MB.
const LIMIT: usize = 100_000;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lane) struct End {
    pub(in crate::lane) outcome: Outcome,
    pub(in crate::lane) ambiguous: bool,
}

/// The identity of a job in this history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::lane) struct Key {
    /// Its id and instance, since some producers use one id for several machines. Other producers can use both too, so
    /// it only says that a call was made, which asks for more care, and which job is parked for a second.
    name: u64,
    /// Its order: only a copy of the same order repeats how it ended.
    order: u64,
}

#[derive(Debug, Clone, Copy)]
enum Known {
    Called,
    /// The start was accepted at this instant, and published. The job goes on.
    Started {
        since: Timestamp,
        ambiguous: bool,
    },
    Ended(End),
}

/// See the module.
#[derive(Debug)]
pub(in crate::lane) struct Seen {
    names: RandomState,
    generations: Mutex<Generations>,
}

/// Two generations: when the younger one is old or large enough, the older one is dropped whole.
#[derive(Debug)]
struct Generations {
    young: HashMap<u64, Known>,
    old: HashMap<u64, Known>,
    since: Instant,
    in_hand: HashSet<u64>,
    /// Decided, but the publication is not confirmed.
    unpublished: HashSet<u64>,
}

/// Exclusive access to a job, for one of its copies; released on drop.
#[derive(Debug)]
pub(in crate::lane) struct Claim<'a> {
    seen: &'a Seen,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut generations = self.seen.generations();
        generations.in_hand.remove(&self.key.name);
        generations.in_hand.remove(&self.key.order);
    }
}

impl Seen {
    pub(in crate::lane) fn new() -> Self {
        let (young, old) = (HashMap::new(), HashMap::new());
        let generations =
            Generations { young, old, since: Instant::now(), in_hand: HashSet::new(), unpublished: HashSet::new() };
        Self { names: RandomState::new(), generations: Mutex::new(generations) }
    }

    pub(in crate::lane) fn key(&self, job_id: &str, instance: &InstanceId, order: &Mark) -> Key {
        Key { name: self.names.hash_one((job_id, instance)), order: self.names.hash_one(order) }
    }

    /// Claims the job, unless a copy of it is in hand.
    pub(in crate::lane) fn claim(&self, key: Key) -> Option<Claim<'_>> {
        let mut generations = self.generations();
        let is_free = generations.in_hand.insert(key.name);
        if is_free {
            generations.in_hand.insert(key.order);
        }
        drop(generations);
        // Not `then_some`: it would create and drop a claim even where there is none to have.
        is_free.then(|| Claim { seen: self, key })
    }

    /// How a copy of the job ended, if remembered.
    pub(in crate::lane) fn end(&self, key: Key) -> Option<End> {
        match self.generations().get(key.order) {
            Some(Known::Ended(end)) => Some(end),
            Some(Known::Called | Known::Started { .. }) | None => None,
        }
    }

    /// When a copy of the job was published as started, and whether as ambiguous, if remembered.
    pub(in crate::lane) fn started(&self, key: Key) -> Option<(Timestamp, bool)> {
        match self.generations().get(key.order) {
            Some(Known::Started { since, ambiguous }) => Some((since, ambiguous)),
            Some(Known::Called | Known::Ended(_)) | None => None,
        }
    }

    /// Records that the job is about to be published as started at `since`, and goes on.
    pub(in crate::lane) fn record_started(&self, key: Key, since: Timestamp, ambiguous: bool) {
        let mut generations = self.generations();
        // Of two copies the first event stands, and so does an end.
        if generations.get(key.order).is_none() {
            generations.set(key.order, Known::Started { since, ambiguous });
            generations.unpublished.insert(key.order);
        }
    }

    /// Whether a copy of this order ended, or was published as started.
    pub(in crate::lane) fn knows(&self, order: &Mark) -> bool {
        self.generations().get(self.names.hash_one(order)).is_some()
    }

    /// Whether the job, or another with its id and instance, was called before.
    pub(in crate::lane) fn is_known(&self, key: Key) -> bool {
        self.generations().get(key.name).is_some()
    }

    /// Records that the job is about to be called. Returns whether it, or another with its id and instance, was before.
    pub(in crate::lane) fn record_call(&self, key: Key) -> bool {
        let mut generations = self.generations();
        let known = generations.get(key.name).is_some();
        if !known {
            generations.set(key.name, Known::Called);
        }
        known
    }

    /// Undoes [`Seen::record_call`], if that found no earlier call: none was made after all.
    pub(in crate::lane) fn undo_call(&self, key: Key) {
        let mut generations = self.generations();
        if generations.get(key.order).is_none() {
            generations.remove(key.name);
        }
    }

    /// Records how the job ends. Returns how it is to end: as its first copy did.
    pub(in crate::lane) fn record_end(&self, key: Key, end: End) -> End {
        let mut generations = self.generations();
        if let Some(Known::Ended(first)) = generations.get(key.order) {
            return first;
        }
        generations.set(key.order, Known::Ended(end));
        generations.unpublished.insert(key.order);
        end
    }

    /// Records that the broker has confirmed the job's event.
    pub(in crate::lane) fn record_published(&self, key: Key) {
        self.generations().unpublished.remove(&key.order);
    }

    /// Whether an end of the job is remembered whose event the broker has confirmed.
    pub(in crate::lane) fn is_end_published(&self, key: Key) -> bool {
        let generations = self.generations();
        matches!(generations.get(key.order), Some(Known::Ended(_))) && !generations.unpublished.contains(&key.order)
    }

    /// Forgets decisions whose publication is not confirmed: while another replica held the lane, their jobs may have
    /// ended otherwise. That they were called is not forgotten.
    pub(in crate::lane) fn forget_unpublished(&self) {
        let mut generations = self.generations();
        for key in std::mem::take(&mut generations.unpublished) {
            generations.remove(key);
        }
    }

    /// Forgets how the order ended: it came in a new message, so it was given anew.
    pub(in crate::lane) fn forget_end(&self, key: Key) {
        self.generations().remove(key.order);
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
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
            // A job in hand may wait for long, and is redelivered if it is dropped.
            let kept = oldest.into_iter().filter(|(key, _)| self.in_hand.contains(key) && !self.old.contains_key(key));
            self.young.extend(kept);
            let Self { young, old, unpublished, .. } = self;
            unpublished.retain(|key| young.contains_key(key) || old.contains_key(key));
        }
        self.young.insert(key, known);
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::Seals;
    use super::*;
    use crate::events::Reason;

    const STARTED: End = End { outcome: Outcome::Started, ambiguous: false };
    const FAILED: End = End { outcome: Outcome::Failed(Reason::Conflict), ambiguous: false };

    fn key(seen: &Seen, job: &str) -> Key {
        ordered(seen, job, "i-0000", "")
    }

    fn ordered(seen: &Seen, job: &str, instance: &str, body: &str) -> Key {
        let order = Seals::new("prod", "secret").orders(job, body.as_bytes(), "").0.mark();
        seen.key(job, &InstanceId::parse(instance).unwrap(), &order)
    }

    #[test]
    fn the_copy_that_ends_first_is_believed() {
        let seen = Seen::new();
        let job = key(&seen, "j");
        assert!(!seen.record_call(job), "the first touch");
        assert!(seen.record_call(job) && seen.end(job).is_none());
        assert_eq!(seen.record_end(job, STARTED), STARTED);
        assert_eq!(seen.record_end(job, FAILED), STARTED);
        assert_eq!((seen.end(job), seen.end(key(&seen, "k"))), (Some(STARTED), None));
        let another = ordered(&seen, "j", "i-0001", "other");
        assert!(seen.end(another).is_none() && !seen.is_known(another), "one id for two machines is two jobs");
    }

    #[test]
    fn another_order_under_a_jobs_id_and_instance_ends_nothing_but_itself() {
        let seen = Seen::new();
        let (job, forged) = (key(&seen, "j"), ordered(&seen, "j", "i-0000", "with a deadline gone by"));
        assert_eq!(seen.record_end(forged, FAILED), FAILED);
        seen.record_started(forged, Timestamp::UNIX_EPOCH, true);
        assert_eq!((seen.end(job), seen.started(job), seen.is_known(job)), (None, None, false));
        seen.record_call(forged);
        assert!(seen.is_known(job), "but a 409 may be due to its call");
        assert_eq!(seen.record_end(job, STARTED), STARTED);
        assert_eq!(seen.end(forged), Some(FAILED));
        let claim = seen.claim(forged);
        assert!(claim.is_some() && seen.claim(job).is_none(), "one is called at a time");
    }

    #[test]
    fn a_call_that_was_not_made_is_none_but_one_that_was_is() {
        let seen = Seen::new();
        let job = key(&seen, "j");
        seen.record_call(job);
        seen.undo_call(job);
        assert!(!seen.is_known(job) && !seen.record_call(job), "the first touch");
        seen.record_end(job, STARTED);
        seen.undo_call(job);
        assert_eq!(seen.end(job), Some(STARTED));
    }

    #[test]
    fn only_one_copy_at_a_time_has_the_claim() {
        let seen = Seen::new();
        let (job, other) = (key(&seen, "j"), key(&seen, "k"));
        let claim = seen.claim(job);
        assert!(claim.is_some() && seen.claim(job).is_none() && seen.claim(other).is_some());
        drop(claim);
        assert!(seen.claim(job).is_some());
    }

    #[test]
    fn a_new_message_is_a_new_order_but_no_clean_first_touch() {
        let seen = Seen::new();
        let job = key(&seen, "j");
        seen.record_call(job);
        seen.record_end(job, FAILED);
        seen.forget_end(job);
        assert!(seen.record_call(job));
        assert_eq!(seen.record_end(job, STARTED), STARTED);
    }

    #[test]
    fn a_start_that_was_said_is_said_again_until_the_job_ends_or_is_ordered_anew() {
        let seen = Seen::new();
        let (job, since) = (key(&seen, "j"), Timestamp::UNIX_EPOCH);
        seen.record_call(job);
        seen.record_started(job, since, false);
        seen.record_started(job, Timestamp::MAX, true);
        assert_eq!((seen.started(job), seen.end(job)), (Some((since, false)), None));
        assert!(seen.record_call(job), "and it was called");
        assert_eq!(seen.started(job), Some((since, false)));
        seen.forget_end(job);
        assert_eq!(seen.started(job), None);
        seen.record_end(job, FAILED);
        seen.record_started(job, since, false);
        assert_eq!((seen.started(job), seen.end(job)), (None, Some(FAILED)));
    }

    #[test]
    fn what_was_decided_and_not_said_is_forgotten_where_the_lane_begins_anew() {
        let seen = Seen::new();
        let [unpublished, said, gone_on] = ["unpublished", "said", "gone on"].map(|job| key(&seen, job));
        for job in [unpublished, said, gone_on] {
            seen.record_call(job);
        }
        seen.record_end(unpublished, FAILED);
        seen.record_end(said, FAILED);
        seen.record_published(said);
        seen.record_started(gone_on, Timestamp::UNIX_EPOCH, false);
        assert_eq!(seen.end(unpublished), Some(FAILED), "as long as the lane is ours");
        let is_published = [unpublished, said, gone_on].map(|job| seen.is_end_published(job));
        assert_eq!(is_published, [false, true, false]);
        seen.forget_unpublished();
        assert_eq!((seen.end(unpublished), seen.end(said), seen.started(gone_on)), (None, Some(FAILED), None));
        assert!(seen.is_known(unpublished) && seen.is_known(gone_on), "no clean first touch");
        seen.record_started(unpublished, Timestamp::UNIX_EPOCH, true);
        assert_eq!(seen.started(unpublished), Some((Timestamp::UNIX_EPOCH, true)), "what the log says is believed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_in_hand_is_remembered_however_long() {
        let seen = Seen::new();
        let (job, other) = (key(&seen, "j"), key(&seen, "k"));
        let claim = seen.claim(job);
        seen.record_end(job, FAILED);
        for number in 0..5 {
            tokio::time::advance(LASTS).await;
            seen.record_end(other, STARTED);
            seen.record_call(key(&seen, &number.to_string()));
        }
        assert_eq!(seen.end(job), Some(FAILED));
        drop(claim);
        for _ in 0..3 {
            tokio::time::advance(LASTS).await;
            seen.record_end(key(&seen, "last"), STARTED);
            seen.forget_end(key(&seen, "last"));
        }
        assert_eq!(seen.end(job), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_long_ago_or_one_of_too_many_is_forgotten() {
        let seen = Seen::new();
        let (first, second) = (key(&seen, "first"), key(&seen, "second"));
        seen.record_end(first, STARTED);
        tokio::time::advance(LASTS).await;
        seen.record_end(second, STARTED);
        assert_eq!((seen.end(first), seen.end(second)), (Some(STARTED), Some(STARTED)));
        tokio::time::advance(LASTS).await;
        seen.record_call(key(&seen, "third"));
        assert_eq!((seen.end(first), seen.end(second)), (None, Some(STARTED)));
        for number in 0..LIMIT {
            seen.record_call(key(&seen, &number.to_string()));
        }
        assert_eq!(seen.end(second), None);
        let generations = seen.generations();
        assert!(generations.young.len() + generations.old.len() <= LIMIT);
    }
}
