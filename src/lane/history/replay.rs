//! Ensures that what was published of a job before a crash is not contradicted after it.
//!
//! If a lane is killed between an outcome's confirm and the ack of its job, the job is redelivered as touched, and by
//! then the API may have recovered. So a replica that takes a lane over first reads the end of the outcomes' log.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tracing::{debug, warn};

use super::{End, History, Key};
use crate::broker::{ReadBack, ReadBackError};
use crate::events::{Data, Event, Outcome};
use crate::headers::Headers;

/// Jobs whose events are older than this before the lane's last event were acked long ago. An id that is used again the
/// next morning is another order.
const IN_DOUBT: SignedDuration = SignedDuration::from_secs(60);

/// What the replay needs of a job's event.
struct Published {
    key: Key,
    /// `None`: only another version knows it.
    outcome: Option<Outcome>,
    ambiguous: bool,
    is_final: bool,
    finished_at: Timestamp,
}

/// Reads the lane's last events, `messages` up to the event `until`, into its history. Only events with the lane's seal
/// count.
pub(in crate::lane) async fn replay(history: &History, messages: ReadBack, until: &str) {
    let mut published = Vec::new();
    match read_back(history, messages, until, &mut published).await {
        // The lane is served without the log too.
        Err(failure) => warn!("cannot read the last events back from the outcomes' log: {failure}"),
        // What was published is in the log, and so in the history by now.
        Ok(()) => history.seen.forget_unpublished(),
    }
    let Some(last) = published.iter().map(|event| event.finished_at).max() else { return };
    let in_doubt = published.iter().filter(|event| last.duration_since(event.finished_at) <= IN_DOUBT);
    let mut replayed = 0;
    for event in in_doubt {
        let key = event.key;
        if let Some(outcome) = event.outcome {
            history.seen.record_call(key);
            if event.is_final {
                history.seen.record_end(key, End { outcome, ambiguous: event.ambiguous });
            } else {
                history.seen.record_started(key, event.finished_at, event.ambiguous);
            }
            history.seen.record_published(key);
            replayed += 1;
        }
    }
    debug!(replayed, "the last events are read back");
}

/// Reads the lane's own events.
///
/// # Errors
/// Why the log was not read up to the event `until`.
async fn read_back(
    history: &History,
    mut messages: ReadBack,
    until: &str,
    published: &mut Vec<Published>,
) -> Result<(), Arc<ReadBackError>> {
    loop {
        let message = messages.next().await?;
        let Some(event) = Event::read(&message.body) else { continue };
        if event.id == until {
            return Ok(());
        }
        // An event without the lane's seal may be anybody's.
        let order = history.seals.open(Headers(message.properties.headers().as_ref()), &message.body);
        if let (Some(order), Data::Job(job)) = (order, event.data)
            && let Some(instance) = &job.instance_id
        {
            published.push(Published {
                key: history.seen.key(&job.job_id, instance, &order),
                outcome: job.known_outcome(),
                ambiguous: job.ambiguous,
                is_final: job.is_final,
                finished_at: job.finished_at,
            });
        }
    }
}
