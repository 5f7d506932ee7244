//! The calls of a lane: counted, timed, and once more where the API's clock and ours were apart, or the API closed the
//! connection. Each takes a [`Permit`].

mod polls;
mod shared;
mod strategy;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, timeout};

use self::polls::Polls;
pub use self::polls::Sight;
pub(super) use self::shared::{Called, Entry, NotCalled, Origin};
use self::strategy::{Strategy, Way};
use super::breaker::{Attribution, Evidence};
use super::quota::{Gate, Paused, Permit, Slot};
use super::verdict;
use crate::bce::{Answer, Client, CredentialSource, Credentials, InstanceId, InstanceState, NoAnswer, Operation, keys};
use crate::config::{self, LaneName};
use crate::telemetry::LaneMetrics;

/// How long a probe may take: it is to notice soon that the API is back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// What came of a call.
#[derive(Debug)]
pub(super) struct Made<T> {
    /// `None`: it was to be made once more, and then was not wanted or the lane was paused. No call failed then.
    pub(super) result: Option<Result<T, NoAnswer>>,
    /// A call before this one may have been carried out. Its answer, if there was one, is lost.
    pub(super) touched: bool,
    /// In which it was made.
    pub(super) slot: Slot,
}

/// What came of asking for an instance's state.
pub(super) type Described = Result<(Answer, Option<InstanceState>), NoAnswer>;

/// What came of a start call for many: which instances it named, and which of them failed, if that could be read.
type StartedBatch = (Answer, (Vec<InstanceId>, Option<Vec<InstanceId>>));

/// What came of asking for the states of many, if they could be read.
type States = (Answer, Option<HashMap<InstanceId, InstanceState>>);

/// See the module.
#[derive(Debug)]
pub struct Calls {
    lane: LaneName,
    /// Jobs that may be called together.
    batch: usize,
    gate: Arc<Gate>,
    client: Client,
    /// The same, with a connection for each call.
    fresh: Client,
    polls: Polls,
    strategy: Strategy,
    metrics: LaneMetrics,
    /// Held while a probe asks whether the API is there, for all calls that want to know.
    probing: Mutex<()>,
}

impl Calls {
    /// Over `client`, through `gate`. Of each queue `prefetch` jobs may be in hand, at the lane's full rate.
    pub fn new(lane: &config::Lane, client: Client, gate: &Arc<Gate>, prefetch: u16, metrics: &LaneMetrics) -> Self {
        Self {
            lane: lane.name.clone(),
            batch: lane.batch as usize,
            gate: gate.clone(),
            fresh: client.fresh(),
            client,
            polls: Polls::new(lane.confirm_share, lane.concurrency, prefetch),
            strategy: Strategy::default(),
            metrics: metrics.clone(),
            probing: Mutex::default(),
        }
    }

    /// How many jobs are to be called together just now, at most.
    pub(super) fn batch_size(&self) -> usize {
        if self.strategy.way(self.batch) == Way::Singly { 1 } else { self.batch }
    }

    /// Waits for the right to have a call in flight.
    pub(super) async fn slot(&self) -> Slot {
        self.gate.slot(|| self.probe_once()).await
    }

    /// Asks for an instance to be started. `wanted` says whether it still is to be, where the call is made once more.
    async fn start(&self, permit: Permit, instance: &InstanceId, wanted: impl Fn() -> bool) -> Made<Answer> {
        self.call(permit, Operation::Start, wanted, |client| client.start(instance)).await
    }

    /// Asks for all `instances` to be started. They are asked for anew where the call is made once more. Returns which it
    /// named, too.
    async fn start_batch(&self, permit: Permit, instances: impl Fn() -> Vec<InstanceId>) -> Made<StartedBatch> {
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

    /// Asks for the states of `instances`.
    async fn states(&self, permit: Permit, instances: &[InstanceId]) -> Made<States> {
        self.call(permit, Operation::States, || true, |client| client.states(instances)).await
    }

    /// Asks for an instance's state, in `slot` or in another one, which comes back. `None`: the lane is paused.
    pub(super) async fn describe(&self, instance: &InstanceId, slot: Option<Slot>) -> Option<(Described, Slot)> {
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

    /// Asks whether calls are of use again. A connection of before the pause could not tell.
    async fn probe(&self) -> Result<Answer, NoAnswer> {
        let permit = self.gate.enter_to_probe().await;
        let probe = timeout(PROBE_TIMEOUT, self.fresh.probe());
        let probe = async { probe.await.unwrap_or(Err(NoAnswer::TimedOut)) };
        self.timed(permit, Operation::Probe, probe).await.0
    }

    /// Tells when keys are replaced: await `changed()`.
    pub(super) fn keys_changed(&self) -> watch::Receiver<Arc<Credentials>> {
        self.client.keys_changed()
    }

    /// Follows the credentials file, as [`keys::follow`].
    pub(super) async fn follow_keys(&self, source: &CredentialSource, in_force: impl Fn(&Credentials)) {
        keys::follow(&self.client, source, self.lane.as_str(), in_force).await;
    }

    /// Probes the API of a paused lane.
    pub(super) async fn probe_pause(&self) {
        self.gate.record_probe(&self.probe().await);
    }

    /// Asks whether the API is there, once for all calls that want to know.
    pub(super) async fn probe_once(&self) {
        let breaker = self.gate.breaker();
        let answers = breaker.answers();
        let _probing = self.probing.lock().await;
        if breaker.answers() == answers && !breaker.is_open() {
            self.gate.record_look(&self.probe().await);
        }
    }

    /// Whether a job is not to pay for how its call ended, since others end so too. Where others do not show it, a probe tells
    /// whether the API is out.
    pub(super) async fn is_lane_outage(&self, instance: &InstanceId, call: Evidence) -> bool {
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

    /// Makes a call, and makes it once more, with a permit of its own, if it is still `wanted` then:
    ///
    /// - where the API finds it signed at the wrong time, as its answer has just put our clock right;
    /// - where the API closed the connection under it, over a fresh one, of which that cannot be said.
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

    /// Uses a permit for a call: makes it, counts and times it, and has the limiter learn from its answer. The slot comes back.
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

/// What a call's result tells beside what was asked for.
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
