//! What the API says of instances, asked with the keys of a lane that this machine has.
//!
//! One call is made after the other, at the part of the lane's rate that the daemon leaves to polls while starts wait: these calls
//! are beside the daemon's.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

use crate::bce::{Answer, Client, InstanceId, InstanceState, MOST_IDS, NoAnswer, Selection};
use crate::cli::Failure;
use crate::config::{Lane, LaneName};
use crate::lane::listing::{Pages, Tries};
use crate::lane::quota::Limiter;
use crate::lane::verdict::{self, Listing};

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
        let (mut found, mut pages) = (BTreeSet::new(), Pages::new(self.lane.as_str(), selection.clone()));
        let filters = pages.filters();
        let filters: Vec<(&str, &str)> = filters.iter().map(|(name, value)| (*name, value.as_str())).collect();
        while let Some(marker) = pages.begin() {
            let page =
                self.call("list instances", async || self.client.list(&filters, marker.as_deref()).await).await?;
            let met = pages.take(marker, page).map_err(anyhow::Error::msg)?;
            found.extend(met.into_iter().map(|instance| instance.id));
        }
        Ok(found)
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
        let mut tries = Tries::default();
        loop {
            self.limiter.acquire().await;
            let made = Instant::now();
            let result = call().await;
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
            if !tries.again().await {
                return Err(failure);
            }
        }
    }
}
