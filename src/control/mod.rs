//! Commands of people and programs: a lane or a schedule is paused or resumed by hand, jobs are cancelled, an instance is snoozed, a
//! wave of a batch is started, a schedule is run.
//!
//! Commands are events, published to an exchange of their own and kept in a stream for 30 days. Whoever may write to the
//! exchange can give them. Each replica reads the whole stream at its start and then follows it ([`follow`]), so all
//! replicas know the same, after a restart too; what the commands amount to is pure ([`state`]). A replica that has applied a
//! command publishes `control.applied` among the outcomes, which is what the person at the terminal waits for.
//!
//! - **A command has effect when its replica has read it**: [`Control`] is asked before each call is made, so none is made
//!   for a cancelled job, or in a paused lane, after `control.applied`, except for those in flight.
//! - **No lane is served before the commands are known**, or for as long as [`PATIENCE`] if they cannot be read: machines that
//!   have to be up do not wait for the stream of commands. The log says so, and so does the metric `reveille_control_followed`.
//! - **A lost connection changes nothing that was known.** A stream that was deleted is declared anew, empty: what was
//!   known stays in force in the replicas that run.

pub mod follow;
mod state;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::warn;

pub use self::state::{Cancellation, LASTS, Pause, RUNS_FOR, Run, State, WaveAhead};
use crate::bce::InstanceId;
use crate::job::Job;

/// How long lanes wait for the commands at the start of the process.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The commands as this replica knows them.
#[derive(Debug, Default)]
pub struct Control {
    state: watch::Sender<State>,
    /// Whether they have been read once.
    known: watch::Sender<bool>,
    /// Until when lanes wait for that.
    patience: OnceLock<Instant>,
    /// It was told that they do not any more.
    is_told: AtomicBool,
}

impl Control {
    /// Waits until the commands are known, until [`PATIENCE`] after the first lane began to wait for that.
    pub async fn known(&self) {
        let until = *self.patience.get_or_init(|| Instant::now() + PATIENCE);
        let mut known = self.known.subscribe();
        let known = known.wait_for(|known| *known);
        if timeout_at(until, known).await.is_err() && !self.is_told.swap(true, Ordering::Relaxed) {
            warn!("the commands cannot be read: lanes are served without them");
        }
    }

    /// The pause of a lane by hand, if there is one.
    pub fn pause_of(&self, lane: &str) -> Option<Pause> {
        self.state.borrow().pause_of(lane, Timestamp::now()).cloned()
    }

    /// Why a job of `lane` is not to be called at all. `submitted`: when, if that is known.
    pub fn cancellation(&self, lane: &str, job: &Job, submitted: Option<Timestamp>) -> Option<Cancellation> {
        self.state.borrow().cancellation(lane, job, submitted, Timestamp::now())
    }

    /// Whether a job of `lane` has to wait for earlier waves of its batch. `stamped`: the time that its message has.
    pub fn wave_ahead(&self, lane: &str, job: &Job, stamped: Option<Timestamp>) -> Option<WaveAhead> {
        self.state.borrow().wave_ahead(lane, job, stamped, Timestamp::now())
    }

    /// The pause of a schedule at an instant, if there was one.
    pub fn schedule_pause(&self, schedule: &str, at: Timestamp) -> Option<Pause> {
        self.state.borrow().schedule_pause(schedule, at).cloned()
    }

    /// The commands of the last hour to run a schedule.
    pub fn runs(&self) -> Vec<Run> {
        self.state.borrow().runs(Timestamp::now()).cloned().collect()
    }

    /// Why an instance is not to be called now.
    pub fn snooze(&self, instance: &InstanceId) -> Option<Cancellation> {
        self.state.borrow().snooze(instance, Timestamp::now())
    }
}
