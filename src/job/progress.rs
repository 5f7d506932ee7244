//! How far a job has come, in the headers of its message.

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use uuid::Uuid;

use super::ID_LIMIT;
use crate::dead_letter::DeadLetter;
use crate::headers::Headers;

/// How far a job has come. It is kept in headers, so a producer could forge it: impossible values count as absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// `message_id` as the producer set it, else that of the event around the job, else a UUIDv7 made at the first delivery
    /// and kept from the first park on.
    pub job_id: String,
    /// When the daemon first saw the job.
    pub received_at: Timestamp,
    /// Start calls that counted against `max_attempts`.
    pub attempts: u32,
    /// How often the job was parked after a call, counted or not, or gave way to others.
    pub reschedules: u32,
    /// When a call first failed, its own or a shared one: `give_up_after` counts from here.
    pub failing_since: Option<Timestamp>,
    /// A call may have been made for this job before, by us or for a copy of this message. A 409 then proves nothing.
    pub touched: bool,
    /// The API denied access to the instance once, while others got through. A second denial ends the job.
    pub denied: bool,
    /// The last call found no capacity. Others go first then.
    pub no_capacity: bool,
    /// The producer says that every message with this id and body is one order. Else a new message is a new order.
    pub once: bool,
    /// The name of the order of which the message is a copy, if the daemon has given it one.
    pub order: Option<String>,
    /// The message was a dead letter of this instant, and was put back: a new order, not the one that failed.
    pub put_back: Option<Timestamp>,
    /// The job is in its second phase: its instance is polled until it runs, and no longer started.
    pub boot: Option<Boot>,
}

/// How far a job has come in the confirm phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// When the start was accepted.
    pub since: Timestamp,
    /// As the `started` event said.
    pub ambiguous: bool,
    /// The instance was seen starting, so `Stopped` is no longer the state before the start.
    pub seen_starting: bool,
    /// Polls that showed the instance's state.
    pub polls: u32,
}

impl Boot {
    /// The beginning of the confirm phase.
    pub fn begun(since: Timestamp, ambiguous: bool) -> Self {
        Self { since, ambiguous, seen_starting: false, polls: 0 }
    }
}

/// The id of the job in a message, as its producer or the daemon set it.
pub fn job_id<'a>(properties: &'a BasicProperties, event_id: Option<&'a str>) -> Option<&'a str> {
    let message_id = properties.message_id().as_ref().map(ShortString::as_str).filter(|id| !id.is_empty());
    let written = || Headers(properties.headers().as_ref()).text(JOB_ID);
    message_id.or(event_id).or_else(|| written().filter(|id| !id.is_empty() && id.len() <= ID_LIMIT))
}

const JOB_ID: &str = "x-reveille-job-id";
const RECEIVED_AT: &str = "x-reveille-received-at";
const ATTEMPTS: &str = "x-reveille-attempts";
const RESCHEDULES: &str = "x-reveille-setbacks";
const FAILING_SINCE: &str = "x-reveille-failing-since";
const TOUCHED: &str = "x-reveille-touched";
const DENIED: &str = "x-reveille-denied";
const NO_CAPACITY: &str = "x-reveille-no-capacity";
/// `start` or `confirm`. The next four apply to the latter.
const PHASE: &str = "x-reveille-phase";
const STARTED_AT: &str = "x-reveille-started-at";
const AMBIGUOUS: &str = "x-reveille-ambiguous";
const SEEN_STARTING: &str = "x-reveille-seen-starting";
const POLLS: &str = "x-reveille-polls";
const ORDER: &str = "x-reveille-order";
const PUT_BACK: &str = "x-reveille-put-back";
/// A producer's: a further message with this id and body is a copy.
const ONCE: &str = "x-reveille-once";
/// Larger counts of attempts or reschedules are forged: a job parks for a second at least.
const COUNT_LIMIT: i64 = 1_000_000;

impl Progress {
    /// Reads the headers of a delivery. `event_id`: the job's id by the event around it. A dead letter that was put back is a
    /// new order, without its earlier progress.
    pub fn read(properties: &BasicProperties, event_id: Option<&str>, now: Timestamp) -> Self {
        let written = Headers(properties.headers().as_ref());
        let put_back = DeadLetter::read(properties);
        let headers = if put_back.is_some() { Headers(None) } else { written };
        let count = |name| {
            let count = headers.integer(name).filter(|count| (0..=COUNT_LIMIT).contains(count));
            count.and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
        };
        let past = |name: &str| headers.instant(name).filter(|instant| *instant <= now);
        Self {
            job_id: job_id(properties, event_id).map_or_else(|| Uuid::now_v7().to_string(), str::to_owned),
            received_at: past(RECEIVED_AT).unwrap_or(now),
            attempts: count(ATTEMPTS),
            reschedules: count(RESCHEDULES),
            failing_since: past(FAILING_SINCE),
            touched: headers.flag(TOUCHED),
            denied: headers.flag(DENIED),
            no_capacity: headers.flag(NO_CAPACITY),
            once: headers.flag(ONCE),
            order: headers.text(ORDER).map(str::to_owned),
            put_back: match put_back {
                Some(letter) => letter.dead_at,
                None => headers.instant(PUT_BACK),
            },
            // If forged, its job only polls, and publishes what is true.
            boot: past(STARTED_AT).filter(|_| headers.text(PHASE) == Some("confirm")).map(|since| Boot {
                since,
                ambiguous: headers.flag(AMBIGUOUS),
                seen_starting: headers.flag(SEEN_STARTING),
                polls: count(POLLS),
            }),
        }
    }

    /// Whether a message carries progress, which makes it a parked copy.
    pub fn is_in(properties: &BasicProperties) -> bool {
        Headers(properties.headers().as_ref()).text(RECEIVED_AT).is_some() && !DeadLetter::is_in(properties)
    }

    /// Writes what [`Progress::read`] reads.
    pub fn write(&self, headers: &mut FieldTable) {
        let mut set = |name: &str, value: Option<AMQPValue>| {
            if let Some(value) = value {
                headers.insert(name.into(), value);
            }
        };
        let text = |text: String| AMQPValue::LongString(text.into());
        set(JOB_ID, Some(text(self.job_id.clone())));
        set(RECEIVED_AT, Some(text(self.received_at.to_string())));
        set(ATTEMPTS, Some(AMQPValue::LongLongInt(self.attempts.into())));
        set(RESCHEDULES, Some(AMQPValue::LongLongInt(self.reschedules.into())));
        set(FAILING_SINCE, self.failing_since.map(|instant| text(instant.to_string())));
        set(TOUCHED, Some(AMQPValue::Boolean(self.touched)));
        set(DENIED, Some(AMQPValue::Boolean(self.denied)));
        set(NO_CAPACITY, Some(AMQPValue::Boolean(self.no_capacity)));
        set(ONCE, self.once.then_some(AMQPValue::Boolean(true)));
        set(ORDER, self.order.clone().map(text));
        set(PUT_BACK, self.put_back.map(|instant| text(instant.to_string())));
        // Always written, since the message may have an older value.
        set(PHASE, Some(text(if self.boot.is_some() { "confirm" } else { "start" }.to_owned())));
        if let Some(boot) = &self.boot {
            set(STARTED_AT, Some(text(boot.since.to_string())));
            set(AMBIGUOUS, Some(AMQPValue::Boolean(boot.ambiguous)));
            set(SEEN_STARTING, Some(AMQPValue::Boolean(boot.seen_starting)));
            set(POLLS, Some(AMQPValue::LongLongInt(boot.polls.into())));
        }
    }
}

/// The headers of a job that is one order however often it is published: see [`Progress::once`].
pub fn once() -> FieldTable {
    let mut headers = FieldTable::default();
    headers.insert(ONCE.into(), AMQPValue::Boolean(true));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Outcome;

    #[test]
    fn what_is_ordered_once_says_so_also_as_a_copy_and_not_as_a_dead_letter() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let read = |headers| Progress::read(&BasicProperties::default().with_headers(headers), None, now);
        let ordered = read(once());
        assert!(
            ordered.once
                && !read(FieldTable::default()).once
                && !Progress::is_in(&BasicProperties::default().with_headers(once()))
        );
        let mut headers = FieldTable::default();
        ordered.write(&mut headers);
        assert!(read(headers.clone()).once);
        DeadLetter::new(Outcome::Rejected, "prod", now, 8).write(&mut headers);
        assert!(!read(headers).once);
    }

    #[test]
    fn a_dead_letter_that_is_put_back_is_a_new_order_under_its_old_id() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let spent = Progress {
            job_id: "j-1".to_owned(),
            attempts: 8,
            touched: true,
            order: Some("o".to_owned()),
            ..Progress::read(&BasicProperties::default(), None, now)
        };
        let mut headers = FieldTable::default();
        spent.write(&mut headers);
        let dead_at = "2026-11-25T07:00:00Z".parse().unwrap();
        DeadLetter::new(Outcome::Rejected, "prod", dead_at, 8).write(&mut headers);
        let properties = BasicProperties::default().with_headers(headers);
        let later = "2026-11-25T08:00:00Z".parse().unwrap();
        let fresh = Progress::read(&BasicProperties::default(), None, later);
        let put_back = Some(dead_at);
        assert_eq!(Progress::read(&properties, None, later), Progress { job_id: "j-1".to_owned(), put_back, ..fresh });
        assert!(!Progress::is_in(&properties));
    }

    #[test]
    fn progress_survives_its_headers() {
        let now: Timestamp = "2026-11-25T07:30:00.5Z".parse().unwrap();
        let progress = Progress {
            job_id: "j-1".to_owned(),
            received_at: now,
            attempts: 3,
            reschedules: 4,
            failing_since: Some(now),
            touched: true,
            denied: true,
            no_capacity: true,
            once: true,
            order: Some("o".to_owned()),
            put_back: Some(now),
            boot: Some(Boot { since: now, ambiguous: true, seen_starting: true, polls: 5 }),
        };
        let mut headers = FieldTable::default();
        progress.write(&mut headers);
        let properties = BasicProperties::default().with_headers(headers.clone());
        assert_eq!(Progress::read(&properties, None, now), progress);
        let anew = Progress { boot: None, ..progress };
        anew.write(&mut headers);
        assert_eq!(Progress::read(&BasicProperties::default().with_headers(headers), None, now), anew);
        assert!(Progress::is_in(&properties) && !Progress::is_in(&BasicProperties::default()));
    }

    #[test]
    fn forged_progress_reads_as_absent() {
        let now: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        let forgeries = [
            (ATTEMPTS, AMQPValue::LongLongInt(-1)),
            (RESCHEDULES, AMQPValue::LongLongInt(i64::MAX)),
            (RECEIVED_AT, AMQPValue::LongString("2036-01-01T00:00:00Z".into())),
            (FAILING_SINCE, AMQPValue::LongLongInt(3)),
            (TOUCHED, AMQPValue::LongString("true".into())),
            (PHASE, AMQPValue::LongString("confirm".into())),
            (STARTED_AT, AMQPValue::LongString("2036-01-01T00:00:00Z".into())),
            (JOB_ID, AMQPValue::LongString("x".repeat(256).into())),
        ];
        let mut headers = FieldTable::default();
        for (name, value) in forgeries {
            headers.insert(name.into(), value);
        }
        let progress = Progress::read(&BasicProperties::default().with_headers(headers), None, now);
        assert_eq!(progress.job_id.len(), 36);
        let clean =
            Progress { job_id: progress.job_id.clone(), ..Progress::read(&BasicProperties::default(), None, now) };
        assert_eq!(progress, clean);
    }
}
