//! Metrics of calls to the API.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, histogram_opts, opts};

use super::Families;
use crate::bce::Operation;

/// Seconds: from a wait for the limiter to an API that nearly times out.
const BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Statuses that the API documents, and those of gateways and wrong endpoints. Any other is [`OTHER`]: otherwise a
/// server could create a thousand series.
const STATUSES: [(u16, &str); 12] = [
    (200, "200"),
    (302, "302"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (409, "409"),
    (429, "429"),
    (500, "500"),
    (502, "502"),
    (503, "503"),
    (504, "504"),
];
const OTHER: &str = "other";

#[derive(Debug, Clone)]
pub(super) struct Calls {
    made: IntCounterVec,
    duration: HistogramVec,
    limiter_wait: HistogramVec,
}

impl Calls {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            made: families.counter(
                opts!(
                    "reveille_api_requests_total",
                    "Calls to the BCC API, by operation and HTTP status, or by what happened in place of an answer."
                ),
                &["lane", "operation", "status"],
            ),
            duration: families.histogram(
                histogram_opts!(
                    "reveille_api_request_duration_seconds",
                    "Calls to the BCC API, from sending to the answer's end.",
                    BUCKETS.to_vec()
                ),
                &["lane", "operation"],
            ),
            limiter_wait: families.histogram(
                histogram_opts!(
                    "reveille_limiter_wait_seconds",
                    "Time a call waited for the lane's rate limit.",
                    BUCKETS.to_vec()
                ),
                &["lane"],
            ),
        }
    }

    pub(super) fn made(&self, lane: &str, operation: Operation, status: Result<u16, &'static str>, duration: Duration) {
        let (operation, status) = (operation.as_str(), status.map_or_else(|what| what, status_name));
        self.made.with_label_values(&[lane, operation, status]).inc();
        self.duration.with_label_values(&[lane, operation]).observe(duration.as_secs_f64());
    }

    pub(super) fn waited(&self, lane: &str, duration: Duration) {
        self.limiter_wait.with_label_values(&[lane]).observe(duration.as_secs_f64());
    }
}

fn status_name(status: u16) -> &'static str {
    STATUSES.iter().find(|(known, _)| *known == status).map_or(OTHER, |(_, name)| name)
}
