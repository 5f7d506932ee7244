//! How a job ended, and why.

use std::fmt;

use crate::bce::Word;

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The API accepted the start.
    Started,
    /// The instance runs.
    Running,
    /// Somebody had started the instance before.
    AlreadyDone,
    /// The instance was not started, or cannot be known to be.
    Failed(Reason),
    /// The job's deadline had passed, and no call of ours is known to have started the instance.
    Expired,
    /// The message was no job.
    Rejected,
    /// A command ended it.
    Cancelled(CancelReason),
}

/// Which command ended a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelReason {
    /// Its batch, or its instance, was cancelled.
    ByCommand,
    /// Its instance is to be left alone for a while.
    Snoozed,
}

impl CancelReason {
    /// The name in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByCommand => "by_command",
            Self::Snoozed => "snoozed",
        }
    }
}

/// Phase of a job. It is part of its events' ids, so that one job can have two events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The instance is to be started.
    Start,
    /// It is to be seen running.
    Confirm,
}

impl Phase {
    /// The end of an event's id.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Confirm => "confirm",
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// 409, and the policy is `fail`.
    Conflict,
    /// 409, and asking for the state was refused: the key may start instances but not describe them.
    ConflictUnverified,
    /// 409, and the instance is in a state no waiting helps.
    WrongState,
    /// The instance has expired: it needs payment, not patience.
    InstanceExpired,
    /// 403 with the code `AccessDenied`, or without one.
    AccessDenied,
    /// 404.
    NotFound,
    /// Another 4xx: its code says why.
    Refused,
    /// No machine was to be had for `give_up_after`, by a code that no rule gives another reason.
    NoCapacity,
    /// Attempts or `give_up_after` were used up.
    Exhausted,
    /// The message was delivered so often that it is suspected of ending whoever touches it.
    Poisoned,
    /// The start was accepted, and the instance fell back, or is gone.
    NotRunning,
    /// The start was accepted, and the instance was not seen running within the lane's `confirm_timeout`.
    NotRunningInTime,
    /// The wave of the job was not started for as long as commands last.
    WaveNotStarted,
    /// The one that a rule of the configuration gives to the code.
    Configured(Word),
}

impl Outcome {
    /// Every outcome there is, but for reasons that are configured.
    pub const ALL: [Self; 20] = [
        Self::Started,
        Self::Running,
        Self::AlreadyDone,
        Self::Expired,
        Self::Rejected,
        Self::Cancelled(CancelReason::ByCommand),
        Self::Cancelled(CancelReason::Snoozed),
        Self::Failed(Reason::Conflict),
        Self::Failed(Reason::ConflictUnverified),
        Self::Failed(Reason::WrongState),
        Self::Failed(Reason::InstanceExpired),
        Self::Failed(Reason::AccessDenied),
        Self::Failed(Reason::NotFound),
        Self::Failed(Reason::Refused),
        Self::Failed(Reason::NoCapacity),
        Self::Failed(Reason::Exhausted),
        Self::Failed(Reason::Poisoned),
        Self::Failed(Reason::NotRunning),
        Self::Failed(Reason::NotRunningInTime),
        Self::Failed(Reason::WaveNotStarted),
    ];

    /// The outcome of this name and reason, as they stand in events of our own: another configuration may have had reasons that
    /// this one has not.
    pub fn read(name: &str, reason: &str) -> Option<Self> {
        let known = Self::ALL.into_iter().find(|outcome| outcome.as_str() == name && outcome.reason() == reason);
        let configured = || (name == "failed").then(|| Word::parse(reason).map(Reason::Configured)).flatten();
        known.or_else(|| configured().map(Self::Failed))
    }

    /// The name in events, routing keys and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Running => "running",
            Self::AlreadyDone => "already_done",
            Self::Failed(_) => "failed",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
            Self::Cancelled(_) => "cancelled",
        }
    }

    /// The reason's name, empty where there is none.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Failed(reason) => reason.as_str(),
            Self::Rejected => "unreadable",
            Self::Cancelled(reason) => reason.as_str(),
            Self::Started | Self::Running | Self::AlreadyDone | Self::Expired => "",
        }
    }

    /// The phase that a job ends in with this outcome; one that is `confirming` may be given up in that phase too.
    pub fn phase(self, confirming: bool) -> Phase {
        match self {
            Self::Running | Self::Failed(Reason::NotRunning | Reason::NotRunningInTime) => Phase::Confirm,
            Self::Failed(Reason::Poisoned) if confirming => Phase::Confirm,
            _ => Phase::Start,
        }
    }

    /// Whether the instance runs, or is about to.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Started | Self::Running | Self::AlreadyDone)
    }

    /// Whether the message is kept among the dead letters.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Self::Failed(_) | Self::Rejected)
    }
}

impl Reason {
    /// The reason of this name: a built-in one, or that of a rule.
    pub fn named(word: Word) -> Self {
        Self::built_in(word.as_str()).unwrap_or(Self::Configured(word))
    }

    /// The built-in reason of this name.
    pub fn built_in(name: &str) -> Option<Self> {
        Outcome::ALL.into_iter().find_map(|outcome| match outcome {
            Outcome::Failed(reason) if reason.as_str() == name => Some(reason),
            _ => None,
        })
    }

    /// The name in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::ConflictUnverified => "conflict_unverified",
            Self::WrongState => "wrong_state",
            Self::InstanceExpired => "instance_expired",
            Self::AccessDenied => "access_denied",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::NoCapacity => "no_capacity",
            Self::Exhausted => "exhausted",
            Self::Poisoned => "poisoned",
            Self::NotRunning => "not_running",
            Self::NotRunningInTime => "not_running_in_time",
            Self::WaveNotStarted => "wave_not_started",
            Self::Configured(word) => word.as_str(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_read_as_it_is_written() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::read(outcome.as_str(), outcome.reason()), Some(outcome));
        }
        assert_eq!((Outcome::read("failed", ""), Outcome::read("held", "")), (None, None));
    }

    #[test]
    fn a_reason_that_only_another_configuration_knows_is_read_as_it_was_said() {
        let read = Outcome::read("failed", "no_stock").unwrap();
        assert_eq!((read.as_str(), read.reason(), read.is_dead_letter()), ("failed", "no_stock", true));
        assert_eq!(read, Outcome::Failed(Reason::named(Word::parse("no_stock").unwrap())));
        assert_eq!(read.phase(false), Phase::Start);
        for (name, reason) in [("failed", "No stock"), ("started", "no_stock"), ("rejected", "no_stock")] {
            assert_eq!(Outcome::read(name, reason), None, "{name} {reason}");
        }
        assert_eq!(Reason::named(Word::parse("not_found").unwrap()), Reason::NotFound);
    }

    #[test]
    fn a_job_that_goes_on_never_has_two_events_of_one_id() {
        // Whatever it ends with in its second phase, the first one had its event.
        for end in [Outcome::Running, Outcome::Failed(Reason::NotRunning), Outcome::Failed(Reason::NotRunningInTime)] {
            assert_eq!((end.phase(true), end.phase(false)), (Phase::Confirm, Phase::Confirm), "for every copy");
        }
        assert_eq!(Outcome::Failed(Reason::Poisoned).phase(true), Phase::Confirm);
        assert_eq!(Outcome::Failed(Reason::Poisoned).phase(false), Phase::Start);
        assert_eq!(Outcome::Started.phase(false), Phase::Start);
    }
}
