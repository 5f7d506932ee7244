//! What was published of a job before a crash is not contradicted after it.
//!
//! Killed between an outcome's confirm and the ack of its job, a lane finds the job handed out again: as a touched one,
//! with an API that may have recovered. So a replica that takes a lane over reads the end of the outcomes' log first.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tracing::{debug, warn};

use super::{End, Key};
use crate::broker::ReadBackError;
use crate::events::{Data, Event, Outcome};
use crate::headers::Headers;
use crate::lane::parts::{Lane, Running};

/// What was said this long before the lane's last word was acked long since. An id that is used again the next morning
/// is another order.
const IN_DOUBT: SignedDuration = SignedDuration::from_secs(60);

/// What an event of the lane's own says of a job: that it ended, or that it was started and goes on.
struct Published {
    key: Key,
    /// `None`: only another version knows it.
    outcome: Option<Outcome>,
    ambiguous: bool,
    is_final: bool,
    finished_at: Timestamp,
}

/// Reads back what the lane said last, up to the event `until`, into its memory. What bears its seal is its own word, and
/// nothing else is.
pub(in crate::lane) async fn replay(running: &Running, until: &str) {
    let lane = &running.lane;
    let mut published = Vec::new();
    let failure = read_back(lane, until, &mut published).await.err();
    match failure {
        // Without the log the lane runs all the same.
        Some(failure) => {
            let log = lane.settings.names.outcomes_log();
            warn!(lane = lane.name(), "cannot read back what was said last, from {log}: {failure}");
        }
        // What did reach the log is in it.
        None => lane.history.jobs.forget_unpublished(),
    }
    let Some(last) = published.iter().map(|event| event.finished_at).max() else { return };
    let in_doubt = published.iter().filter(|event| last.duration_since(event.finished_at) <= IN_DOUBT);
    let mut replayed = 0;
    for event in in_doubt {
        let key = event.key;
        if let Some(outcome) = event.outcome {
            lane.history.jobs.call(key);
            if event.is_final {
                lane.history.jobs.end_as_first(key, End { outcome, ambiguous: event.ambiguous });
            } else {
                lane.history.jobs.start(key, event.finished_at, event.ambiguous);
            }
            lane.history.jobs.published(key);
            replayed += 1;
        }
    }
    debug!(lane = lane.name(), replayed, "what was said last is read back");
}

/// Reads what the lane published of its jobs.
///
/// # Errors
/// What kept it from being read up to the event `until`.
async fn read_back(lane: &Lane, until: &str, published: &mut Vec<Published>) -> Result<(), Arc<ReadBackError>> {
    let mut messages = lane.reader.read_back(lane.name());
    loop {
        let message = messages.next().await?;
        let Some(event) = Event::read(&message.body) else { continue };
        if event.id == until {
            return Ok(());
        }
        // Anybody may have published the others.
        let order = lane.history.seals.open(Headers(message.properties.headers().as_ref()), &message.body);
        if let (Some(order), Data::Job(job)) = (order, event.data)
            && let Some(instance) = &job.instance_id
        {
            published.push(Published {
                key: lane.history.jobs.key(&job.job_id, instance, &order),
                outcome: job.known_outcome(),
                ambiguous: job.ambiguous,
                is_final: job.is_final,
                finished_at: job.finished_at,
            });
        }
    }
}
