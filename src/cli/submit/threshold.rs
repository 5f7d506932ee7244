//! How many jobs of a batch may fail before the rest of it is cancelled.

/// A number of jobs, or a part of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MaxFailures {
    /// So many jobs.
    Jobs(usize),
    /// So many of a hundred jobs: 0 to 100.
    Percent(u8),
}

impl MaxFailures {
    /// Reads `20` or `5%`.
    ///
    /// # Errors
    /// What is expected.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a number of jobs, as in 20, or a part of the batch, as in 5%";
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse().ok().filter(|percent| *percent <= 100).map(Self::Percent).ok_or(EXPECTED);
        }
        text.parse().map(Self::Jobs).map_err(|_| EXPECTED)
    }

    /// The number of jobs that may fail, of `size`.
    pub(super) fn of(self, size: usize) -> usize {
        match self {
            Self::Jobs(jobs) => jobs,
            // At most `size`, since it is a part of it.
            Self::Percent(percent) => usize::try_from(size as u128 * u128::from(percent) / 100).unwrap_or(size),
        }
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
}
