//! Metrics of schedules, by `schedule`: their names are those of the configuration, so they are bounded.

use jiff::Timestamp;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::Families;
use crate::events::MissedReason;

/// The metrics of schedules.
#[derive(Debug, Clone)]
pub struct ScheduleMetrics {
    next: IntGaugeVec,
    last: IntGaugeVec,
    size: IntGaugeVec,
    fired: IntCounterVec,
    missed: IntCounterVec,
    failing: IntGaugeVec,
}

impl ScheduleMetrics {
    pub(super) fn new(families: &mut Families) -> Self {
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let by = &["schedule"];
        Self {
            next: families.gauge(
                opts("reveille_schedule_next_timestamp_seconds", "The due time that is next to be fired; 0 for none."),
                by,
            ),
            last: families.gauge(
                opts(
                    "reveille_schedule_last_timestamp_seconds",
                    "The due time that was fired last; 0 for none that is known.",
                ),
                by,
            ),
            size: families.gauge(opts("reveille_schedule_last_jobs", "Jobs of the due time that was fired last."), by),
            fired: families.counter(opts("reveille_schedule_fired_total", "Due times that were fired."), by),
            missed: families.counter(
                opts("reveille_schedule_missed_total", "Due times that were not fired and will not be."),
                &["schedule", "reason"],
            ),
            failing: families.gauge(
                opts("reveille_schedule_failing", "1 where a due time could not be fired, and is tried again."),
                by,
            ),
        }
    }

    /// The schedule is there, and due next then.
    pub fn shows(&self, schedule: &str, next: Option<Timestamp>) {
        let by = &[schedule];
        self.next.with_label_values(by).set(next.map_or(0, Timestamp::as_second));
        // Counters begin at 0, so that the first increase is seen.
        for reason in MissedReason::ALL {
            self.missed.with_label_values(&[schedule, reason.as_str()]);
        }
        self.fired.with_label_values(by);
        self.failing.with_label_values(by);
        self.last.with_label_values(by);
    }

    /// All jobs of a due time are submitted.
    pub fn fired(&self, schedule: &str, due: Timestamp, size: usize) {
        let by = &[schedule];
        self.fired.with_label_values(by).inc();
        self.last.with_label_values(by).set(due.as_second());
        self.size.with_label_values(by).set(i64::try_from(size).unwrap_or(i64::MAX));
        self.failing.with_label_values(by).set(0);
    }

    /// So many due times are missed.
    pub fn missed(&self, schedule: &str, reason: MissedReason, count: usize) {
        self.missed.with_label_values(&[schedule, reason.as_str()]).inc_by(count as u64);
        self.failing.with_label_values(&[schedule]).set(0);
    }

    /// A due time could not be fired.
    pub fn fails(&self, schedule: &str) {
        self.failing.with_label_values(&[schedule]).set(1);
    }

    /// Another replica runs the scheduler.
    pub fn forget(&self) {
        self.next.reset();
        self.last.reset();
        self.size.reset();
        self.failing.reset();
    }
}
