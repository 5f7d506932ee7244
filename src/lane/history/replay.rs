//! Ensures that what was published of a job before a crash is not contradicted after it.
//!
//! If a lane is killed between an outcome's confirm and the ack of its job, the job is redelivered as touched, and by
//! then the API may have recovered. So a replica that takes a lane over first reads the end of the outcomes' log.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use tracing::{debug, warn};

use super::{End, Mark};
use crate::bce::InstanceId;
use crate::headers::Headers;
use crate::lane::parts::{Lane, Running};
use crate::outcome::Outcome;

/// Jobs whose events are older than this before the lane's last event were acked long ago. An id that is used again the
/// next morning is another order.
const IN_DOUBT: SignedDuration = SignedDuration::from_secs(60);
#[derive(Deserialize)]
struct Event {
    id: String,
    data: Value,
}

/// The part of an outcome event that says how a job ended, or that it goes on.
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

/// Reads the lane's last events, up to the event `until`, into its history. Only events with the lane's seal count.
pub(in crate::lane) async fn replay(running: &Running, until: &str) {
    let lane = &running.lane;
    let mut told = Vec::new();
    let failure = read_back(lane, until, &mut told).await.err();
    match failure {
        // The lane is served without the log too.
        Some(failure) => {
            let log = lane.settings.names.outcomes_log();
            warn!(lane = lane.name(), "cannot read back what was said last, from {log}: {failure}");
        }
        // What was published is in the log, and so in the history by now.
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

/// Reads the lane's own events, each with the mark of its order.
///
/// # Errors
/// Why the log was not read up to the event `until`, in words.
async fn read_back(lane: &Lane, until: &str, told: &mut Vec<(Mark, Told)>) -> Result<(), String> {
    let mut messages = lane.reader.read_back(lane.name());
    while let Some(message) = messages.next().await {
        let message = message.map_err(|error| error.to_string())?;
        let Ok(event) = serde_json::from_slice::<Event>(&message.body) else { continue };
        if event.id == until {
            return Ok(());
        }
        // An event without the lane's seal may be anybody's.
        if let Some(order) = lane.history.seals.open(Headers(message.properties.headers().as_ref()), &message.body) {
            told.extend(serde_json::from_value(event.data).ok().map(|told: Told| (order, told)));
        }
    }
    Err("it ended before our own announcement".to_owned())
}
