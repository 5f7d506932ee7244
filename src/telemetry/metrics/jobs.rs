//! Metrics of jobs.

use jiff::SignedDuration;
use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, histogram_opts, opts};

use super::Families;
use crate::bce::Word;
use crate::events::{Outcome, Reason};
use crate::job::ParkCause;

/// Seconds: a job can wait for a schedule or through many retries.
const BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

#[derive(Debug, Clone)]
pub(super) struct Jobs {
    ended: IntCounterVec,
    duration: HistogramVec,
    in_flight: IntGaugeVec,
    parked: IntCounterVec,
    pub(super) delays_cut_short: IntCounterVec,
    confirm_duration: HistogramVec,
}

impl Jobs {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            ended: families.counter(
                opts!("reveille_jobs_total", "Jobs ended, by outcome and, for failures, reason."),
                &["lane", "outcome", "reason"],
            ),
            duration: families.histogram(
                histogram_opts!(
                    "reveille_job_duration_seconds",
                    "From a job's first delivery to its outcome, waits between tries included.",
                    BUCKETS.to_vec()
                ),
                &["lane"],
            ),
            in_flight: families
                .gauge(opts!("reveille_jobs_in_flight", "Jobs being called, published or acked."), &["lane"]),
            parked: families.counter(
                opts!("reveille_jobs_parked_total", "Times a job was put back for later, by cause."),
                &["lane", "cause"],
            ),
            delays_cut_short: families.counter(
                opts!(
                    "reveille_delays_cut_short_total",
                    "Jobs that RabbitMQ let out of the delay ladder before their time, as a policy has it."
                ),
                &["lane"],
            ),
            confirm_duration: families.histogram(
                histogram_opts!(
                    "reveille_confirm_duration_seconds",
                    "From an accepted start to the poll that found the instance running.",
                    BUCKETS.to_vec()
                ),
                &["lane"],
            ),
        }
    }

    /// Creates a lane's counters and gauges. Its rules give these `reasons` beside the built-in ones.
    pub(super) fn zero(&self, lane: &str, reasons: &[Word]) {
        let configured = reasons.iter().map(|reason| Outcome::Failed(Reason::named(*reason)));
        for outcome in Outcome::ALL.into_iter().chain(configured) {
            self.ended.with_label_values(&[lane, outcome.as_str(), outcome.reason()]);
        }
        for cause in ParkCause::ALL {
            self.parked.with_label_values(&[lane, cause.as_str()]);
        }
        self.in_flight.with_label_values(&[lane]);
    }

    pub(super) fn ended(&self, lane: &str, outcome: Outcome, duration: SignedDuration) {
        self.ended.with_label_values(&[lane, outcome.as_str(), outcome.reason()]).inc();
        self.duration.with_label_values(&[lane]).observe(duration.as_secs_f64().max(0.0));
    }

    pub(super) fn runs(&self, lane: &str, duration: SignedDuration) {
        self.confirm_duration.with_label_values(&[lane]).observe(duration.as_secs_f64().max(0.0));
    }

    pub(super) fn parked(&self, lane: &str, cause: ParkCause) {
        self.parked.with_label_values(&[lane, cause.as_str()]).inc();
    }

    pub(super) fn count_in_flight(&self, lane: &str) -> i64 {
        self.in_flight.with_label_values(&[lane]).get()
    }

    pub(super) fn in_flight(&self, lane: &str) -> InFlight {
        let gauge = self.in_flight.with_label_values(&[lane]);
        gauge.inc();
        InFlight(gauge)
    }
}

/// One job in flight.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
