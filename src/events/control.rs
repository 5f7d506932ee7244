//! What is said of commands: the command itself, that it has taken effect, and that a lane is paused or works again.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Wave;
use crate::bce::InstanceId;
use crate::replica::Replica;

const LANE_PAUSE: &str = "io.reveille.lane.pause.v1";
const LANE_RESUME: &str = "io.reveille.lane.resume.v1";
const BATCH_CANCEL: &str = "io.reveille.batch.cancel.v1";
const BATCH_WAVE: &str = "io.reveille.batch.wave.v1";
const INSTANCE_CANCEL: &str = "io.reveille.instance.cancel.v1";
const INSTANCE_SNOOZE: &str = "io.reveille.instance.snooze.v1";
const SCHEDULE_PAUSE: &str = "io.reveille.schedule.pause.v1";
const SCHEDULE_RESUME: &str = "io.reveille.schedule.resume.v1";
const SCHEDULE_RUN: &str = "io.reveille.schedule.run.v1";
const KINDS: [&str; 9] = [
    LANE_PAUSE,
    LANE_RESUME,
    BATCH_CANCEL,
    BATCH_WAVE,
    INSTANCE_CANCEL,
    INSTANCE_SNOOZE,
    SCHEDULE_PAUSE,
    SCHEDULE_RESUME,
    SCHEDULE_RUN,
];

/// Longest name of the person or program that gave a command, in bytes.
pub const BY_LIMIT: usize = 200;
/// Longest reason of a command, in bytes.
pub const REASON_LIMIT: usize = 500;
/// Longest name in a command, in bytes: as a job's `batch_id`.
const NAME_LIMIT: usize = 128;

/// A command, with its author and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// What is to be done.
    pub action: Action,
    /// The person or program that gave it; at most [`BY_LIMIT`] bytes.
    pub by: String,
    /// Why; at most [`REASON_LIMIT`] bytes.
    pub reason: Option<String>,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The lane makes no calls, until then at the latest.
    PauseLane {
        /// Its name.
        lane: String,
        /// `None`: until it is resumed.
        until: Option<Timestamp>,
    },
    /// Ends [`Action::PauseLane`].
    ResumeLane {
        /// Its name.
        lane: String,
    },
    /// The jobs of the batch that were submitted before end without a call.
    CancelBatch {
        /// As the jobs name it.
        batch_id: String,
        /// `None`: in every lane.
        lane: Option<String>,
    },
    /// The jobs of the batch may start, up to this wave.
    StartWave {
        /// As the jobs name it.
        batch_id: String,
        /// The lane of the jobs.
        lane: String,
        /// The last wave that may start.
        wave: Wave,
        /// When the jobs were announced. It is for those alone whose messages have this time, to the second.
        announced_at: Timestamp,
        /// That wave starts no sooner.
        not_before: Option<Timestamp>,
        /// How many jobs of later waves wait.
        waiting: usize,
    },
    /// The same for the jobs of an instance.
    CancelInstance {
        /// The instance.
        instance_id: InstanceId,
    },
    /// Jobs of the instance that would call before this instant end instead.
    Snooze {
        /// The instance.
        instance_id: InstanceId,
        /// From then on the instance is started again; an instant in the past ends an earlier snooze.
        until: Timestamp,
    },
    /// What is due of the schedule is not fired, until then at the latest.
    PauseSchedule {
        /// Its name.
        schedule: String,
        /// `None`: until it is resumed.
        until: Option<Timestamp>,
    },
    /// Ends [`Action::PauseSchedule`].
    ResumeSchedule {
        /// Its name.
        schedule: String,
    },
    /// The jobs of a due time are submitted, whether or not they were before.
    RunSchedule {
        /// Its name.
        schedule: String,
        /// It names the batch: a due time of the schedule, or when the command was given.
        due: Timestamp,
    },
}

impl Action {
    /// The type of its event.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PauseLane { .. } => LANE_PAUSE,
            Self::ResumeLane { .. } => LANE_RESUME,
            Self::CancelBatch { .. } => BATCH_CANCEL,
            Self::StartWave { .. } => BATCH_WAVE,
            Self::CancelInstance { .. } => INSTANCE_CANCEL,
            Self::Snooze { .. } => INSTANCE_SNOOZE,
            Self::PauseSchedule { .. } => SCHEDULE_PAUSE,
            Self::ResumeSchedule { .. } => SCHEDULE_RESUME,
            Self::RunSchedule { .. } => SCHEDULE_RUN,
        }
    }

    /// Its name, as in `lane.pause`: the type without what all types share.
    pub fn name(&self) -> &'static str {
        let kind = self.kind();
        kind.strip_prefix("io.reveille.").and_then(|rest| rest.strip_suffix(".v1")).unwrap_or(kind)
    }
}

/// For a person: what it is for, and until when.
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PauseLane { lane, until: Some(until) } => write!(f, "lane {lane}, until {until}"),
            Self::PauseLane { lane, until: None } | Self::ResumeLane { lane } => write!(f, "lane {lane}"),
            Self::CancelBatch { batch_id, lane: Some(lane) } => write!(f, "batch {batch_id} of lane {lane}"),
            Self::CancelBatch { batch_id, lane: None } => write!(f, "batch {batch_id}"),
            Self::StartWave { batch_id, lane, wave, .. } => write!(f, "wave {wave} of batch {batch_id} of lane {lane}"),
            Self::CancelInstance { instance_id } => write!(f, "instance {instance_id}"),
            Self::Snooze { instance_id, until } => write!(f, "instance {instance_id}, until {until}"),
            Self::PauseSchedule { schedule, until: Some(until) } => write!(f, "schedule {schedule}, until {until}"),
            Self::PauseSchedule { schedule, until: None } | Self::ResumeSchedule { schedule } => {
                write!(f, "schedule {schedule}")
            }
            Self::RunSchedule { schedule, due } => write!(f, "schedule {schedule}, as of {due}"),
        }
    }
}

/// A command as it stands in JSON.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lane: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    batch_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance_id: Option<InstanceId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    wave: Option<Wave>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    announced_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    waiting: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Command {
    /// What an event of type `kind` says with `data`. `None`: it is no command that this version knows, or a text is
    /// longer than a command's may be.
    pub(super) fn read(kind: &str, data: &Value) -> Option<Self> {
        if !KINDS.contains(&kind) {
            return None;
        }
        let Written {
            lane,
            batch_id,
            instance_id,
            until,
            wave,
            announced_at,
            not_before,
            waiting,
            schedule,
            due,
            by,
            reason,
        } = Written::deserialize(data).ok()?;
        let is_short = |text: &Option<String>, limit| text.as_ref().is_none_or(|text| text.len() <= limit);
        if by.len() > BY_LIMIT
            || !is_short(&reason, REASON_LIMIT)
            || [&lane, &batch_id, &schedule].into_iter().any(|name| !is_short(name, NAME_LIMIT))
        {
            return None;
        }
        let action = match kind {
            LANE_PAUSE => Action::PauseLane { lane: lane?, until },
            LANE_RESUME => Action::ResumeLane { lane: lane? },
            BATCH_CANCEL => Action::CancelBatch { batch_id: batch_id?, lane },
            BATCH_WAVE => Action::StartWave {
                batch_id: batch_id?,
                lane: lane?,
                wave: wave?,
                announced_at: announced_at?,
                not_before,
                waiting: waiting.unwrap_or_default(),
            },
            INSTANCE_CANCEL => Action::CancelInstance { instance_id: instance_id? },
            SCHEDULE_PAUSE => Action::PauseSchedule { schedule: schedule?, until },
            SCHEDULE_RESUME => Action::ResumeSchedule { schedule: schedule? },
            SCHEDULE_RUN => Action::RunSchedule { schedule: schedule?, due: due? },
            _ => Action::Snooze { instance_id: instance_id?, until: until? },
        };
        Some(Self { action, by, reason })
    }
}

impl Serialize for Command {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (by, reason) = (self.by.clone(), self.reason.clone());
        let none = Written {
            lane: None,
            batch_id: None,
            instance_id: None,
            until: None,
            wave: None,
            announced_at: None,
            not_before: None,
            waiting: None,
            schedule: None,
            due: None,
            by,
            reason,
        };
        let written = match self.action.clone() {
            Action::PauseLane { lane, until } => Written { lane: Some(lane), until, ..none },
            Action::ResumeLane { lane } => Written { lane: Some(lane), ..none },
            Action::CancelBatch { batch_id, lane } => Written { batch_id: Some(batch_id), lane, ..none },
            Action::StartWave { batch_id, lane, wave, announced_at, not_before, waiting } => Written {
                batch_id: Some(batch_id),
                lane: Some(lane),
                wave: Some(wave),
                announced_at: Some(announced_at),
                not_before,
                waiting: Some(waiting),
                ..none
            },
            Action::CancelInstance { instance_id } => Written { instance_id: Some(instance_id), ..none },
            Action::Snooze { instance_id, until } => {
                Written { instance_id: Some(instance_id), until: Some(until), ..none }
            }
            Action::PauseSchedule { schedule, until } => Written { schedule: Some(schedule), until, ..none },
            Action::ResumeSchedule { schedule } => Written { schedule: Some(schedule), ..none },
            Action::RunSchedule { schedule, due } => Written { schedule: Some(schedule), due: Some(due), ..none },
        };
        written.serialize(serializer)
    }
}

/// A command has taken effect in a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The id of the command's event.
    pub command_id: String,
    /// Its name, such as `lane.pause`.
    pub command: String,
    /// The replica.
    pub replica: Replica,
    /// The lanes that the replica held then.
    pub lanes: Vec<String>,
    /// As the command says.
    pub by: String,
    /// As the command says.
    pub reason: Option<String>,
}

/// A lane makes no calls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanePaused {
    /// Its name.
    pub lane: String,
    /// The kind of the cause, as in the metric `reveille_lane_paused`.
    pub cause: String,
    /// What happened and what to do, for a person.
    pub text: String,
}

/// A lane makes calls again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneResumed {
    /// Its name.
    pub lane: String,
}
