//! Metrics of lanes.

use prometheus::{GaugeVec, IntGaugeVec, opts};

use super::Families;

#[derive(Debug, Clone)]
pub(super) struct Lanes {
    pub(super) held: IntGaugeVec,
    pub(super) credentials_expire: IntGaugeVec,
    pub(super) clock_offset: IntGaugeVec,
    pub(super) rate: GaugeVec,
    paused: IntGaugeVec,
    keys_checked: IntGaugeVec,
}

impl Lanes {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            held: families.gauge(opts!("reveille_lane_held", "1 where this replica runs the lane."), &["lane"]),
            paused: families.gauge(
                opts!("reveille_lane_paused", "1 while the lane makes no calls, by reason."),
                &["lane", "reason"],
            ),
            keys_checked: families.gauge(
                opts!(
                    "reveille_lane_keys_checked",
                    "1 for what the API last said of the lane's keys; all 0 where another replica runs the lane."
                ),
                &["lane", "result"],
            ),
            credentials_expire: families.gauge(
                opts!(
                    "reveille_lane_credentials_expire_timestamp_seconds",
                    "When the lane's temporary keys expire, in Unix time; 0 where they do not."
                ),
                &["lane"],
            ),
            clock_offset: families.gauge(
                opts!(
                    "reveille_lane_clock_offset_seconds",
                    "The API's clock minus ours, as its answers told; calls are signed by it."
                ),
                &["lane"],
            ),
            rate: families.fraction(
                opts!(
                    "reveille_lane_rate",
                    "Calls per second that the lane makes at most just now; 0 where another replica runs it."
                ),
                &["lane"],
            ),
        }
    }

    pub(super) fn paused(&self, lane: &str, reason: Option<&str>, reasons: &[&str]) {
        show_one(&self.paused, lane, reason, reasons);
    }

    pub(super) fn keys_checked(&self, lane: &str, result: Option<&str>, results: &[&str]) {
        show_one(&self.keys_checked, lane, result, results);
    }
}

/// Sets the series of `shown` to 1, and those of all others to 0.
fn show_one(gauge: &IntGaugeVec, lane: &str, shown: Option<&str>, all: &[&str]) {
    for each in all {
        gauge.with_label_values(&[lane, each]).set((shown == Some(*each)).into());
    }
}
