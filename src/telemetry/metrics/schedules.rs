//! Metrics of schedules, by `schedule`: their names are those of the configuration, so they are bounded.

use jiff::Timestamp;
use prometheus::{IntCounterVec, IntGaugeVec, Opts};

use super::Families;
use crate::events::{MissedReason, Plan, ScheduleStory};

/// The metrics of schedules.
#[derive(Debug, Clone)]
pub struct ScheduleMetrics {
    next: IntGaugeVec,
    last: IntGaugeVec,
    size: IntGaugeVec,
    fired: IntCounterVec,
    missed: IntCounterVec,
    failing: IntGaugeVec,
    small: IntGaugeVec,
    lead: IntGaugeVec,
    in_time: IntGaugeVec,
    succeeded: IntGaugeVec,
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
            small: families.gauge(
                opts(
                    "reveille_schedule_small",
                    "1 where the due time that was fired last had far fewer jobs than the one before.",
                ),
                by,
            ),
            lead: families.gauge(
                opts(
                    "reveille_schedule_lead_seconds",
                    "How long before it is due a schedule with ready_by would be fired by now.",
                ),
                by,
            ),
            in_time: families.gauge(
                opts(
                    "reveille_schedule_last_in_time_jobs",
                    "Machines that were up in time, of the last due time of a schedule with ready_by of which all jobs have ended.",
                ),
                by,
            ),
            succeeded: families.gauge(
                opts(
                    "reveille_schedule_last_success_timestamp_seconds",
                    "The last due time of which all machines were up in the end; 0 for none that is known.",
                ),
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
    }

    /// How the last due times of the schedule went, and how early it would be fired by now.
    pub fn tells(&self, schedule: &str, story: ScheduleStory, plan: Option<Plan>) {
        let by = &[schedule];
        let jobs = |jobs: usize| i64::try_from(jobs).unwrap_or(i64::MAX);
        let ScheduleStory { fired, completed, succeeded } = story;
        self.last.with_label_values(by).set(fired.map_or(0, |fired| fired.due.as_second()));
        self.small.with_label_values(by).set(fired.is_some_and(|fired| fired.small).into());
        self.succeeded.with_label_values(by).set(succeeded.map_or(0, Timestamp::as_second));
        if let Some(fired) = fired {
            self.size.with_label_values(by).set(jobs(fired.size));
        }
        if let Some(in_time) = completed.and_then(|completed| completed.up_in_time) {
            self.in_time.with_label_values(by).set(jobs(in_time));
        }
        if let Some(plan) = plan {
            self.lead.with_label_values(by).set(plan.lead_seconds.into());
        }
    }

    /// All jobs of a due time are submitted.
    pub fn fired(&self, schedule: &str) {
        let by = &[schedule];
        self.fired.with_label_values(by).inc();
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
        self.small.reset();
        self.lead.reset();
        self.in_time.reset();
        self.succeeded.reset();
    }
}
