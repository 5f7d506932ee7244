//! A lane's queues, and whose turn it is: urgent jobs before due ones and those before new ones, but none of them for ever.
//!
//! `concurrency` bounds calls, the prefetch bounds unacked jobs. A job waits less long in the prefetch where many go out
//! in one call: a second's worth of batches is minutes' worth of single calls. So once jobs are called singly, or much
//! more slowly, the lane puts back what it has in hand and subscribes anew, for less. RabbitMQ would take them back after
//! half an hour.
//!
//! How many messages are in hand goes by their memory, since RabbitMQ bounds deliveries by number alone. The prefetch of a
//! lane is what its share of 47 MiB holds of the largest message that came lately. The size of the next ones is unknown:
//! so a lane begins with what it holds of the largest that there can be, 65 for each queue where there is one lane. Once
//! messages are known to be small it subscribes a second time, for more, and a third time: to cancel the first would have
//! RabbitMQ take back what is on its way, and a job that comes again counts as touched. A lane that holds hundreds, as for
//! batches, can so be surprised: with `batch = 100` 94 MiB were measured. Four of each queue are in hand at least.

mod coalescer;
mod descents;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

pub(super) use self::coalescer::Coalescer;
pub(super) use self::descents::Descents;
use super::calls::Entry;
use super::job::{Admitted, Jobs};
use super::parts::{Lane, Running};
use crate::broker::{Delivery, SEEN, hang_up};
use crate::config;
use crate::ownership::Interrupted;
use crate::tasks;

/// A lane's queues, in the order in which they are served.
pub(super) const QUEUES: usize = 3;
const URGENT: usize = 0;
const DUE: usize = 1;
const NEW: usize = 2;

pub(super) fn queues(lane: &Lane) -> [String; QUEUES] {
    let (names, lane) = (&lane.settings.names, &lane.settings.lane.name);
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
    running: Arc<Running>,
    channel: Channel,
    subscribed: bool,
    /// Of each queue the subscriptions: one, and another for each growth. RabbitMQ bounds the deliveries of each, and the bound
    /// of one that is there cannot be changed. To cancel it would have some deliveries come again, as if they had been called.
    consumers: [Vec<Consumer>; QUEUES],
    turns: Turns,
    /// Deliveries of each queue that may be in hand.
    prefetch: u16,
    /// How many messages had come over the channel at the last growth.
    seen: u64,
}

/// What is to become of the subscriptions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sizing {
    Keep,
    /// More than twice as many deliveries are to be in hand.
    Grow,
    /// Less than half as many are to be: jobs are called singly where they were called together, or much more slowly, or
    /// they have become large.
    Shrink,
}

impl Intake {
    pub(super) async fn open(running: &Arc<Running>, channel: &Channel) -> Result<Self, Interrupted> {
        let mut intake = Self {
            running: running.clone(),
            channel: channel.clone(),
            subscribed: false,
            consumers: Default::default(),
            turns: Turns::default(),
            prefetch: 0,
            seen: 0,
        };
        intake.grow().await?;
        Ok(intake)
    }

    /// Subscribes once more, for as many more as there is use and room for.
    pub(super) async fn grow(&mut self) -> Result<(), Interrupted> {
        // However small those are that have come, the next ones may be large.
        let unseen = of_each_queue(self.running.room.holds_unseen());
        let more = self.wanted().saturating_sub(self.prefetch).min(self.prefetch.saturating_mul(GROWTH).max(unseen));
        self.prefetch += more;
        self.seen = self.running.room.seen(&self.channel);
        self.subscribed = true;
        // It holds for each consumer opened after it.
        self.channel.basic_qos(more, BasicQosOptions::default()).await?;
        let opening = queues(&self.running.lane).map(|queue| {
            let options = BasicConsumeOptions::default();
            self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default())
        });
        for (consumers, consumer) in self.consumers.iter_mut().zip(opening) {
            consumers.push(consumer.await?);
        }
        Ok(())
    }

    /// Deliveries of each queue that there is use and room for.
    fn wanted(&self) -> u16 {
        present_prefetch(&self.running.lane).min(of_each_queue(self.running.room.holds(&self.channel)))
    }

    pub(super) fn sizing(&self) -> Sizing {
        let wanted = self.wanted();
        if wanted < self.prefetch / 2 {
            Sizing::Shrink
        } else if wanted / 2 > self.prefetch && self.is_known() {
            Sizing::Grow
        } else {
            Sizing::Keep
        }
    }

    /// Whether enough came since the last growth to tell how large messages are.
    fn is_known(&self) -> bool {
        self.running.room.seen(&self.channel) >= self.seen + SEEN
    }

    pub(super) async fn next(&mut self) -> Result<Delivery, Interrupted> {
        let (queue, delivery) = poll_fn(|context| {
            for queue in self.turns.order() {
                for consumer in &mut self.consumers[queue] {
                    if let Poll::Ready(delivery) = consumer.poll_next_unpin(context) {
                        return Poll::Ready((queue, delivery));
                    }
                }
            }
            Poll::Pending
        })
        .await;
        self.turns.took(queue);
        let lane = &self.running.lane;
        let delivery = delivery.ok_or_else(|| Interrupted::Cancelled(queues(lane)[queue].clone()))?;
        let delivery: Delivery = delivery?.into();
        if queue == DUE {
            lane.descents.look_at(&delivery.message, lane);
        }
        Ok(delivery)
    }

    /// Has every delivery put back, or ended, that came before the subscriptions ended, without a call.
    pub(super) async fn empty(&mut self, jobs: &mut Jobs) -> Result<(), Interrupted> {
        let running = &self.running;
        for consumer in self.consumers.iter_mut().flatten() {
            while let Some(delivery) = consumer.next().await {
                // Each takes as much again while its copy is on its way.
                while jobs.len() >= running.lane.settings.lane.concurrency as usize + PUT_BACK_AT_A_TIME
                    && let Some(ended) = jobs.join_next().await
                {
                    tasks::ended(ended)?;
                }
                Admitted::read(delivery?.into(), &running.lane).spawn(running, Entry::None, jobs);
            }
        }
        Ok(())
    }

    pub(super) async fn cancel(&mut self) -> Result<(), Interrupted> {
        if self.subscribed {
            for consumer in self.consumers.iter().flatten() {
                self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
            }
        }
        self.subscribed = false;
        Ok(())
    }
}

fn of_each_queue(messages: usize) -> u16 {
    u16::try_from(messages / QUEUES).unwrap_or(u16::MAX).max(LEAST_PREFETCHED)
}

impl Drop for Intake {
    fn drop(&mut self) {
        if self.subscribed {
            hang_up(&self.channel);
        }
    }
}

/// A growth adds so many times what is in hand: three subscriptions are enough for the most there can be.
const GROWTH: u16 = 7;
/// Copies that are on their way at a time, where many are put back, beside the calls that are out.
const PUT_BACK_AT_A_TIME: usize = 64;
/// Deliveries that a lane holds of each of its queues at least, however large they are.
const LEAST_PREFETCHED: u16 = 4;
/// … and at most, however small.
const MOST_PREFETCHED: f64 = 2112.0;

/// What polls leave of the rate to starts, where both wait: a poll stands in line behind one start at least.
fn left_to_starts(rate: f64, confirm_share: f64) -> f64 {
    rate * (1.0 - confirm_share).max(0.5)
}

/// Deliveries to hold of each queue: enough that neither calls nor confirms ever want for one, but no more than six
/// seconds' worth. While due jobs go first, four to one, and each needs a second call, that is a minute unacked. At a
/// twentieth of the rate, where throttling ends, it is 20 minutes, and 27 if the API asks to be left alone all the while:
/// RabbitMQ allows 30.
///
/// Where `batch` jobs are called together, it is a second's worth of those at the `present` rate, if that is more. It is
/// less again once they are called singly, or slowly.
fn prefetch(rate: f64, present: f64, concurrency: u32, batch: usize) -> u16 {
    #[expect(clippy::cast_precision_loss, reason = "a hundred at most")]
    let batch = batch as f64;
    let wanted = (f64::from(concurrency * 2) + rate.min(64.0)) * batch;
    let worth = (rate * 6.0).max(present * batch).max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 2,112")]
    let prefetch = wanted.min(worth).min(MOST_PREFETCHED) as u16;
    prefetch
}

/// Deliveries to hold of each queue at the lane's full rate, where jobs are called singly.
pub(super) fn full_prefetch(lane: &config::Lane) -> u16 {
    let starts = left_to_starts(lane.rate, lane.confirm_share);
    prefetch(starts, starts, lane.concurrency, 1)
}

/// Deliveries that each of the lane's queues is to have with us just now, unacked, where they are small.
pub(super) fn present_prefetch(lane: &Lane) -> u16 {
    let settings = &lane.settings.lane;
    let starts = |rate| left_to_starts(rate, settings.confirm_share);
    prefetch(starts(settings.rate), starts(lane.gate.rate()), settings.concurrency, lane.calls.batch_size())
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
