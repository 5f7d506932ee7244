//! What events say, by type. A type is added here and nowhere else.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use super::control::{Applied, Command, LanePaused, LaneResumed};
use super::schedule::{LaneBoots, ScheduleFired, ScheduleKnown, ScheduleMissed, ScheduleState};
use super::waves::sizes;
use super::{MaxFailures, Outcome, Wave};
use crate::bce::{Answer, InstanceId};
use crate::replica::Replica;

const BATCH_SUBMITTED: &str = "io.reveille.batch.submitted.v1";
const BATCH_COMPLETED: &str = "io.reveille.batch.completed.v1";
const LANE_HELD: &str = "io.reveille.lane.held.v1";
const LANE_PAUSED: &str = "io.reveille.lane.paused.v1";
const LANE_RESUMED: &str = "io.reveille.lane.resumed.v1";
const CONTROL_APPLIED: &str = "io.reveille.control.applied.v1";
const SCHEDULE_KNOWN: &str = "io.reveille.schedule.known.v1";
const SCHEDULE_FIRED: &str = "io.reveille.schedule.fired.v1";
const SCHEDULE_MISSED: &str = "io.reveille.schedule.missed.v1";
const SCHEDULER_HELD: &str = "io.reveille.scheduler.held.v1";

/// What an event says, by its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// `io.reveille.instance.<outcome>.v1`: a job has ended, or its start was accepted and it goes on.
    Job(Box<JobEvent>),
    /// `io.reveille.batch.submitted.v1`
    BatchSubmitted(Batch),
    /// `io.reveille.batch.completed.v1`
    BatchCompleted(Box<BatchCompleted>),
    /// `io.reveille.lane.held.v1`
    LaneHeld(LaneHeld),
    /// `io.reveille.lane.paused.v1`
    LanePaused(LanePaused),
    /// `io.reveille.lane.resumed.v1`
    LaneResumed(LaneResumed),
    /// `io.reveille.<command>.v1`
    Command(Command),
    /// `io.reveille.control.applied.v1`
    ControlApplied(Applied),
    /// `io.reveille.schedule.known.v1`
    ScheduleKnown(ScheduleKnown),
    /// `io.reveille.schedule.fired.v1`
    ScheduleFired(ScheduleFired),
    /// `io.reveille.schedule.missed.v1`
    ScheduleMissed(ScheduleMissed),
    /// `io.reveille.scheduler.held.v1`
    SchedulerHeld(SchedulerHeld),
    /// Of another type, or not what its type says: kept as it is.
    Unknown {
        /// Its type.
        kind: String,
        /// `null` where it says nothing.
        data: Value,
    },
}

impl Data {
    /// The type of the event.
    pub fn kind(&self) -> Cow<'_, str> {
        match self {
            Self::Job(job) => format!("io.reveille.instance.{}.v1", job.outcome).into(),
            Self::BatchSubmitted(_) => BATCH_SUBMITTED.into(),
            Self::BatchCompleted(_) => BATCH_COMPLETED.into(),
            Self::LaneHeld(_) => LANE_HELD.into(),
            Self::LanePaused(_) => LANE_PAUSED.into(),
            Self::LaneResumed(_) => LANE_RESUMED.into(),
            Self::Command(command) => command.action.kind().into(),
            Self::ControlApplied(_) => CONTROL_APPLIED.into(),
            Self::ScheduleKnown(_) => SCHEDULE_KNOWN.into(),
            Self::ScheduleFired(_) => SCHEDULE_FIRED.into(),
            Self::ScheduleMissed(_) => SCHEDULE_MISSED.into(),
            Self::SchedulerHeld(_) => SCHEDULER_HELD.into(),
            Self::Unknown { kind, .. } => kind.into(),
        }
    }

    /// What an event of type `kind` says with `data`.
    pub(super) fn read(kind: &str, data: Value) -> Self {
        if let Some(command) = Command::read(kind, &data) {
            return Self::Command(command);
        }
        let known = match kind {
            BATCH_SUBMITTED => Batch::deserialize(&data).map(Self::BatchSubmitted),
            BATCH_COMPLETED => Box::<BatchCompleted>::deserialize(&data).map(Self::BatchCompleted),
            LANE_HELD => LaneHeld::deserialize(&data).map(Self::LaneHeld),
            LANE_PAUSED => LanePaused::deserialize(&data).map(Self::LanePaused),
            LANE_RESUMED => LaneResumed::deserialize(&data).map(Self::LaneResumed),
            CONTROL_APPLIED => Applied::deserialize(&data).map(Self::ControlApplied),
            SCHEDULE_KNOWN => ScheduleKnown::deserialize(&data).map(Self::ScheduleKnown),
            SCHEDULE_FIRED => ScheduleFired::deserialize(&data).map(Self::ScheduleFired),
            SCHEDULE_MISSED => ScheduleMissed::deserialize(&data).map(Self::ScheduleMissed),
            SCHEDULER_HELD => SchedulerHeld::deserialize(&data).map(Self::SchedulerHeld),
            _ => Box::<JobEvent>::deserialize(&data).map(Self::Job),
        };
        let known = known.ok().filter(|known| known.kind() == kind);
        known.unwrap_or_else(|| Self::Unknown { kind: kind.to_owned(), data })
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Job(job) => job.serialize(serializer),
            Self::BatchSubmitted(batch) => batch.serialize(serializer),
            Self::BatchCompleted(completed) => completed.serialize(serializer),
            Self::LaneHeld(held) => held.serialize(serializer),
            Self::LanePaused(paused) => paused.serialize(serializer),
            Self::LaneResumed(resumed) => resumed.serialize(serializer),
            Self::Command(command) => command.serialize(serializer),
            Self::ControlApplied(applied) => applied.serialize(serializer),
            Self::ScheduleKnown(known) => known.serialize(serializer),
            Self::ScheduleFired(fired) => fired.serialize(serializer),
            Self::ScheduleMissed(missed) => missed.serialize(serializer),
            Self::SchedulerHeld(held) => held.serialize(serializer),
            Self::Unknown { data, .. } => data.serialize(serializer),
        }
    }
}

/// Everything an outcome event says of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// The job: `message_id`, else by the event that the job came as, else what the daemon named it.
    pub job_id: String,
    /// As the job's message says; at most 255 bytes.
    pub correlation_id: Option<String>,
    /// The lane it ran in.
    pub lane: String,
    /// `null` for a message that could not be read.
    pub instance_id: Option<InstanceId>,
    /// As the job says.
    pub batch_id: Option<String>,
    /// As the job says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<Wave>,
    /// The id of the job of which this one is a replay; at most 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_of: Option<String>,
    /// As the job says.
    pub labels: Option<BTreeMap<String, String>>,
    /// The name of an [`Outcome`], or one that only another version has.
    pub outcome: String,
    /// Why, where the outcome is `failed`, `rejected` or `cancelled`.
    pub reason: Option<String>,
    /// No further event of this job follows.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Start calls made that counted, the last one included.
    pub attempts: u32,
    /// Of the last answer; `null` where none came or none was asked for.
    pub http_status: Option<u16>,
    /// Of the last answer.
    pub error_code: Option<String>,
    /// Of the last answer, or what was wrong with the message.
    pub error_message: Option<String>,
    /// Of the last answer: what Baidu's support asks for.
    pub bce_request_id: Option<String>,
    /// An earlier call of ours may have started the instance. With `started` it runs; with `expired`, or `failed` as
    /// `exhausted` or `not_running_in_time`, nobody could tell.
    pub ambiguous: bool,
    /// When the daemon first saw the job.
    pub received_at: Timestamp,
    /// When it was done with it.
    pub finished_at: Timestamp,
    /// Milliseconds between the two, 0 or more.
    pub duration_ms: i64,
}

impl JobEvent {
    /// A job of the lane `prod` that ended so at its first call, for unit tests.
    #[cfg(test)]
    pub fn example(job_id: &str, outcome: Outcome, at: Timestamp) -> Self {
        Self {
            job_id: job_id.to_owned(),
            correlation_id: None,
            lane: "prod".to_owned(),
            instance_id: None,
            batch_id: None,
            wave: None,
            replay_of: None,
            labels: None,
            outcome: outcome.as_str().to_owned(),
            reason: Some(outcome.reason().to_owned()).filter(|reason| !reason.is_empty()),
            is_final: true,
            attempts: 1,
            http_status: None,
            error_code: None,
            error_message: None,
            bce_request_id: None,
            ambiguous: false,
            received_at: at,
            finished_at: at,
            duration_ms: 0,
        }
    }

    /// Fills in what the last answer says.
    #[must_use]
    pub fn with_answer(self, answer: &Answer) -> Self {
        Self {
            http_status: Some(answer.status),
            error_code: answer.code.clone(),
            error_message: answer.message.clone().or(self.error_message),
            bce_request_id: answer.request_id.clone(),
            ..self
        }
    }

    /// The outcome, unless only another version knows it. An unknown reason is interned for the life of the process, so
    /// the daemon calls this only for authenticated events.
    pub fn known_outcome(&self) -> Option<Outcome> {
        Outcome::read(&self.outcome, self.reason.as_deref().unwrap_or_default())
    }

    /// As [`Outcome::is_up`] says; not where only another version knows the outcome. Interns nothing.
    pub fn is_up(&self) -> bool {
        let reason = self.reason.as_deref().unwrap_or_default();
        let is_this = |known: &Outcome| known.as_str() == self.outcome && known.reason() == reason;
        Outcome::ALL.iter().any(|known| known.is_up() && is_this(known))
    }
}

/// The denominator of a batch's progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The batch.
    pub batch_id: String,
    /// How many jobs were submitted.
    pub size: usize,
    /// To which lane.
    pub lane: String,
    /// How many jobs may fail before the rest of the batch is cancelled; `None`: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_failures: Option<MaxFailures>,
    /// How many of the jobs are of which wave, [`MOST_WAVES`](super::MOST_WAVES) at most. Those of none are of the first.
    #[serde(default, deserialize_with = "sizes", skip_serializing_if = "BTreeMap::is_empty")]
    pub waves: BTreeMap<Wave, usize>,
    /// How long each wave after the first waits once it may start, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle_seconds: Option<u32>,
    /// When its machines are to be up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_by: Option<Timestamp>,
}

impl Batch {
    /// A batch without waves.
    pub fn new(batch_id: String, size: usize, lane: String) -> Self {
        Self { batch_id, size, lane, max_failures: None, waves: BTreeMap::new(), settle_seconds: None, ready_by: None }
    }

    /// The size of each wave, where the jobs of no wave are of the first.
    pub fn sizes(&self) -> BTreeMap<Wave, usize> {
        let mut sizes = self.waves.clone();
        let rest = sizes.values().fold(self.size, |rest, size| rest.saturating_sub(*size));
        if rest > 0 || sizes.is_empty() {
            let first = sizes.entry(Wave::FIRST).or_default();
            *first = first.saturating_add(rest);
        }
        sizes
    }
}

/// As many distinct jobs of a batch have ended as were announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchCompleted {
    /// The batch.
    pub batch_id: String,
    /// Its lane.
    pub lane: String,
    /// How many jobs were announced.
    pub size: usize,
    /// How many jobs have ended: more than `size` where the announcement was corrected to fewer than had ended.
    pub ended: usize,
    /// How many machines are up, or about to be: jobs that ended as `started`, `running` or `already_done`.
    pub up: usize,
    /// Ended jobs by outcome; together they are `ended`.
    pub outcomes: BTreeMap<String, usize>,
    /// The jobs among them whose outcome has a reason, by reason.
    pub reasons: BTreeMap<String, usize>,
    /// When the batch was announced, for the first time.
    pub submitted_at: Timestamp,
    /// When the first event of a job of it happened; `None` for a batch without jobs.
    pub first_event_at: Option<Timestamp>,
    /// When the last one did.
    pub last_event_at: Option<Timestamp>,
    /// When its machines were to be up, as was announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_by: Option<Timestamp>,
    /// How many of those that are up were so by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_in_time: Option<usize>,
}

/// A replica has begun to run the lane. It is how commands learn the names of lanes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneHeld {
    /// The lane's name.
    pub lane: String,
    /// The replica; `None` of versions that did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<Replica>,
}

/// A replica runs the scheduler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerHeld {
    /// The replica.
    pub replica: Replica,
    /// The offset in the log of outcomes from which on the next replica has to read it: all that came before is done. `None`:
    /// this replica has just begun to read.
    pub resume_from: Option<u64>,
    /// The schedules as they stand, so that they are known though the log has forgotten when they were last fired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleState>,
    /// How long instances take to run, in the lanes of schedules for which that counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub boots: Vec<LaneBoots>,
    /// The ids of the commands to run a schedule that were done lately, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
}
