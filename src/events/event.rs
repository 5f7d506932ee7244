//! The envelope of CloudEvents 1.0, written and read.

use std::borrow::Cow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{BatchCompleted, Data, JobEvent, Phase};

/// The media type of an event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Of CloudEvents.
const VERSION: &str = "1.0";

/// An event: what it says, and the attributes around that.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Equal for every copy of an event, so that consumers can drop the second.
    pub id: String,
    /// What it comes from: `/reveille/lanes/<lane>`.
    pub source: String,
    /// The instance, where it is about one.
    pub subject: Option<String>,
    /// When it happened.
    pub time: Timestamp,
    /// The trace that it belongs to. As read, anybody's text.
    pub traceparent: Option<String>,
    /// Its type, and what it says.
    pub data: Data,
}

/// An event as it stands in JSON, its fields in the order in which they are written.
#[derive(Serialize, Deserialize)]
struct Envelope<'a, D> {
    specversion: Cow<'a, str>,
    id: Cow<'a, str>,
    source: Cow<'a, str>,
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Cow<'a, str>>,
    time: Timestamp,
    #[serde(default)]
    datacontenttype: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    #[serde(default)]
    data: D,
}

impl Event {
    /// An event of `lane`'s with an id that no other has.
    pub fn new(lane: &str, data: Data, now: Timestamp) -> Self {
        let (id, source) = (Uuid::now_v7().to_string(), format!("/reveille/lanes/{lane}"));
        Self { id, source, subject: None, time: now, traceparent: None, data }
    }

    /// An event about a job.
    ///
    /// The id is that of the job and of the phase that the event ends: the same for every copy. A job that failed and was
    /// put back from among the dead letters has events of its own, by the instant at which it was `put_back`.
    pub fn of_job(job: JobEvent, phase: Phase, put_back: Option<Timestamp>, traceparent: Option<&str>) -> Self {
        let again = put_back.map(|dead_at| format!("/{dead_at}")).unwrap_or_default();
        Self {
            id: format!("{}/{}{again}", job.job_id, phase.as_str()),
            source: format!("/reveille/lanes/{}", job.lane),
            subject: job.instance_id.as_ref().map(ToString::to_string),
            time: job.finished_at,
            traceparent: traceparent.map(str::to_owned),
            data: Data::Job(Box::new(job)),
        }
    }

    /// An event of a process, and of no lane, with an id that no other has.
    pub fn of_process(data: Data, now: Timestamp) -> Self {
        Self { source: "/reveille".to_owned(), ..Self::new("", data, now) }
    }

    /// An event of the scheduler's with an id that no other has.
    pub fn of_scheduler(data: Data, now: Timestamp) -> Self {
        Self { source: "/reveille/scheduler".to_owned(), ..Self::new("", data, now) }
    }

    /// That the batch with this [`batch_key`] is done. All copies are equal: everything in it follows from the log.
    pub fn of_completion(key: &str, completed: BatchCompleted) -> Self {
        let (id, source) = (format!("{key}/completed"), format!("/reveille/lanes/{}", completed.lane));
        let time = completed.last_event_at.unwrap_or(completed.submitted_at);
        Self { id, source, subject: None, time, traceparent: None, data: Data::BatchCompleted(Box::new(completed)) }
    }

    /// The event as it is published.
    pub fn to_bytes(&self) -> Vec<u8> {
        let envelope = Envelope {
            specversion: VERSION.into(),
            id: self.id.as_str().into(),
            source: self.source.as_str().into(),
            kind: self.data.kind(),
            subject: self.subject.as_deref().map(Cow::from),
            time: self.time,
            datacontenttype: "application/json".into(),
            traceparent: self.traceparent.as_deref().map(Cow::from),
            data: &self.data,
        };
        serde_json::to_vec(&envelope).expect("an event holds nothing but texts, numbers and maps with text keys")
    }

    /// Reads what [`Event::to_bytes`] writes, and any other event of CloudEvents 1.0 that has a time. `None`: it is none.
    pub fn read(body: &[u8]) -> Option<Self> {
        let read: Envelope<'_, Value> = serde_json::from_slice(body).ok()?;
        (read.specversion == VERSION).then(|| Self {
            id: read.id.into_owned(),
            source: read.source.into_owned(),
            subject: read.subject.map(Cow::into_owned),
            time: read.time,
            traceparent: read.traceparent.map(Cow::into_owned),
            data: Data::read(&read.kind, read.data),
        })
    }
}

/// What the scheduler's events about a batch have their ids from, by the id and the time of its first announcement: a name can be
/// announced again. It is a hash, since ids of announcements can be of any length.
pub fn batch_key(lane: &str, batch: &str, announcement: &str, announced_at: Timestamp) -> String {
    let mut hash = Sha256::new();
    for part in [lane, batch, announcement, &announced_at.to_string()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let half = hash.first_chunk().expect("a SHA-256 has twice as many bytes");
    format!("{:032x}", u128::from_be_bytes(*half))
}

/// The header of W3C Trace Context (<https://www.w3.org/TR/trace-context/#traceparent-header>), version 00.
pub fn is_traceparent(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() == 55
        && text.starts_with("00-")
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            2 | 35 | 52 => *byte == b'-',
            _ => byte.is_ascii_digit() || (b'a'..=b'f').contains(byte),
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bce::{Answer, InstanceId};
    use crate::events::{
        Action, Applied, Batch, Command, LaneHeld, LanePaused, LaneResumed, MaxFailures, Outcome, Reason,
        SchedulerHeld, Wave,
    };
    use crate::replica::Replica;

    fn now() -> Timestamp {
        "2026-11-25T07:30:00Z".parse().unwrap()
    }

    fn job(outcome: Outcome) -> JobEvent {
        JobEvent::example("j-1", outcome, now())
    }

    /// One of each kind.
    fn commands() -> [Command; 10] {
        let (lane, instance_id) = ("prod".to_owned(), InstanceId::parse("i-0000").unwrap());
        [
            Action::PauseLane { lane: lane.clone(), until: Some(now()) },
            Action::ResumeLane { lane: lane.clone() },
            Action::CancelBatch { batch_id: "morning".to_owned(), lane: Some(lane.clone()) },
            Action::StartWave {
                batch_id: "morning".to_owned(),
                lane,
                wave: Wave::FIRST,
                announced_at: now(),
                not_before: Some(now()),
                waiting: 3,
            },
            Action::CancelBatch { batch_id: "morning".to_owned(), lane: None },
            Action::CancelInstance { instance_id: instance_id.clone() },
            Action::Snooze { instance_id, until: now() },
            Action::PauseSchedule { schedule: "morning".to_owned(), until: Some(now()) },
            Action::ResumeSchedule { schedule: "morning".to_owned() },
            Action::RunSchedule { schedule: "morning".to_owned(), due: now() },
        ]
        .map(|action| Command { action, by: "ops@desk".to_owned(), reason: Some("patching".to_owned()) })
    }

    #[test]
    fn what_is_no_command_of_ours_is_of_an_unknown_type() {
        let long = "x".repeat(501);
        let wave =
            |wave: Value| json!({"batch_id": "b", "lane": "prod", "wave": wave, "announced_at": now(), "by": "ops"});
        for (name, data) in [
            ("lane.pause", json!({"by": "ops"})),
            ("lane.pause", json!({"lane": "prod"})),
            ("lane.pause", json!({"lane": "prod", "by": "ops", "until": "tomorrow"})),
            ("lane.pause", json!({"lane": "prod", "by": "ops", "reason": long})),
            ("lane.pause", json!({"lane": "prod", "by": long})),
            ("lane.pause", json!({"lane": long, "by": "ops"})),
            ("batch.cancel", json!({"batch_id": long, "by": "ops"})),
            ("instance.cancel", json!({"instance_id": "../", "by": "ops"})),
            ("instance.snooze", json!({"instance_id": "i-0000", "by": "ops"})),
            ("batch.wave", json!({"batch_id": "b", "lane": "prod", "announced_at": now(), "by": "ops"})),
            ("batch.wave", json!({"batch_id": "b", "lane": "prod", "wave": 2, "by": "ops"})),
            ("batch.wave", json!({"batch_id": "b", "wave": 2, "announced_at": now(), "by": "ops"})),
            ("batch.wave", wave(json!(0))),
            ("batch.wave", wave(json!(-1))),
            ("batch.wave", wave(json!(4_294_967_296_u64))),
            ("batch.wave", wave(json!("2"))),
            ("batch.wave", wave(json!(2.5))),
            ("schedule.pause", json!({"by": "ops"})),
            ("schedule.pause", json!({"schedule": "x".repeat(129), "by": "ops"})),
            ("schedule.pause", json!({"schedule": "morning", "by": "ops", "until": "tomorrow"})),
            ("schedule.resume", json!({"schedule": ["morning"], "by": "ops"})),
            ("schedule.run", json!({"schedule": "morning", "by": "ops"})),
            ("schedule.run", json!({"schedule": "morning", "by": "ops", "due": "07:30"})),
            ("schedule.run", json!({"schedule": "morning", "by": "ops", "due": "+999999-01-01T00:00:00Z"})),
            ("schedule.run", json!({"schedule": "morning", "due": now()})),
            ("lane.explode", json!({"lane": "prod", "by": "ops"})),
        ] {
            let kind = format!("io.reveille.{name}.v1");
            let body = json!({"specversion": "1.0", "id": "c", "source": "/", "type": kind, "time": now(),
                "data": data});
            let read = Event::read(body.to_string().as_bytes()).unwrap();
            assert!(matches!(&read.data, Data::Unknown { kind: unknown, .. } if *unknown == kind), "{read:?}");
        }
    }

    fn replica() -> Replica {
        Replica { host: "host-1".to_owned(), pid: 7, version: "0.1.0".to_owned() }
    }

    fn completed(batch: &str) -> BatchCompleted {
        BatchCompleted {
            batch_id: batch.to_owned(),
            lane: "prod".to_owned(),
            size: 3,
            ended: 3,
            up: 2,
            outcomes: [("failed".to_owned(), 1), ("started".to_owned(), 2)].into(),
            reasons: [("not_found".to_owned(), 1)].into(),
            submitted_at: now(),
            first_event_at: Some(now()),
            last_event_at: Some(now()),
            ready_by: None,
            up_in_time: None,
        }
    }

    /// With all that can be in it.
    fn full(outcome: Outcome) -> Event {
        let answer = Answer {
            status: 404,
            code: Some("NoSuchObject".to_owned()),
            message: Some("gone".to_owned()),
            request_id: Some("r-1".to_owned()),
            ..Answer::default()
        };
        let job = JobEvent {
            correlation_id: Some("ask-7".to_owned()),
            instance_id: Some(InstanceId::parse("i-0000").unwrap()),
            batch_id: Some("morning".to_owned()),
            wave: Some(Wave::FIRST),
            replay_of: Some("j-0".to_owned()),
            labels: Some([("a".to_owned(), "\u{1b}\"".to_owned())].into()),
            ambiguous: true,
            ..job(outcome)
        };
        let traceparent = Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        Event::of_job(job.with_answer(&answer), outcome.phase(false), Some(now()), traceparent)
    }

    #[test]
    fn each_event_is_read_as_it_was_written() {
        let batch = Batch::new("morning".to_owned(), 3, "prod".to_owned());
        let new = [
            Data::BatchSubmitted(batch),
            Data::LaneHeld(LaneHeld { lane: "prod".to_owned(), replica: None }),
            Data::SchedulerHeld(SchedulerHeld {
                replica: replica(),
                resume_from: None,
                schedules: Vec::new(),
                boots: Vec::new(),
                done: Vec::new(),
            }),
            Data::BatchCompleted(Box::new(completed("morning"))),
        ];
        let mut events: Vec<Event> = new.into_iter().map(|data| Event::new("prod", data, now())).collect();
        let ours = |data| Event { source: "/reveille".to_owned(), ..Event::new("", data, now()) };
        events.extend(commands().into_iter().map(Data::Command).map(ours));
        let (lane, by, reason) = ("prod".to_owned(), "ops@desk".to_owned(), None);
        let (cause, text) = ("by_hand".to_owned(), "by ops@desk".to_owned());
        events.push(ours(Data::LanePaused(LanePaused { lane: lane.clone(), cause, text })));
        events.push(ours(Data::LaneResumed(LaneResumed { lane: lane.clone() })));
        let (command_id, command, lanes) = ("c-1".to_owned(), "lane.pause".to_owned(), vec![lane]);
        events.push(ours(Data::ControlApplied(Applied { command_id, command, replica: replica(), lanes, by, reason })));
        let configured = Outcome::read("failed", "no_stock").unwrap();
        for outcome in Outcome::ALL.into_iter().chain([configured]) {
            events.push(full(outcome));
            events.push(Event::of_job(job(outcome), outcome.phase(true), None, None));
        }
        for event in events {
            assert_eq!(Event::read(&event.to_bytes()).as_ref(), Some(&event));
            assert!(!matches!(event.data, Data::Unknown { .. }), "{event:?}");
            if let Data::Job(job) = &event.data {
                let outcome = job.known_outcome().unwrap();
                assert_eq!((outcome.as_str(), outcome.is_up()), (&*job.outcome, job.is_up()));
            }
        }
    }

    #[test]
    fn what_is_written_is_what_consumers_know() {
        let about = |lane: &str, data| Event { id: "id".to_owned(), ..Event::new(lane, data, now()) };
        let batch = Batch::new("morning".to_owned(), 3, "prod".to_owned());
        let waves = [(Wave::FIRST, 1), (Wave::new(7).unwrap(), 2)].into();
        for (event, written) in [
            (
                full(Outcome::Failed(Reason::NotFound)),
                r#"{"specversion":"1.0","id":"j-1/start/2026-11-25T07:30:00Z","source":"/reveille/lanes/prod","type":"io.reveille.instance.failed.v1","subject":"i-0000","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","data":{"job_id":"j-1","correlation_id":"ask-7","lane":"prod","instance_id":"i-0000","batch_id":"morning","wave":1,"replay_of":"j-0","labels":{"a":"\u001b\""},"outcome":"failed","reason":"not_found","final":true,"attempts":1,"http_status":404,"error_code":"NoSuchObject","error_message":"gone","bce_request_id":"r-1","ambiguous":true,"received_at":"2026-11-25T07:30:00Z","finished_at":"2026-11-25T07:30:00Z","duration_ms":0}}"#,
            ),
            (
                Event::of_job(job(Outcome::Running), Phase::Confirm, None, None),
                r#"{"specversion":"1.0","id":"j-1/confirm","source":"/reveille/lanes/prod","type":"io.reveille.instance.running.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"job_id":"j-1","correlation_id":null,"lane":"prod","instance_id":null,"batch_id":null,"labels":null,"outcome":"running","reason":null,"final":true,"attempts":1,"http_status":null,"error_code":null,"error_message":null,"bce_request_id":null,"ambiguous":false,"received_at":"2026-11-25T07:30:00Z","finished_at":"2026-11-25T07:30:00Z","duration_ms":0}}"#,
            ),
            (
                about(
                    "prod",
                    Data::BatchSubmitted(Batch {
                        max_failures: Some(MaxFailures::Percent(5)),
                        waves,
                        settle_seconds: Some(60),
                        ..batch.clone()
                    }),
                ),
                r#"{"specversion":"1.0","id":"id","source":"/reveille/lanes/prod","type":"io.reveille.batch.submitted.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"batch_id":"morning","size":3,"lane":"prod","max_failures":"5%","waves":{"1":1,"7":2},"settle_seconds":60}}"#,
            ),
            (
                about("prod", Data::BatchSubmitted(batch)),
                r#"{"specversion":"1.0","id":"id","source":"/reveille/lanes/prod","type":"io.reveille.batch.submitted.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"batch_id":"morning","size":3,"lane":"prod"}}"#,
            ),
            (
                about("prod", Data::LaneHeld(LaneHeld { lane: "prod".to_owned(), replica: Some(replica()) })),
                r#"{"specversion":"1.0","id":"id","source":"/reveille/lanes/prod","type":"io.reveille.lane.held.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"lane":"prod","replica":{"host":"host-1","pid":7,"version":"0.1.0"}}}"#,
            ),
            (
                Event::of_completion("key", completed("morning")),
                r#"{"specversion":"1.0","id":"key/completed","source":"/reveille/lanes/prod","type":"io.reveille.batch.completed.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"batch_id":"morning","lane":"prod","size":3,"ended":3,"up":2,"outcomes":{"failed":1,"started":2},"reasons":{"not_found":1},"submitted_at":"2026-11-25T07:30:00Z","first_event_at":"2026-11-25T07:30:00Z","last_event_at":"2026-11-25T07:30:00Z"}}"#,
            ),
            (
                Event {
                    id: "id".to_owned(),
                    ..Event::of_scheduler(
                        Data::SchedulerHeld(SchedulerHeld {
                            replica: replica(),
                            resume_from: Some(7),
                            schedules: Vec::new(),
                            boots: Vec::new(),
                            done: Vec::new(),
                        }),
                        now(),
                    )
                },
                r#"{"specversion":"1.0","id":"id","source":"/reveille/scheduler","type":"io.reveille.scheduler.held.v1","time":"2026-11-25T07:30:00Z","datacontenttype":"application/json","data":{"replica":{"host":"host-1","pid":7,"version":"0.1.0"},"resume_from":7}}"#,
            ),
        ] {
            assert_eq!(String::from_utf8(event.to_bytes()).unwrap(), written);
        }
    }

    #[test]
    fn each_announcement_has_a_key_of_its_own() {
        let first = batch_key("prod", "morning", "a", now());
        assert_eq!((first.len(), batch_key("prod", "morning", "a", now())), (32, first.clone()));
        for (lane, batch, announcement, at) in [
            ("test", "morning", "a", now()),
            ("prod", "mornin", "ga", now()),
            ("prod", "morning", "b", now()),
            ("prod", "morning", "a", Timestamp::UNIX_EPOCH),
        ] {
            assert_ne!(batch_key(lane, batch, announcement, at), first);
        }
    }

    #[test]
    fn what_only_another_version_knows_is_kept_as_it_is() {
        let text = |event: &Event| String::from_utf8(event.to_bytes()).unwrap();
        let held =
            text(&Event::new("prod", Data::LaneHeld(LaneHeld { lane: "prod".to_owned(), replica: None }), now()));
        let (started, failed) = (text(&full(Outcome::Started)), text(&full(Outcome::Failed(Reason::Refused))));
        for (other, is_unknown) in [
            (held.replace("lane.held.v1", "lane.paused.v1"), true),
            (held.replace("lane.held.v1", "lane.held.v2"), true),
            (held.replace(r#""lane":"prod""#, r#""lane":7"#), true),
            // What says of itself that it is something else.
            (started.replace("instance.started", "instance.failed"), true),
            (started.replace("i-0000", "i-../"), true),
            // What waits for the end of a job hears of one that it has no word for.
            (started.replace("started", "cancelled"), false),
            (failed.replace(r#""reason":"refused""#, r#""reason":"No stock""#), false),
        ] {
            let event = Event::read(other.as_bytes()).unwrap_or_else(|| panic!("{other}"));
            assert_eq!(matches!(event.data, Data::Unknown { .. }), is_unknown, "{other}");
            assert_eq!(Event::read(&event.to_bytes()), Some(event.clone()), "{other}");
            if let Data::Job(job) = event.data {
                assert_eq!((job.known_outcome(), job.is_up()), (None, false), "{other}");
            }
        }
        let more = started.replace(r#""time""#, r#""ours":1,"time""#).replace(r#""lane""#, r#""more":[],"lane""#);
        assert_eq!(Event::read(more.as_bytes()), Some(full(Outcome::Started)));
    }

    #[test]
    fn what_is_no_event_is_read_as_none() {
        let event = String::from_utf8(full(Outcome::Started).to_bytes()).unwrap();
        for none in [
            String::new(),
            "noise".to_owned(),
            "[".repeat(80_000),
            "[]".to_owned(),
            r#"{"data":{"job_id":"j","outcome":"started","final":true}}"#.to_owned(),
            event.replace(r#""specversion":"1.0""#, r#""specversion":"2.0""#),
            event.replace(r#""id""#, r#""di""#),
            event.replace(r#""time":"2026"#, r#""time":"20266"#),
        ] {
            assert_eq!(Event::read(none.as_bytes()), None, "{none:.80}");
        }
        // The least that one can be.
        let least = br#"{"specversion":"1.0","id":"","source":"","type":"","time":"2026-11-25T07:30:00Z"}"#;
        let unknown = Data::Unknown { kind: String::new(), data: Value::Null };
        assert_eq!(Event::read(least).unwrap().data, unknown);
    }

    #[test]
    fn a_traceparent_is_checked() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for text in ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g", "00-4bf9"] {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
