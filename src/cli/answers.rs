//! What this replica answers to queries.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use tokio::sync::Semaphore;

use crate::bce::Selection;
use crate::lane::{self, Lane};
use crate::query::select::{self, Wanted};
use crate::query::{self, Answer, Query};
use crate::replica::Replica;
use crate::telemetry::Readiness;

/// Lists that are read at a time, each with a page in memory: 16 MiB at worst.
const LISTS: usize = 2;

/// Answers queries.
pub(super) struct Answers {
    this: Replica,
    lanes: Vec<Arc<Lane>>,
    readiness: Arc<Readiness>,
    lists: Arc<Semaphore>,
}

impl Answers {
    pub(super) fn new(lanes: Vec<Arc<Lane>>, readiness: Arc<Readiness>) -> Self {
        Self { this: Replica::this(), lanes, readiness, lists: Arc::new(Semaphore::new(LISTS)) }
    }

    /// The answer to `query` with this body: none where it is another replica's.
    pub(super) fn to(&self, query: Query, body: &[u8]) -> Answer {
        match query {
            Query::Status => {
                stream::iter(query::answer(&self.this, lane::statuses(&self.lanes, &self.readiness))).boxed()
            }
            Query::Select => {
                Wanted::read(body).and_then(|wanted| self.select(wanted)).unwrap_or_else(|| stream::empty().boxed())
            }
        }
    }

    fn select(&self, wanted: Wanted) -> Option<Answer> {
        let lane = self.lanes.iter().find(|lane| lane.name() == wanted.lane).filter(|lane| lane.is_held())?.clone();
        let this = self.this.clone();
        let selection: Selection = match wanted.select.parse() {
            Ok(selection) => selection,
            Err(problem) => return Some(select::refused(this, wanted, problem).boxed()),
        };
        let Ok(permit) = self.lists.clone().try_acquire_owned() else {
            let problem = format!("{LISTS} lists are read for other commands: try again in a moment");
            return Some(select::refused(this, wanted, problem).boxed());
        };
        let pages = lane::select(lane, selection).map(move |page| {
            let _held = &permit;
            page
        });
        Some(select::answer(this, wanted, pages).boxed())
    }
}
