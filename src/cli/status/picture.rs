//! What is shown, from what was found. Pure: no clock, no broker.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Serialize;

use super::minute::Minute;
use crate::broker::Look;
use crate::config::LaneName;
use crate::query::{LaneStatus, Standing};
use crate::replica::Replica;

/// All that was found. `None`: it could not be seen, for a reason among the problems.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// The address of RabbitMQ.
    pub(super) broker: String,
    pub(super) is_reachable: bool,
    /// Lanes of the configuration.
    pub(super) configured: Vec<LaneName>,
    /// Schedules of the configuration, the one that is due next first.
    pub(super) schedules: Vec<ScheduleRow>,
    /// Replicas that RabbitMQ counts.
    pub(super) counted: Option<usize>,
    /// Replicas that answered, and what each said of its lanes.
    pub(super) told: Vec<(Replica, Vec<LaneStatus>)>,
    /// Of each lane that was looked for.
    pub(super) queues: BTreeMap<LaneName, Queues>,
    pub(super) minute: Option<Minute>,
    /// Of all lanes.
    pub(super) parked: Option<u64>,
    pub(super) dead_letters: Option<u64>,
    /// RabbitMQ lets the user not see a queue that all lanes share.
    pub(super) may_not_look: bool,
    /// What could not be seen, and why.
    pub(super) problems: Vec<String>,
}

/// A lane's queues.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queues {
    pub(super) baton: Look,
    pub(super) new: Look,
    pub(super) urgent: Look,
    pub(super) due: Look,
}

/// The state of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// A replica holds it.
    Held,
    /// The same, and it makes no calls.
    Paused,
    /// No replica holds it, and one is in line for it: it takes the lane over in a moment.
    WaitedFor,
    /// A replica that does not answer holds it, or is in line for it.
    NoAnswer,
    /// No replica holds it, and none is in line.
    NotRun,
    /// Its queues do not exist.
    NotSetUp,
    /// Nothing is known.
    Unknown,
}

impl State {
    /// For people.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Paused => "paused",
            Self::WaitedFor => "waited for",
            Self::NoAnswer => "no answer",
            Self::NotRun => "not run",
            Self::NotSetUp => "not set up",
            Self::Unknown => "unknown",
        }
    }

    /// Whether the lane does not come right by itself, or may not.
    fn needs_a_person(self) -> bool {
        !matches!(self, Self::Held | Self::WaitedFor)
    }
}

/// What is shown. `null` stands for what could not be seen.
#[derive(Debug, Serialize)]
pub(super) struct Picture {
    pub(super) broker: BrokerRow,
    pub(super) lanes: Vec<LaneRow>,
    /// Replicas that answered.
    pub(super) replicas: Vec<ReplicaRow>,
    /// Replicas that RabbitMQ counts and that did not answer.
    pub(super) silent_replicas: Option<usize>,
    /// Those of the configuration.
    pub(super) schedules: Vec<ScheduleRow>,
    /// Jobs that wait for a later try, of all lanes.
    pub(super) parked: Option<u64>,
    /// Of all lanes.
    pub(super) dead_letters: Option<u64>,
    /// What could not be seen, and why.
    pub(super) problems: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct BrokerRow {
    pub(super) address: String,
    pub(super) reachable: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct LaneRow {
    pub(super) lane: String,
    pub(super) state: State,
    /// Why it is paused.
    pub(super) cause: Option<String>,
    pub(super) holder: Option<Replica>,
    /// Calls per second: now, and as configured.
    pub(super) rate: Option<f64>,
    pub(super) rate_configured: Option<f64>,
    /// Jobs that wait in the lane's queues.
    pub(super) new: Option<u32>,
    pub(super) urgent: Option<u32>,
    pub(super) due: Option<u32>,
    pub(super) in_flight: Option<u64>,
    /// Jobs that ended in the last minute, by outcome.
    pub(super) last_minute: Option<BTreeMap<String, u64>>,
}

#[derive(Debug, Serialize)]
pub(super) struct ScheduleRow {
    pub(super) schedule: String,
    pub(super) lane: String,
    /// `None`: it is never due.
    pub(super) next: Option<Timestamp>,
    /// The same as a person there reads it.
    #[serde(skip)]
    pub(super) there: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct ReplicaRow {
    #[serde(flatten)]
    pub(super) replica: Replica,
    /// Lanes that it holds.
    pub(super) holds: Vec<String>,
}

impl Facts {
    /// The lanes of the configuration, and those that replicas told of.
    pub(super) fn lanes(&self) -> BTreeSet<LaneName> {
        let told = self.told.iter().flat_map(|(_, lanes)| lanes).filter_map(|lane| LaneName::parse(&lane.lane));
        self.configured.iter().cloned().chain(told).collect()
    }

    pub(super) fn picture(self) -> Picture {
        let silent = self.counted.map(|counted| counted.saturating_sub(self.told.len()));
        let lanes = self.lanes();
        let lanes = lanes.iter().map(|lane| self.lane(lane, silent.unwrap_or(1) > 0));
        // A configuration without lanes is one with this one.
        let is_shown = |lane: &LaneRow| lane.lane != "default" || lane.state != State::NotSetUp;
        let lanes: Vec<LaneRow> = lanes.filter(is_shown).collect();
        let mut problems = self.problems;
        if lanes.is_empty() {
            problems.push("no lane is configured here, and no replica told of one".to_owned());
        }
        let replica = |(replica, lanes): (Replica, Vec<LaneStatus>)| {
            let holds = lanes.into_iter().filter(LaneStatus::is_held).map(|lane| lane.lane).collect();
            ReplicaRow { replica, holds }
        };
        Picture {
            broker: BrokerRow { address: self.broker, reachable: self.is_reachable },
            lanes,
            replicas: self.told.into_iter().map(replica).collect(),
            silent_replicas: silent,
            schedules: self.schedules,
            parked: self.parked,
            dead_letters: self.dead_letters,
            problems,
        }
    }

    fn lane(&self, lane: &LaneName, some_are_silent: bool) -> LaneRow {
        let all = self.told.iter().flat_map(|(replica, lanes)| lanes.iter().map(move |lane| (replica, lane)));
        let told: Vec<_> = all.filter(|(_, told)| told.lane == lane.as_str()).collect();
        let holder = told.iter().find(|(_, told)| told.is_held());
        let queues = self.queues.get(lane);
        let state = match (holder, queues.map(|queues| queues.baton)) {
            (Some((_, told)), _) if told.state == Standing::Paused => State::Paused,
            (Some(_), _) => State::Held,
            (None, Some(Look::Missing)) => State::NotSetUp,
            // RabbitMQ counts one consumer of those that are in line.
            (None, Some(Look::There(counts))) if counts.consumers > 0 && some_are_silent => State::NoAnswer,
            (None, Some(Look::There(counts))) if counts.consumers > 0 || !told.is_empty() => State::WaitedFor,
            (None, Some(Look::There(_))) => State::NotRun,
            (None, Some(Look::Refused) | None) => State::Unknown,
        };
        let messages = |look: fn(&Queues) -> Look| match queues.map(look) {
            Some(Look::There(counts)) => Some(counts.messages),
            _ => None,
        };
        let of_holder = |part: fn(&LaneStatus) -> f64| holder.map(|(_, told)| part(told));
        LaneRow {
            lane: lane.to_string(),
            state,
            cause: holder.and_then(|(_, told)| told.cause.clone()),
            holder: holder.map(|(replica, _)| (*replica).clone()),
            rate: of_holder(|told| told.rate),
            rate_configured: of_holder(|told| told.rate_configured),
            new: messages(|queues| queues.new),
            urgent: messages(|queues| queues.urgent),
            due: messages(|queues| queues.due),
            in_flight: holder.map(|(_, told)| told.in_flight),
            last_minute: self.minute.as_ref().map(|minute| minute.of(lane)),
        }
    }
}

impl Picture {
    /// Whether a lane does not run as it should, or something could not be seen.
    pub(super) fn needs_a_person(&self) -> bool {
        !self.problems.is_empty() || self.lanes.iter().any(|lane| lane.state.needs_a_person())
    }
}

#[cfg(test)]
mod tests;
