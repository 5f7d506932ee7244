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
}

impl Lanes {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            held: families.gauge(opts!("reveille_lane_held", "1 where this replica runs the lane."), &["lane"]),
            paused: families.gauge(
                opts!("reveille_lane_paused", "1 while the lane makes no calls, by reason."),
                &["lane", "reason"],
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
        for each in reasons {
            self.paused.with_label_values(&[lane, each]).set((reason == Some(*each)).into());
        }
    }
}
