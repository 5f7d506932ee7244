//! The circuit breaker of a lane: when it stops calling because calls cannot succeed, and how it resumes.
//!
//! Bad keys, a refused certificate or an API that is down hit every job alike, so none is charged for them. The lane
//! *pauses* (open): jobs that were not called are put back, and probes are made with backoff. An answered probe puts
//! the lane *on trial* (half open): a few calls, until one is answered properly or all of them fail.
//!
//! | state | leaves for | when |
//! |---|---|---|
//! | closed | open | a call says that keys, account, clock or endpoint are at fault |
//! | | open | a row of instances fails that were not failing before, or is denied, or a row of polls fails |
//! | | open | a probe fails that was made since calls failed |
//! | open | half open | a probe is answered, or many in a row are not: then for one call |
//! | half open | closed | a call is answered as it should be, or no job is left to be tried |
//! | | closed | all calls of the trial failed, and none for an instance that was not known to fail |
//! | | open | all calls of the trial failed, or a probe did, or a call says that something else is at fault |
//!
//! One failed call does not show whose fault it is: the job's if the API answers others, the lane's if others fail too.
//! So a failed job waits a while for either ([`Breaker::attribute`]), and a probe decides if neither comes. An instance
//! that failed before is no evidence: a few bad ones do not keep a lane from the rest, and chance alone, at six failing
//! calls in ten, hardly ever makes a row ([`circuit`] has the figures).
//!
//! Failures in a row plus calls in flight never exceed the concurrency plus [`circuit::BEYOND`]: the most calls that an
//! outage can cost before it is noticed.
//!
//! The wait is a second, or as long as the lane takes for enough calls, five seconds at most; on trial, until the trial
//! is over. The slot is released first, so others are called meanwhile. A probe decides for a lone job: its eight
//! attempts would be used up in less than a minute, and an outage can last longer.
//!
//! A denial is a lost permission, or one instance's own. So the first denial parks its job, and the second one ends it
//! if others get through meanwhile: else as many jobs as calls are in flight would fail before the loss showed.

mod by_hand;
mod cause;
mod circuit;
mod pauses;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use self::by_hand::ByHand;
pub use self::cause::{Cause, CauseKind, Signal};
use self::circuit::Circuit;
pub use self::circuit::{Attribution, Change, Evidence};
use self::pauses::time_in;
use super::verdict::{self, Verdict};
use crate::bce::{Answer, InstanceId, NoAnswer};

/// How long a failure waits for evidence, at least and at most. A slow lane needs longer to make enough calls.
const EVIDENCE: Duration = Duration::from_secs(1);
const LONGEST_EVIDENCE: Duration = Duration::from_secs(5);
/// How long a failure on trial waits for the trial's other calls, some of which may hang until their timeout.
const LONGEST_TRIAL: Duration = Duration::from_secs(30);

/// Whether the lane may call, and the evidence for it.
#[derive(Debug)]
pub struct Breaker {
    circuit: Mutex<Circuit>,
    by_hand: Mutex<ByHand>,
    /// Notifies that the circuit may have changed.
    changed: watch::Sender<()>,
    /// How long a failure waits for others.
    evidence: Duration,
}

/// The result of recording a call.
#[derive(Debug)]
pub struct Recorded {
    /// The state change it caused.
    pub change: Option<Change>,
    /// For [`Breaker::attribute`].
    pub evidence: Evidence,
}

impl Breaker {
    /// For a lane that makes `rate` calls a second, with `concurrency` in flight at most.
    pub fn new(rate: f64, concurrency: usize) -> Self {
        let circuit = Circuit::new(concurrency);
        #[expect(clippy::cast_precision_loss, reason = "some tens")]
        let enough = circuit.outage_after() as f64 / rate;
        let evidence = Duration::try_from_secs_f64(enough).unwrap_or(LONGEST_EVIDENCE);
        Self {
            circuit: Mutex::new(circuit),
            by_hand: Mutex::default(),
            changed: watch::Sender::default(),
            evidence: evidence.clamp(EVIDENCE, LONGEST_EVIDENCE),
        }
    }

    /// Records the result of a start call.
    pub fn record(&self, instance: &InstanceId, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Recorded {
        let signal = Signal::read(verdict, result);
        self.update(|circuit| {
            let evidence = circuit.evidence(&signal);
            Recorded { change: circuit.record(instance, &signal, Timestamp::now()), evidence }
        })
    }

    /// Records the result of listing states.
    pub fn record_poll(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Recorded {
        let signal = Signal::read(verdict, result);
        self.update(|circuit| {
            let evidence = circuit.evidence(&signal);
            Recorded { change: circuit.record_poll(&signal, Timestamp::now()), evidence }
        })
    }

    /// Records the result of a probe of a paused lane.
    pub fn record_probe(&self, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let signal = Signal::read(&verdict::general(result), result);
        self.update(|circuit| circuit.record_probe(&signal, Timestamp::now()))
    }

    /// Records the result of a probe that decides whose fault failures are.
    pub fn record_check(&self, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let signal = Signal::read(&verdict::general(result), result);
        self.update(|circuit| circuit.record_check(&signal, Timestamp::now()))
    }

    /// Interrupts a trial: the next one begins with a probe. Jobs that failed on it are not charged.
    pub fn interrupt(&self) {
        self.update(Circuit::interrupt);
    }

    /// Ends a trial, if there is one, because no job is left to try.
    pub fn end_trial(&self) -> Option<Change> {
        self.update(|circuit| circuit.end_trial(Timestamp::now()))
    }

    /// Whose fault a failed call is. `None` if that does not show in time.
    pub async fn attribute(&self, call: Evidence) -> Option<Attribution> {
        // Known at once for nearly all calls.
        let mut attribution = self.circuit().attribution(&call);
        if attribution.is_some() {
            return attribution;
        }
        let known = async {
            let mut changes = self.changed.subscribe();
            loop {
                changes.borrow_and_update();
                attribution = self.circuit().attribution(&call);
                if attribution.is_some() || changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let longest = if call.is_on_trial() { LONGEST_TRIAL } else { self.evidence };
        let _ = timeout(longest, known).await;
        attribution
    }

    /// Remembers that an instance fails by its own fault: failing again is no evidence against the API.
    pub fn remember_failing(&self, instance: &InstanceId) {
        self.circuit().remember_failing(instance);
    }

    /// Pauses the lane by hand, as ordered `since` then, or gives such a pause another cause: no call is made, whatever the
    /// circuit says. Returns whether that is another one than before.
    pub fn pause_by_hand(&self, cause: Cause, since: Timestamp) -> bool {
        let is_new = self.by_hand().pause(cause, since.min(Timestamp::now()));
        // Jobs that failed on a trial would wait for its end.
        self.interrupt();
        is_new
    }

    /// Ends a pause by hand. Returns how long it was, if there was one.
    pub fn resume(&self) -> Option<Duration> {
        let now = Timestamp::now();
        let since = self.by_hand().resume(now)?;
        self.changed.send_replace(());
        // If the clock was set back meanwhile, the pause may have been long.
        Some(Duration::try_from(now.duration_since(since)).unwrap_or(Duration::MAX))
    }

    /// Why the lane is paused by hand, if it is.
    pub fn by_hand_for(&self) -> Option<Cause> {
        self.by_hand().cause().cloned()
    }

    /// Whether the lane is paused.
    pub fn is_open(&self) -> bool {
        self.cause().is_some()
    }

    /// Why the lane is paused, if it is.
    pub fn cause(&self) -> Option<Cause> {
        self.by_hand_for().or_else(|| self.circuit().paused().cloned())
    }

    /// Waits until the lane is paused.
    pub async fn opened(&self) {
        self.until(|| self.is_open()).await;
    }

    /// Waits until the lane is paused by hand for another cause than `cause`, or not any more.
    pub async fn is_by_hand_otherwise(&self, cause: &Cause) {
        self.until(|| self.by_hand().cause() != Some(cause)).await;
    }

    /// Waits until the lane is paused by hand.
    pub async fn is_by_hand(&self) {
        self.until(|| self.by_hand().cause().is_some()).await;
    }

    /// Waits until the lane is not paused by hand.
    pub async fn is_not_by_hand(&self) {
        self.until(|| self.by_hand().cause().is_none()).await;
    }

    /// Why the lane does not work as it should: it is paused, or on trial.
    pub fn trouble(&self) -> Option<Cause> {
        self.by_hand_for().or_else(|| self.circuit().trouble().cloned())
    }

    /// Waits until [`Breaker::trouble`] is of another kind than `kind`.
    pub async fn is_in_other_trouble(&self, kind: Option<CauseKind>) {
        self.until(|| self.trouble().map(|cause| cause.kind) != kind).await;
    }

    /// Whether hardly any start seems to work, even if the API answers: failed jobs are retried slowly then.
    pub fn is_doubtful(&self) -> bool {
        self.circuit().is_doubtful()
    }

    /// Whether only a few jobs are to be called, until one is answered as it should be.
    pub fn is_half_open(&self) -> bool {
        self.circuit().is_half_open()
    }

    /// How many probes were made since the lane last worked.
    pub fn probes(&self) -> u32 {
        self.circuit().probes()
    }

    /// Number of answers so far that show that the API is up.
    pub fn answers(&self) -> u64 {
        self.circuit().answers()
    }

    /// How long the lane was paused, with reason, between two instants.
    pub fn paused_between(&self, from: Timestamp, to: Timestamp) -> Duration {
        let (circuit, by_hand) = (self.circuit(), self.by_hand());
        time_in(circuit.pauses(to).chain(by_hand.pauses(to)), from, to)
    }

    /// How many of the lane's slots are withheld now: all of them if the API has to be probed first.
    pub fn withheld(&self) -> usize {
        // A call that is let through finds the lane paused, and no probe is made by hand.
        if self.by_hand().cause().is_some() { 0 } else { self.circuit().withheld() }
    }

    /// Waits until [`Breaker::withheld`] is not `withheld` any more.
    pub async fn withholds_other_than(&self, withheld: usize) {
        self.until(|| self.withheld() != withheld).await;
    }

    fn update<T>(&self, update: impl FnOnce(&mut Circuit) -> T) -> T {
        let updated = update(&mut self.circuit());
        self.changed.send_replace(());
        updated
    }

    async fn until(&self, is_so: impl Fn() -> bool) {
        self.changed.subscribe().wait_for(|()| is_so()).await.expect("the sender is ours");
    }

    fn by_hand(&self) -> MutexGuard<'_, ByHand> {
        self.by_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
