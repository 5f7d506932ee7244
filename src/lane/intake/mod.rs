//! Consumes a lane's queues with fairness: urgent jobs before due ones before new ones, but none of them starves.
//!
//! `concurrency` bounds calls, the prefetch bounds unacked jobs. A prefetched job waits less where many share a call: a
//! second's worth of batches is minutes' worth of single calls. So once jobs are called singly, or much more slowly,
//! the lane puts prefetched jobs back and subscribes anew with a smaller prefetch. RabbitMQ's consumer timeout would
//! return them after half an hour.
//!
//! RabbitMQ bounds deliveries by number only, so the prefetch is derived from memory: as many messages as fit into the
//! lane's share of 47 MiB at the size of the largest recent one. At first sizes are unknown, and a lane begins with
//! what fits of the largest possible messages: 65 per queue if it is the only lane. Once messages are known to be small
//! it adds a second and a third consumer. Cancelling the first would make RabbitMQ redeliver what is on its way, and a
//! redelivered job counts as touched. A lane with a prefetch of hundreds, as for batches, can be surprised: 94 MiB were
//! measured with `batch = 100`. The minimum is four per queue.

mod coalescer;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};

pub(super) use self::coalescer::Coalescer;
use super::calls::Entry;
use super::job::{Admitted, Tasks};
use super::parts::{Lane, Session};
use super::prefetch;
use crate::broker::{Delivery, SEEN, hang_up};
use crate::ownership::Interrupted;
use crate::tasks;

/// Queues of a lane. They are served in this order.
pub(super) const QUEUES: usize = 3;
const URGENT: usize = 0;
const DUE: usize = 1;
const NEW: usize = 2;

pub(super) fn queues(lane: &Lane) -> [String; QUEUES] {
    let (names, lane) = (&lane.settings.names, &lane.settings.lane.name);
    [names.urgent_of(lane), names.due_of(lane), names.jobs_of(lane)]
}

/// Urgent and due jobs served in a row, where all kinds wait, before a new one: so neither starves the others, nor
/// keeps what was prefetched for long.
const FIRST_IN_A_ROW: u8 = 4;
/// Urgent jobs served in a row before a due one.
const URGENT_IN_A_ROW: u8 = 3;

/// Which queue is served next.
#[derive(Debug, Default)]
struct Fairness {
    first_in_a_row: u8,
    urgent_in_a_row: u8,
}

impl Fairness {
    /// The queues in the order in which to poll them now.
    fn order(&self) -> [usize; QUEUES] {
        let due_first = self.urgent_in_a_row >= URGENT_IN_A_ROW;
        let [first, second] = if due_first { [DUE, URGENT] } else { [URGENT, DUE] };
        if self.first_in_a_row >= FIRST_IN_A_ROW { [NEW, first, second] } else { [first, second, NEW] }
    }

    fn served(&mut self, queue: usize) {
        self.first_in_a_row = if queue == NEW { 0 } else { self.first_in_a_row.saturating_add(1) };
        self.urgent_in_a_row = if queue == URGENT { self.urgent_in_a_row.saturating_add(1) } else { 0 };
    }
}

/// The subscriptions to the lane's queues. Dropped before they are cancelled, they close their channel.
pub(super) struct Intake {
    session: Arc<Session>,
    channel: Channel,
    subscribed: bool,
    /// The consumers of each queue: one, and one more for each growth. The prefetch is set per consumer and cannot be
    /// changed later. Cancelling one would have some deliveries come again, as if they had been called.
    consumers: [Vec<Consumer>; QUEUES],
    fairness: Fairness,
    /// Prefetch of each queue, over all of its consumers.
    prefetch: u16,
    /// Messages received over the channel by the last growth.
    seen: u64,
}

/// How the prefetch is to change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sizing {
    Keep,
    /// To more than twice as many.
    Grow,
    /// To less than half as many: jobs are now called singly, or much more slowly, or have become large.
    Shrink,
}

impl Intake {
    pub(super) async fn open(session: &Arc<Session>, channel: &Channel) -> Result<Self, Interrupted> {
        let mut intake = Self {
            session: session.clone(),
            channel: channel.clone(),
            subscribed: false,
            consumers: Default::default(),
            fairness: Fairness::default(),
            prefetch: 0,
            seen: 0,
        };
        intake.grow().await?;
        Ok(intake)
    }

    /// Adds a consumer to each queue, for as much more prefetch as is useful and fits into memory.
    pub(super) async fn grow(&mut self) -> Result<(), Interrupted> {
        // However small the messages so far, the next ones may be large.
        let unseen = of_each_queue(self.session.room.holds_unseen());
        let more = self.wanted().saturating_sub(self.prefetch).min(self.prefetch.saturating_mul(GROWTH).max(unseen));
        self.prefetch += more;
        self.seen = self.session.room.seen(&self.channel);
        self.subscribed = true;
        // The prefetch holds for consumers opened after it.
        self.channel.basic_qos(more, BasicQosOptions::default()).await?;
        let opening = queues(&self.session.lane).map(|queue| {
            let options = BasicConsumeOptions::default();
            self.channel.basic_consume(queue.into(), "".into(), options, FieldTable::default())
        });
        for (consumers, consumer) in self.consumers.iter_mut().zip(opening) {
            consumers.push(consumer.await?);
        }
        Ok(())
    }

    /// The prefetch per queue that is useful and fits into memory.
    fn wanted(&self) -> u16 {
        present_prefetch(&self.session.lane).min(of_each_queue(self.session.room.holds(&self.channel)))
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

    /// Whether enough messages came since the last growth to know their size.
    fn is_known(&self) -> bool {
        self.session.room.seen(&self.channel) >= self.seen + SEEN
    }

    pub(super) async fn next(&mut self) -> Result<Delivery, Interrupted> {
        let (queue, delivery) = poll_fn(|context| {
            for queue in self.fairness.order() {
                for consumer in &mut self.consumers[queue] {
                    if let Poll::Ready(delivery) = consumer.poll_next_unpin(context) {
                        return Poll::Ready((queue, delivery));
                    }
                }
            }
            Poll::Pending
        })
        .await;
        self.fairness.served(queue);
        let lane = &self.session.lane;
        let delivery = delivery.ok_or_else(|| Interrupted::Cancelled(queues(lane)[queue].clone()))?;
        let delivery: Delivery = delivery?.into();
        if queue == DUE {
            lane.descents.check(&delivery.message, &lane.settings.names, &lane.metrics);
        }
        Ok(delivery)
    }

    /// Parks or ends, without a call, every delivery that came before the subscriptions were cancelled.
    pub(super) async fn empty(&mut self, tasks: &mut Tasks) -> Result<(), Interrupted> {
        let session = &self.session;
        for consumer in self.consumers.iter_mut().flatten() {
            while let Some(delivery) = consumer.next().await {
                // Each job uses its message's size once more while the copy is being published.
                while tasks.len() >= session.lane.settings.lane.concurrency as usize + PUT_BACK_AT_A_TIME
                    && let Some(ended) = tasks.join_next().await
                {
                    tasks::ended(ended)?;
                }
                Admitted::read(delivery?.into(), &session.lane).spawn(session, Entry::None, tasks);
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

/// The factor of one growth: three consumers per queue are enough for the largest prefetch.
const GROWTH: u16 = 7;
/// Parked copies in flight at a time, where many jobs are put back, beside the calls in flight.
const PUT_BACK_AT_A_TIME: usize = 64;
/// The minimum prefetch of each queue, however large its messages.
const LEAST_PREFETCHED: u16 = 4;
/// The prefetch of each queue at the present rate, for small messages.
pub(super) fn present_prefetch(lane: &Lane) -> u16 {
    prefetch::present(&lane.settings.lane, lane.gate.rate(), lane.calls.starts.batch_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The queues that are served where those `waiting` never run empty.
    fn fairness(waiting: &[usize], count: usize) -> Vec<usize> {
        let mut fairness = Fairness::default();
        let next = |_| {
            let queue = fairness.order().into_iter().find(|queue| waiting.contains(queue)).unwrap();
            fairness.served(queue);
            queue
        };
        (0..count).map(next).collect()
    }

    #[test]
    fn urgent_jobs_go_first_and_no_queue_starves_another() {
        assert_eq!(fairness(&[URGENT, DUE, NEW], 10), [URGENT, URGENT, URGENT, DUE, NEW].repeat(2));
        assert_eq!(fairness(&[URGENT, NEW], 10), [URGENT, URGENT, URGENT, URGENT, NEW].repeat(2));
        assert_eq!(fairness(&[DUE, NEW], 10), [DUE, DUE, DUE, DUE, NEW].repeat(2));
        assert_eq!(fairness(&[URGENT, DUE], 8), [URGENT, URGENT, URGENT, DUE].repeat(2));
        assert_eq!(fairness(&[NEW], 300), [NEW; 300]);
    }
}
