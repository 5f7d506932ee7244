//! Failures of a batch that is watched: how many of them are shown, and the file that has them all.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::cli::Failure;
use crate::events::JobEvent;
use crate::text;

/// Failures shown in a row.
const SHOWN: usize = 20;

/// Bounds what is shown of failures: the first ones, and then how many more there were in each period. After a period without
/// failures, the next ones are shown again.
#[derive(Debug)]
pub(super) struct Flood {
    left: usize,
    more: usize,
    /// In this period.
    had_failures: bool,
}

impl Default for Flood {
    fn default() -> Self {
        Self { left: SHOWN, more: 0, had_failures: false }
    }
}

impl Flood {
    /// Whether this failure is shown. Otherwise it is counted.
    pub(super) fn shows(&mut self) -> bool {
        self.had_failures = true;
        let shows = self.left > 0;
        if shows {
            self.left -= 1;
        } else {
            self.more += 1;
        }
        shows
    }

    /// At the end of a period: how many failures were not shown in it.
    pub(super) fn rest(&mut self) -> usize {
        if !std::mem::take(&mut self.had_failures) {
            self.left = SHOWN;
        }
        std::mem::take(&mut self.more)
    }
}

/// The file of all failures: the data of each job's last event, in JSON, on a line of its own.
#[derive(Debug)]
pub(super) struct FailuresFile {
    path: PathBuf,
    file: File,
}

impl FailuresFile {
    /// Creates it, or empties it.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path)
            .map_err(|error| Failure::Usage(format!("cannot write --failures-file {}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn add(&mut self, ended: &JobEvent) -> Result<(), Failure> {
        let written = serde_json::to_string(ended)
            .map_err(std::io::Error::from)
            .and_then(|line| self.file.write_all((text::json(&line) + "\n").as_bytes()));
        written.map_err(|error| anyhow::anyhow!("cannot write {}: {error}", self.path.display()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failures_of_a_flood_are_shown_and_then_their_number() {
        let mut flood = Flood::default();
        assert_eq!((0..30).filter(|_| flood.shows()).count(), 20);
        assert_eq!(flood.rest(), 10);
        assert_eq!((0..7).filter(|_| flood.shows()).count(), 0, "it goes on");
        assert_eq!((flood.rest(), flood.rest()), (7, 0));
        assert_eq!((0..30).filter(|_| flood.shows()).count(), 20, "after a period without any");
    }

    #[test]
    fn a_failure_now_and_then_is_not_shown_for_ever() {
        let mut flood = Flood::default();
        let told: Vec<bool> = (0..22)
            .map(|_| {
                let shows = flood.shows();
                assert_eq!(flood.rest(), usize::from(!shows));
                shows
            })
            .collect();
        assert_eq!(told.iter().filter(|shows| **shows).count(), 20);
    }
}
