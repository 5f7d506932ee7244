//! How a lane makes its calls: counted, timed, and once more where the API's clock and ours were apart, or the API closed
//! the connection.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Lane, Paused, verdict};
use crate::bce::{Answer, Client, InstanceId, InstanceState, NoAnswer, Operation};

/// How long a probe may take: it is to notice soon that the API is back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// What came of a call.
#[derive(Debug)]
pub(super) struct Made<T> {
    /// [`NoAnswer::Stale`] only where it was to be made once more, and then was not wanted or the lane was paused: no call
    /// failed then.
    pub(super) result: Result<T, NoAnswer>,
    /// A call before this one may have been carried out. Its answer, if there was one, is lost.
    pub(super) touched: bool,
}

/// What came of asking for an instance's state.
pub(super) type Described = Result<(Answer, Option<InstanceState>), NoAnswer>;

/// What came of a start call for many: whom it named, and who of them failed, if that could be read.
pub(super) type StartedBatch = (Answer, (Vec<InstanceId>, Option<Vec<InstanceId>>));

/// What came of asking for the states of many, if they could be read.
pub(super) type States = Result<(Answer, Option<HashMap<InstanceId, InstanceState>>), NoAnswer>;

impl Lane {
    /// Asks for an instance to be started, in the turn that was waited for. `wanted` says whether it still is to be.
    pub(super) async fn start(&self, instance: &InstanceId, wanted: impl Fn() -> bool) -> Made<Answer> {
        self.call(Operation::Start, wanted, |client| client.start(instance)).await
    }

    /// Asks for all `instances` to be started, in the turn that was waited for. They are asked for anew where the call is
    /// made once more. Returns whom it named, too.
    pub(super) async fn start_batch(&self, instances: impl Fn() -> Vec<InstanceId>) -> Made<StartedBatch> {
        let wanted = || !instances().is_empty();
        self.call(Operation::StartBatch, wanted, |client| {
            let named = instances();
            async move {
                let (answer, failed) = client.start_batch(&named).await?;
                Ok((answer, (named, failed)))
            }
        })
        .await
    }

    /// Asks for the states of `instances`, in the turn that was waited for.
    pub(super) async fn states(&self, instances: &[InstanceId]) -> States {
        self.call(Operation::States, || true, |client| client.states(instances)).await.result
    }

    /// Asks for an instance's state, in its turn.
    pub(super) async fn describe(&self, instance: &InstanceId) -> Result<Described, Paused> {
        self.limited().await?;
        match self.call(Operation::Describe, || true, |client| client.describe(instance)).await.result {
            Err(NoAnswer::Stale { .. }) => Err(Paused),
            described => Ok(described),
        }
    }

    /// Asks, in its turn, whether calls are of use again. A connection of before the pause could not tell.
    pub(super) async fn probe(&self) -> Result<Answer, NoAnswer> {
        self.slot().await;
        let probe = timeout(PROBE_TIMEOUT, self.fresh.probe());
        self.timed(Operation::Probe, async { probe.await.unwrap_or(Err(NoAnswer::TimedOut)) }).await
    }

    /// Makes a call, and makes it once more, in a turn of its own, if it is still `wanted` then:
    ///
    /// - where the API finds it signed at the wrong time, as its answer has just put our clock right;
    /// - where the API closed the connection under it, over a fresh one, of which that cannot be said.
    async fn call<'a, T, F>(
        &'a self,
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
            let result = self.timed(operation, call(client)).await;
            match result.answer() {
                Err(NoAnswer::Stale { may_have_been_carried_out, .. }) => {
                    touched |= may_have_been_carried_out;
                    client = &self.fresh;
                }
                Ok(answer) if !corrected && answer.date.is_some() && verdict::is_clock_skew(answer) => corrected = true,
                _ => return Made { result, touched },
            }
            if self.limited().await.is_err() || !wanted() {
                return Made { result, touched };
            }
        }
    }

    /// Makes a call, counts and times it, and has the limiter learn from its answer.
    async fn timed<T: HasAnswer>(&self, operation: Operation, call: impl Future<Output = T>) -> T {
        let made = Instant::now();
        let result = call.await;
        let answer = result.answer();
        let status = answer.map(|answer| answer.status).map_err(NoAnswer::as_str);
        self.metrics.called(operation, status, made.elapsed());
        self.metrics.clock_offset.set(self.client.clock_offset());
        match answer {
            Ok(answer) if verdict::is_throttling(answer) => self.limiter.throttled(made, answer.retry_after),
            Ok(answer) if !answer.foreign => self.limiter.passed(made),
            Ok(_) | Err(_) => {}
        }
        result
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
