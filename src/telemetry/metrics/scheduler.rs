//! Metrics of the scheduler, of which one replica at a time has the values.

use prometheus::{IntCounter, IntGauge};

use super::{Families, ScheduleMetrics};

/// The metrics of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerMetrics {
    /// 1 while this replica holds it.
    pub held: IntGauge,
    /// Announced batches that are not done; 0 if this replica does not hold it.
    pub open: IntGauge,
    /// Batches published as completed.
    pub completed: IntCounter,
    /// Batches given up before they were done.
    pub forgotten: IntCounter,
    /// Batches whose rest it had cancelled.
    pub cancelled: IntCounter,
    /// Schedules.
    pub schedules: ScheduleMetrics,
    /// Dead letters in their queue that nothing holds; 0 if this replica does not hold it.
    pub dead_letters: IntGauge,
    /// Dead letters discarded, as there were too many.
    pub letters_discarded: IntCounter,
}

impl SchedulerMetrics {
    pub(super) fn new(families: &mut Families) -> Self {
        Self {
            held: families.single("reveille_scheduler_held", "1 where this replica runs the scheduler."),
            open: families.single(
                "reveille_batches_open",
                "Announced batches with jobs that have not ended; 0 where another replica runs the scheduler.",
            ),
            completed: families
                .with(IntCounter::new("reveille_batches_completed_total", "Batches that were published as completed.")),
            forgotten: families.with(IntCounter::new(
                "reveille_batches_forgotten_total",
                "Announced batches that will not be published as completed: silent for seven days, or too many at a time.",
            )),
            cancelled: families.with(IntCounter::new(
                "reveille_batches_cancelled_total",
                "Batches whose rest the scheduler had cancelled, since more of their jobs had failed than max_failures says.",
            )),
            schedules: ScheduleMetrics::new(families),
            dead_letters: families.single(
                "reveille_dead_letters",
                "Dead letters, but for those that a command holds; 0 where another replica runs the scheduler.",
            ),
            letters_discarded: families.with(IntCounter::new(
                "reveille_dead_letters_discarded_total",
                "Dead letters that were discarded, since there were more than dead_letters.max_length.",
            )),
        }
    }
}
