//! When a lane stops calling because calls are of no use, and how it begins again.
//!
//! Bad keys, a refused certificate or an API that is out meet every job alike, so no job is to pay for them. The lane
//! *pauses*: jobs that were not called go back unharmed, and a probe is made now and then. Once that is answered the lane
//! is *on trial*: one job at a time, until a call is answered as it should be, or the next fault pauses it again.
//!
//! One failing call does not tell whose fault it is. It is the job's own where the API answers others, and the lane's
//! where a few different jobs in a row fail alike. So a failure waits a moment for either ([`Pause::blame`]). On trial the
//! first one pauses the lane again; but one instance that fails over and over, where hardly any other does, must not
//! keep a lane from the rest.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::timeout;

use super::verdict::{self, Verdict};
use crate::bce::{Answer, InstanceId, NoAnswer};
use crate::outcome::Reason;

/// So many different instances in a row with no good answer between them are no accident.
const IN_A_ROW: usize = 5;
/// How long a failure waits for others to tell whose fault it is. Nobody else is called meanwhile only where there is
/// nobody else.
const EVIDENCE: Duration = Duration::from_secs(1);

/// Why a lane is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// The word for it in metrics.
    pub word: &'static str,
    /// What happened and what to do, for a person.
    pub text: String,
}

/// Every [`Cause::word`] there is.
pub const WORDS: [&str; 6] = ["keys", "account", "clock", "endpoint", "access_denied", "outage"];

/// Whether a lane calls, and what its last calls say about that.
#[derive(Debug)]
pub struct Pause {
    state: watch::Sender<State>,
    runs: Mutex<Runs>,
}

#[derive(Debug, Default)]
struct State {
    paused: Option<Cause>,
    on_trial: bool,
    /// Answers that show the API at work.
    good: u64,
    /// Probes made since the lane last worked.
    probes: u32,
    /// When it last began to work again.
    resumed: Option<Timestamp>,
}

/// Instances that failed since the last answer that shows otherwise.
#[derive(Debug, Default)]
struct Runs {
    unanswered: BTreeSet<InstanceId>,
    denied: BTreeSet<InstanceId>,
    /// Calls that asked for states in vain.
    polls: usize,
    /// Those that failed on trial, since the lane last worked.
    tried: BTreeSet<InstanceId>,
}

/// Whose fault it is that a call failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Blame {
    /// The lane is paused for it.
    Lane,
    Job,
    /// Nobody else was called meanwhile.
    Unknown,
}

/// What became of a lane by a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// It is paused now, where it worked before.
    Paused(Cause),
    /// It is not on trial any more, after so many probes.
    Works(u32),
}

impl Pause {
    /// A lane that calls.
    pub fn new() -> Self {
        Self { state: watch::Sender::default(), runs: Mutex::default() }
    }

    /// Notes what came of a call. Returns what changed by it.
    pub fn note(&self, instance: &InstanceId, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let sign = sign(verdict, result);
        if matches!(sign, Sign::NoAnswer(_) | Sign::Denied(_)) && self.is_on_trial() && self.was_tried(instance) {
            return self.acquit();
        }
        self.take(&sign, self.count(instance, &sign).cloned())
    }

    /// Notes that this instance failed on trial. Returns whether it did so before, with hardly any other: it is no
    /// measure then of what others would meet.
    fn was_tried(&self, instance: &InstanceId) -> bool {
        let mut runs = self.runs();
        !runs.tried.insert(instance.clone()) && runs.tried.len() < IN_A_ROW
    }

    /// Notes what came of a probe that was to show whose fault a failure is.
    pub fn note_probe(&self, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let sign = sign(&verdict::general(result), result);
        let (Sign::Fault(cause) | Sign::NoAnswer(cause)) = &sign else { return None };
        self.take(&sign, Some(cause.clone()))
    }

    /// Notes what came of asking for states. That it works says nothing of whether starts do: where the API fails those
    /// alone, polls between them must not make each failure look like its own job's.
    pub fn note_poll(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Option<Change> {
        let sign = sign(verdict, result);
        let cause = self.count_poll(&sign)?.clone();
        self.take(&sign, Some(cause))
    }

    fn take(&self, sign: &Sign, cause: Option<Cause>) -> Option<Change> {
        let mut change = None;
        self.state.send_if_modified(|state| {
            if matches!(sign, Sign::Good | Sign::Alive) {
                state.good = state.good.wrapping_add(1);
            }
            if let Some(cause) = cause.filter(|_| state.paused.is_none()) {
                change = (!state.on_trial).then(|| Change::Paused(cause.clone()));
                state.paused = Some(cause);
                state.on_trial = false;
            } else if *sign == Sign::Good && state.on_trial {
                change = Some(state.works());
            }
            true
        });
        change
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many failures in a row pause the lane.
    fn enough(&self) -> usize {
        if self.is_on_trial() { 1 } else { IN_A_ROW }
    }

    /// Counts the polls that failed in a row, apart from starts: where nothing is started, they alone notice an outage.
    fn count_poll<'a>(&self, sign: &'a Sign) -> Option<&'a Cause> {
        let enough = self.enough();
        let mut runs = self.runs();
        match sign {
            Sign::Fault(cause) => Some(cause),
            Sign::NoAnswer(cause) => {
                runs.polls = runs.polls.saturating_add(1);
                (runs.polls >= enough).then_some(cause)
            }
            Sign::Denied(_) | Sign::Alive | Sign::Good => {
                runs.polls = 0;
                None
            }
        }
    }

    /// Counts the instances that failed in a row. Returns the cause, where that is enough to pause the lane.
    fn count<'a>(&self, instance: &InstanceId, sign: &'a Sign) -> Option<&'a Cause> {
        let enough = self.enough();
        let mut runs = self.runs();
        match sign {
            Sign::Fault(cause) => Some(cause),
            Sign::NoAnswer(cause) => {
                runs.unanswered.insert(instance.clone());
                (runs.unanswered.len() >= enough).then_some(cause)
            }
            Sign::Denied(cause) => {
                runs.unanswered.clear();
                runs.denied.insert(instance.clone());
                (runs.denied.len() >= enough).then_some(cause)
            }
            Sign::Alive => {
                runs.unanswered.clear();
                None
            }
            Sign::Good => {
                *runs = Runs::default();
                None
            }
        }
    }

    /// Whose fault it is how a call ended. Asked after [`Pause::note`].
    pub async fn blame(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Blame {
        let is_known = match sign(verdict, result) {
            Sign::Fault(_) => return Blame::Lane,
            Sign::NoAnswer(_) => {
                let mut state = self.state.subscribe();
                let good = state.borrow().good;
                let told = state.wait_for(|state| state.paused.is_some() || state.good != good);
                timeout(EVIDENCE, told).await.is_ok()
            }
            Sign::Denied(_) => true,
            Sign::Alive | Sign::Good => return Blame::Job,
        };
        match (self.is_paused(), is_known) {
            (true, _) => Blame::Lane,
            (false, true) => Blame::Job,
            (false, false) => Blame::Unknown,
        }
    }

    /// Whether no calls are to be made.
    pub fn is_paused(&self) -> bool {
        self.state.borrow().paused.is_some()
    }

    /// Why no calls are to be made.
    pub fn cause(&self) -> Option<Cause> {
        self.state.borrow().paused.clone()
    }

    /// How many probes were made since the lane last worked.
    pub fn probes(&self) -> u32 {
        self.state.borrow().probes
    }

    /// When the lane last began to work again, if it ever was paused.
    pub fn resumed(&self) -> Option<Timestamp> {
        self.state.borrow().resumed
    }

    /// Waits until no calls are to be made.
    pub async fn begun(&self) {
        let paused = |state: &State| state.paused.is_some();
        self.state.subscribe().wait_for(paused).await.expect("the sender is ours");
    }

    /// Whether jobs are to be called one at a time, until one is answered as it should be.
    pub fn is_on_trial(&self) -> bool {
        self.state.borrow().on_trial
    }

    /// Ends a trial, where there is one.
    pub fn acquit(&self) -> Option<Change> {
        let mut change = None;
        self.state.send_if_modified(|state| {
            change = state.on_trial.then(|| state.works());
            change.is_some()
        });
        if change.is_some() {
            self.runs().tried.clear();
        }
        change
    }

    /// Takes the answer to a probe: ends the pause and puts the lane on trial, or tells why it lasts.
    pub fn probed(&self, result: &Result<Answer, NoAnswer>) -> Option<Cause> {
        let cause = match sign(&verdict::general(result), result) {
            Sign::Fault(cause) | Sign::NoAnswer(cause) => Some(cause),
            // Whether jobs are denied too, only jobs can tell.
            Sign::Denied(_) | Sign::Alive | Sign::Good => None,
        };
        let mut runs = self.runs();
        *runs = Runs { tried: std::mem::take(&mut runs.tried), ..Runs::default() };
        drop(runs);
        self.state.send_modify(|state| {
            state.paused.clone_from(&cause);
            state.on_trial = cause.is_none();
            state.probes = state.probes.saturating_add(1);
        });
        cause
    }
}

impl State {
    /// Ends a trial.
    fn works(&mut self) -> Change {
        self.on_trial = false;
        self.resumed = Some(Timestamp::now());
        Change::Works(std::mem::take(&mut self.probes))
    }
}

/// What one answer says about the lane.
#[derive(Debug, PartialEq, Eq)]
enum Sign {
    /// Every other call will end so too.
    Fault(Cause),
    /// So may every other call, if the API is out.
    NoAnswer(Cause),
    /// So may every other call, if a permission is gone.
    Denied(Cause),
    /// The API is there, and that is all.
    Alive,
    /// Keys, clock and permission are good.
    Good,
}

fn sign(verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Sign {
    match (verdict, result) {
        (Verdict::ClockSkew { .. }, result) => Sign::Fault(Cause {
            word: "clock",
            text: format!("the API finds our clock off ({}): set this machine's clock, by NTP", said(result)),
        }),
        (Verdict::LaneFault, result) => Sign::Fault(fault(result)),
        (Verdict::Failed(Reason::AccessDenied), result) => Sign::Denied(Cause {
            word: "access_denied",
            text: format!(
                "one instance after the other is refused ({}): give the key's user permission to operate them",
                said(result)
            ),
        }),
        (Verdict::Throttled { .. }, _) => Sign::Alive,
        (_, Ok(answer)) if !verdict::is_none(answer) && !answer.foreign => Sign::Good,
        (_, result) => Sign::NoAnswer(Cause {
            word: "outage",
            text: format!(
                "the API does not answer as it should ({}): it is asked again every few seconds",
                said(result)
            ),
        }),
    }
}

fn fault(result: &Result<Answer, NoAnswer>) -> Cause {
    let (word, remedy) = match result {
        Err(NoAnswer::NoKeys(_)) => ("keys", "nothing is sent until then"),
        Err(NoAnswer::Proxy(fault)) => return Cause { word: "endpoint", text: fault.clone() },
        Err(_) => ("endpoint", "check the lane's endpoint, and the certificates this machine trusts"),
        Ok(answer) if (300..400).contains(&answer.status) => {
            ("endpoint", "redirects are not followed; check the lane's endpoint or region, and any proxy on the way")
        }
        Ok(answer) if answer.code.as_deref() == Some("OptInRequired") => {
            ("account", "the account has to be opened for BCC, or paid for")
        }
        Ok(answer) if answer.code.as_deref() == Some("InvalidVersion") => {
            ("endpoint", "it is no BCC endpoint that reveille knows; check the lane's endpoint or region")
        }
        Ok(_) => ("keys", "put valid keys where the lane takes them from"),
    };
    Cause { word, text: format!("{}: {remedy}", said(result)) }
}

fn said(result: &Result<Answer, NoAnswer>) -> String {
    let said = result.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    // What there is to do follows in the same sentence.
    said.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
