//! What follows from a verdict: pure functions of the job's past, the time and randomness.

use std::time::Duration;

use jiff::Timestamp;

use super::capacity;
use crate::bce::{Answer, NoAnswer};
use crate::config::Retry;
use crate::events::{Outcome, Reason};
use crate::job::{Boot, Confirm, ParkCause, Progress};
use crate::lane::verdict::Verdict;
use crate::retry::{full_jitter, half_jitter};

/// The least that a `Retry-After` counts for, also if it is a date in the past.
const SHORTEST_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest `Retry-After` that is honoured.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);
/// Explains the end of a job whose last answer was not the API's.
pub(super) const NOT_THE_APIS: &str = "something else answered in the API's place, without x-bce-request-id";

/// What happens to a job after a call, or instead of one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Conclude(Conclusion),
    Park {
        progress: Progress,
        delay: Duration,
        cause: ParkCause,
    },
    /// The job is done once the instance runs. `started` is published first, if the start was ours.
    GoOn {
        started: Option<Conclusion>,
        attempts: u32,
        boot: Boot,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Conclusion {
    pub(super) outcome: Outcome,
    pub(super) ambiguous: bool,
    pub(super) attempts: u32,
    /// The answer that decided.
    pub(super) answer: Option<Answer>,
    /// Explanation for the event, where there was no answer.
    pub(super) explanation: Option<String>,
}

/// After a failed shared call: any of its jobs may be the cause, so none is charged with an attempt. Each is called
/// singly next.
pub(super) fn retry_singly(progress: &Progress, retry: Retry, now: Timestamp, random: f64) -> Next {
    let reschedules = progress.reschedules.saturating_add(1);
    let delay = full_jitter(retry.initial, retry.max, reschedules, random);
    let progress = Progress { reschedules, touched: true, failing_since: Some(now), ..progress.clone() };
    Next::Park { progress, delay, cause: ParkCause::Transient }
}

/// The past of a job, as far as decisions need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Past<'a> {
    pub(super) progress: &'a Progress,
    /// See [`super::failing_for`].
    pub(super) failing_for: Duration,
    /// No start of the lane succeeds at present.
    pub(super) is_doubtful: bool,
}

/// What follows from a verdict, for a job with this past. `random` is from [0, 1).
pub(super) fn decide(
    verdict: Verdict,
    result: Result<Answer, NoAnswer>,
    Past { progress, failing_for, is_doubtful }: Past<'_>,
    confirm: Confirm,
    retry: Retry,
    now: Timestamp,
    random: f64,
) -> Next {
    let attempts = progress.attempts.saturating_add(1);
    let reschedules = progress.reschedules.saturating_add(1);
    let park = |progress: Progress, delay, cause| Next::Park {
        progress: Progress { reschedules, touched: true, no_capacity: cause == ParkCause::NoCapacity, ..progress },
        delay,
        cause,
    };
    let uncounted = full_jitter(retry.initial, retry.max, reschedules, random);
    let (outcome, ambiguous) = match verdict {
        Verdict::Started { ambiguous } => (Outcome::Started, ambiguous),
        Verdict::AlreadyDone { runs: false } if confirm == Confirm::Running => {
            return Next::GoOn { started: None, attempts, boot: Boot::begun(now, false) };
        }
        Verdict::AlreadyDone { .. } => (Outcome::AlreadyDone, false),
        // A lost permission denies all jobs and pauses the lane: a second denial shows that it is this job's own.
        Verdict::Failed(Reason::AccessDenied) if !progress.denied => {
            return park(Progress { denied: true, ..progress.clone() }, uncounted, ParkCause::AccessDenied);
        }
        Verdict::Failed(reason) => (Outcome::Failed(reason), false),
        Verdict::Throttled { retry_after } => {
            let delay = retry_after.map_or(uncounted, |asked| asked.clamp(SHORTEST_RETRY_AFTER, LONGEST_RETRY_AFTER));
            let failing_since = progress.failing_since.map(|since| since.checked_add(delay).unwrap_or(since));
            return park(Progress { failing_since, ..progress.clone() }, delay, ParkCause::Throttled);
        }
        Verdict::NoCapacity { reason } => {
            let failing_since = progress.failing_since.unwrap_or(now);
            let rest = retry.give_up_after.saturating_sub(failing_for);
            if !rest.is_zero() {
                let delay = capacity::backoff(reschedules, rest, random);
                return park(
                    Progress { failing_since: Some(failing_since), ..progress.clone() },
                    delay,
                    ParkCause::NoCapacity,
                );
            }
            // The API has said that it started nothing.
            (Outcome::Failed(reason), false)
        }
        // Spared: the lane is paused.
        Verdict::LaneFault | Verdict::ClockSkew { .. } => return park(progress.clone(), uncounted, ParkCause::Paused),
        Verdict::Transient | Verdict::Verify => {
            let failing_since = progress.failing_since.unwrap_or(now);
            if attempts < retry.max_attempts && failing_for < retry.give_up_after {
                let delay = if is_doubtful {
                    // Else an outage of starts alone would use up all attempts of a small fleet within a minute.
                    half_jitter(retry.max, retry.max, 1, random)
                } else {
                    full_jitter(retry.initial, retry.max, attempts, random)
                };
                let progress = Progress { attempts, failing_since: Some(failing_since), ..progress.clone() };
                return park(progress, delay, ParkCause::Transient);
            }
            // One of the calls may have succeeded without an answer.
            (Outcome::Failed(Reason::Exhausted), true)
        }
    };
    let (answer, explanation) = match result {
        Ok(answer) => {
            let explanation = answer.from_proxy.then(|| NOT_THE_APIS.to_owned());
            (Some(answer), explanation)
        }
        Err(error) => (None, Some(error.to_string())),
    };
    let conclusion = Conclusion { outcome, ambiguous, attempts, answer, explanation };
    if outcome == Outcome::Started && confirm == Confirm::Running {
        Next::GoOn { started: Some(conclusion), attempts, boot: Boot::begun(now, ambiguous) }
    } else {
        Next::Conclude(conclusion)
    }
}
