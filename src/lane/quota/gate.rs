//! The gate that every call of the API passes.
//!
//! A [`Permit`] stands for four things, all of which held when it was given:
//!
//! | | |
//! |---|---|
//! | a slot | no more calls are in flight than the lane's concurrency, fewer while calls fail in a row and on trial |
//! | the limiter | no more calls a second than the quota allows, or the API bears |
//! | the lease | the lane is this replica's |
//! | the breaker | calls are of use |
//!
//! Each call consumes its permit: a second call for one job, to verify a 409 or after the clock was corrected, waits
//! for another. The slot comes back with the answer.
//!
//! Polls and probes are bounded separately: polls by [`Share`], probes by being one at a time. A probe passes an open
//! breaker, since it decides whether that can close.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::{Span, error, info, warn};

use super::limiter::Limiter;
use super::share::Share;
use super::slots::{Slot, Slots};
use super::spare::Spare;
use crate::bce::{Answer, Endpoint, InstanceId, NoAnswer};
use crate::config;
use crate::control;
use crate::lane::breaker::{Breaker, Cause, CauseKind, Change, Evidence, Recorded};
use crate::lane::verdict::{self, Verdict};
use crate::ownership::Lease;
use crate::telemetry::LaneMetrics;

/// A pause of up to this length needs no slow start: an API that was away for a moment bears the whole rate.
const HICCUP: Duration = Duration::from_secs(5);

/// The right to one call of the API. Only [`Gate`] gives one:
///
/// ```compile_fail,E0451
/// # use reveille::lane::quota::{Permit, Slot};
/// fn without_the_gate(slot: Slot) -> Permit {
///     Permit { slot }
/// }
/// ```
///
/// and it is good for one call:
///
/// ```compile_fail,E0382
/// # use reveille::lane::quota::Permit;
/// fn call(permit: Permit) {}
/// fn twice(permit: Permit) {
///     call(permit);
///     call(permit);
/// }
/// ```
#[derive(Debug)]
#[must_use = "a token of the limiter was used for it"]
pub struct Permit {
    slot: Slot,
}

impl Permit {
    #[cfg(test)]
    pub(in crate::lane) fn for_tests(slot: Slot) -> Self {
        Self { slot }
    }

    /// The slot, once the call was made or is not wanted any more.
    pub(in crate::lane) fn into_slot(self) -> Slot {
        self.slot
    }
}

/// No call may be made now: the lane is paused. Contains the unused slot.
#[derive(Debug)]
pub struct Paused(pub(in crate::lane) Slot);

/// See the module.
#[derive(Debug)]
pub struct Gate {
    lane: String,
    endpoint: Endpoint,
    slots: Slots,
    limiter: Limiter,
    spare: Spare,
    lease: Lease,
    breaker: Breaker,
    metrics: LaneMetrics,
    /// For lines about the lane that a job's call causes.
    span: Span,
}

impl Gate {
    /// For a lane that is not held yet.
    /// `span` names the lane in the log.
    pub fn new(lane: &config::Lane, metrics: &LaneMetrics, span: Span) -> Self {
        let gate = Self {
            lane: lane.name.to_string(),
            endpoint: lane.endpoint.clone(),
            slots: Slots::new(lane.concurrency),
            limiter: Limiter::new(lane.rate, lane.burst),
            spare: Spare::new(lane.concurrency),
            lease: Lease::default(),
            breaker: Breaker::new(lane.rate, lane.concurrency as usize),
            metrics: metrics.clone(),
            span,
        };
        // Each cause is present from the start, at 0.
        gate.show_paused(None);
        gate
    }

    /// How long the lane is surely this replica's.
    pub(in crate::lane) fn lease(&self) -> &Lease {
        &self.lease
    }

    /// The lane's span.
    pub(in crate::lane) fn span(&self) -> &Span {
        &self.span
    }

    /// The circuit breaker.
    pub(in crate::lane) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The present rate, in calls per second.
    pub(in crate::lane) fn rate(&self) -> f64 {
        self.limiter.rate()
    }

    /// Empties the token bucket, and delays the first call by at least `pause`: the previous replica may have just used
    /// up its burst.
    pub(in crate::lane) fn begin(&self, pause: Duration) {
        self.limiter.empty(pause);
    }

    /// Waits for a slot. If all are withheld, awaits `probe`, to learn whether calls can succeed.
    pub(in crate::lane) async fn slot<F: Future<Output = ()>>(&self, probe: impl Fn() -> F) -> Slot {
        self.slots.acquire(&self.breaker, probe).await
    }

    /// Waits until no call is in flight, except for polls and probes.
    pub(in crate::lane) async fn quiet(&self) {
        self.slots.all_free().await;
    }

    /// Waits for the permit to a call in this slot.
    ///
    /// # Errors
    /// [`Paused`]: the lane is paused, or was while waiting.
    pub(in crate::lane) async fn enter(&self, slot: Slot) -> Result<Permit, Paused> {
        tokio::select! {
            biased;
            () = self.breaker.opened() => Err(Paused(slot)),
            () = self.limited() => Ok(Permit { slot }),
        }
    }

    /// Waits for the permit to a poll: a token that no start wants, or one of the `share` of polls.
    ///
    /// # Errors
    /// [`Paused`]: the lane is paused, or the lease ran out while waiting.
    pub(in crate::lane) async fn enter_to_poll(&self, share: &Share) -> Result<Permit, Paused> {
        self.lease.valid().await;
        let slot = Slot::apart();
        tokio::select! {
            biased;
            () = self.breaker.opened() => Err(Paused(slot)),
            () = share.acquire(&self.limiter) => if self.lease.is_valid() { Ok(Permit { slot }) } else { Err(Paused(slot)) },
        }
    }

    /// Waits for the permit to a probe, which a paused lane can have too, unless it is paused by hand.
    pub(in crate::lane) async fn enter_to_probe(&self) -> Option<Permit> {
        tokio::select! {
            biased;
            () = self.breaker.is_by_hand() => None,
            () = self.limited() => Some(Permit { slot: Slot::apart() }),
        }
    }

    /// The right to call for an instance without capacity while others wait; a permit is needed as well.
    pub(in crate::lane) fn spare(&self) -> Option<OwnedSemaphorePermit> {
        self.spare.try_acquire(&self.limiter)
    }

    /// Waits for a token of the limiter while the lane is ours.
    async fn limited(&self) {
        loop {
            self.lease.valid().await;
            self.metrics.waited(self.limiter.acquire().await);
            if self.lease.is_valid() {
                return;
            }
        }
    }

    /// Adapts the rate to the answer to a call made at `made`.
    pub(in crate::lane) fn learn(&self, made: Instant, answer: Result<&Answer, &NoAnswer>) {
        match answer {
            Ok(answer) if verdict::is_throttling(answer) => self.limiter.throttled(made, answer.retry_after),
            Ok(answer) if !answer.from_proxy => self.limiter.passed(made),
            Ok(_) | Err(_) => {}
        }
    }

    /// Shows the present rate while the lane is held. Logs when throttling slows the lane down and when it is back at
    /// its configured rate, and nothing in between.
    pub(in crate::lane) async fn show_rate(&self) -> Infallible {
        let mut throttled = false;
        loop {
            let rate = self.limiter.rate();
            self.metrics.rate.set(rate);
            if self.limiter.is_throttled() && !throttled {
                throttled = true;
                warn!(rate, "the API throttles: the lane slows down");
            } else if !self.limiter.is_slowed() && throttled {
                throttled = false;
                info!(rate, "the lane is back at its configured rate");
            }
            self.limiter.changed().await;
        }
    }

    /// Records what a start call shows of the lane.
    pub(in crate::lane) fn record(
        &self,
        instance: &InstanceId,
        verdict: &Verdict,
        result: &Result<Answer, NoAnswer>,
    ) -> Evidence {
        self.recorded(self.breaker.record(instance, verdict, result))
    }

    /// Records what a describe or list call shows of the lane.
    pub(in crate::lane) fn record_poll(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Evidence {
        self.recorded(self.breaker.record_poll(verdict, result))
    }

    fn recorded(&self, Recorded { change, evidence }: Recorded) -> Evidence {
        self.changed(change);
        evidence
    }

    /// Records the result of a probe of a paused lane.
    pub(in crate::lane) fn record_probe(&self, result: &Result<Answer, NoAnswer>) {
        self.changed(self.breaker.record_probe(result));
    }

    /// Records the result of a probe that decides whose fault failures are.
    pub(in crate::lane) fn record_check(&self, result: &Result<Answer, NoAnswer>) {
        self.changed(self.breaker.record_check(result));
    }

    /// Ends a trial without a verdict, because no job is left to try.
    pub(in crate::lane) fn end_trial(&self) {
        self.changed(self.breaker.end_trial());
    }

    fn changed(&self, change: Option<Change>) {
        let Some(change) = change else { return };
        let _entered = self.span.enter();
        match change {
            Change::Paused(cause) => {
                error!(endpoint = %self.endpoint, cause = cause.text, "lane paused, its jobs wait unharmed");
            }
            Change::Works(after) => {
                if after > HICCUP {
                    self.limiter.slow_start();
                }
                self.show_paused(self.breaker.cause().as_ref());
                info!("the lane works again");
            }
        }
    }

    /// Pauses the lane by hand, or ends such a pause.
    pub(in crate::lane) fn obey(&self, pause: Option<&control::Pause>) {
        let _entered = self.span.enter();
        if let Some(pause) = pause {
            let text = pause.describe(format_args!("resume {}", self.lane));
            if self.breaker.pause_by_hand(Cause { kind: CauseKind::ByHand, text: text.clone() }, pause.since) {
                warn!(cause = text, "lane paused by hand, its jobs wait unharmed");
            }
        } else if let Some(after) = self.breaker.resume() {
            if after > HICCUP {
                self.limiter.slow_start();
            }
            if !self.breaker.is_open() {
                self.show_paused(None);
            }
            info!("the pause by hand is over");
        }
    }

    /// Shows in the metrics why the lane is paused, if it is.
    pub(in crate::lane) fn show_paused(&self, cause: Option<&Cause>) {
        self.metrics.paused(cause.map(|cause| cause.kind.as_str()), &CauseKind::ALL.map(CauseKind::as_str));
    }
}
