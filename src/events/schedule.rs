//! What is said of schedules.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A schedule is seen for the first time, or with another line or zone than before: it has no past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleKnown {
    /// Its name.
    pub schedule: String,
    /// Its lane.
    pub lane: String,
    /// Its cron line and zone.
    pub line: String,
}

/// All jobs of a due time are submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleFired {
    /// Its name.
    pub schedule: String,
    /// Its lane.
    pub lane: String,
    /// When it was due.
    pub due: Timestamp,
    /// The batch of the jobs.
    pub batch_id: String,
    /// How many there are.
    pub size: usize,
    /// `None`: it was fired by the clock.
    #[serde(flatten)]
    pub by_hand: Option<ByHand>,
}

/// The command by which a schedule was fired.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ByHand {
    /// The person or program that gave it.
    pub by: String,
    /// The id of its event.
    pub command_id: String,
}

/// Due times have passed that are not fired any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleMissed {
    /// Its name.
    pub schedule: String,
    /// Its lane.
    pub lane: String,
    /// Why.
    pub reason: MissedReason,
    /// For a person.
    pub text: String,
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first_due: Timestamp,
    /// The last of them.
    pub last_due: Timestamp,
    /// It was to be fired by this command. `None`: by the clock.
    #[serde(flatten)]
    pub by_hand: Option<ByHand>,
}

/// Why due times are not fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MissedReason {
    /// No replica ran the scheduler until the grace was over, or had the schedule that a command names.
    Late,
    /// A later one was due as well.
    Superseded,
    /// The schedule was paused by hand.
    Paused,
    /// Its machines could not be named, or its jobs not be submitted, until the grace was over.
    Failed,
}

impl MissedReason {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Late, Self::Superseded, Self::Paused, Self::Failed];

    /// The word for it, in metrics too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Superseded => "superseded",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }
}

/// How far the due times of a schedule are dealt with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// Its name.
    pub schedule: String,
    /// Its cron line and zone.
    pub line: String,
    /// Everything that was due until then is fired or missed.
    pub until: Timestamp,
}
