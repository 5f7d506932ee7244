//! A lane's queues, and whose turn it is: urgent jobs before due ones and those before new ones, but none of them for ever.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

use super::company::Ticket;
use super::run::Job;
use super::serve::{Jobs, start};
use super::{Lane, LaneError, Tenure};
use crate::broker::{Delivery, hang_up};

/// A lane's queues, in the order in which they are served.
pub(super) const QUEUES: usize = 3;
const URGENT: usize = 0;
const DUE: usize = 1;
const NEW: usize = 2;

pub(super) fn queues(lane: &Lane) -> [String; QUEUES] {
    let (names, lane) = (&lane.names, &lane.name);
    [names.urgent_of(lane), names.due_of(lane), names.jobs_of(lane)]
}

/// How many urgent and due jobs go first, where all kinds wait, before a new one has its turn: neither may starve them,
/// nor keep what was prefetched for long.
const FIRST_IN_A_ROW: u8 = 4;
/// How many urgent ones before a due one has its turn.
const URGENT_IN_A_ROW: u8 = 3;

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turns {
    first_in_a_row: u8,
    urgent_in_a_row: u8,
}

impl Turns {
    /// The queues, in the order in which they are looked into.
    fn order(&self) -> [usize; QUEUES] {
        let due_first = self.urgent_in_a_row >= URGENT_IN_A_ROW;
        let [first, second] = if due_first { [DUE, URGENT] } else { [URGENT, DUE] };
        if self.first_in_a_row >= FIRST_IN_A_ROW { [NEW, first, second] } else { [first, second, NEW] }
    }

    fn took(&mut self, queue: usize) {
        self.first_in_a_row = if queue == NEW { 0 } else { self.first_in_a_row.saturating_add(1) };
        self.urgent_in_a_row = if queue == URGENT { self.urgent_in_a_row.saturating_add(1) } else { 0 };
    }
}

/// The lane's queues, subscribed to. If it is dropped before the subscriptions are cancelled, its channel is closed.
pub(super) struct Intake {
    channel: Channel,
    cancelled: bool,
    consumers: [Consumer; QUEUES],
    turns: Turns,
    prefetch: u16,
}

impl Intake {
    pub(super) async fn open(lane: &Lane, channel: &Channel) -> Result<Self, LaneError> {
        let prefetch = lane.prefetch();
        // It holds for each consumer opened after it.
        channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
        let [urgent, due, new] = queues(lane).map(|queue| {
            let options = BasicConsumeOptions::default();
            channel.basic_consume(queue.into(), "".into(), options, FieldTable::default())
        });
        Ok(Self {
            channel: channel.clone(),
            cancelled: false,
            consumers: [urgent.await?, due.await?, new.await?],
            turns: Turns::default(),
            prefetch,
        })
    }

    /// Whether the lane is to hold less than half as many deliveries by now, or more than twice as many: its jobs are
    /// called singly where they were called together, or the other way round, or much more slowly.
    pub(super) fn is_unfit(&self, lane: &Lane) -> bool {
        let wanted = lane.prefetch();
        wanted < self.prefetch / 2 || wanted / 2 > self.prefetch
    }

    pub(super) async fn next(&mut self) -> Result<Delivery, LaneError> {
        let (queue, delivery) = poll_fn(|context| {
            let ready =
                self.turns.order().into_iter().find_map(|queue| match self.consumers[queue].poll_next_unpin(context) {
                    Poll::Ready(delivery) => Some((queue, delivery)),
                    Poll::Pending => None,
                });
            ready.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        self.turns.took(queue);
        Ok(delivery.ok_or_else(|| LaneError::Cancelled(self.consumers[queue].queue().to_string()))??.into())
    }

    /// Has every delivery put back, or ended, that came before the subscriptions ended, without a call.
    pub(super) async fn empty(&mut self, tenure: &Arc<Tenure>, jobs: &mut Jobs) -> Result<(), LaneError> {
        for consumer in &mut self.consumers {
            while let Some(delivery) = consumer.next().await {
                start(tenure, Job::admit(delivery?.into(), tenure.lane.name()), Ticket::invalid(), jobs);
            }
        }
        Ok(())
    }

    pub(super) async fn cancel(&mut self) -> Result<(), LaneError> {
        for consumer in &self.consumers {
            self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        }
        self.cancelled = true;
        Ok(())
    }
}

impl Drop for Intake {
    fn drop(&mut self) {
        if !self.cancelled {
            hang_up(&self.channel);
        }
    }
}

/// Deliveries that a lane holds of each of its queues at most: jobs can be 64 KiB long.
const MOST_PREFETCHED: f64 = 2112.0;

/// What polls leave of the rate to starts, where both wait: a poll stands in line behind one start at least.
pub(super) fn left_to_starts(rate: f64, confirm_share: f64) -> f64 {
    rate * (1.0 - confirm_share).max(0.5)
}

/// Deliveries to hold of each queue: enough that neither calls nor confirms ever want for one, but no more than six
/// seconds' worth. While due jobs go first, four to one, and each needs a second call, that is a minute unacked. At a
/// twentieth of the rate, where throttling ends, it is 20 minutes, and 27 if the API asks to be left alone all the while:
/// RabbitMQ allows 30.
///
/// Where `company` jobs are called together, it is a second's worth of those at the `present` rate, if that is more. It is
/// less again once they are called singly, or slowly.
pub(super) fn prefetch(rate: f64, present: f64, concurrency: u32, company: usize) -> u16 {
    #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
    let company = company as f64;
    let wanted = (f64::from(concurrency * 2) + rate.min(64.0)) * company;
    let worth = (rate * 6.0).max(present * company).max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 2,112")]
    let prefetch = wanted.min(worth).min(MOST_PREFETCHED) as u16;
    prefetch
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The turns where the queues `waiting` never run empty.
    fn turns(waiting: &[usize], count: usize) -> Vec<usize> {
        let mut turns = Turns::default();
        let next = |_| {
            let queue = turns.order().into_iter().find(|queue| waiting.contains(queue)).unwrap();
            turns.took(queue);
            queue
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn urgent_jobs_go_first_and_no_queue_starves_another() {
        assert_eq!(turns(&[URGENT, DUE, NEW], 10), [URGENT, URGENT, URGENT, DUE, NEW].repeat(2));
        assert_eq!(turns(&[URGENT, NEW], 10), [URGENT, URGENT, URGENT, URGENT, NEW].repeat(2));
        assert_eq!(turns(&[DUE, NEW], 10), [DUE, DUE, DUE, DUE, NEW].repeat(2));
        assert_eq!(turns(&[URGENT, DUE], 8), [URGENT, URGENT, URGENT, DUE].repeat(2));
        assert_eq!(turns(&[NEW], 300), [NEW; 300]);
    }

    #[test]
    fn the_prefetch_feeds_the_limiter_and_holds_nothing_for_a_minute() {
        assert_eq!(prefetch(20.0, 20.0, 32, 1), 84);
        // A lane whose polls take half of what there is holds half as much.
        assert_eq!((left_to_starts(20.0, 0.1), left_to_starts(20.0, 1.0)), (18.0, 10.0));
        assert_eq!(prefetch(0.01, 0.01, 32, 1), 1);
        assert_eq!(prefetch(0.5, 0.5, 32, 1), 3);
        assert_eq!(prefetch(1e6, 1e6, 64, 1), 192);
        assert_eq!(prefetch(1e6, 1e6, 1024, 1), 2112);
        // A second's worth of jobs that are called together, or six of calls.
        assert_eq!(prefetch(20.0, 20.0, 32, 20), 400);
        assert_eq!(prefetch(20.0, 20.0, 32, 2), 120);
        assert_eq!(prefetch(20.0, 20.0, 32, 100), 2000);
        assert_eq!(prefetch(0.01, 0.01, 32, 100), 1);
        assert_eq!(prefetch(1e6, 1e6, 1024, 100), 2112);
        // Throttled as far as it goes, a lane holds no more than one that calls singly.
        assert_eq!(prefetch(20.0, 1.0, 32, 20), 120);
    }
}
