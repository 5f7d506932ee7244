//! A batch as it is published: its announcement, and the messages of its jobs.

use jiff::Timestamp;
use lapin::BasicProperties;
use uuid::Uuid;

use crate::broker::{Outgoing, urgent_key};
use crate::config::LaneName;
use crate::events::{Batch, Data, Event};
use crate::job::{Job, Priority, once};

/// The message of a job of a batch that was announced then.
pub fn message(exchange: &str, lane: &LaneName, id: Uuid, job: &Job, announced_at: Timestamp) -> Outgoing {
    let key = if job.priority == Some(Priority::Urgent) { urgent_key(lane) } else { lane.to_string() };
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_message_id(id.to_string().into())
        // A cancellation is for the jobs that were submitted before it, and a wave for those that were announced then.
        .with_timestamp(u64::try_from(announced_at.as_second()).unwrap_or(0))
        .with_headers(once());
    let body = serde_json::to_vec(job).expect("a job holds nothing that JSON cannot");
    Outgoing { exchange: exchange.to_owned(), key, properties, body }
}

/// The announcement of a `batch`, or of the size that it has after all, under the same `id`.
pub fn announcement(id: Uuid, batch: Batch, at: Timestamp) -> Event {
    let lane = batch.lane.clone();
    Event { id: id.to_string(), ..Event::new(&lane, Data::BatchSubmitted(batch), at) }
}

/// The announcement as it is published.
pub fn announced(exchange: String, lane: &LaneName, announcement: &Event) -> Outgoing {
    Outgoing::event(announcement, exchange, format!("{lane}.submitted"))
}
