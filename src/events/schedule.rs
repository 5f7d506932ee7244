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
    /// In how many waves they start.
    #[serde(default = "one_wave")]
    pub waves: usize,
    /// How many there were of the due time before; `None`: none is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_size: Option<usize>,
    /// Whether there are fewer now than the schedule's `least` of those.
    #[serde(default)]
    pub small: bool,
    /// Why it was fired before it was due; `None`: its machines need not be up by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// `None`: it was fired by the clock.
    #[serde(flatten)]
    pub by_hand: Option<ByHand>,
}

fn one_wave() -> usize {
    1
}

/// How long before a due time a schedule is fired, so that its machines are up by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In seconds.
    pub lead_seconds: u32,
    /// How many machines were expected.
    pub expected_size: usize,
    /// In how many waves.
    pub expected_waves: usize,
    /// How long an instance takes until it is seen running, in seconds.
    pub boot_seconds: u32,
    /// Whether the log of outcomes shows that; otherwise it is a guess.
    pub is_measured: bool,
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
    /// How the last due times went.
    #[serde(flatten)]
    pub story: ScheduleStory,
}

/// How the last due times of a schedule went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStory {
    /// The due time that was fired last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fired: Option<LastFired>,
    /// The due time that was completed last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed: Option<LastCompleted>,
    /// The last due time of which all machines were up in the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Timestamp>,
}

/// A due time that was fired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastFired {
    /// When it was due.
    pub due: Timestamp,
    /// How many jobs it had.
    pub size: usize,
    /// In how many waves.
    pub waves: usize,
    /// Whether that were far fewer than the time before.
    pub small: bool,
}

/// A due time of which all jobs have ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastCompleted {
    /// When it was due.
    pub due: Timestamp,
    /// How many machines were up by then; `None`: they need not be.
    pub up_in_time: Option<usize>,
}

/// How long the instances of a lane take to be seen running, as the log of outcomes has shown lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneBoots {
    /// The lane.
    pub lane: String,
    /// The weight of each length of time, which is a step of a scale: the shortest first.
    pub weights: Vec<(u16, u32)>,
    /// When weights were last reduced.
    pub since: Option<Timestamp>,
}
