//! What the API says of instances, asked with the keys of a lane that this machine has.
//!
//! One call is made after the other, at the part of the lane's rate that the daemon leaves to polls while starts wait: these calls
//! are beside the daemon's.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::bce::{Answer, Client, InstanceId, InstanceState, Listed, MOST_IDS, NoAnswer, Selection};
use crate::cli::Failure;
use crate::config::{Lane, LaneName};
use crate::lane::quota::Limiter;
use crate::lane::verdict::{self, Listing};
use crate::retry::half_jitter;

/// How often a call is made that fails or is throttled.
const MOST_TRIES: u32 = 5;
/// Between two tries: the first ceiling, and the largest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// Pages of one list, at most: ten million instances.
const MOST_PAGES: usize = 10_000;

/// The API of one lane.
#[derive(Debug)]
pub(super) struct Api {
    lane: LaneName,
    client: Client,
    limiter: Limiter,
}

impl Api {
    /// Of a lane of the configuration.
    ///
    /// # Errors
    /// This machine has no keys of the lane, or no client can be built.
    pub(super) fn of(lane: &Lane) -> Result<Self, Failure> {
        let keys = lane.credentials.load().map_err(|error| {
            Failure::Usage(format!(
                "the API cannot be asked, as this machine has no keys of lane {}: {error}",
                lane.name
            ))
        })?;
        let client = Client::new(lane.endpoint.clone(), keys, lane.timeouts, 1)
            .map_err(|error| anyhow::anyhow!("no client of the API of lane {} can be made: {error}", lane.name))?
            .with_reading(lane.reading.clone());
        let limiter = Limiter::new(lane.rate * lane.confirm_share, 1);
        Ok(Self { lane: lane.name.clone(), client, limiter })
    }

    /// All instances that meet `selection`, once each.
    ///
    /// # Errors
    /// The list could not be read to its end.
    pub(super) async fn select(&self, selection: &Selection) -> Result<BTreeSet<InstanceId>, Failure> {
        let filters = selection.filters();
        let filters: Vec<(&str, &str)> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (mut found, mut marker) = (BTreeSet::new(), None::<String>);
        for _ in 0..MOST_PAGES {
            let page =
                self.call("list instances", async || self.client.list(&filters, marker.as_deref()).await).await?;
            let met = page.instances.into_iter().filter(|instance: &Listed| selection.is_met_by(instance));
            found.extend(met.map(|instance| instance.id));
            match page.next {
                None => return Ok(found),
                Some(next) if marker.as_ref() == Some(&next) => break,
                next => marker = next,
            }
        }
        Err(anyhow::anyhow!("the list of instances of lane {} has no end", self.lane).into())
    }

    /// The states of these instances. Those that the API does not know are left out.
    ///
    /// # Errors
    /// Not all could be asked for.
    pub(super) async fn states(
        &self,
        instances: &[InstanceId],
        mut asked: impl FnMut(usize),
    ) -> Result<BTreeMap<InstanceId, InstanceState>, Failure> {
        let mut states = BTreeMap::new();
        for some in instances.chunks(MOST_IDS) {
            states.extend(self.call("list states of instances", async || self.client.states(some).await).await?);
            asked(some.len());
        }
        Ok(states)
    }

    /// Makes a call until its answer can be read.
    async fn call<T>(
        &self,
        what: &str,
        call: impl AsyncFn() -> Result<(Answer, Option<T>), NoAnswer>,
    ) -> Result<T, Failure> {
        let mut tries = 0;
        loop {
            self.limiter.acquire().await;
            let made = Instant::now();
            let result = call().await;
            tries += 1;
            if let Ok((answer, _)) = &result
                && answer.status == 429
            {
                self.limiter.throttled(made, answer.retry_after);
            }
            let failure = match verdict::of_list(what, self.lane.as_str(), result) {
                Listing::Read(read) => {
                    self.limiter.passed(made);
                    return Ok(read);
                }
                Listing::Again(told) => Failure::Unreachable(told),
                Listing::Refused(told) => return Err(Failure::Usage(told)),
            };
            if tries >= MOST_TRIES {
                return Err(failure);
            }
            sleep(half_jitter(FIRST_WAIT, LONGEST_WAIT, tries, rand::random())).await;
        }
    }
}
