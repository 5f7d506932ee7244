//! What was published of a job before a crash is not contradicted after it.
//!
//! Killed between an outcome's confirm and the ack of its job, a lane finds the job handed out again: as a touched one,
//! with an API that may have recovered. So a replica that takes a lane over reads the end of the outcomes' log first.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use tracing::{debug, warn};

use super::{End, Mark};
use crate::bce::InstanceId;
use crate::events::Outcome;
use crate::headers::Headers;
use crate::lane::parts::{Lane, Running};

/// What was said this long before the lane's last word was acked long since. An id that is used again the next morning
/// is another order.
const IN_DOUBT: SignedDuration = SignedDuration::from_secs(60);
#[derive(Deserialize)]
struct Event {
    id: String,
    data: Value,
}

/// The part of an outcome event that tells how a job ended, or that it goes on.
#[derive(Deserialize)]
struct Told {
    job_id: String,
    instance_id: InstanceId,
    outcome: String,
    reason: Option<String>,
    ambiguous: bool,
    #[serde(rename = "final")]
    is_final: bool,
    finished_at: Timestamp,
}

/// Reads back what the lane said last, up to the event `until`, into its memory. What bears its seal is its own word, and
/// nothing else is.
pub(in crate::lane) async fn replay(running: &Running, until: &str) {
    let lane = &running.lane;
    let mut told = Vec::new();
    let failure = read_back(lane, until, &mut told).await.err();
    match failure {
        // Without the log the lane runs all the same.
        Some(failure) => {
            let log = lane.settings.names.outcomes_log();
            warn!(lane = lane.name(), "cannot read back what was said last, from {log}: {failure}");
        }
        // What did reach the log is in it.
        None => lane.history.jobs.forget_unpublished(),
    }
    let Some(last) = told.iter().map(|(_, told)| told.finished_at).max() else { return };
    let in_doubt = told.iter().filter(|(_, told)| last.duration_since(told.finished_at) <= IN_DOUBT);
    let mut replayed = 0;
    for (order, told) in in_doubt {
        if let Some(outcome) = Outcome::read(&told.outcome, told.reason.as_deref().unwrap_or_default()) {
            let key = lane.history.jobs.key(&told.job_id, &told.instance_id, order);
            lane.history.jobs.call(key);
            if told.is_final {
                lane.history.jobs.end_as_first(key, End { outcome, ambiguous: told.ambiguous });
            } else {
                lane.history.jobs.start(key, told.finished_at, told.ambiguous);
            }
            lane.history.jobs.published(key);
            replayed += 1;
        }
    }
    debug!(lane = lane.name(), replayed, "what was said last is read back");
}

/// Reads what the lane told of which order.
///
/// # Errors
/// What kept it from being read up to the event `until`, in words.
async fn read_back(lane: &Lane, until: &str, told: &mut Vec<(Mark, Told)>) -> Result<(), String> {
    let mut messages = lane.reader.read_back(lane.name());
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| error.to_string())?;
        let Ok(event) = serde_json::from_slice::<Event>(&message.body) else { continue };
        if event.id == until {
            return Ok(());
        }
        // Anybody may have published the others.
        if let Some(order) = lane.history.seals.open(Headers(message.properties.headers().as_ref()), &message.body) {
            told.extend(serde_json::from_value(event.data).ok().map(|told: Told| (order, told)));
        }
    }
    Err("it ended before our own announcement".to_owned())
}
