//! One open batch: what was announced of it, what has ended, and which commands follow from that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use jiff::{SignedDuration, Timestamp};

use super::{Announcing, Name};
use crate::events::{
    Action, Announced, Announcement, Batch, BatchCompleted, Command, Data, Event, JobEvent, MaxFailures, Wave, Waves,
    batch_key,
};

/// Kinds of outcomes of one batch, and the length of a name of them. There are fewer, but for events that were forged.
pub(super) const MOST_KINDS: usize = 64;
const LONGEST_NAME: usize = 64;
/// What stands for a kind beyond those.
const OTHER: &str = "other";
/// What an announcement and the size of a wave in it weigh, against the some 20 bytes of an ended job: the latter has a map of its
/// own with the first announcement, some 350 bytes.
pub(super) const ANNOUNCEMENT: usize = 10;
pub(super) const SIZE: usize = 18;
/// The outcome of what a command cancelled.
pub(super) const CANCELLED: &str = "cancelled";
/// The outcome of jobs that can be replayed.
const FAILED: &str = "failed";

#[derive(Debug)]
pub(super) struct Open {
    /// Offset of the announcement that opened it.
    pub(super) offset: u64,
    /// Its [`batch_key`].
    key: String,
    submitted_at: Timestamp,
    announced: Announced,
    waves: Waves,
    /// Those that are no copies.
    pub(super) announcements: Vec<Announcing>,
    /// Sizes of waves in them.
    sizes: usize,
    /// Hashes of the ids of jobs whose end was heard, replays among them.
    heard_ends: HashSet<u64>,
    /// The kinds of those that failed.
    failures: HashMap<u64, usize>,
    /// Announced jobs that have ended.
    ended: usize,
    up: usize,
    failed: usize,
    max_failures: Option<MaxFailures>,
    /// How long each wave after the first waits once it may start.
    settle: SignedDuration,
    /// When its machines are to be up.
    ready_by: Option<Timestamp>,
    /// How many were.
    in_time: usize,
    /// The command to cancel the rest, until it is given.
    cancel: Option<Event>,
    cancelled: Cancelled,
    /// The commands to start waves, by the second of the announcement whose jobs they are for: of those that were not cancelled.
    started: BTreeMap<i64, Started>,
    /// Since when the wave is the one that may start.
    current: Option<(Wave, Timestamp)>,
    kinds: Vec<Kind>,
    first_event_at: Option<Timestamp>,
    last_event_at: Option<Timestamp>,
    pub(super) heard: Timestamp,
}

/// What was cancelled of a batch: all that was announced before.
#[derive(Debug, Default)]
struct Cancelled {
    /// How often.
    times: usize,
    /// Nothing was announced since.
    is_whole: bool,
    /// Jobs that had failed until the first announcement since: they do not count for the next time.
    failed: usize,
}

/// How far the jobs of an announcement were told to start.
#[derive(Debug)]
struct Started {
    announced_at: Timestamp,
    wave: Option<Wave>,
}

#[derive(Debug)]
struct Kind {
    outcome: String,
    reason: String,
    jobs: usize,
}

impl Open {
    pub(super) fn new(offset: u64, name: &Name, announcement: &str, at: Timestamp, heard: Timestamp) -> Self {
        Self {
            offset,
            key: batch_key(&name.lane, &name.batch, announcement, at),
            submitted_at: at,
            announced: Announced::default(),
            waves: Waves::default(),
            announcements: Vec::new(),
            sizes: 0,
            heard_ends: HashSet::new(),
            failures: HashMap::new(),
            ended: 0,
            up: 0,
            failed: 0,
            max_failures: None,
            settle: SignedDuration::ZERO,
            ready_by: None,
            in_time: 0,
            cancel: None,
            cancelled: Cancelled::default(),
            started: BTreeMap::new(),
            current: None,
            kinds: Vec::new(),
            first_event_at: None,
            last_event_at: None,
            heard,
        }
    }

    /// What it takes memory for, as the weight of so many ended jobs.
    pub(super) fn remembered(&self) -> usize {
        let announced = self.announcements.len() * ANNOUNCEMENT + self.sizes * SIZE;
        announced + self.heard_ends.len() + self.failures.len()
    }

    /// Takes an announcement that was made `at` a time, with its `id`.
    pub(super) fn announce(&mut self, id: &str, announcing: Announcing, batch: &Batch) {
        let at = announcing.at;
        self.max_failures = batch.max_failures.or(self.max_failures);
        self.settle = batch.settle_seconds.map_or(self.settle, |seconds| SignedDuration::from_secs(seconds.into()));
        self.ready_by = batch.ready_by.or(self.ready_by);
        let heard = self.announced.hear(id, batch.size, at);
        if heard == Announcement::Copy {
            return;
        }
        let sizes = batch.sizes();
        self.waves.announce(id, &sizes, at);
        self.announcements.push(announcing);
        self.sizes += sizes.len();
        if heard == Announcement::Correction {
            return;
        }
        if self.cancelled.is_whole {
            self.cancelled.is_whole = false;
            self.cancelled.failed = self.failed;
        }
        if sizes.keys().any(|wave| *wave > Wave::FIRST) {
            self.started.entry(at.as_second()).or_insert(Started { announced_at: at, wave: None });
        }
    }

    /// Takes an event of a job.
    pub(super) fn job(&mut self, job: JobEvent, at: Timestamp, hasher: &RandomState) {
        self.first_event_at = Some(self.first_event_at.map_or(at, |first| first.min(at)));
        self.last_event_at = Some(self.last_event_at.map_or(at, |last| last.max(at)));
        let id = hasher.hash_one(&job.job_id);
        if !job.is_final || !self.heard_ends.insert(id) {
            return;
        }
        match job.replay_of.as_ref().map(|old| self.failures.remove(&hasher.hash_one(old))) {
            None => {
                self.ended += 1;
                self.waves.end(job.wave.unwrap_or(Wave::FIRST));
            }
            // Its end takes the place of the old one.
            Some(Some(kind)) => {
                self.kinds[kind].jobs -= 1;
                self.failed -= 1;
            }
            // Of a job whose end does not count here.
            Some(None) => return,
        }
        let is_up = job.is_up();
        let can_be_replayed = job.outcome == FAILED;
        self.up += usize::from(is_up);
        self.in_time += usize::from(is_up && self.ready_by.is_some_and(|ready_by| at <= ready_by));
        self.failed += usize::from(!is_up && job.outcome != CANCELLED);
        let kind = self.count(job.outcome, job.reason.unwrap_or_default());
        if can_be_replayed {
            self.failures.insert(id, kind);
        }
    }

    /// Counts a job, and returns the index of its kind.
    fn count(&mut self, outcome: String, reason: String) -> usize {
        let index =
            |kinds: &[Kind], [outcome, reason]: [&str; 2]| kinds.iter().position(|kind| kind.is(outcome, reason));
        let is_usual = outcome.len() <= LONGEST_NAME && reason.len() <= LONGEST_NAME;
        let known = index(&self.kinds, [&outcome, &reason]);
        let index = match known {
            Some(index) => index,
            None => {
                let is_kept = is_usual && self.kinds.len() < MOST_KINDS;
                let [outcome, reason] = if is_kept { [outcome, reason] } else { [OTHER; 2].map(str::to_owned) };
                index(&self.kinds, [&outcome, &reason]).unwrap_or_else(|| {
                    self.kinds.push(Kind { outcome, reason, jobs: 0 });
                    self.kinds.len() - 1
                })
            }
        };
        self.kinds[index].jobs += 1;
        index
    }

    /// Whether as many jobs have ended as were announced, in each wave.
    pub(super) fn is_done(&self) -> bool {
        self.announced.jobs().is_some_and(|jobs| self.ended >= jobs) && self.waves.have_ended()
    }

    /// Draws what follows from what was heard `at` a time. Returns whether commands may be due.
    pub(super) fn conclude(&mut self, name: &Name, at: Timestamp) -> bool {
        let most = self.max_failures.map(|most| (most, most.of(self.announced.jobs().unwrap_or_default())));
        if let Some((max_failures, most)) = most
            && self.failed_since() > most
            && !self.cancelled.is_whole
            && !self.is_done()
        {
            self.cancel = Some(self.too_many_failures(name, max_failures, at));
            self.cancelled.times += 1;
            self.cancelled.is_whole = true;
            self.started.clear();
        }
        let current = self.waves.current();
        if self.current.map(|(wave, _)| wave) != current {
            self.current = current.map(|wave| (wave, at));
        }
        self.cancel.is_some() || !self.started.is_empty()
    }

    /// The next command that is due. Copies of it have the same id.
    pub(super) fn pop_command(&mut self, name: &Name) -> Option<Event> {
        self.cancel.take().or_else(|| self.start_command(name))
    }

    /// To start the wave that may start, for the jobs of an announcement that were not told so.
    pub(super) fn start_command(&mut self, Name { lane, batch }: &Name) -> Option<Event> {
        let (wave, since) = self.current?;
        let (second, started) = self.started.iter_mut().find(|(_, started)| started.wave < Some(wave))?;
        started.wave = Some(wave);
        let announced_at = started.announced_at;
        let since = since.max(announced_at);
        let is_first = self.waves.place(wave).0 <= 1;
        let start = since.saturating_add(self.settle).unwrap_or(Timestamp::MAX);
        let not_before = Some(start).filter(|_| !is_first && !self.settle.is_zero());
        let action = Action::StartWave {
            batch_id: batch.clone(),
            lane: lane.clone(),
            wave,
            announced_at,
            not_before,
            waiting: self.waves.jobs_after(wave),
        };
        let id = format!("{}/{second}/wave/{wave}", self.key);
        Some(command(action, None, id, since))
    }

    /// Jobs that have failed of what was not cancelled before.
    fn failed_since(&self) -> usize {
        self.failed.saturating_sub(self.cancelled.failed)
    }

    /// To cancel the rest, as too many jobs have failed.
    fn too_many_failures(&self, name: &Name, max_failures: MaxFailures, at: Timestamp) -> Event {
        let failed = match self.failed_since() {
            1 => "1 job has failed".to_owned(),
            failed => format!("{failed} jobs have failed"),
        };
        let of = match max_failures {
            MaxFailures::Jobs(_) => String::new(),
            MaxFailures::Percent(_) => format!(" of {} jobs", self.announced.jobs().unwrap_or_default()),
        };
        self.cancel_command(name, format!("{failed}, and max_failures is {max_failures}{of}"), at)
    }

    /// To cancel the rest of a batch that is not followed any more, as its later waves would wait without end. `None`: there are none,
    /// or they were told to start.
    pub(super) fn give_up(&self, name: &Name, why: &str) -> Option<Event> {
        let is_waiting = |started: &Started| started.wave.is_none_or(|wave| self.waves.jobs_after(wave) > 0);
        let reason = || format!("the batch is given up, as {why}, and its later waves have not started");
        // What is announced after that is another batch.
        self.started.values().any(is_waiting).then(|| self.cancel_command(name, reason(), self.heard))
    }

    /// To cancel the rest: jobs that were submitted up to `at`.
    fn cancel_command(&self, Name { lane, batch }: &Name, reason: String, at: Timestamp) -> Event {
        let again = match self.cancelled.times {
            0 => String::new(),
            times => format!("/{times}"),
        };
        let action = Action::CancelBatch { batch_id: batch.clone(), lane: Some(lane.clone()) };
        command(action, Some(reason), format!("{}/cancel{again}", self.key), at)
    }

    pub(super) fn completed(self, lane: String, batch_id: String) -> Event {
        let (mut outcomes, mut reasons) = (BTreeMap::new(), BTreeMap::new());
        for Kind { outcome, reason, jobs } in self.kinds.into_iter().filter(|kind| kind.jobs > 0) {
            *outcomes.entry(outcome).or_default() += jobs;
            if !reason.is_empty() {
                *reasons.entry(reason).or_default() += jobs;
            }
        }
        let completed = BatchCompleted {
            batch_id,
            lane,
            size: self.announced.jobs().unwrap_or_default(),
            ended: self.ended,
            up: self.up,
            outcomes,
            reasons,
            submitted_at: self.submitted_at,
            first_event_at: self.first_event_at,
            last_event_at: self.last_event_at,
            ready_by: self.ready_by,
            up_in_time: self.ready_by.map(|_| self.in_time),
        };
        Event::of_completion(&self.key, completed)
    }
}

impl Kind {
    fn is(&self, outcome: &str, reason: &str) -> bool {
        self.outcome == outcome && self.reason == reason
    }
}

fn command(action: Action, reason: Option<String>, id: String, at: Timestamp) -> Event {
    let command = Data::Command(Command { action, by: "reveille scheduler".to_owned(), reason });
    Event { id, ..Event::of_scheduler(command, at) }
}
