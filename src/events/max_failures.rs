//! How many jobs of a batch may fail before the rest of it is cancelled.

use std::fmt;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of jobs, or a part of all that are announced of the batch. In JSON a number, or a text such as `5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxFailures {
    /// So many jobs.
    Jobs(usize),
    /// So many of a hundred jobs: 0 to 100.
    Percent(u8),
}

const EXPECTED: &str = "expected a number of jobs, as in 20, or a part of the batch, as in 5%";

impl MaxFailures {
    /// Reads `20` or `5%`.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse().ok().filter(|percent| *percent <= 100).map(Self::Percent).ok_or(EXPECTED);
        }
        text.parse().map(Self::Jobs).map_err(|_| EXPECTED)
    }

    /// The number of jobs that may fail, of `size`.
    pub fn of(self, size: usize) -> usize {
        match self {
            Self::Jobs(jobs) => jobs,
            // At most `size`, since it is a part of it.
            Self::Percent(percent) => usize::try_from(size as u128 * u128::from(percent) / 100).unwrap_or(size),
        }
    }
}

impl fmt::Display for MaxFailures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Jobs(jobs) => write!(f, "{jobs}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl Serialize for MaxFailures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Jobs(jobs) => jobs.serialize(serializer),
            Self::Percent(_) => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for MaxFailures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl Visitor<'_> for Read {
            type Value = MaxFailures;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of jobs, or a part of the batch, as in \"5%\"")
            }

            fn visit_u64<E: Error>(self, jobs: u64) -> Result<MaxFailures, E> {
                Ok(MaxFailures::Jobs(usize::try_from(jobs).unwrap_or(usize::MAX)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MaxFailures, E> {
                MaxFailures::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threshold_is_a_number_of_jobs_or_a_part_of_the_batch() {
        for (text, size, jobs) in
            [("0", 10, 0), ("20", 10, 20), ("5%", 100, 5), ("5%", 19, 0), ("100%", 7, 7), ("0%", 7, 0)]
        {
            assert_eq!(MaxFailures::parse(text).unwrap().of(size), jobs, "{text} of {size}");
        }
        assert_eq!(MaxFailures::Percent(100).of(usize::MAX), usize::MAX);
        for wrong in ["", "-1", "1.5", "101%", "%", "5 %", "many"] {
            assert!(MaxFailures::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        for (threshold, json) in [(MaxFailures::Jobs(20), "20"), (MaxFailures::Percent(5), "\"5%\"")] {
            assert_eq!(serde_json::to_string(&threshold).unwrap(), json);
            assert_eq!(serde_json::from_str::<MaxFailures>(json).unwrap(), threshold);
        }
        for wrong in ["-1", "1.5", "\"101%\"", "\"\"", "null", "{}"] {
            assert!(serde_json::from_str::<MaxFailures>(wrong).is_err(), "{wrong}");
        }
    }
}
