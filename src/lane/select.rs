//! Instances chosen by what the API says of them, listed for a command that has no keys of the lane.
//!
//! The calls pass the lane's gate within the share of polls, so that starts go first. What the API answers changes nothing of the
//! lane: a command can ask for what is refused.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::time::sleep;

use super::listing::{Pages, Tries};
use super::parts::Lane;
use super::verdict::{Listing, of_list};
use crate::bce::{Listed, Page, Selection};

/// How often it is looked whether the lane is still this replica's.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A list that is read.
struct Reading {
    lane: Arc<Lane>,
    pages: Pages,
}

/// The instances of `lane` that meet `selection`, page by page. It ends after the last one, or after a problem, for people.
pub fn select(lane: Arc<Lane>, selection: Selection) -> impl Stream<Item = Result<Vec<Listed>, String>> + Send {
    let reading = Reading { pages: Pages::new(lane.name(), selection), lane };
    stream::unfold(reading, |mut reading| async move {
        let marker = reading.pages.begin()?;
        let page = reading.page(marker.as_deref()).await.and_then(|page| reading.pages.take(marker, page));
        Some((page, reading))
    })
}

impl Reading {
    async fn page(&self, marker: Option<&str>) -> Result<Page, String> {
        let (lane, filters) = (&self.lane, self.pages.filters());
        let filters: Vec<(&str, &str)> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut tries = Tries::default();
        loop {
            let result = tokio::select! {
                result = lane.calls.polls.list(&filters, marker) => result,
                () = self.gone() => return Err(format!("lane {} was taken over by another replica: try again", lane.name())),
            };
            let Some(result) = result else { return Err(self.paused()) };
            match of_list("list instances", lane.name(), result) {
                Listing::Read(page) => return Ok(page),
                Listing::Again(told) if !tries.again().await => return Err(told),
                Listing::Again(_) => {}
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
