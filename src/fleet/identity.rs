//! Ids of jobs and of announcements, which the same command derives again.
//!
//! A job is named by its lane and all that it says, its batch and its times among that: the daemon takes a second message with
//! the id and the body of one that it knows for a copy. A deadline that counts from now is left out, or no command would name
//! a job twice. An announcement is named by its batch and the ids of its jobs, in whichever order.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use super::waves::ramp_of;
use crate::config::LaneName;
use crate::events::{Batch, MOST_WAVES, Wave};
use crate::job::Job;

/// Names the jobs of one command.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Where the jobs go.
    pub lane: LaneName,
    /// The deadline that the options give, if it counts from now.
    pub moving_deadline: Option<Timestamp>,
    /// The jobs have waves by their place, which does not name them.
    pub ramp: bool,
}

/// The jobs of one batch in a command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// How many there are.
    pub size: usize,
    /// How many of them are of which wave. Those of none are left out.
    waves: BTreeMap<Wave, usize>,
    /// The sum of their ids, modulo 2^128.
    sum: u128,
}

impl Identity {
    /// The id of a job, with its batch.
    pub fn of(&self, job: &Job) -> Uuid {
        let mut named = Cow::Borrowed(job);
        if job.deadline.is_some() && job.deadline == self.moving_deadline {
            named.to_mut().deadline = None;
        }
        let body = serde_json::to_vec(&*named).expect("a job holds nothing that JSON cannot");
        let kind: &[u8] = if self.ramp { b"ramp" } else { b"job" };
        name(&[kind, self.lane.as_str().as_bytes(), &body])
    }

    /// The id of the announcement of this part of a batch.
    pub fn of_part(&self, batch: &str, part: &Part) -> Uuid {
        let (size, sum) = ((part.size as u64).to_be_bytes(), part.sum.to_be_bytes());
        name(&[b"part", self.lane.as_str().as_bytes(), batch.as_bytes(), &size, &sum])
    }
}

/// The id of the announcement of a batch that its name alone stands for: whatever its jobs are, it is announced once.
pub fn of_batch(lane: &LaneName, batch: &str) -> Uuid {
    name(&[b"batch", lane.as_str().as_bytes(), batch.as_bytes()])
}

impl Part {
    /// Adds a job.
    ///
    /// # Errors
    /// It is of one wave too many.
    pub fn add(&mut self, job: Uuid, wave: Option<Wave>) -> Result<(), String> {
        if let Some(wave) = wave {
            if self.waves.len() == MOST_WAVES && !self.waves.contains_key(&wave) {
                return Err(format!(
                    "wave {wave} is one more than the {MOST_WAVES} that a batch can have: use fewer numbers"
                ));
            }
            *self.waves.entry(wave).or_default() += 1;
        }
        self.size += 1;
        self.sum = self.sum.wrapping_add(job.as_u128());
        Ok(())
    }

    /// Takes a job out that was added before.
    pub fn remove(&mut self, job: Uuid, wave: Option<Wave>) {
        self.size -= 1;
        self.sum = self.sum.wrapping_sub(job.as_u128());
        if let Some(wave) = wave
            && let Some(jobs) = self.waves.get_mut(&wave)
        {
            *jobs -= 1;
            if *jobs == 0 {
                self.waves.remove(&wave);
            }
        }
    }

    /// How many jobs are of which wave.
    pub fn waves(&self, ramp: bool) -> BTreeMap<Wave, usize> {
        if ramp { ramp_of(self.size) } else { self.waves.clone() }
    }

    /// The same, with jobs of no wave in the first.
    pub(super) fn sizes(&self, ramp: bool) -> BTreeMap<Wave, usize> {
        let waves = self.waves(ramp);
        Batch { waves, ..Batch::new(String::new(), self.size, String::new()) }.sizes()
    }

    /// Whether jobs are to wait for others.
    pub(super) fn has_later_waves(&self, ramp: bool) -> bool {
        if ramp { self.size > 1 } else { self.waves.keys().any(|wave| *wave > Wave::FIRST) }
    }
}

/// A UUID of version 8 out of the first 16 bytes of SHA-256, as RFC 9562 has it in its appendix B.2.
fn name(parts: &[&[u8]]) -> Uuid {
    let mut hash = Sha256::new_with_prefix("reveille/names/v1");
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(lane: &str, moving_deadline: Option<&str>) -> Identity {
        let lane = LaneName::parse(lane).unwrap();
        let moving_deadline = moving_deadline.map(|deadline| deadline.parse().unwrap());
        Identity { lane, moving_deadline, ramp: false }
    }

    fn job(more: &str) -> Job {
        Job::parse(format!(r#"{{"instance_id":"i-0000"{more}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn a_job_is_named_by_all_that_it_says_and_by_its_lane() {
        let prod = identity("prod", None);
        let mut names: Vec<Uuid> =
            ["", r#","batch_id":"b""#, r#","not_before":"2026-11-25T07:30:00Z""#, r#","labels":{"a":"b"}"#]
                .map(|more| prod.of(&job(more)))
                .to_vec();
        assert_eq!(names[0], prod.of(&job("")), "each time the same");
        names.push(identity("test", None).of(&job("")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 5);
        assert_eq!(names[0].get_version_num(), 8);
    }

    #[test]
    fn a_deadline_that_counts_from_now_does_not_name_a_job_and_others_do() {
        let late = |deadline: &str| job(&format!(r#","deadline":{deadline:?}"#));
        let (noon, one) = ("2026-11-25T12:00:00Z", "2026-11-25T13:00:00Z");
        let name = |moving, deadline| identity("prod", moving).of(&late(deadline));
        assert_eq!(name(Some(noon), noon), name(Some(one), one));
        assert_ne!(name(None, noon), name(None, one));
        assert_ne!(name(Some(noon), one), name(Some(noon), noon), "the job's own");
    }

    #[test]
    fn a_batch_has_no_more_waves_than_an_announcement_can_say() {
        let mut part = Part::default();
        let wave = |number| Wave::new(number);
        for number in 1..=100 {
            part.add(Uuid::nil(), wave(number * 10)).unwrap();
        }
        assert!(part.add(Uuid::nil(), wave(7)).unwrap_err().starts_with("wave 7 is one more than the 100 that"));
        part.add(Uuid::nil(), wave(10)).unwrap();
        part.add(Uuid::nil(), None).unwrap();
        part.remove(Uuid::nil(), wave(20));
        assert_eq!((part.size, part.waves(false).len(), part.waves(false)[&wave(10).unwrap()]), (101, 99, 2));
    }

    #[test]
    fn a_part_is_named_by_its_jobs_in_whichever_order() {
        let identity = identity("prod", None);
        let [a, b] = ["", r#","batch_id":"b""#].map(|more| identity.of(&job(more)));
        let part = |jobs: &[Uuid]| {
            let mut part = Part::default();
            jobs.iter().for_each(|job| part.add(*job, None).unwrap());
            part
        };
        assert_eq!(part(&[a, b]), part(&[b, a]));
        let mut less = part(&[a, b, b]);
        less.remove(b, None);
        assert_eq!(less, part(&[a, b]));
        let names = [&[a][..], &[b], &[a, b], &[]].map(|jobs| identity.of_part("b", &part(jobs)));
        assert!((1..4).all(|end| !names[..end].contains(&names[end])));
        assert_ne!(identity.of_part("c", &part(&[a])), names[0]);
    }
}
