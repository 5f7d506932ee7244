//! A batch as it is published: its announcement, and the messages of its jobs.

use jiff::Timestamp;
use lapin::BasicProperties;
use uuid::Uuid;

use super::{Identity, Part};
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

/// The announcement of a `batch`, which has these jobs, `part`, or the size that it says after all.
pub fn announcement(identity: &Identity, part: &Part, batch: Batch, at: Timestamp) -> Event {
    let id = identity.of_part(&batch.batch_id, part).to_string();
    Event { id, ..Event::new(identity.lane.as_str(), Data::BatchSubmitted(batch), at) }
}

/// The announcement as it is published.
pub fn announced(exchange: String, lane: &LaneName, announcement: &Event) -> Outgoing {
    Outgoing::event(announcement, exchange, format!("{lane}.submitted"))
}
