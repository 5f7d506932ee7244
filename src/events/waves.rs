//! Waves: parts of a batch that start one after the other.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Announced;

/// The most waves of one announcement.
pub const MOST_WAVES: usize = 100;
/// The most waves of a batch that is announced in parts: jobs of further ones never start.
const MOST_IN_PARTS: usize = 1_000;

/// The number of a wave, 1 or more. Waves start in ascending order; numbers may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Wave(u32);

impl Wave {
    /// That of jobs that name none.
    pub const FIRST: Self = Self(1);

    /// `None`: 0 is no wave.
    pub fn new(number: u32) -> Option<Self> {
        (number > 0).then_some(Self(number))
    }

    /// The wave of the `position`-th job of a ramp, from 0 on: waves of 1, 2, 4, 8 … jobs.
    pub fn of_ramp(position: usize) -> Self {
        // At most 64.
        Self(position.saturating_add(1).ilog2() + 1)
    }
}

impl fmt::Display for Wave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Wave {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;

        impl Visitor<'_> for Number {
            type Value = Wave;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a whole number from 1 to {}", u32::MAX)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Wave, E> {
                let wave = u32::try_from(number).ok().and_then(Wave::new);
                wave.ok_or_else(|| E::invalid_value(Unexpected::Unsigned(number), &self))
            }
        }

        deserializer.deserialize_u64(Number)
    }
}

/// Reads the sizes of the waves of an announcement.
pub(super) fn sizes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<Wave, usize>, D::Error> {
    let sizes = BTreeMap::deserialize(deserializer)?;
    let count = sizes.len();
    if count > MOST_WAVES {
        return Err(D::Error::custom(format_args!("{count} waves: at most {MOST_WAVES}")));
    }
    Ok(sizes)
}

/// How far a batch is, wave by wave: how many jobs of each were announced, and how many have ended. Memory grows by that of an
/// [`Announced`] for each wave, and by some 60 bytes for each wave of an announcement.
#[derive(Debug, Default)]
pub struct Waves(BTreeMap<Wave, Jobs>);

#[derive(Debug, Default)]
struct Jobs {
    announced: Announced,
    ended: usize,
}

impl Jobs {
    fn announced(&self) -> usize {
        self.announced.jobs().unwrap_or_default()
    }

    fn have_ended(&self) -> bool {
        self.ended >= self.announced()
    }
}

impl Waves {
    /// Takes an announcement that was made `at` a time, in the order of the log: see [`Announced::hear`].
    pub fn announce(&mut self, id: &str, sizes: &BTreeMap<Wave, usize>, at: Timestamp) {
        for wave in sizes.keys() {
            if self.0.len() < MOST_IN_PARTS {
                self.0.entry(*wave).or_default();
            }
        }
        for (wave, jobs) in &mut self.0 {
            match sizes.get(wave) {
                Some(size) => drop(jobs.announced.hear(id, *size, at)),
                // A correction: nothing was sent of this wave.
                None if jobs.announced.has(id) => drop(jobs.announced.hear(id, 0, at)),
                None => {}
            }
        }
    }

    /// Takes the end of a job.
    pub fn end(&mut self, wave: Wave) {
        if let Some(jobs) = self.0.get_mut(&wave) {
            jobs.ended = jobs.ended.saturating_add(1);
        }
    }

    /// The wave that may start: the first one with jobs that have not ended, or else the last one. `None`: none was announced.
    pub fn current(&self) -> Option<Wave> {
        let open = self.0.iter().find(|(_, jobs)| !jobs.have_ended());
        open.or_else(|| self.0.iter().next_back()).map(|(wave, _)| *wave)
    }

    /// Announced jobs of the waves after this one, at most [`usize::MAX`].
    pub fn jobs_after(&self, wave: Wave) -> usize {
        let later = self.0.iter().filter(|(later, _)| **later > wave);
        later.fold(0, |sum, (_, jobs)| sum.saturating_add(jobs.announced()))
    }

    /// Whether as many jobs of each wave have ended as were announced. Where none but the first was announced, there are no waves: the
    /// number of all jobs tells whether they have ended.
    pub fn have_ended(&self) -> bool {
        let has_waves = self.0.keys().any(|wave| *wave > Wave::FIRST);
        !has_waves || self.0.values().all(Jobs::have_ended)
    }

    /// The place of a wave among all that have jobs, from 1 on, and how many those are.
    pub fn place(&self, wave: Wave) -> (usize, usize) {
        let with_jobs = || self.0.iter().filter(|(_, jobs)| jobs.announced() > 0);
        (with_jobs().filter(|(other, _)| **other <= wave).count(), with_jobs().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(number: u32) -> Wave {
        Wave::new(number).unwrap()
    }

    fn sizes<const N: usize>(sizes: [(u32, usize); N]) -> BTreeMap<Wave, usize> {
        sizes.map(|(number, size)| (wave(number), size)).into()
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn a_wave_is_a_number_from_1_to_the_largest_of_32_bits_and_nothing_else() {
        for (json, number) in [("1", 1), ("4294967295", u32::MAX)] {
            assert_eq!(serde_json::from_str::<Wave>(json).unwrap(), wave(number));
        }
        for json in ["0", "-1", "4294967296", "18446744073709551616", "1.5", "1.0", "\"1\"", "true", "null", "[]"] {
            let told = serde_json::from_str::<Wave>(json).unwrap_err().to_string();
            assert!(told.contains("expected a whole number from 1 to 4294967295"), "{json}: {told}");
        }
    }

    #[test]
    fn a_ramp_doubles() {
        let waves: Vec<u32> = (0..16).map(|position| Wave::of_ramp(position).0).collect();
        assert_eq!(waves, [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5]);
        assert_eq!(Wave::of_ramp(usize::MAX).0, usize::BITS);
    }

    #[test]
    fn a_wave_may_start_once_all_before_it_have_ended() {
        let mut waves = Waves::default();
        assert_eq!((waves.current(), waves.have_ended()), (None, true));
        waves.announce("a", &sizes([(20, 2), (30, 1), (40, 7)]), at(0));
        assert_eq!((waves.current(), waves.jobs_after(wave(20))), (Some(wave(20)), 8));
        assert_eq!((waves.place(wave(20)), waves.place(wave(40))), ((1, 3), (3, 3)));
        waves.end(wave(20));
        waves.end(wave(30));
        waves.end(Wave::FIRST);
        assert_eq!(waves.current(), Some(wave(20)), "what ends early does not stand for another");
        waves.end(wave(20));
        assert_eq!(waves.current(), Some(wave(40)));
        // Another part of the batch begins with its own first wave.
        waves.announce("b", &sizes([(1, 1), (50, 1)]), at(1));
        assert_eq!(waves.current(), Some(Wave::FIRST));
        waves.end(Wave::FIRST);
        assert_eq!(waves.current(), Some(wave(40)));
        (0..7).for_each(|_| waves.end(wave(40)));
        assert_eq!((waves.current(), waves.have_ended()), (Some(wave(50)), false));
        waves.end(wave(50));
        assert_eq!((waves.current(), waves.have_ended()), (Some(wave(50)), true));
    }

    #[test]
    fn a_correction_is_for_all_waves_and_a_part_of_which_nothing_was_sent_waits_for_nothing() {
        let mut waves = Waves::default();
        let whole = sizes([(1, 1), (2, 2), (3, 4)]);
        waves.announce("a", &whole, at(0));
        waves.announce("a", &whole, at(0));
        waves.announce("a", &sizes([(1, 1), (2, 1)]), at(1));
        waves.end(Wave::FIRST);
        waves.end(wave(2));
        assert_eq!((waves.have_ended(), waves.jobs_after(Wave::FIRST), waves.place(wave(2))), (true, 1, (2, 2)));
        // The rest is submitted.
        waves.announce("a", &whole, at(2));
        assert_eq!((waves.current(), waves.jobs_after(Wave::FIRST)), (Some(wave(2)), 6));
    }

    #[test]
    fn a_batch_that_was_announced_without_waves_has_none() {
        let mut waves = Waves::default();
        waves.announce("a", &sizes([(1, 2)]), at(0));
        waves.end(wave(2));
        assert!(waves.have_ended(), "whatever waves its jobs name");
        waves.announce("b", &sizes([(1, 1), (2, 1)]), at(1));
        assert!(!waves.have_ended());
    }

    #[test]
    fn however_many_waves_are_announced_memory_is_bounded() {
        let mut waves = Waves::default();
        for number in 1..=2_000 {
            waves.announce(&number.to_string(), &sizes([(number, 1)]), at(0));
        }
        assert_eq!(waves.0.len(), MOST_IN_PARTS);
        let parts: usize = waves.0.values().map(|jobs| jobs.announced()).sum();
        assert_eq!(parts, MOST_IN_PARTS);
    }
}
