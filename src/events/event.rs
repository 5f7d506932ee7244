//! The events that reveille publishes, in CloudEvents 1.0.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use super::Phase;
use crate::bce::Answer;

/// The media type of an event.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// A CloudEvents envelope around `data`.
#[derive(Debug, Serialize)]
pub struct Event<'a, D> {
    specversion: &'static str,
    /// Equal for every copy of an event, so that consumers can drop the second.
    pub id: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: Timestamp,
    datacontenttype: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    data: D,
}

impl<'a, D: Serialize> Event<'a, D> {
    fn new(lane: &str, kind: &str, id: String, time: Timestamp, data: D) -> Self {
        Self {
            specversion: "1.0",
            id,
            source: format!("/reveille/lanes/{lane}"),
            kind: format!("io.reveille.{kind}.v1"),
            subject: None,
            time,
            datacontenttype: "application/json",
            traceparent: None,
            data,
        }
    }

    /// The event as it is published.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an event holds nothing but texts, numbers and maps with text keys")
    }
}

/// Everything an outcome event says of a job.
#[derive(Debug, Serialize)]
pub struct Data<'a> {
    /// The job: `message_id`, or what the daemon named it.
    pub job_id: &'a str,
    /// The lane it ran in.
    pub lane: &'a str,
    /// `null` for a message that could not be read.
    pub instance_id: Option<&'a str>,
    /// As the job says.
    pub batch_id: Option<&'a str>,
    /// As the job says.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// `started`, `running`, `already_done`, `failed`, `expired`, `rejected`.
    pub outcome: &'static str,
    /// Why, where the outcome is `failed` or `rejected`.
    pub reason: Option<&'static str>,
    /// No further event of this job follows.
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Start calls made that counted, the last one included.
    pub attempts: u32,
    /// Of the last answer; `null` where none came or none was asked for.
    pub http_status: Option<u16>,
    /// Of the last answer.
    pub error_code: Option<&'a str>,
    /// Of the last answer, or what was wrong with the message.
    pub error_message: Option<&'a str>,
    /// Of the last answer: what Baidu's support asks for.
    pub bce_request_id: Option<&'a str>,
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

impl<'a> Data<'a> {
    /// Fills in what the last answer says.
    pub fn with_answer(mut self, answer: &'a Answer) -> Self {
        self.http_status = Some(answer.status);
        self.error_code = answer.code.as_deref();
        self.error_message = answer.message.as_deref().or(self.error_message);
        self.bce_request_id = answer.request_id.as_deref();
        self
    }

    /// Wraps the data: `io.reveille.instance.<outcome>.v1`.
    ///
    /// The id is that of the job and of the phase that the event ends: the same for every copy. A job that failed and was
    /// put back from among the dead letters has events of its own, by the instant at which it was `put_back`.
    pub fn into_event(
        self,
        phase: Phase,
        put_back: Option<Timestamp>,
        traceparent: Option<&'a str>,
    ) -> Event<'a, Self> {
        let again = put_back.map(|dead_at| format!("/{dead_at}")).unwrap_or_default();
        let mut event = Event::new(
            self.lane,
            &format!("instance.{}", self.outcome),
            format!("{}/{}{again}", self.job_id, phase.as_str()),
            self.finished_at,
            self,
        );
        event.subject = event.data.instance_id;
        event.traceparent = traceparent;
        event
    }
}

/// `io.reveille.lane.held.v1`: a replica has begun to run the lane. It is how commands learn the names of lanes.
pub fn lane_held(lane: &str, now: Timestamp) -> Event<'static, BTreeMap<&'static str, String>> {
    let data = BTreeMap::from([("lane", lane.to_owned())]);
    Event::new(lane, "lane.held", uuid::Uuid::now_v7().to_string(), now, data)
}

/// What `io.reveille.batch.submitted.v1` says: the denominator of a batch's progress.
#[derive(Debug, Serialize)]
pub struct Batch<'a> {
    /// The batch.
    pub batch_id: &'a str,
    /// How many jobs were submitted.
    pub size: usize,
    /// To which lane.
    pub lane: &'a str,
}

impl<'a> Batch<'a> {
    /// Wraps the announcement.
    pub fn into_event(self, now: Timestamp) -> Event<'a, Self> {
        Event::new(self.lane, "batch.submitted", uuid::Uuid::now_v7().to_string(), now, self)
    }
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
    use super::*;

    #[test]
    fn an_event_has_all_that_cloudevents_asks_for() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let answer = Answer { status: 404, code: Some("NoSuchObject".to_owned()), ..Answer::default() };
        let data = Data {
            job_id: "j-1",
            lane: "prod",
            instance_id: Some("i-0000"),
            batch_id: None,
            labels: None,
            outcome: "failed",
            reason: Some("not_found"),
            is_final: true,
            attempts: 1,
            http_status: None,
            error_code: None,
            error_message: None,
            bce_request_id: None,
            ambiguous: false,
            received_at: now,
            finished_at: now,
            duration_ms: 0,
        };
        let bytes = data.with_answer(&answer).into_event(Phase::Start, None, None).to_bytes();
        let event: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(event["specversion"], "1.0");
        assert_eq!(event["id"], "j-1/start");
        assert_eq!(event["source"], "/reveille/lanes/prod");
        assert_eq!(event["type"], "io.reveille.instance.failed.v1");
        assert_eq!(event["subject"], "i-0000");
        assert_eq!(event["time"], "2026-11-25T07:30:00Z");
        assert_eq!(event["data"]["final"], true);
        assert_eq!(
            (&event["data"]["http_status"], &event["data"]["error_code"]),
            (&404.into(), &"NoSuchObject".into())
        );
        assert!(event.get("traceparent").is_none());
    }

    #[test]
    fn a_traceparent_is_checked() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        for text in ["", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0g", "00-4bf9"] {
            assert!(!is_traceparent(text), "{text}");
        }
    }
}
