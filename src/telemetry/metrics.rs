//! Every metric there is, declared here and nowhere else.

use std::time::Duration;

use jiff::SignedDuration;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, histogram_opts, opts,
};

use crate::bce::Operation;
use crate::outcome::Outcome;

/// Seconds: from what a waiting limiter costs to an API that is about to time out.
const CALL_BUCKETS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// Seconds: a job can wait for a schedule or through many retries.
const JOB_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];

/// The metrics of the process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    jobs: IntCounterVec,
    job_duration: HistogramVec,
    jobs_in_flight: IntGaugeVec,
    jobs_parked: IntCounterVec,
    api_requests: IntCounterVec,
    api_request_duration: HistogramVec,
    confirm_duration: HistogramVec,
    limiter_wait: HistogramVec,
    lane_held: IntGaugeVec,
    lane_paused: IntGaugeVec,
    credentials_expire: IntGaugeVec,
    clock_offset: IntGaugeVec,
    lane_rate: GaugeVec,
    delays_cut_short: IntCounterVec,
    /// Queues that were found missing although they had been there, and declared again.
    pub queues_lost: IntCounter,
    /// 1 while there is a connection to RabbitMQ.
    pub broker_connected: IntGauge,
    /// 1 while RabbitMQ takes no messages, for want of memory or disk.
    pub broker_blocked: IntGauge,
    /// Replicas that share the lanes, this one included; 0 while that is not known.
    pub replicas: IntGauge,
}

impl Metrics {
    /// Declares and registers them.
    pub fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            jobs: counter(
                opts!("reveille_jobs_total", "Jobs ended, by outcome and, for failures, reason."),
                &["lane", "outcome", "reason"],
            ),
            job_duration: histogram(
                histogram_opts!(
                    "reveille_job_duration_seconds",
                    "From a job's first delivery to its outcome, waits between tries included.",
                    JOB_BUCKETS.to_vec()
                ),
                &["lane"],
            ),
            jobs_in_flight: gauge(
                opts!("reveille_jobs_in_flight", "Jobs being called, published or acked."),
                &["lane"],
            ),
            jobs_parked: counter(
                opts!("reveille_jobs_parked_total", "Times a job was put back for later, by cause."),
                &["lane", "cause"],
            ),
            api_requests: counter(
                opts!(
                    "reveille_api_requests_total",
                    "Calls to the BCC API, by operation and HTTP status, or by what happened in place of an answer."
                ),
                &["lane", "operation", "status"],
            ),
            api_request_duration: histogram(
                histogram_opts!(
                    "reveille_api_request_duration_seconds",
                    "Calls to the BCC API, from sending to the answer's end.",
                    CALL_BUCKETS.to_vec()
                ),
                &["lane", "operation"],
            ),
            confirm_duration: histogram(
                histogram_opts!(
                    "reveille_confirm_duration_seconds",
                    "From an accepted start to the poll that found the instance running.",
                    JOB_BUCKETS.to_vec()
                ),
                &["lane"],
            ),
            limiter_wait: histogram(
                histogram_opts!(
                    "reveille_limiter_wait_seconds",
                    "Time a call waited for the lane's rate limit.",
                    CALL_BUCKETS.to_vec()
                ),
                &["lane"],
            ),
            lane_held: gauge(opts!("reveille_lane_held", "1 where this replica runs the lane."), &["lane"]),
            lane_paused: gauge(
                opts!("reveille_lane_paused", "1 while the lane makes no calls, by reason."),
                &["lane", "reason"],
            ),
            credentials_expire: gauge(
                opts!(
                    "reveille_lane_credentials_expire_timestamp_seconds",
                    "When the lane's temporary keys expire, in Unix time; 0 where they do not."
                ),
                &["lane"],
            ),
            clock_offset: gauge(
                opts!(
                    "reveille_lane_clock_offset_seconds",
                    "The API's clock minus ours, as its answers told; calls are signed by it."
                ),
                &["lane"],
            ),
            lane_rate: GaugeVec::new(
                opts!(
                    "reveille_lane_rate",
                    "Calls per second that the lane makes at most just now; 0 where another replica runs it."
                ),
                &["lane"],
            )
            .expect(DECLARED_RIGHT),
            delays_cut_short: counter(
                opts!(
                    "reveille_delays_cut_short_total",
                    "Jobs that RabbitMQ let out of the delay ladder before their time, as a policy has it."
                ),
                &["lane"],
            ),
            queues_lost: IntCounter::new(
                "reveille_queues_lost_total",
                "Queues that were gone, with what was in them, and are declared again.",
            )
            .expect(DECLARED_RIGHT),
            broker_connected: IntGauge::new("reveille_broker_connected", "1 while connected to RabbitMQ.")
                .expect(DECLARED_RIGHT),
            broker_blocked: IntGauge::new(
                "reveille_broker_blocked",
                "1 while RabbitMQ takes no messages, for want of memory or disk.",
            )
            .expect(DECLARED_RIGHT),
            replicas: IntGauge::new(
                "reveille_replicas",
                "Replicas that share the lanes, this one included; 0 while that is not known.",
            )
            .expect(DECLARED_RIGHT),
            registry,
        };
        metrics.register(&metrics.jobs);
        metrics.register(&metrics.job_duration);
        metrics.register(&metrics.jobs_in_flight);
        metrics.register(&metrics.jobs_parked);
        metrics.register(&metrics.api_requests);
        metrics.register(&metrics.api_request_duration);
        metrics.register(&metrics.confirm_duration);
        metrics.register(&metrics.limiter_wait);
        metrics.register(&metrics.lane_held);
        metrics.register(&metrics.lane_paused);
        metrics.register(&metrics.credentials_expire);
        metrics.register(&metrics.clock_offset);
        metrics.register(&metrics.lane_rate);
        metrics.register(&metrics.delays_cut_short);
        metrics.register(&metrics.queues_lost);
        metrics.register(&metrics.broker_connected);
        metrics.register(&metrics.broker_blocked);
        metrics.register(&metrics.replicas);
        metrics
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: &C) {
        self.registry.register(Box::new(collector.clone())).expect(DECLARED_RIGHT);
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// None that is known: the encoder's own.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The metrics of one lane.
    pub fn lane(&self, lane: &str) -> LaneMetrics {
        LaneMetrics {
            held: self.lane_held.with_label_values(&[lane]),
            credentials_expire: self.credentials_expire.with_label_values(&[lane]),
            clock_offset: self.clock_offset.with_label_values(&[lane]),
            rate: self.lane_rate.with_label_values(&[lane]),
            delays_cut_short: self.delays_cut_short.with_label_values(&[lane]),
            in_flight: self.jobs_in_flight.with_label_values(&[lane]),
            lane: lane.to_owned(),
            metrics: self.clone(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const DECLARED_RIGHT: &str = "names and labels are constants, and every test of this file would fail on a wrong one";

fn counter(opts: Opts, labels: &[&str]) -> IntCounterVec {
    IntCounterVec::new(opts, labels).expect(DECLARED_RIGHT)
}

fn gauge(opts: Opts, labels: &[&str]) -> IntGaugeVec {
    IntGaugeVec::new(opts, labels).expect(DECLARED_RIGHT)
}

fn histogram(opts: HistogramOpts, labels: &[&str]) -> HistogramVec {
    HistogramVec::new(opts, labels).expect(DECLARED_RIGHT)
}

/// The metrics of one lane.
#[derive(Debug)]
pub struct LaneMetrics {
    /// 1 while this replica runs the lane.
    pub held: IntGauge,
    /// When its temporary keys expire, in Unix time; 0 where they do not.
    pub credentials_expire: IntGauge,
    /// The API's clock minus ours, in seconds.
    pub clock_offset: IntGauge,
    /// Calls per second that may be made just now; 0 where this replica does not run the lane.
    pub rate: Gauge,
    /// Jobs that came out of the delay ladder before their time.
    pub delays_cut_short: IntCounter,
    in_flight: IntGauge,
    lane: String,
    metrics: Metrics,
}

impl LaneMetrics {
    /// Counts a job as in flight until the guard is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// A job ended.
    pub fn job_ended(&self, outcome: Outcome, duration: SignedDuration) {
        self.metrics.jobs.with_label_values(&[self.lane.as_str(), outcome.as_str(), outcome.reason()]).inc();
        self.metrics.job_duration.with_label_values(&[&self.lane]).observe(duration.as_secs_f64().max(0.0));
    }

    /// An instance was found running, so long after its start.
    pub fn runs(&self, duration: SignedDuration) {
        self.metrics.confirm_duration.with_label_values(&[&self.lane]).observe(duration.as_secs_f64().max(0.0));
    }

    /// A job was parked.
    pub fn parked(&self, cause: &str) {
        self.metrics.jobs_parked.with_label_values(&[self.lane.as_str(), cause]).inc();
    }

    /// A call was made; `status` is HTTP's, or what happened in place of an answer.
    pub fn called(&self, operation: Operation, status: Result<u16, &str>, duration: Duration) {
        let mut digits = String::new();
        let status = match status {
            Ok(status) => {
                digits.push_str(&status.to_string());
                &digits
            }
            Err(what) => what,
        };
        self.metrics.api_requests.with_label_values(&[self.lane.as_str(), operation.as_str(), status]).inc();
        self.metrics
            .api_request_duration
            .with_label_values(&[self.lane.as_str(), operation.as_str()])
            .observe(duration.as_secs_f64());
    }

    /// The lane is paused for `reason`, one of `reasons`; or for none of them.
    pub fn paused(&self, reason: Option<&str>, reasons: &[&str]) {
        for each in reasons {
            let gauge = self.metrics.lane_paused.with_label_values(&[self.lane.as_str(), each]);
            gauge.set((reason == Some(*each)).into());
        }
    }

    /// A call waited for the limiter.
    pub fn waited(&self, duration: Duration) {
        self.metrics.limiter_wait.with_label_values(&[&self.lane]).observe(duration.as_secs_f64());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Reason;

    #[test]
    fn what_happened_can_be_read_off() {
        let metrics = Metrics::new();
        let lane = metrics.lane("prod");
        let guard = lane.in_flight();
        lane.job_ended(Outcome::Failed(Reason::NotFound), SignedDuration::from_millis(300));
        lane.called(Operation::Start, Ok(404), Duration::from_millis(20));
        lane.called(Operation::Start, Err("timeout"), Duration::from_secs(15));
        lane.waited(Duration::ZERO);
        lane.parked("transient");
        lane.runs(SignedDuration::from_secs(40));
        lane.rate.set(12.5);
        let text = metrics.render().unwrap();
        for line in [
            r#"reveille_jobs_total{lane="prod",outcome="failed",reason="not_found"} 1"#,
            r#"reveille_api_requests_total{lane="prod",operation="start",status="404"} 1"#,
            r#"reveille_api_requests_total{lane="prod",operation="start",status="timeout"} 1"#,
            r#"reveille_jobs_parked_total{cause="transient",lane="prod"} 1"#,
            r#"reveille_jobs_in_flight{lane="prod"} 1"#,
            r#"reveille_confirm_duration_seconds_bucket{lane="prod",le="60"} 1"#,
            r#"reveille_job_duration_seconds_bucket{lane="prod",le="0.5"} 1"#,
            r#"reveille_lane_rate{lane="prod"} 12.5"#,
            "reveille_broker_connected 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        drop(guard);
        assert!(metrics.render().unwrap().contains(r#"reveille_jobs_in_flight{lane="prod"} 0"#));
    }
}
