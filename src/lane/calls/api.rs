//! One call of the API: counted, timed, and repeated once if our clock differed from the API's or the API closed the
//! connection. Each consumes a [`Permit`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use crate::bce::{
    Answer, Client, CredentialSource, Credentials, InstanceId, InstanceState, NoAnswer, Operation, Page, keys,
};
use crate::lane::breaker::{Attribution, Evidence};
use crate::lane::quota::{Gate, Paused, Permit, Slot};
use crate::lane::verdict;
use crate::telemetry::LaneMetrics;

/// Timeout of a probe. It is short, to notice soon that the API is back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// The result of a call.
#[derive(Debug)]
pub(in crate::lane) struct Made<T> {
    /// `None`: the call was to be repeated, but was no longer wanted or the lane was paused. That is no failure.
    pub(in crate::lane) result: Option<Result<T, NoAnswer>>,
    /// An earlier call, whose answer is lost, may have taken effect.
    pub(in crate::lane) touched: bool,
    /// The slot it was made in.
    pub(in crate::lane) slot: Slot,
}

/// The result of describing an instance.
pub(in crate::lane) type Described = Result<(Answer, Option<InstanceState>), NoAnswer>;

/// The result of a shared start call: the instances it named, and those that failed, if that could be read.
pub(super) type StartedBatch = (Answer, (Vec<InstanceId>, Option<Vec<InstanceId>>));

/// The result of listing states, if they could be read.
pub(super) type States = (Answer, Option<HashMap<InstanceId, InstanceState>>);

/// The result of listing a page of instances, if it could be read.
pub(in crate::lane) type Paged = (Answer, Option<Page>);

/// The API as a lane calls it.
#[derive(Debug)]
pub struct Api {
    gate: Arc<Gate>,
    client: Client,
    /// The same client, but with a new connection for each call.
    fresh: Client,
    metrics: LaneMetrics,
    /// Held during a probe, whose result serves all calls that wait for it.
    probing: Mutex<()>,
}

impl Api {
    /// Over `client`, through `gate`.
    pub(super) fn new(client: Client, gate: Arc<Gate>, metrics: LaneMetrics) -> Self {
        Self { gate, fresh: client.fresh(), client, metrics, probing: Mutex::default() }
    }

    /// What every call passes.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Waits for the right to have a call in flight.
    pub(in crate::lane) async fn slot(&self) -> Slot {
        self.gate.slot(|| self.probe_once()).await
    }

    /// Starts an instance. `wanted`: whether that is still wanted if the call is repeated.
    pub(super) async fn start(&self, permit: Permit, instance: &InstanceId, wanted: impl Fn() -> bool) -> Made<Answer> {
        self.call(permit, Operation::Start, wanted, |client| client.start(instance)).await
    }

    /// Starts all `instances`, which are asked for again if the call is repeated. Returns the instances it named, too.
    pub(super) async fn start_batch(
        &self,
        permit: Permit,
        instances: impl Fn() -> Vec<InstanceId>,
    ) -> Made<StartedBatch> {
        let wanted = || !instances().is_empty();
        self.call(permit, Operation::StartBatch, wanted, |client| {
            let named = instances();
            async move {
                let (answer, failed) = client.start_batch(&named).await?;
                Ok((answer, (named, failed)))
            }
        })
        .await
    }

    /// Lists the states of `instances`.
    pub(super) async fn states(&self, permit: Permit, instances: &[InstanceId]) -> Made<States> {
        self.call(permit, Operation::States, || true, |client| client.states(instances)).await
    }

    /// Lists a page of the instances that meet all of `filters`, as [`Client::list`] does.
    pub(super) async fn list(&self, permit: Permit, filters: &[(&str, &str)], marker: Option<&str>) -> Made<Paged> {
        self.call(permit, Operation::List, || true, |client| client.list(filters, marker)).await
    }

    /// Describes an instance, in `slot` or in another one, and returns the slot. `None`: the lane is paused.
    pub(in crate::lane) async fn describe(
        &self,
        instance: &InstanceId,
        slot: Option<Slot>,
    ) -> Option<(Described, Slot)> {
        let slot = match slot {
            Some(slot) => slot,
            None => tokio::select! {
                biased;
                () = self.gate.breaker().opened() => return None,
                slot = self.slot() => slot,
            },
        };
        let permit = self.gate.enter(slot).await.ok()?;
        let made = self.call(permit, Operation::Describe, || true, |client| client.describe(instance)).await;
        Some((made.result?, made.slot))
    }

    /// Probes the API, over a new connection: one from before the pause may be dead.
    /// `None`: the lane is paused by hand.
    async fn probe(&self) -> Option<Result<Answer, NoAnswer>> {
        let permit = self.gate.enter_to_probe().await?;
        let probe = timeout(PROBE_TIMEOUT, self.fresh.probe());
        let probe = async { probe.await.unwrap_or(Err(NoAnswer::TimedOut)) };
        Some(self.timed(permit, Operation::Probe, probe).await.0)
    }

    /// Notifies when keys are replaced: await `changed()`.
    pub(in crate::lane) fn keys_changed(&self) -> watch::Receiver<Arc<Credentials>> {
        self.client.keys_changed()
    }

    /// Follows the credentials file, as [`keys::follow`].
    pub(in crate::lane) async fn follow_keys(&self, source: &CredentialSource, in_force: impl Fn(&Credentials)) {
        keys::follow(&self.client, source, in_force).await;
    }

    /// Asks for the shortest list, which shows whether the keys are accepted; once more if that has corrected our clock. A
    /// paused lane can ask as well. Over a new connection, like a probe. `None`: the lane is paused by hand.
    pub(in crate::lane) async fn check_keys(&self) -> Option<Result<Answer, NoAnswer>> {
        let mut is_corrected = false;
        loop {
            let permit = self.gate.enter_to_probe().await?;
            let (result, _slot) = self.timed(permit, Operation::Check, self.fresh.probe()).await;
            match &result {
                Ok(answer) if !is_corrected && answer.date.is_some() && verdict::is_clock_skew(answer) => {
                    is_corrected = true;
                }
                _ => return Some(result),
            }
        }
    }

    /// Probes the API of a paused lane.
    pub(in crate::lane) async fn probe_pause(&self) {
        if let Some(result) = self.probe().await {
            self.gate.record_probe(&result);
        }
    }

    /// Probes the API, once for all calls that wait for the result.
    pub(in crate::lane) async fn probe_once(&self) {
        let breaker = self.gate.breaker();
        let answers = breaker.answers();
        let _probing = self.probing.lock().await;
        if breaker.answers() == answers
            && !breaker.is_open()
            && let Some(result) = self.probe().await
        {
            self.gate.record_check(&result);
        }
    }

    /// Whether a failed call is not charged to its job because others fail too. If others do not show it, a probe
    /// decides.
    pub(in crate::lane) async fn is_lane_outage(&self, instance: &InstanceId, call: Evidence) -> bool {
        let breaker = self.gate.breaker();
        match breaker.attribute(call).await {
            Some(Attribution::Lane) => return true,
            Some(Attribution::NotFailed) => return false,
            Some(Attribution::Job) => {}
            None => {
                self.probe_once().await;
                if breaker.is_open() {
                    return true;
                }
            }
        }
        breaker.remember_failing(instance);
        false
    }

    /// Makes a call, and repeats it once, with a permit of its own, if it is still `wanted`:
    ///
    /// - if the API finds it signed at the wrong time: its answer has just corrected our clock;
    /// - if the API closed the connection under it: over a new connection, where that cannot happen.
    async fn call<'a, T, F>(
        &'a self,
        mut permit: Permit,
        operation: Operation,
        wanted: impl Fn() -> bool,
        call: impl Fn(&'a Client) -> F,
    ) -> Made<T>
    where
        F: Future<Output = Result<T, NoAnswer>>,
        Result<T, NoAnswer>: HasAnswer,
    {
        let (mut client, mut corrected, mut touched) = (&self.client, false, false);
        loop {
            let (result, slot) = self.timed(permit, operation, call(client)).await;
            match result.answer() {
                Err(NoAnswer::Stale { may_have_been_carried_out, .. }) => {
                    touched |= may_have_been_carried_out;
                    client = &self.fresh;
                }
                Ok(answer) if !corrected && answer.date.is_some() && verdict::is_clock_skew(answer) => corrected = true,
                _ => return Made { result: Some(result), touched, slot },
            }
            match self.gate.enter(slot).await {
                Ok(another) if wanted() => permit = another,
                Ok(unused) => return Made { result: None, touched, slot: unused.into_slot() },
                Err(Paused(slot)) => return Made { result: None, touched, slot },
            }
        }
    }

    /// Consumes a permit for a call: makes, counts and times it, and adapts the rate to its answer. Returns the slot.
    async fn timed<T: HasAnswer>(
        &self,
        permit: Permit,
        operation: Operation,
        call: impl Future<Output = T>,
    ) -> (T, Slot) {
        let made = Instant::now();
        let result = call.await;
        let answer = result.answer();
        let status = answer.map(|answer| answer.status).map_err(NoAnswer::as_str);
        self.metrics.called(operation, status, made.elapsed());
        self.metrics.clock_offset.set(self.client.clock_offset());
        self.gate.learn(made, answer);
        (result, permit.into_slot())
    }
}

/// The answer in a call's result, beside what was asked for.
trait HasAnswer {
    fn answer(&self) -> Result<&Answer, &NoAnswer>;
}

impl HasAnswer for Result<Answer, NoAnswer> {
    fn answer(&self) -> Result<&Answer, &NoAnswer> {
        self.as_ref()
    }
}

impl<T> HasAnswer for Result<(Answer, T), NoAnswer> {
    fn answer(&self) -> Result<&Answer, &NoAnswer> {
        self.as_ref().map(|(answer, _)| answer)
    }
}
