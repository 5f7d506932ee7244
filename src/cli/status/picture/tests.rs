use serde_json::json;

use super::*;
use crate::broker::Counts;
use crate::telemetry::LaneState;

fn lane(name: &str) -> LaneName {
    LaneName::parse(name).unwrap()
}

fn replica(pid: u32, lanes: &[(&str, LaneState)]) -> (Replica, Vec<LaneStatus>) {
    let lanes = lanes.iter().map(|(lane, state)| LaneStatus::new(lane, state, 12.345, 20.0, 3));
    (Replica { host: "host-1".to_owned(), pid, version: "0.1.0".to_owned() }, lanes.collect())
}

fn there(messages: u32, consumers: u32) -> Look {
    Look::There(Counts { messages, consumers })
}

/// A lane with jobs, and with so many consumers of its baton.
fn queues(consumers: u32) -> Queues {
    Queues { baton: there(0, consumers), new: there(7, 1), urgent: there(0, 1), due: there(2, 1) }
}

fn facts(told: Vec<(Replica, Vec<LaneStatus>)>, counted: usize, baton: Option<Look>) -> Facts {
    let configured = vec![lane("prod")];
    let queues = baton.map(|baton| (lane("prod"), Queues { baton, ..queues(1) })).into_iter().collect();
    let (broker, minute) = ("127.0.0.1:5672".to_owned(), Some(Minute::default()));
    Facts { broker, is_reachable: true, configured, counted: Some(counted), told, queues, minute, ..Facts::default() }
}

#[test]
fn the_state_of_a_lane_follows_from_what_replicas_tell_and_rabbitmq_counts() {
    let held = || replica(7, &[("prod", LaneState::Held)]);
    let paused = || replica(7, &[("prod", LaneState::Paused("no keys".to_owned()))]);
    let by = || replica(8, &[("prod", LaneState::StandingBy)]);
    for (told, counted, baton, state) in [
        (vec![by(), held()], 2, Some(there(0, 1)), State::Held),
        (vec![held()], 2, None, State::Held),
        (vec![paused(), by()], 2, Some(there(0, 1)), State::Paused),
        (vec![by()], 1, Some(there(0, 1)), State::WaitedFor),
        // RabbitMQ says 0 while the queue's leader is away.
        (vec![by()], 1, Some(there(0, 0)), State::WaitedFor),
        (vec![by()], 2, Some(there(0, 1)), State::NoAnswer),
        (vec![], 1, Some(there(0, 1)), State::NoAnswer),
        (vec![], 0, Some(there(1, 0)), State::NotRun),
        (vec![replica(9, &[("other", LaneState::Held)])], 1, Some(there(1, 0)), State::NotRun),
        (vec![], 0, Some(Look::Missing), State::NotSetUp),
        (vec![], 0, Some(Look::Refused), State::Unknown),
        (vec![by()], 1, None, State::Unknown),
    ] {
        let what = format!("{told:?} {counted} {baton:?}");
        let picture = facts(told, counted, baton).picture();
        let row = picture.lanes.iter().find(|row| row.lane == "prod").unwrap();
        assert_eq!(row.state, state, "{what}");
        assert_eq!(picture.needs_a_person(), !matches!(state, State::Held | State::WaitedFor), "{what}");
    }
}

#[test]
fn a_lane_is_shown_with_its_holder_and_a_pause_with_its_cause() {
    let told = vec![
        replica(7, &[("prod", LaneState::Paused("HTTP 401 \u{1b}[2J".to_owned())), ("dev", LaneState::StandingBy)]),
        replica(8, &[("prod", LaneState::StandingBy), ("dev", LaneState::Held)]),
    ];
    let mut facts = facts(told, 3, Some(there(0, 1)));
    facts.queues.insert(lane("dev"), queues(1));
    (facts.parked, facts.dead_letters) = (Some(5), None);
    facts.problems.push("a \u{9b}problem\n".to_owned());
    let picture = facts.picture();
    let told = r"RabbitMQ at 127.0.0.1:5672: reachable

LANE  STATE   HOLDER        RATE          NEW  URGENT  DUE  IN FLIGHT  LAST MINUTE
dev   held    host-1 pid 8  12/s of 20/s    7       0    2          3  -
prod  paused  host-1 pid 7  12/s of 20/s    7       0    2          3  -

REPLICA       VERSION  HOLDS
host-1 pid 7  0.1.0    prod
host-1 pid 8  0.1.0    dev

parked jobs of all lanes: 5; dead letters: ?

! prod is paused, its jobs wait: HTTP 401 \u{1b}[2J
! a \u{9b}problem\n
";
    assert_eq!(picture.to_string(), told);
    let json = json!(picture);
    assert_eq!(json["silent_replicas"], 1);
    assert_eq!(json["replicas"][0], json!({"host": "host-1", "pid": 7, "version": "0.1.0", "holds": ["prod"]}));
    let row = json!({"lane": "dev", "state": "held", "cause": null, "rate": 12.345, "rate_configured": 20.0, "new": 7,
        "urgent": 0, "due": 2, "in_flight": 3, "last_minute": {}, "holder": {"host": "host-1", "pid": 8, "version": "0.1.0"}});
    assert_eq!(json["lanes"][0], row);
}

#[test]
fn schedules_are_shown_with_when_they_are_due_next_twenty_at_most() {
    let mut facts = facts(Vec::new(), 0, Some(there(0, 1)));
    facts.schedules = (1..=22)
        .map(|number| ScheduleRow {
            schedule: format!("s-{number:02}"),
            lane: "prod".to_owned(),
            next: (number < 20).then_some(Timestamp::UNIX_EPOCH),
            there: (number < 20).then(|| "Thu 1970-01-01 08:00:00+08:00".to_owned()),
        })
        .collect();
    let picture = facts.picture();
    let told = picture.to_string();
    let expected = "\nSCHEDULE  LANE  DUE NEXT\ns-01      prod  Thu 1970-01-01 08:00:00+08:00\ns-02 ";
    assert!(told.contains(expected), "{told}");
    assert!(told.contains("\ns-20      prod  -\nand 2 more: `reveille schedules list`\n"), "{told}");
    let json = json!(picture);
    let row = json!({"schedule": "s-01", "lane": "prod", "next": "1970-01-01T00:00:00Z"});
    assert_eq!((json["schedules"].as_array().unwrap().len(), &json["schedules"][0]), (22, &row));
    assert_eq!(json["schedules"][21]["next"], json!(null));
}

#[test]
fn a_configuration_without_lanes_adds_none() {
    let mut facts = facts(Vec::new(), 0, None);
    facts.configured = vec![lane("default")];
    let missing = Look::Missing;
    facts.queues.insert(lane("default"), Queues { baton: missing, new: missing, urgent: missing, due: missing });
    let picture = facts.picture();
    assert!(picture.lanes.is_empty() && picture.needs_a_person());
}
