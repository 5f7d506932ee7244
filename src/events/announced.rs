//! How many jobs a batch has, by its announcements.
//!
//! A batch can be submitted in parts: each has an announcement with an id of its own, and their sizes add up. Announcements
//! with one id are of one part, and say the same size each time that it is submitted again. One that says less corrects the
//! latest: sending ended before all jobs were sent. So a part has as many jobs as were sent at the best of times.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

/// The announcements of one batch. Memory grows by some 60 bytes for each part.
#[derive(Debug, Default)]
pub struct Announced {
    /// By the hash of its id. The hasher's keys are random, so that nobody can choose ids with equal hashes.
    parts: HashMap<u64, Part>,
    hasher: RandomState,
    /// The sum of all parts. It cannot overflow: 2^64 parts of 2^64 jobs.
    jobs: u128,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    /// The size that is not a correction.
    whole: usize,
    /// The largest size before the latest submission.
    before: usize,
    latest: usize,
    /// When the latest announcement was made.
    at: Timestamp,
}

/// What an announcement is to the others of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// Of a further part.
    Part,
    /// Of a part that is submitted again.
    Again,
    /// Of the size that the latest submission of its part had after all.
    Correction,
    /// A copy of the latest one of its part.
    Copy,
}

impl Part {
    fn jobs(&self) -> usize {
        self.before.max(self.latest)
    }
}

impl Announced {
    /// Takes an announcement that was made `at` a time, in the order of the log.
    pub fn hear(&mut self, id: &str, size: usize, at: Timestamp) -> Announcement {
        let mut heard = Announcement::Part;
        let new = Part { whole: size, before: 0, latest: 0, at };
        let part =
            self.parts.entry(self.hasher.hash_one(id)).and_modify(|_| heard = Announcement::Again).or_insert(new);
        if heard == Announcement::Again && part.at == at {
            return Announcement::Copy;
        }
        let jobs_before = part.jobs();
        if size < part.whole {
            heard = Announcement::Correction;
        } else {
            *part = Part { whole: size, before: jobs_before, ..*part };
        }
        (part.latest, part.at) = (size, at);
        self.jobs = self.jobs - jobs_before as u128 + part.jobs() as u128;
        heard
    }

    /// Whether an announcement with this id was heard.
    pub fn has(&self, id: &str) -> bool {
        self.parts.contains_key(&self.hasher.hash_one(id))
    }

    /// Jobs of all parts, at most [`usize::MAX`]. `None`: none was announced.
    pub fn jobs(&self) -> Option<usize> {
        (!self.parts.is_empty()).then(|| usize::try_from(self.jobs).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_each_has_as_many_jobs_as_were_sent_at_the_best_of_times() {
        use Announcement::{Again, Copy, Correction, Part};
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut announced = Announced::default();
        assert_eq!(announced.jobs(), None);
        for (id, size, seconds, heard, jobs) in [
            ("a", 7, 1, Part, 7),
            ("a", 7, 1, Copy, 7),
            ("b", 2, 1, Part, 9),
            ("a", 3, 2, Correction, 5),
            ("a", 7, 3, Again, 9),
            ("a", 5, 4, Correction, 7),
            ("a", 7, 5, Again, 9),
            ("a", 0, 6, Correction, 7),
            ("a", 7, 7, Again, 9),
            ("a", 7, 8, Again, 9),
            ("a", 0, 9, Correction, 9),
            ("b", 0, 0, Correction, 7),
            ("c", usize::MAX, 4, Part, usize::MAX),
            ("d", usize::MAX, 4, Part, usize::MAX),
            ("c", 0, 5, Correction, usize::MAX),
            ("d", 1, 5, Correction, 8),
        ] {
            assert_eq!(
                (announced.hear(id, size, at(seconds)), announced.jobs()),
                (heard, Some(jobs)),
                "{id} {seconds}"
            );
        }
    }
}
