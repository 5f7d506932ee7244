//! Every metric, declared in this folder and nowhere else.
//!
//! What ends, parks or pauses is counted from 0: `rate` and `increase` ignore the value with which Prometheus first
//! sees a counter. Calls and histograms get series with their first value.
//!
//! 50 series per lane begin at 0. `prometheus` stores name, help and labels as text in each series: those of calls, by
//! operation and status, and all histograms would be some 250 more per lane. 500 lanes take 18 MB, and 6 MB in a
//! scrape; 26 MB and 14 MB once each has made every kind of call, with one status each. Each family has its own
//! registry, as a registry copies everything before encoding: so there is a copy of one family at a time.

mod calls;
mod jobs;
mod lanes;
mod scheduler;
mod schedules;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use self::calls::Calls;
pub use self::jobs::InFlight;
use self::jobs::Jobs;
use self::lanes::Lanes;
pub use self::scheduler::SchedulerMetrics;
pub use self::schedules::ScheduleMetrics;
use crate::bce::{Operation, Word};
use crate::events::Outcome;
use crate::job::ParkCause;
use crate::telemetry::job_log::JobLog;

/// The metrics of the process.
#[derive(Debug, Clone)]
pub struct Metrics {
    families: Families,
    jobs: Jobs,
    calls: Calls,
    lanes: Lanes,
    /// Queues that existed before, were found missing, and declared again.
    pub queues_lost: IntCounter,
    /// 1 while every lane has a connection to RabbitMQ.
    pub broker_connected: IntGauge,
    /// 1 while RabbitMQ accepts no messages, because memory or disk are short.
    pub broker_blocked: IntGauge,
    /// 1 while the commands of people are known and followed.
    pub control_followed: IntGauge,
    /// Replicas that share the lanes, this one included; 0 while unknown.
    pub replicas: IntGauge,
    /// Of the scheduler.
    pub scheduler: SchedulerMetrics,
}

impl Metrics {
    /// Declares and registers them.
    pub fn new() -> Self {
        let mut families = Families::default();
        Self {
            calls: Calls::new(&mut families),
            jobs: Jobs::new(&mut families),
            lanes: Lanes::new(&mut families),
            scheduler: SchedulerMetrics::new(&mut families),
            queues_lost: families.with(IntCounter::new(
                "reveille_queues_lost_total",
                "Queues that were gone, with what was in them, and are declared again.",
            )),
            broker_connected: families
                .single("reveille_broker_connected", "1 while every lane has a connection to RabbitMQ."),
            broker_blocked: families
                .single("reveille_broker_blocked", "1 while RabbitMQ takes no messages, for want of memory or disk."),
            control_followed: families.single(
                "reveille_control_followed",
                "1 while commands are followed: lanes paused by hand, jobs cancelled, instances snoozed.",
            ),
            replicas: families.single(
                "reveille_replicas",
                "Replicas that share the lanes, this one included; 0 while that is not known.",
            ),
            families,
        }
    }

    /// In Prometheus' text format.
    ///
    /// # Errors
    /// None known: the encoder's own.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = String::new();
        for family in &self.families.0 {
            TextEncoder::new().encode_utf8(&family.gather(), &mut text)?;
        }
        Ok(text)
    }

    /// The metrics of one lane, whose rules give these `reasons` beside the built-in ones. Its counters exist at 0 from
    /// now on, except for pauses: [`LaneMetrics::paused`] gets their reasons.
    pub fn lane(&self, lane: &str, reasons: &[Word]) -> LaneMetrics {
        self.jobs.zero(lane, reasons);
        LaneMetrics {
            held: self.lanes.held.with_label_values(&[lane]),
            credentials_expire: self.lanes.credentials_expire.with_label_values(&[lane]),
            clock_offset: self.lanes.clock_offset.with_label_values(&[lane]),
            rate: self.lanes.rate.with_label_values(&[lane]),
            delays_cut_short: self.jobs.delays_cut_short.with_label_values(&[lane]),
            lane: lane.to_owned(),
            metrics: self.clone(),
            log: Arc::default(),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Each family in its own registry. A registry copies everything before encoding: this way there is a copy of one
/// family at a time, not of all.
#[derive(Debug, Clone, Default)]
struct Families(Vec<Registry>);

const DECLARED_RIGHT: &str = "names and labels are constants, and every test of metrics would fail on a wrong one";

impl Families {
    fn single(&mut self, name: &str, help: &str) -> IntGauge {
        self.with(IntGauge::new(name, help))
    }

    fn counter(&mut self, opts: Opts, labels: &[&str]) -> IntCounterVec {
        self.with(IntCounterVec::new(opts, labels))
    }

    fn gauge(&mut self, opts: Opts, labels: &[&str]) -> IntGaugeVec {
        self.with(IntGaugeVec::new(opts, labels))
    }

    /// A gauge with fractions.
    fn fraction(&mut self, opts: Opts, labels: &[&str]) -> GaugeVec {
        self.with(GaugeVec::new(opts, labels))
    }

    fn histogram(&mut self, opts: HistogramOpts, labels: &[&str]) -> HistogramVec {
        self.with(HistogramVec::new(opts, labels))
    }

    fn with<C: Collector + Clone + 'static>(&mut self, declared: prometheus::Result<C>) -> C {
        let collector = declared.expect(DECLARED_RIGHT);
        let registry = Registry::new();
        registry.register(Box::new(collector.clone())).expect(DECLARED_RIGHT);
        self.0.push(registry);
        collector
    }
}

/// The metrics of one lane.
#[derive(Debug, Clone)]
pub struct LaneMetrics {
    /// 1 while this replica holds the lane.
    pub held: IntGauge,
    /// When its temporary keys expire, in Unix time; 0 if they do not.
    pub credentials_expire: IntGauge,
    /// The API's clock minus ours, in seconds.
    pub clock_offset: IntGauge,
    /// Present limit of calls per second; 0 if this replica does not hold the lane.
    pub rate: Gauge,
    /// Jobs that left the delay ladder before their delay was over.
    pub delays_cut_short: IntCounter,
    lane: String,
    metrics: Metrics,
    /// The log's counts of the same events.
    log: Arc<JobLog>,
}

impl LaneMetrics {
    /// Counts a job as in flight until the guard is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.metrics.jobs.in_flight(&self.lane)
    }

    /// Jobs that are counted as in flight.
    pub fn count_in_flight(&self) -> u64 {
        u64::try_from(self.metrics.jobs.count_in_flight(&self.lane)).unwrap_or(0)
    }

    /// A job ended. Returns whether the log is to have a line of it at `info`.
    pub fn job_ended(&self, outcome: Outcome, duration: SignedDuration) -> bool {
        self.metrics.jobs.ended(&self.lane, outcome, duration);
        self.log.ended(outcome)
    }

    /// Writes summaries to the log while the lane is held. Dropped, it writes the rest.
    pub async fn log(&self) -> Infallible {
        self.log.write().await
    }

    /// An instance was seen running, so long after its start.
    pub fn runs(&self, duration: SignedDuration) {
        self.metrics.jobs.runs(&self.lane, duration);
    }

    /// A job was parked.
    pub fn parked(&self, cause: ParkCause) {
        self.metrics.jobs.parked(&self.lane, cause);
        self.log.parked();
    }

    /// A call was made; `status` is HTTP's, or why there was no answer.
    pub fn called(&self, operation: Operation, status: Result<u16, &'static str>, duration: Duration) {
        self.metrics.calls.made(&self.lane, operation, status, duration);
        // The probes of a lane that is paused, for hours perhaps, are no work, and neither are checks of its keys.
        if !matches!(operation, Operation::Probe | Operation::Check) {
            self.log.called();
        }
    }

    /// A call waited for the limiter.
    pub fn waited(&self, duration: Duration) {
        self.metrics.calls.waited(&self.lane, duration);
    }

    /// The lane is paused for `reason`, one of `reasons`; `None`: it is not paused.
    pub fn paused(&self, reason: Option<&str>, reasons: &[&str]) {
        self.metrics.lanes.paused(&self.lane, reason, reasons);
    }

    /// The API said this of the keys, one of `results`; `None`: this replica does not ask.
    pub fn keys_checked(&self, result: Option<&str>, results: &[&str]) {
        self.metrics.lanes.keys_checked(&self.lane, result, results);
    }
}

#[cfg(test)]
mod tests;
