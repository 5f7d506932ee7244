//! What jobs say that do not say it themselves, and whether the times of a job can be meant.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::job::{self, Confirm, Conflict, Job, Priority};

/// How far ahead jobs with waves may start: the scheduler gives up a batch of which it hears nothing for seven days.
const FOLLOWED: SignedDuration = SignedDuration::from_hours(6 * 24);

/// The furthest that a time is ahead, unless it means never.
const FURTHEST: SignedDuration = SignedDuration::from_hours(366 * 24);

/// What jobs say that do not say it themselves.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// The batch of jobs that name no other.
    pub batch: String,
    /// When jobs start that do not say.
    pub not_before: Option<Timestamp>,
    /// The deadline of jobs that do not say, if it counts from now: the next command has another one.
    pub moving_deadline: Option<Timestamp>,
    /// The deadline of jobs that do not say.
    pub deadline: Option<Timestamp>,
    /// As jobs have it that do not say.
    pub priority: Option<Priority>,
    /// As jobs have it that do not say.
    pub confirm: Option<Confirm>,
    /// As jobs have it that do not say.
    pub conflict: Option<Conflict>,
    /// Jobs have waves by their place.
    pub ramp: bool,
    /// Of jobs that have none of the name.
    pub labels: BTreeMap<String, String>,
    /// When the jobs were named: times before it are past.
    pub now: Timestamp,
}

impl Defaults {
    /// Nothing but the batch. The times of jobs are checked at `now`.
    pub fn new(batch: String, now: Timestamp) -> Self {
        let (not_before, moving_deadline, deadline, priority, confirm, conflict) = Default::default();
        let (ramp, labels) = (false, BTreeMap::new());
        Self { batch, not_before, moving_deadline, deadline, priority, confirm, conflict, ramp, labels, now }
    }

    /// Fills in what `job` does not say, and checks the result.
    ///
    /// # Errors
    /// What is wrong with the job, and the remedy.
    pub fn complete(&self, mut job: Job) -> Result<Job, String> {
        job.batch_id.get_or_insert_with(|| self.batch.clone());
        job.priority = job.priority.or(self.priority);
        job.confirm = job.confirm.or(self.confirm);
        job.conflict = job.conflict.or(self.conflict);
        job.not_before = job.not_before.or(self.not_before);
        job.deadline = job.deadline.or(self.deadline);
        for (name, value) in &self.labels {
            job.labels.entry(name.clone()).or_insert_with(|| value.clone());
        }
        job::check(&job).map_err(|error| error.to_string())?;
        check_times(job.not_before, job.deadline, self.now)?;
        self.check_wave(&job)?;
        Ok(job)
    }
}

impl Defaults {
    fn check_wave(&self, job: &Job) -> Result<(), String> {
        if let Some(wave) = job.wave.filter(|_| self.ramp) {
            return Err(format!("wave {wave} and --ramp, which gives each job its wave: leave one of them out"));
        }
        Ok(())
    }

    /// What is wrong with the start of `job` in a batch that has waves after the first: the scheduler would not wait for it.
    pub(super) fn late_start(&self, job: &Job) -> Option<String> {
        let latest = self.now.saturating_add(FOLLOWED).unwrap_or(Timestamp::MAX);
        let start = job.not_before.filter(|start| *start > latest)?;
        Some(format!(
            "not_before {start} in a batch with waves: expected {latest} at the latest, as a batch is followed for seven days from \
             its last event"
        ))
    }
}

/// Checks the times of a job at `now`.
///
/// # Errors
/// The time that cannot be meant, and the remedy.
pub fn check_times(not_before: Option<Timestamp>, deadline: Option<Timestamp>, now: Timestamp) -> Result<(), String> {
    for (field, time, instead) in [
        ("not_before", not_before, "leave it out to start at once"),
        ("deadline", deadline, "leave it out, or set it later"),
    ] {
        let Some(time) = time.filter(|time| *time != Timestamp::MAX) else { continue };
        if time <= now {
            return Err(format!("{field} {time} is past: {instead}"));
        }
        if time.duration_since(now) > FURTHEST {
            return Err(format!(
                "{field} {time} is more than a year ahead: set it earlier, or in a file to 9999-12-31T23:59:59Z for \
                 never"
            ));
        }
    }
    match (not_before, deadline) {
        (Some(start), Some(end)) if end < start => {
            Err(format!("deadline {end} is before not_before {start}, so the job could only expire: set it later"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn times_that_cannot_be_meant_are_refused() {
        let now = at("2026-11-25T00:00:00Z");
        let never = Some(Timestamp::MAX);
        let (past, soon, later) = (at("2025-11-25T07:30:00Z"), at("2026-11-25T07:30:00Z"), at("2026-11-25T09:00:00Z"));
        let far = at("2027-11-27T00:00:00Z");
        for (not_before, deadline) in [(None, None), (Some(soon), Some(later)), (Some(soon), never), (never, never)] {
            assert_eq!(check_times(not_before, deadline, now), Ok(()));
        }
        for (not_before, deadline, expected) in [
            (Some(past), None, "not_before 2025-11-25T07:30:00Z is past: leave it out"),
            (None, Some(now), "deadline 2026-11-25T00:00:00Z is past"),
            (Some(far), None, "not_before 2027-11-27T00:00:00Z is more than a year ahead"),
            (None, Some(far), "deadline 2027-11-27T00:00:00Z is more than a year ahead"),
            (Some(later), Some(soon), "deadline 2026-11-25T07:30:00Z is before not_before 2026-11-25T09:00:00Z"),
        ] {
            let told = check_times(not_before, deadline, now).unwrap_err();
            assert!(told.starts_with(expected), "{told}");
        }
    }
}
