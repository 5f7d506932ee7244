//! Whether the API accepts the lane's keys: one signed list call when the lane is taken over, and one whenever the keys
//! change. So an operator learns of refused keys before the first job meets them.
//!
//! - **Within the quota.** The call needs a permit like any other, and a replica that stands by makes none. At a
//!   take-over it is in line at the limiter before the lane has a delivery in hand, so it is the first call.
//! - **No evidence for the breaker.** A list that is refused does not show that starts are, and a lane without jobs that
//!   paused for it would probe every few seconds, for nothing. The first job's call pauses the lane, and costs that job
//!   nothing.
//! - **Asked again** every minute until the keys are accepted, or less often where that were more than a hundredth of
//!   the rate: what is shown is to be true once an outage is over, or the account was mended. Keys that may not list
//!   instances are good, and not asked for again.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use super::key_check::{KeyCheck, show};
use super::parts::Lane;

/// How long the first delivery of a term waits for the first answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Before the keys are checked again, where they were not accepted.
const AGAIN: Duration = Duration::from_secs(60);
/// The most that checking again may take of the lane's rate.
const PART: f64 = 0.01;

/// Checks the keys, and again whenever they change, while the lane is held. `checked` is set once the first check is
/// over. What differs from the check before is logged.
pub(super) async fn follow(lane: &Lane, checked: &watch::Sender<bool>) -> Infallible {
    let api = &lane.calls.api;
    let mut keys = api.keys_changed();
    let mut last: Option<KeyCheck> = None;
    loop {
        // A lane that is paused by hand makes no calls.
        lane.control.known().await;
        lane.gate.breaker().is_not_by_hand().await;
        let access_key_id = keys.borrow_and_update().access_key_id.clone();
        let Some(answer) = api.check_keys().await else { continue };
        let check = KeyCheck::read(&answer);
        show(&lane.metrics, Some(&check));
        // Their texts may have an id of each call.
        if last.as_ref().map(KeyCheck::name) != Some(check.name()) {
            log(&check, &access_key_id);
        }
        checked.send_replace(true);
        let again = if check.is_final() { Duration::MAX } else { pause(lane.gate.rate()) };
        last = Some(check);
        tokio::select! {
            changed = keys.changed() => {
                changed.expect("the client has the sender");
                last = None;
            }
            () = sleep(again) => {}
        }
    }
}

fn log(check: &KeyCheck, access_key_id: &str) {
    if check.is_accepted() {
        info!(access_key_id, "the API accepts the lane's keys");
    } else {
        warn!(access_key_id, reason = check.name(), "the lane's keys were checked: {}", check.text());
    }
}

/// Before the next check of a lane with this rate, in calls per second.
fn pause(rate: f64) -> Duration {
    Duration::try_from_secs_f64(1.0 / (rate * PART)).unwrap_or(Duration::MAX).max(AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checking_again_takes_a_hundredth_of_the_rate_at_most() {
        assert_eq!([20.0, 2.0, 0.1, 0.01].map(|rate| pause(rate).as_secs()), [60, 60, 1_000, 10_000]);
        assert_eq!(pause(0.0), Duration::MAX);
    }
}
