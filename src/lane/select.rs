//! Instances chosen by what the API says of them, listed for a command that has no keys of the lane.
//!
//! The calls pass the lane's gate within the share of polls, so that starts go first. What the API answers changes nothing of the
//! lane: a command can ask for what is refused.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::time::sleep;

use super::parts::Lane;
use super::verdict::{Listing, of_list};
use crate::bce::{Listed, Page, Selection};
use crate::retry::half_jitter;

/// How often a page is asked for that fails or is throttled.
const MOST_TRIES: u32 = 5;
/// Between two tries: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Pages of one list, at most: a million instances.
const MOST_PAGES: usize = 1_000;
/// How often it is looked whether the lane is still this replica's.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A list that is read.
struct Reading {
    lane: Arc<Lane>,
    selection: Selection,
    /// Of the next page; `None` once there is no further one.
    next: Option<Option<String>>,
    pages: usize,
}

/// The instances of `lane` that meet `selection`, page by page. It ends after the last one, or after a problem, for people.
pub fn select(lane: Arc<Lane>, selection: Selection) -> impl Stream<Item = Result<Vec<Listed>, String>> + Send {
    let reading = Reading { lane, selection, next: Some(None), pages: 0 };
    stream::unfold(reading, |mut reading| async move {
        let marker = reading.next.take()?;
        let page = reading.page(marker.as_deref()).await.and_then(|page| reading.take(marker, page));
        Some((page, reading))
    })
}

impl Reading {
    /// Chooses from a page. `marker` was its own.
    fn take(&mut self, marker: Option<String>, page: Page) -> Result<Vec<Listed>, String> {
        self.pages += 1;
        if page.next.is_some() {
            if page.next == marker || self.pages >= MOST_PAGES {
                return Err(format!("the list of instances of lane {} has no end", self.lane.name()));
            }
            self.next = Some(page.next);
        }
        Ok(page.instances.into_iter().filter(|instance| self.selection.is_met_by(instance)).collect())
    }

    async fn page(&self, marker: Option<&str>) -> Result<Page, String> {
        let (lane, filters) = (&self.lane, self.selection.filters());
        let filters: Vec<(&str, &str)> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut tries = 0;
        loop {
            let result = tokio::select! {
                result = lane.calls.polls.list(&filters, marker) => result,
                () = self.gone() => return Err(format!("lane {} was taken over by another replica: try again", lane.name())),
            };
            let Some(result) = result else { return Err(self.paused()) };
            tries += 1;
            match of_list("list instances", lane.name(), result) {
                Listing::Read(page) => return Ok(page),
                Listing::Again(told) if tries >= MOST_TRIES => return Err(told),
                Listing::Again(_) => sleep(half_jitter(FIRST_WAIT, LONGEST_WAIT, tries, rand::random())).await,
                Listing::Refused(told) => return Err(told),
            }
        }
    }

    /// Waits until the lane is not this replica's any more.
    async fn gone(&self) {
        while self.lane.is_held() {
            sleep(LOOK_EVERY).await;
        }
    }

    fn paused(&self) -> String {
        let name = self.lane.name();
        match self.lane.gate.breaker().cause() {
            Some(cause) => format!("lane {name} is paused, so its API is not asked: {}", cause.text),
            None => format!("the API of lane {name} could not be asked just now: try again"),
        }
    }
}
