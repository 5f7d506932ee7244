//! The circuit breaker of a lane: when it stops calling because calls are of no use, and how it begins again.
//!
//! Bad keys, a refused certificate or an API that is out meet every job alike, so no job is to pay for them. The lane
//! *pauses* (the circuit is open): jobs that were not called go back unharmed, and a probe is made now and then. Once that
//! is answered the lane is *on trial* (half open): a few calls, until one is answered as it should be, or all of them fail.
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
//! One failing call does not tell whose fault it is: the job's own, where the API answers others, and the lane's where others
//! fail alike. So a failure waits a while for either ([`Breaker::attribute`]), and a probe tells where neither comes.
//! An instance that failed before is no evidence when it fails again: a few bad ones keep no lane from the rest, and chance
//! alone, at six failing calls in ten, hardly ever makes a row ([`circuit`] has the figures).
//!
//! Failures in a row and calls in flight together are never more than the concurrency and [`circuit::BEYOND`]: what an
//! outage can cost at most before it is noticed.
//!
//! The wait is a second, or as long as the lane takes for as many calls as tell, five seconds at most; on trial, until the
//! trial is over. It is made without the slot, so others are called meanwhile. A probe tells for a lone job: its eight
//! attempts are used up in less than a minute, and an outage can last longer.
//!
//! A denial by the API is a permission that is gone, or one instance's own. So the first denial parks its job and the
//! second, while others get through, ends it: else as many jobs as there are calls in flight would fail before it showed.

mod cause;
mod circuit;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use self::cause::Signal;
pub use self::cause::{Cause, CauseKind};
use self::circuit::Circuit;
pub use self::circuit::{Attribution, Change, Evidence};
use super::verdict::{self, Verdict};
use crate::bce::{Answer, InstanceId, NoAnswer};

/// How long a failure waits for others to tell whose fault it is, at least and at most. A lane that calls slowly needs longer
/// for as many calls as tell.
const EVIDENCE: Duration = Duration::from_secs(1);
const LONGEST_EVIDENCE: Duration = Duration::from_secs(5);
/// How long a failure on trial waits for the others of that trial, some of which may hang until their time-out.
const LONGEST_TRIAL: Duration = Duration::from_secs(30);

/// Whether a lane calls, and what its last calls say about that.
#[derive(Debug)]
pub struct Breaker {
    circuit: Mutex<Circuit>,
    /// Tells that the circuit may have changed.
    changed: watch::Sender<()>,
    /// How long a failure waits for others.
    evidence: Duration,
}

/// What the recording of a call leaves behind.
#[derive(Debug)]
pub struct Recorded {
    /// What changed by it.
    pub change: Option<Change>,
    /// For [`Breaker::attribute`].
    pub evidence: Evidence,
}

impl Breaker {
    /// Of a lane that makes `rate` calls a second, and `concurrency` at a time at most.
    pub fn new(rate: f64, concurrency: usize) -> Self {
        let circuit = Circuit::new(concurrency);
        #[expect(clippy::cast_precision_loss, reason = "some tens")]
        let enough = circuit.outage_after() as f64 / rate;
        let evidence = Duration::try_from_secs_f64(enough).unwrap_or(LONGEST_EVIDENCE);
        Self {
            circuit: Mutex::new(circuit),
            changed: watch::Sender::default(),
            evidence: evidence.clamp(EVIDENCE, LONGEST_EVIDENCE),
        }
    }

    /// Records what came of a call that was to start something.
    pub fn record(&self, instance: &InstanceId, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Recorded {
        let signal = Signal::read(verdict, result);
        self.update(|circuit| {
            let evidence = circuit.evidence(&signal);
            Recorded { change: circuit.record(instance, &signal, Timestamp::now()), evidence }
        })
    }

    /// Records what came of asking for states.
    pub fn record_poll(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Recorded {
        let signal = Signal::read(verdict, result);
        self.update(|circuit| {
            let evidence = circuit.evidence(&signal);
            Recorded { change: circuit.record_poll(&signal, Timestamp::now()), evidence }
        })
    }

    /// Records what came of a probe of a paused lane.
    pub fn record_probe(&self, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let signal = Signal::read(&verdict::general(result), result);
        self.update(|circuit| circuit.record_probe(&signal, Timestamp::now()))
    }

    /// Records what came of a probe that was to show whose fault failures are.
    pub fn record_look(&self, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let signal = Signal::read(&verdict::general(result), result);
        self.update(|circuit| circuit.record_look(&signal, Timestamp::now()))
    }

    /// Breaks a trial off: the next one begins with a probe. Jobs that failed on it are spared.
    pub fn interrupt(&self) {
        self.update(Circuit::interrupt);
    }

    /// Ends a trial, where there is one and no job is left to be tried.
    pub fn end_trial(&self) -> Option<Change> {
        self.update(|circuit| circuit.end_trial(Timestamp::now()))
    }

    /// Whose fault it is that a call failed. `None` where that does not show in time.
    pub async fn attribute(&self, call: Evidence) -> Option<Attribution> {
        // As it is for nearly all calls.
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

    /// Remembers that an instance fails by its own fault: that it fails again is no evidence against the API.
    pub fn remember_failing(&self, instance: &InstanceId) {
        self.circuit().remember_failing(instance);
    }

    /// Whether no calls are to be made.
    pub fn is_open(&self) -> bool {
        self.circuit().paused().is_some()
    }

    /// Why no calls are to be made.
    pub fn cause(&self) -> Option<Cause> {
        self.circuit().paused().cloned()
    }

    /// Waits until no calls are to be made.
    pub async fn opened(&self) {
        self.until(|circuit| circuit.paused().is_some()).await;
    }

    /// Whether hardly any start seems to work, be the API there or not: jobs that fail are tried again slowly then.
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

    /// Counts the answers that show that the API is there.
    pub fn answers(&self) -> u64 {
        self.circuit().answers()
    }

    /// For how long the lane was paused between two moments, and had reason to be.
    pub fn paused_between(&self, from: Timestamp, to: Timestamp) -> Duration {
        self.circuit().paused_between(from, to)
    }

    /// How many of the calls that the lane may have in flight are not to be: all of them where a probe has to tell first.
    pub fn withheld(&self) -> usize {
        self.circuit().withheld()
    }

    /// Waits until [`Breaker::withheld`] is not `withheld` any more.
    pub async fn withholds_other_than(&self, withheld: usize) {
        self.until(|circuit| circuit.withheld() != withheld).await;
    }

    fn update<T>(&self, update: impl FnOnce(&mut Circuit) -> T) -> T {
        let updated = update(&mut self.circuit());
        self.changed.send_replace(());
        updated
    }

    async fn until(&self, is_so: impl Fn(&Circuit) -> bool) {
        let is_so = |(): &()| is_so(&self.circuit());
        self.changed.subscribe().wait_for(is_so).await.expect("the sender is ours");
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
