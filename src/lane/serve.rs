//! Takes deliveries while the lane is held: due jobs before new ones, as fast as the limiter allows, with no more
//! calls at a time than the lane's concurrency. How many jobs wait for confirms beside that, the prefetch bounds.

use std::sync::Arc;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::{info, warn};

use super::run::Job;
use super::{Lane, LaneError, Stop};
use crate::broker::{Connection, Delivery};

/// Serves the lane until `stop` says so, and then finishes what is in flight; what is not done within the grace goes
/// back to its queue.
pub(super) async fn serve(lane: Arc<Lane>, connection: &Connection, stop: &Stop) -> Result<(), LaneError> {
    let channel = connection.channel().await?;
    let mut intake = Intake::open(&lane, &channel).await?;
    let mut jobs = JoinSet::new();
    tokio::select! {
        biased;
        () = stop.requested() => {}
        failed = take(&lane, &mut intake, &mut jobs) => return failed,
    }
    intake.cancel(&channel).await?;
    drain(&lane, jobs, stop).await?;
    // Closing returns what is left: what was prefetched, and what the grace did not suffice for.
    channel.close(200, "drained".into()).await?;
    Ok(())
}

type Jobs = JoinSet<Result<(), lapin::Error>>;

/// Takes one delivery after the other and has it run, until something breaks.
async fn take(lane: &Arc<Lane>, intake: &mut Intake, jobs: &mut Jobs) -> Result<(), LaneError> {
    let slots = Arc::new(Semaphore::new(lane.concurrency as usize));
    loop {
        let slot = slots.clone().acquire_owned().await.expect("nobody closes the semaphore");
        while let Some(ended) = jobs.try_join_next() {
            broken(ended)?;
        }
        let job = Job::admit(intake.next().await?, lane.name.as_str());
        // One job at a time waits here, and not in a queue of its own: so a due job is never far from the limiter.
        job.wait_for_its_turn(lane).await;
        let lane = lane.clone();
        jobs.spawn(async move {
            let _in_flight = lane.metrics.in_flight();
            job.run(&lane, slot).await
        });
    }
}

async fn drain(lane: &Lane, mut jobs: Jobs, stop: &Stop) -> Result<(), LaneError> {
    let finish = async {
        while let Some(ended) = jobs.join_next().await {
            broken(ended)?;
        }
        Ok(())
    };
    if let Ok(finished) = timeout(stop.grace, finish).await {
        info!(lane = %lane.name, "jobs in flight finished");
        return finished;
    }
    warn!(lane = %lane.name, jobs = jobs.len(), "jobs still in flight after the grace go back to their queue");
    jobs.shutdown().await;
    Ok(())
}

/// A job can end in nothing but a broken connection: whatever else goes wrong becomes its outcome.
fn broken(ended: Result<Result<(), lapin::Error>, JoinError>) -> Result<(), LaneError> {
    match ended {
        Ok(ended) => Ok(ended?),
        // A message that brings us down is counted by the broker, and ended as poisoned in time.
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Ok(()),
    }
}

/// How many due jobs go first, where both kinds wait, before a new one has its turn: retries must not starve them.
const DUE_IN_A_ROW: u8 = 4;

/// The lane's two queues.
struct Intake {
    due: Consumer,
    jobs: Consumer,
    due_in_a_row: u8,
}

impl Intake {
    async fn open(lane: &Lane, channel: &Channel) -> Result<Self, LaneError> {
        // The prefetch holds for each consumer opened after it.
        channel.basic_qos(lane.prefetch, BasicQosOptions::default()).await?;
        let consume = async |queue: String| {
            channel
                .basic_consume(queue.as_str().into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
                .await
        };
        Ok(Self {
            due: consume(lane.names.due_of(&lane.name)).await?,
            jobs: consume(lane.names.jobs_of(&lane.name)).await?,
            due_in_a_row: 0,
        })
    }

    async fn next(&mut self) -> Result<Delivery, LaneError> {
        let Self { due, jobs, due_in_a_row } = self;
        let (delivery, of_due) = if *due_in_a_row < DUE_IN_A_ROW {
            tokio::select! {
                biased;
                delivery = due.next() => (delivery, true),
                delivery = jobs.next() => (delivery, false),
            }
        } else {
            tokio::select! {
                biased;
                delivery = jobs.next() => (delivery, false),
                delivery = due.next() => (delivery, true),
            }
        };
        *due_in_a_row = if of_due { due_in_a_row.saturating_add(1) } else { 0 };
        let queue = if of_due { due.queue() } else { jobs.queue() };
        Ok(delivery.ok_or_else(|| LaneError::Cancelled(queue.to_string()))??.into())
    }

    async fn cancel(&self, channel: &Channel) -> Result<(), LaneError> {
        for consumer in [&self.due, &self.jobs] {
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}
