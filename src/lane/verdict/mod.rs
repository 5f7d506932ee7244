//! What an answer means for a job: pure functions of the answer, the policy and the job's past.

mod list;

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

pub use self::list::{Listing, of_list};
use crate::bce::{Answer, InstanceState, Meaning, NoAnswer};
use crate::events::Reason;
use crate::job::Conflict;

/// What an answer means for its job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The instance is starting. `ambiguous`: an earlier call, of ours or of another client, may have started it.
    Started {
        /// See above.
        ambiguous: bool,
    },
    /// Another client had started the instance before.
    AlreadyDone {
        /// It was seen running. Otherwise it is starting, or the policy asks for no check.
        runs: bool,
    },
    /// The instance's state has to be asked for; [`of_describe`] then decides.
    Verify,
    /// A retry cannot help.
    Failed(Reason),
    /// No capacity at present: retried slowly, and not counted. `reason` is for the final outcome.
    NoCapacity {
        /// See above.
        reason: Reason,
    },
    /// A retry may help: counted as an attempt.
    Transient,
    /// Throttled: not counted.
    Throttled {
        /// How long the API asks to wait.
        retry_after: Option<Duration>,
    },
    /// Our clock and the API's differ too much, even after a correction. Not counted.
    ClockSkew {
        /// The API's clock.
        server_time: Option<Timestamp>,
    },
    /// The lane's keys, endpoint or account are at fault, not the job. Not counted.
    LaneFault,
}

/// For the log, in one word.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, more) = match self {
            Self::Started { ambiguous } => ("started", ambiguous.then_some("ambiguous")),
            Self::AlreadyDone { runs } => ("already_done", runs.then_some("runs")),
            Self::Verify => ("verify", None),
            Self::Failed(reason) => ("failed", Some(reason.as_str())),
            Self::NoCapacity { reason } => ("no_capacity", Some(reason.as_str())),
            Self::Transient => ("transient", None),
            Self::Throttled { .. } => ("throttled", None),
            Self::ClockSkew { .. } => ("clock_skew", None),
            Self::LaneFault => ("lane_fault", None),
        };
        f.write_str(name)?;
        more.map_or(Ok(()), |more| write!(f, ":{more}"))
    }
}

/// What a verdict on a 409 depends on, beside the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// The job's policy, or the lane's.
    pub policy: Conflict,
    /// No call can have been made for the job before; else the 409 may be due to that call.
    pub first_touch: bool,
}

/// The verdict on a start call, by its answer and, for a 409, by `circumstances`.
pub fn of_start(result: &Result<Answer, NoAnswer>, circumstances: Circumstances) -> Verdict {
    let answer = match result {
        Ok(answer) if proves_nothing(answer) => return Verdict::Transient,
        Ok(answer) if answer.is_success() => return Verdict::Started { ambiguous: false },
        Ok(answer) if answer.status == 409 => answer,
        other => return general(other),
    };
    match answer.code.as_deref() {
        Some("Instance.StartInstanceWhenCreating") => Verdict::Transient,
        Some("Instance.StartExpiredInstance") => Verdict::Failed(Reason::InstanceExpired),
        _ if let Some(meaning) = answer.meaning => of_meaning(meaning, answer),
        _ if !circumstances.first_touch => Verdict::Verify,
        code => match circumstances.policy {
            Conflict::Verify => Verdict::Verify,
            // The code was lost with the rest of the body, and may be one of the two above.
            _ if code.is_none() => Verdict::Transient,
            Conflict::Fail => Verdict::Failed(Reason::Conflict),
            Conflict::Accept => Verdict::AlreadyDone { runs: false },
        },
    }
}

/// The verdict on the describe call that follows [`Verdict::Verify`]. A 2xx without a state was not readable.
pub fn of_describe(
    result: &Result<(Answer, Option<InstanceState>), NoAnswer>,
    circumstances: Circumstances,
) -> Verdict {
    let state = match result {
        Ok((answer, _)) if proves_nothing(answer) => return Verdict::Transient,
        Ok((answer, Some(state))) if answer.is_success() => *state,
        Ok((answer, None)) if answer.is_success() => return Verdict::Transient,
        Ok((answer, _)) => {
            return match general(&Ok(answer.clone())) {
                Verdict::Failed(Reason::NotFound) => Verdict::Failed(Reason::NotFound),
                Verdict::Failed(_) => unverifiable(circumstances.policy),
                // It concerns starts, and says nothing of the state.
                Verdict::NoCapacity { .. } => Verdict::Transient,
                verdict => verdict,
            };
        }
        Err(error) => return general(&Err(error.clone())),
    };
    match state {
        InstanceState::Running | InstanceState::Starting if circumstances.first_touch => {
            Verdict::AlreadyDone { runs: state == InstanceState::Running }
        }
        InstanceState::Running | InstanceState::Starting => Verdict::Started { ambiguous: true },
        // A read can lag a start, and a stopped instance can be started.
        InstanceState::Stopped | InstanceState::Passing => Verdict::Transient,
        InstanceState::Ended if circumstances.policy == Conflict::Fail => Verdict::Failed(Reason::Conflict),
        InstanceState::Ended => Verdict::Failed(Reason::WrongState),
    }
}

/// A 409 that had to be verified only because of the job's past, and cannot be, means what the policy says.
fn unverifiable(policy: Conflict) -> Verdict {
    match policy {
        Conflict::Fail => Verdict::Failed(Reason::Conflict),
        Conflict::Accept => Verdict::AlreadyDone { runs: false },
        Conflict::Verify => Verdict::Failed(Reason::ConflictUnverified),
    }
}

/// Whether an answer says that there were too many calls.
pub fn is_throttling(answer: &Answer) -> bool {
    answer.meaning.map_or(answer.status == 429, |meaning| meaning == Meaning::Throttled)
}

/// Whether an answer does not come from the API, and so says nothing of the instance or the keys: a gateway can answer
/// "404" for any instance, "401" for good keys, and a captive portal "200". Redirects and 429s count from any sender:
/// the API never redirects, and a gateway that throttles wants fewer calls.
fn proves_nothing(answer: &Answer) -> bool {
    answer.from_proxy && !matches!(answer.status, 300..=399 | 429)
}

/// Whether the status is as good as no answer: 5xx, 408 (the request came too slowly), 425 (too early) and 101 (a
/// switch of protocol, which we never ask for).
pub(super) fn is_none(answer: &Answer) -> bool {
    matches!(answer.status, ..200 | 408 | 425 | 500..)
}

/// Whether the API has judged the call. A 5xx without a known code is no judgement.
pub(super) fn is_judged(verdict: &Verdict, answer: &Answer) -> bool {
    !answer.from_proxy && (*verdict != Verdict::Transient || !is_none(answer))
}

/// What follows from the meaning of a code.
fn of_meaning(meaning: Meaning, answer: &Answer) -> Verdict {
    match meaning {
        Meaning::Retry => Verdict::Transient,
        Meaning::NoCapacity(word) => Verdict::NoCapacity { reason: Reason::named(word) },
        Meaning::Throttled => Verdict::Throttled { retry_after: answer.retry_after },
        Meaning::Failed(word) => Verdict::Failed(Reason::named(word)),
        Meaning::LaneFault(_) => Verdict::LaneFault,
    }
}

/// The verdict for any call: by its code's meaning, else by its status. An unknown code is its job's own.
pub(super) fn general(result: &Result<Answer, NoAnswer>) -> Verdict {
    let answer = match result {
        Ok(answer) => answer,
        Err(NoAnswer::Tls(_) | NoAnswer::Proxy(_) | NoAnswer::NoKeys(_)) => return Verdict::LaneFault,
        Err(NoAnswer::Unreachable(_) | NoAnswer::TimedOut | NoAnswer::Broken(_) | NoAnswer::Stale { .. }) => {
            return Verdict::Transient;
        }
    };
    match answer.status {
        _ if proves_nothing(answer) => Verdict::Transient,
        _ if is_throttling(answer) => Verdict::Throttled { retry_after: answer.retry_after },
        _ if is_clock_skew(answer) => Verdict::ClockSkew { server_time: answer.date },
        _ if let Some(meaning) = answer.meaning => of_meaning(meaning, answer),
        401 | 300..=399 => Verdict::LaneFault,
        _ if is_none(answer) => Verdict::Transient,
        403 if matches!(answer.code.as_deref(), None | Some("AccessDenied")) => Verdict::Failed(Reason::AccessDenied),
        404 => Verdict::Failed(Reason::NotFound),
        400..=499 => Verdict::Failed(Reason::Refused),
        _ => Verdict::Transient,
    }
}

/// `RequestExpired`, and what another gateway answers: `InvalidRequest`, "Fail to check timestamp: time expired"
/// (<https://github.com/baidubce/bce-sdk-go/issues/84>).
pub fn is_clock_skew(answer: &Answer) -> bool {
    let says = |text: &str| answer.message.as_deref().is_some_and(|message| message.contains(text));
    (400..500).contains(&answer.status)
        && !answer.from_proxy
        && match answer.code.as_deref() {
            Some("RequestExpired") => true,
            Some("InvalidRequest") => says("timestamp") || says("time expired"),
            _ => false,
        }
}

#[cfg(test)]
mod tests;
