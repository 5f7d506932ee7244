//! The instances and their states.

use std::collections::BTreeMap;
use std::collections::btree_map::Range;
use std::ops::Bound;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::de::IntoDeserializer;
use serde::de::value::Error as ValueError;
use serde::{Deserialize, Serialize};

/// The statuses the API documents, and one of the simulator's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    Starting,
    Running,
    Stopping,
    Stopped,
    Recycled,
    /// Released: the API answers as if it never existed.
    Deleted,
    Scaling,
    Expired,
    Error,
    SnapshotProcessing,
    ImageProcessing,
    Recharging,
    VolumeResizing,
    BillingChanging,
    ChangeSubnet,
    ChangeVpc,
    AttachingPort,
    DetachingPort,
    Moving,
    /// Being created: the API shows `Starting`, but refuses a start with a code of its own.
    Creating,
}

impl Status {
    /// The status that the API shows.
    pub fn shown(self) -> Self {
        if self == Self::Creating { Self::Starting } else { self }
    }
}

impl FromStr for Status {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::deserialize(text.into_deserializer())
    }
}

/// How long transient states last.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// `Starting` and `Creating`.
    pub boot: Duration,
    /// `Stopping`.
    pub stop: Duration,
}

/// An instance as set over the control endpoint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    pub status: Status,
    /// It stays in every state it reaches: a start leaves it `Starting` for ever.
    #[serde(default)]
    pub hold: bool,
    /// The state in which a boot ends, for boots that fail.
    #[serde(default = "running")]
    pub boots_into: Status,
    /// Its id if absent.
    #[serde(default)]
    pub name: Option<String>,
    #[serde(default = "zone")]
    pub zone: String,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

fn zone() -> String {
    "cn-bj-a".to_owned()
}

fn running() -> Status {
    Status::Running
}

impl From<Status> for Order {
    fn from(status: Status) -> Self {
        Self { status, hold: false, boots_into: Status::Running, name: None, zone: zone(), tags: BTreeMap::new() }
    }
}

#[derive(Debug)]
pub struct Instance {
    status: Status,
    /// Its next state and when that begins. It is computed on reading: no timers run.
    next: Option<(Instant, Status)>,
    hold: bool,
    boots_into: Status,
    name: Option<String>,
    zone: String,
    tags: BTreeMap<String, String>,
    /// How many starts were accepted.
    starts: u64,
}

impl Instance {
    pub fn status(&self, now: Instant) -> Status {
        match self.next {
            Some((due, next)) if due <= now => next,
            _ => self.status,
        }
    }

    pub fn starts(&self) -> u64 {
        self.starts
    }

    /// Its name, unless that is its id.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub fn zone(&self) -> &str {
        &self.zone
    }

    pub fn tags(&self) -> &BTreeMap<String, String> {
        &self.tags
    }

    fn enter(&mut self, status: Status, times: Times, now: Instant) {
        self.status = status;
        self.next = match status {
            _ if self.hold => None,
            Status::Starting | Status::Creating => Some((now + times.boot, self.boots_into)),
            Status::Stopping => Some((now + times.stop, Status::Stopped)),
            _ => None,
        };
    }
}

/// All instances, in the order of their ids.
#[derive(Debug)]
pub struct Fleet {
    instances: BTreeMap<String, Instance>,
    times: Times,
}

impl Fleet {
    /// Ids are numbered over the whole fleet, in the order given: `i-sim00001`, `i-sim00002`, …
    pub fn new(groups: &[(Status, usize)], times: Times, now: Instant) -> Self {
        let mut fleet = Self { instances: BTreeMap::new(), times };
        let statuses = groups.iter().flat_map(|(status, count)| std::iter::repeat_n(*status, *count));
        for (number, status) in (1..).zip(statuses) {
            fleet.put(format!("i-sim{number:05}"), &status.into(), now);
        }
        fleet
    }

    /// Creates an instance, or sets its state. Its count of starts is kept.
    pub fn put(&mut self, id: String, order: &Order, now: Instant) {
        let instance = self.instances.entry(id).or_insert(Instance {
            status: order.status,
            next: None,
            hold: false,
            boots_into: Status::Running,
            name: None,
            zone: String::new(),
            tags: BTreeMap::new(),
            starts: 0,
        });
        (instance.name, instance.zone, instance.tags) = (order.name.clone(), order.zone.clone(), order.tags.clone());
        instance.hold = order.hold;
        instance.boots_into = order.boots_into;
        instance.enter(order.status, self.times, now);
    }

    pub fn get(&self, id: &str) -> Option<&Instance> {
        self.instances.get(id)
    }

    /// The instances from this id on.
    pub fn from(&self, id: &str) -> Range<'_, String, Instance> {
        self.instances.range::<str, _>((Bound::Included(id), Bound::Unbounded))
    }

    pub fn len(&self) -> usize {
        self.instances.len()
    }

    /// `Stopped → Starting`. The caller has checked the state.
    pub fn start(&mut self, id: &str, now: Instant) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.starts += 1;
            instance.enter(Status::Starting, self.times, now);
        }
    }

    /// `Running → Stopping`. The caller has checked the state.
    pub fn stop(&mut self, id: &str, now: Instant) {
        if let Some(instance) = self.instances.get_mut(id) {
            instance.enter(Status::Stopping, self.times, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times = Times { boot: Duration::from_secs(2), stop: Duration::from_secs(1) };

    #[test]
    fn ids_are_numbered_over_the_whole_fleet_in_the_order_given() {
        let now = Instant::now();
        let fleet = Fleet::new(&[(Status::Stopped, 2), (Status::Error, 1)], TIMES, now);
        let all: Vec<_> = fleet.from("").map(|(id, instance)| (id.as_str(), instance.status(now))).collect();
        assert_eq!(
            all,
            [("i-sim00001", Status::Stopped), ("i-sim00002", Status::Stopped), ("i-sim00003", Status::Error)]
        );
    }

    #[test]
    fn a_start_ends_in_running_and_a_stop_in_stopped_when_their_times_have_passed() {
        let now = Instant::now();
        let mut fleet = Fleet::new(&[(Status::Stopped, 1)], TIMES, now);
        let status =
            |fleet: &Fleet, millis| fleet.get("i-sim00001").unwrap().status(now + Duration::from_millis(millis));
        fleet.start("i-sim00001", now);
        assert_eq!(status(&fleet, 0), Status::Starting);
        assert_eq!(status(&fleet, 1999), Status::Starting);
        assert_eq!(status(&fleet, 2000), Status::Running);
        fleet.stop("i-sim00001", now + Duration::from_secs(3));
        assert_eq!(status(&fleet, 3999), Status::Stopping);
        assert_eq!(status(&fleet, 4000), Status::Stopped);
        assert_eq!(fleet.get("i-sim00001").unwrap().starts(), 1);
    }

    #[test]
    fn creating_shows_as_starting_and_becomes_running() {
        let now = Instant::now();
        let fleet = Fleet::new(&[(Status::Creating, 1)], TIMES, now);
        let instance = fleet.get("i-sim00001").unwrap();
        assert_eq!(instance.status(now).shown(), Status::Starting);
        assert_eq!(instance.status(now + TIMES.boot), Status::Running);
    }

    #[test]
    fn a_held_instance_stays_and_a_failing_boot_ends_where_it_was_told_to() {
        let now = Instant::now();
        let mut fleet = Fleet::new(&[], TIMES, now);
        fleet.put("i-held".into(), &Order { hold: true, ..Status::Stopped.into() }, now);
        fleet.put("i-sick".into(), &Order { boots_into: Status::Error, ..Status::Stopped.into() }, now);
        fleet.start("i-held", now);
        fleet.start("i-sick", now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(fleet.get("i-held").unwrap().status(later), Status::Starting);
        assert_eq!(fleet.get("i-sick").unwrap().status(later), Status::Error);
    }

    #[test]
    fn an_unknown_status_is_refused_by_name() {
        let error = "Snoozing".parse::<Status>().unwrap_err().to_string();
        assert!(error.contains("Snoozing") && error.contains("VolumeResizing"), "{error}");
    }
}
