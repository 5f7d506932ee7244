//! A batch as it is published: its announcement, and the messages of its jobs.

use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;
use lapin::BasicProperties;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use super::input::{Checked, Input, batch_of};
use crate::broker::{Outgoing, urgent_key};
use crate::config::LaneName;
use crate::events::{Batch, Data, Event, Wave};
use crate::job::{Job, Priority, once};

/// Jobs under way to the broker at a time.
pub const IN_FLIGHT: usize = 256;

/// A job on its way.
#[derive(Debug, Clone)]
pub struct Item {
    /// Its batch.
    pub batch: Arc<str>,
    /// Its wave.
    pub wave: Option<Wave>,
    /// As it is published.
    pub message: Arc<Outgoing>,
}

/// The message of a job of a batch that was announced then.
fn message(exchange: &str, lane: &LaneName, id: Uuid, job: &Job, announced_at: Timestamp) -> Outgoing {
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

/// Reads the jobs a second time, in a thread of its own, no faster than they are taken. The last item says what was wrong with
/// that, if anything was.
pub fn outgoing(
    mut input: Input,
    checked: Arc<Checked>,
    exchange: String,
    announced_at: Timestamp,
) -> mpsc::Receiver<Result<Item, String>> {
    let (sender, items) = mpsc::channel(IN_FLIGHT);
    spawn_blocking(move || {
        let mut batch: Arc<str> = "".into();
        let lane = input.lane().clone();
        let end = input.jobs(&checked, |id, job| {
            // Most jobs belong to the batch of the one before.
            if *batch != *batch_of(&job) {
                batch = batch_of(&job).into();
            }
            let message = Arc::new(message(&exchange, &lane, id, &job, announced_at));
            match sender.blocking_send(Ok(Item { batch: batch.clone(), wave: job.wave, message })) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        if let Err(problem) = end {
            // Without a receiver, sending is over.
            let _ = sender.blocking_send(Err(problem));
        }
    });
    items
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
