//! How far a batch is, by the events of the log. Pure: no clock, no terminal, no broker.
//!
//! Memory grows by hashes of a job's id, some 40 bytes for each job at most, by the sizes of waves, and by nothing else that an event
//! says.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::rate::Rate;
use crate::cli::report::{Report, Row};
use crate::events::{Announced, Announcement, Batch, Data, Event, JobEvent, Wave, Waves};
use crate::text::Shown;

/// How long the log is quiet about a batch after its last job before the batch counts as done: a further announcement of it
/// may stand right behind.
const SETTLED: SignedDuration = SignedDuration::from_secs(1);

/// A batch that is watched, or the jobs of one submission.
#[derive(Debug)]
pub(in crate::cli) struct Progress {
    batch: String,
    /// `None`: all jobs of the batch count.
    submission: Option<Submission>,
    /// When the batch was announced for the first time, or before that when the watch began.
    began: Timestamp,
    announced: Announced,
    waves: Waves,
    reading: Reading,
    report: Report,
    /// Hashes of the ids of ended jobs. The hasher's keys are random, so that nobody can choose ids with equal hashes. Among a
    /// million ids, two have one by chance once in thirty million watches.
    seen: HashSet<u64>,
    /// The same of those that failed, and can be replayed.
    failures: HashMap<u64, Arc<Row>>,
    /// The same of jobs whose start was accepted, and which have not ended.
    accepted: HashSet<u64>,
    hasher: RandomState,
    rate: Rate,
    /// When the last event of the batch came, or the replay ended.
    heard: Timestamp,
}

/// What a command has submitted: its jobs count, of whichever batch, and no others.
#[derive(Debug)]
pub(in crate::cli) struct Submission {
    /// The ids of its jobs, sorted.
    pub(in crate::cli) jobs: Vec<u128>,
    /// Its last announcement, by id and time. No job was sent before that was confirmed, so that what stands before it in the
    /// log is of an earlier submission of the same jobs.
    pub(in crate::cli) announced: (String, Timestamp),
    /// The announcement has come.
    pub(in crate::cli) is_heard: bool,
}

impl Submission {
    fn has(&self, job_id: &str) -> bool {
        let id = Uuid::parse_str(job_id);
        self.is_heard && id.is_ok_and(|id| self.jobs.binary_search(&id.as_u128()).is_ok())
    }
}

/// Where in the log the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Among events that were there before.
    Replay,
    /// At its end.
    Live,
    /// Nowhere: RabbitMQ is away.
    Away,
}

/// All that a line of progress says but for the time: as long as this is the same, nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    reading: Reading,
    announced: Option<usize>,
    ended: usize,
    accepted: usize,
}

/// What an event was to the batch.
#[derive(Debug, PartialEq)]
pub(in crate::cli) enum Heard {
    /// Nothing to speak of.
    Nothing,
    /// It was announced: for the first time, again, or a further part of it. `forgotten` jobs are not counted any more: they
    /// ended before the first announcement that is read, or the whole batch had ended and begins anew.
    Announced { forgotten: usize },
    /// This instance did not come up.
    Down(String, Box<JobEvent>),
}

/// Why a watch is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// All announced jobs have ended.
    Done,
    /// No announcement came, and for long no job either.
    NotAnnounced,
}

impl Progress {
    pub(in crate::cli) fn new(batch: &str, now: Timestamp) -> Self {
        Self {
            batch: batch.to_owned(),
            submission: None,
            began: now,
            announced: Announced::default(),
            waves: Waves::default(),
            reading: Reading::Replay,
            report: Report::default(),
            seen: HashSet::new(),
            failures: HashMap::new(),
            accepted: HashSet::new(),
            hasher: RandomState::new(),
            rate: Rate::default(),
            heard: now,
        }
    }

    /// The jobs of a submission, which is shown as `batch`.
    pub(super) fn of_submission(batch: &str, submission: Submission, now: Timestamp) -> Self {
        Self { submission: Some(submission), ..Self::new(batch, now) }
    }

    /// Takes the next event of the log.
    pub(in crate::cli) fn hear(&mut self, event: Event, now: Timestamp) -> Heard {
        // In a replay the rate is that of then. A clock that is ahead of ours makes no event of the future.
        let at = if self.reading == Reading::Live { now } else { event.time.min(now) };
        match event.data {
            Data::BatchSubmitted(batch) if let Some(submission) = &mut self.submission => {
                let is_ours = batch.batch_id == self.batch && submission.announced == (event.id.clone(), event.time);
                if is_ours && !std::mem::replace(&mut submission.is_heard, true) {
                    self.waves.announce(&event.id, &batch.sizes(), event.time);
                }
                Heard::Nothing
            }
            Data::BatchSubmitted(batch) if batch.batch_id == self.batch => {
                self.heard = now;
                self.announce(&event.id, &batch, event.time, now)
            }
            Data::Job(job) if self.counts(&job) => {
                self.heard = now;
                self.job(*job, at)
            }
            _ => Heard::Nothing,
        }
    }

    fn counts(&self, job: &JobEvent) -> bool {
        match &self.submission {
            Some(submission) => submission.has(&job.job_id),
            None => job.batch_id.as_ref() == Some(&self.batch),
        }
    }

    fn announce(&mut self, id: &str, batch: &Batch, at: Timestamp, now: Timestamp) -> Heard {
        let (announced_before, size) = (self.announced.jobs(), batch.size);
        let announcement = self.announced.hear(id, size, at);
        if announcement != Announcement::Copy {
            self.waves.announce(id, &batch.sizes(), at);
        }
        match announcement {
            Announcement::Copy => return Heard::Nothing,
            Announcement::Again if announced_before.is_some_and(|jobs| self.ended() >= jobs) => {
                // Each job ends once more, with the outcome it had if the daemon remembers that.
                self.announced = Announced::default();
                self.announced.hear(id, size, at);
                self.waves = Waves::default();
                self.waves.announce(id, &batch.sizes(), at);
            }
            // `submit` publishes no job before its announcement is confirmed: jobs that ended are not among the announced ones.
            Announcement::Part if announced_before.is_none() => {}
            Announcement::Part | Announcement::Again | Announcement::Correction => {
                return Heard::Announced { forgotten: 0 };
            }
        }
        self.began = at.min(now);
        Heard::Announced { forgotten: self.forget() }
    }

    /// Forgets all jobs, and returns how many of them had ended.
    fn forget(&mut self) -> usize {
        self.seen.clear();
        self.failures.clear();
        self.accepted.clear();
        self.rate = Rate::default();
        std::mem::take(&mut self.report).jobs()
    }

    fn job(&mut self, job: JobEvent, at: Timestamp) -> Heard {
        let id = self.hasher.hash_one(("job", &job.job_id));
        if !job.is_final {
            if !self.seen.contains(&id) {
                self.accepted.insert(id);
            }
            return Heard::Nothing;
        }
        if !self.seen.insert(id) {
            return Heard::Nothing;
        }
        self.accepted.remove(&id);
        match &job.replay_of {
            None => self.waves.end(job.wave.unwrap_or(Wave::FIRST)),
            // Its end takes the place of the old one, if that counts here.
            Some(old) => match self.failures.remove(&self.hasher.hash_one(("job", old))) {
                Some(row) => self.report.take_back(old, &row),
                None => return Heard::Nothing,
            },
        }
        self.rate.add(at);
        let instance = job.instance_id.as_ref().map_or_else(|| job.job_id.clone(), ToString::to_string);
        let is_down = self.announced().is_some() && !job.is_up();
        let heard = if is_down { Heard::Down(instance.clone(), Box::new(job.clone())) } else { Heard::Nothing };
        let row = self.report.add(&instance, &job);
        if job.outcome == "failed" {
            self.failures.insert(id, row);
        }
        heard
    }

    /// The reading is somewhere else in the log now.
    pub(super) fn reads(&mut self, reading: Reading, now: Timestamp) {
        self.reading = reading;
        self.heard = now;
    }

    /// Whether the watch is over. A batch without an announcement is given up after `patience`, if there is any.
    pub(super) fn end(&self, now: Timestamp, patience: Option<SignedDuration>) -> Option<End> {
        if self.reading != Reading::Live {
            return None;
        }
        let quiet = now.duration_since(self.heard);
        match self.announced() {
            // Nothing is added to a submission.
            Some(jobs) => {
                (self.ended() >= jobs && (quiet >= SETTLED || self.submission.is_some())).then_some(End::Done)
            }
            None => patience.is_some_and(|patience| quiet >= patience).then_some(End::NotAnnounced),
        }
    }

    pub(super) fn batch(&self) -> &str {
        &self.batch
    }

    pub(in crate::cli) fn report(&self) -> &Report {
        &self.report
    }

    /// Jobs that have ended, each counted once.
    pub(in crate::cli) fn ended(&self) -> usize {
        self.report.jobs()
    }

    /// Jobs that were announced, in all parts of the batch together, or submitted.
    pub(in crate::cli) fn announced(&self) -> Option<usize> {
        self.submission.as_ref().map(|submission| submission.jobs.len()).or_else(|| self.announced.jobs())
    }

    /// Jobs whose start was accepted, and which have not ended.
    pub(in crate::cli) fn accepted(&self) -> usize {
        self.accepted.len()
    }

    pub(super) fn state(&self) -> State {
        let (reading, announced) = (self.reading, self.announced());
        State { reading, announced, ended: self.ended(), accepted: self.accepted() }
    }

    /// A line of progress, the most important first: a narrow terminal shows the beginning of it. `trouble`: why jobs wait.
    pub(super) fn line(&self, trouble: Option<&str>, now: Timestamp) -> String {
        let mut parts = Vec::new();
        match self.announced() {
            Some(jobs) => parts.push(format!("{} of {jobs} ended{}", self.ended(), self.outcomes())),
            None if self.ended() > 0 => {
                parts.push(format!("not announced yet, {} ended{}", self.ended(), self.outcomes()))
            }
            None if self.reading == Reading::Live => parts.push("not announced yet".to_owned()),
            None => {}
        }
        if let Some(wave) = self.waves.current()
            && let (place, count @ 2..) = self.waves.place(wave)
            && !self.waves.have_ended()
        {
            parts.push(format!("wave {place} of {count}"));
        }
        if !self.accepted.is_empty() {
            parts.push(format!("{} accepted, not seen running yet", self.accepted.len()));
        }
        parts.extend(trouble.map(str::to_owned));
        match self.reading {
            Reading::Replay => parts.push("reading the log".to_owned()),
            Reading::Away => parts.push("RabbitMQ is away".to_owned()),
            Reading::Live => parts.extend(self.pace(now)),
        }
        parts.push(length(now.duration_since(self.began).as_secs()));
        parts.join("; ")
    }

    /// `: 2 failed, 10 started`
    fn outcomes(&self) -> String {
        let outcomes = self.report.outcomes().into_iter();
        let told: Vec<String> = outcomes.map(|(outcome, count)| format!("{count} {}", Shown(outcome))).collect();
        if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) }
    }

    /// The rate, and the time that is left at this rate. `None` where no job ended lately.
    fn pace(&self, now: Timestamp) -> Option<String> {
        let rate = self.rate.per_second(now);
        if rate <= 0.0 {
            return None;
        }
        let told = match rate {
            ..1.0 => format!("{:.0}/min", rate * 60.0),
            ..10.0 => format!("{rate:.1}/s"),
            _ => format!("{rate:.0}/s"),
        };
        let left = self.announced().map_or(0, |jobs| jobs.saturating_sub(self.ended()));
        // The cast of a float saturates.
        let left = (left > 0).then(|| format!(", {} left", length((left as f64 / rate).ceil() as i64)));
        Some(told + &left.unwrap_or_default())
    }
}

/// `1m 12s`
fn length(seconds: i64) -> String {
    format!("{:#}", SignedDuration::from_secs(seconds.max(0)))
}

#[cfg(test)]
mod tests;
