//! What was said of a job before a crash is not said otherwise after it.
//!
//! Killed between an outcome's confirm and the ack of its job, a lane finds the job handed out again: as a touched one,
//! with an API that may have recovered. So whoever takes a lane over reads the end of the outcomes' log first.

use std::ops::ControlFlow;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::Tenure;
use super::memory::End;
use crate::bce::InstanceId;
use crate::headers::Headers;
use crate::outcome::Outcome;

/// Events read back, of all lanes: far more than one lane can have had in hand, and read in a tenth of a second.
const EVENTS: u32 = 4_000;
/// What was said this long before the lane's last word was acked long since. An id that is used again the next morning
/// is another order.
const IN_DOUBT: SignedDuration = SignedDuration::from_secs(60);
/// Without the log the lane runs all the same.
const PATIENCE: Duration = Duration::from_secs(10);

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
pub(super) async fn recall(tenure: &Tenure, until: &str) {
    let lane = &tenure.lane;
    let log = lane.names.outcomes_log();
    let (mut told, mut is_whole) = (Vec::new(), false);
    let reading = lane.reader.read_back(&log, EVENTS, |message| {
        let Ok(event) = serde_json::from_slice::<Event>(&message.body) else { return ControlFlow::Continue(()) };
        is_whole = event.id == until;
        if is_whole {
            return ControlFlow::Break(());
        }
        // Anybody may have published the others.
        if let Some(order) = lane.seals.open(Headers(message.properties.headers().as_ref()), &message.body) {
            told.extend(serde_json::from_value(event.data).ok().map(|told: Told| (order, told)));
        }
        ControlFlow::Continue(())
    });
    let failure = match timeout(PATIENCE, reading).await {
        Ok(Ok(())) => (!is_whole).then(|| "it ended before our own announcement".to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("not within {PATIENCE:?}")),
    };
    match failure {
        Some(failure) => warn!(lane = lane.name(), "cannot read back what was said last, from {log}: {failure}"),
        // What did reach the log is in it.
        None => lane.memory.forget_unsaid(),
    }
    let Some(last) = told.iter().map(|(_, told)| told.finished_at).max() else { return };
    let in_doubt = told.iter().filter(|(_, told)| last.duration_since(told.finished_at) <= IN_DOUBT);
    let mut recalled = 0;
    for (order, told) in in_doubt {
        if let Some(outcome) = Outcome::read(&told.outcome, told.reason.as_deref().unwrap_or_default()) {
            let key = lane.memory.key(&told.job_id, &told.instance_id, order);
            lane.memory.call(key);
            if told.is_final {
                lane.memory.settle(key, End { outcome, ambiguous: told.ambiguous });
            } else {
                lane.memory.start(key, told.finished_at, told.ambiguous);
            }
            lane.memory.said(key);
            recalled += 1;
        }
    }
    debug!(lane = lane.name(), recalled, "what was said last is read back");
}
