//! How many jobs a batch has, by its announcements.
//!
//! A batch can be submitted in parts: each has an announcement with an id of its own, and their sizes add up. Announcements
//! with one id are of one part. The part was submitted again, or the size of it was wrong, as the broker went away before all
//! of its jobs were sent: so the latest one counts.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use jiff::Timestamp;

/// The announcements of one batch. Memory grows by some 40 bytes for each part.
#[derive(Debug, Default)]
pub struct Announced {
    /// By the hash of its id. The hasher's keys are random, so that nobody can choose ids with equal hashes.
    parts: HashMap<u64, Part>,
    hasher: RandomState,
    /// The sum of all sizes. It cannot overflow: 2^64 parts of 2^64 jobs.
    jobs: u128,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    size: usize,
    at: Timestamp,
}

/// What an announcement is to the others of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// Of a further part.
    Part,
    /// Of a part that was announced before: its size is this one now.
    Again,
    /// A copy of the latest one of its part.
    Copy,
}

impl Announced {
    /// Takes an announcement that was made `at` a time, in the order of the log.
    pub fn hear(&mut self, id: &str, size: usize, at: Timestamp) -> Announcement {
        let before = self.parts.insert(self.hasher.hash_one(id), Part { size, at });
        let size_before = before.map_or(0, |part| part.size);
        self.jobs = self.jobs - size_before as u128 + size as u128;
        match before {
            None => Announcement::Part,
            Some(before) if before.at == at => Announcement::Copy,
            Some(_) => Announcement::Again,
        }
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
    fn parts_add_up_and_of_one_part_the_latest_size_counts() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut announced = Announced::default();
        assert_eq!(announced.jobs(), None);
        for (id, size, seconds, heard, jobs) in [
            ("a", 7, 1, Announcement::Part, 7),
            ("a", 7, 1, Announcement::Copy, 7),
            ("b", 2, 1, Announcement::Part, 9),
            ("a", 7, 2, Announcement::Again, 9),
            ("a", 3, 3, Announcement::Again, 5),
            ("b", 0, 0, Announcement::Again, 3),
            ("c", usize::MAX, 4, Announcement::Part, usize::MAX),
            ("d", usize::MAX, 4, Announcement::Part, usize::MAX),
            ("c", 0, 5, Announcement::Again, usize::MAX),
            ("d", 1, 5, Announcement::Again, 4),
        ] {
            assert_eq!(
                (announced.hear(id, size, at(seconds)), announced.jobs()),
                (heard, Some(jobs)),
                "{id} {seconds}"
            );
        }
    }
}
