//! How a list of instances is read, page by page, for commands: by the daemon, and by `submit` with keys of its own.

use std::time::Duration;

use tokio::time::sleep;

use crate::bce::{Listed, Page, Selection};
use crate::retry::half_jitter;

/// How often a call is made that fails or is throttled.
const MOST_TRIES: u32 = 5;
/// Between two tries: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Pages of one list, at most: ten million instances.
const MOST_PAGES: usize = 10_000;

/// The tries of one call.
#[derive(Debug, Default)]
pub struct Tries(u32);

impl Tries {
    /// Waits until the call may be made again, after a try that failed. `false`: it was made often enough.
    pub async fn again(&mut self) -> bool {
        self.0 += 1;
        let may_again = self.0 < MOST_TRIES;
        if may_again {
            sleep(half_jitter(FIRST_WAIT, LONGEST_WAIT, self.0, rand::random())).await;
        }
        may_again
    }
}

/// How far a list is read.
#[derive(Debug)]
pub struct Pages {
    lane: String,
    selection: Selection,
    /// Of the next page; `None` once there is no further one.
    next: Option<Option<String>>,
    read: usize,
}

impl Pages {
    /// The list of the instances of `lane` that meet `selection`.
    pub fn new(lane: &str, selection: Selection) -> Self {
        Self { lane: lane.to_owned(), selection, next: Some(None), read: 0 }
    }

    /// Begins the next page, which is to be asked for with this marker: none for the first one. `None`: there is no further one, or
    /// the last one was not [taken](Self::take).
    pub fn begin(&mut self) -> Option<Option<String>> {
        self.next.take()
    }

    /// The parameters with which to ask for each page.
    pub fn filters(&self) -> Vec<(&'static str, String)> {
        self.selection.filters()
    }

    /// Chooses from the page that was asked for with `marker`.
    ///
    /// # Errors
    /// The list has no end.
    pub fn take(&mut self, marker: Option<String>, page: Page) -> Result<Vec<Listed>, String> {
        self.read += 1;
        if page.next.is_some() {
            if page.next == marker || self.read >= MOST_PAGES {
                return Err(format!("the list of instances of lane {} has no end", self.lane));
            }
            self.next = Some(page.next);
        }
        Ok(page.instances.into_iter().filter(|instance| self.selection.is_met_by(instance)).collect())
    }
}
