//! How a lane makes its calls: counted, timed, and once more where the API's clock and ours were apart.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{Lane, Paused, verdict};
use crate::bce::{Answer, InstanceId, InstanceState, NoAnswer, Operation};

/// How long a probe may take: it is to notice soon that the API is back.
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);

/// What came of asking for an instance's state.
pub(super) type Described = Result<(Answer, Option<InstanceState>), NoAnswer>;

/// What came of a start call for many: whom it named, and who of them failed, if that could be read.
pub(super) type StartedBatch = Result<(Answer, (Vec<InstanceId>, Option<Vec<InstanceId>>)), NoAnswer>;

/// What came of asking for the states of many, if they could be read.
pub(super) type States = Result<(Answer, Option<HashMap<InstanceId, InstanceState>>), NoAnswer>;

impl Lane {
    /// Asks for an instance to be started, in the turn that was waited for. `wanted` says whether it still is to be.
    pub(super) async fn start(&self, instance: &InstanceId, wanted: impl Fn() -> bool) -> Result<Answer, NoAnswer> {
        self.call(Operation::Start, wanted, || self.client.start(instance)).await
    }

    /// Asks for all `instances` to be started, in the turn that was waited for. They are asked for anew where the call is
    /// made once more. Returns whom it named, too.
    pub(super) async fn start_batch(&self, instances: impl Fn() -> Vec<InstanceId>) -> StartedBatch {
        let call = || {
            let named = instances();
            async {
                let (answer, failed) = self.client.start_batch(&named).await?;
                Ok((answer, (named, failed)))
            }
        };
        self.call(Operation::StartBatch, || !instances().is_empty(), call).await
    }

    /// Asks for the states of `instances`, in the turn that was waited for.
    pub(super) async fn states(&self, instances: &[InstanceId]) -> States {
        self.call(Operation::States, || true, || self.client.states(instances)).await
    }

    /// Asks for an instance's state, in its turn.
    pub(super) async fn describe(&self, instance: &InstanceId) -> Result<Described, Paused> {
        self.limited().await?;
        Ok(self.call(Operation::Describe, || true, || self.client.describe(instance)).await)
    }

    /// Asks, in its turn, whether calls are of use again.
    pub(super) async fn probe(&self) -> Result<Answer, NoAnswer> {
        self.slot().await;
        let probe = timeout(PROBE_TIMEOUT, self.client.probe());
        self.timed(Operation::Probe, async { probe.await.unwrap_or(Err(NoAnswer::TimedOut)) }).await
    }

    /// Makes a call. Where the API finds it signed at the wrong time, its answer has just put our clock right: the call
    /// is signed anew and made once more, in a turn of its own, if it is still `wanted` then.
    async fn call<T, F>(
        &self,
        operation: Operation,
        wanted: impl Fn() -> bool,
        call: impl Fn() -> F,
    ) -> Result<T, NoAnswer>
    where
        F: Future<Output = Result<T, NoAnswer>>,
        Result<T, NoAnswer>: HasAnswer,
    {
        let result = self.timed(operation, call()).await;
        if !result.answer().is_ok_and(|answer| answer.date.is_some() && verdict::is_clock_skew(answer)) {
            return result;
        }
        if self.limited().await.is_ok() && wanted() { self.timed(operation, call()).await } else { result }
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
