//! Takes deliveries while the lane is held: due jobs before new ones, as fast as the limiter allows, with no more
//! calls at a time than the lane's concurrency. How many jobs wait for confirms beside that, the prefetch bounds.
//!
//! A message can be such that whoever touches it dies: the process, or, where lapin cannot read it, the connection.
//! The broker counts how often a message came back, but it counts for all that were handed out together. So a lane is
//! *wary* at first, since the tenure before may have ended over a message, and whenever one turns up that came back a
//! few times: it takes one message at a time, and what comes back then is the one that did it, and no other. It does so
//! too while it is on trial after a pause.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::run::Job;
use super::{Lane, LaneError, Stop, Tenure};
use crate::broker::{Connection, Delivery};
use crate::retry::full_jitter;
use crate::telemetry::{LaneState, Readiness};

/// Ceilings of the time between two probes of a paused lane. The first is also the least.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// A message that came back this often is suspected of ending whoever touches it.
const SUSPECT_AT: i64 = 3;

/// Serves the lane until `stop` says so, and then finishes what is in flight; what is not done within the grace goes
/// back to its queue.
pub(super) async fn serve(
    tenure: &Arc<Tenure>,
    connection: &Connection,
    readiness: &Readiness,
    stop: &Stop,
) -> Result<(), LaneError> {
    let lane = &tenure.lane;
    let mut channel = connection.channel().await?;
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            () = pause(lane, readiness) => {}
        }
        let mut jobs = JoinSet::new();
        let stopped = tokio::select! {
            biased;
            () = stop.requested() => true,
            done = take_warily(tenure, &channel, &mut jobs) => done.map(|()| false)?,
        };
        if !stopped && !lane.pause.is_paused() {
            readiness.lane(lane.name(), LaneState::Held);
            let mut intake = Intake::open(lane, &channel).await?;
            tokio::select! {
                biased;
                () = stop.requested() => {}
                done = take(tenure, &mut intake, &mut jobs) => done?,
            }
            intake.cancel(&channel).await?;
            if lane.pause.is_paused() {
                // What is in hand goes back as jobs that were not called, and not as deliveries, which are counted.
                intake.empty(tenure, &mut jobs).await?;
            }
        }
        let drained = drain(lane, jobs, stop).await?;
        if drained && lane.pause.is_paused() && !stop.is_requested() {
            // Nothing is left on the channel, and closing it would cut off acks that RabbitMQ has yet to pass on.
            continue;
        }
        // Closing returns what is left: what was prefetched, and what the grace did not suffice for.
        channel.close(200, "drained".into()).await?;
        if stop.is_requested() {
            return Ok(());
        }
        channel = connection.channel().await?;
    }
}

type Jobs = JoinSet<Result<(), lapin::Error>>;

/// While the lane is paused, probes at once, in case it was a hiccup, then now and then, and whenever there are new
/// keys, until that is answered.
async fn pause(lane: &Lane, readiness: &Readiness) {
    let mut keys = lane.client.keys_changed();
    while let Some(cause) = lane.pause.cause() {
        lane.show_paused(Some(&cause));
        readiness.lane(lane.name(), LaneState::Paused(cause.text));
        let probes = lane.pause.probes();
        if probes > 0 {
            let delay = full_jitter(FIRST_DELAY, LAST_DELAY, probes, rand::random());
            tokio::select! {
                () = sleep(delay.max(FIRST_DELAY)) => {}
                Ok(()) = keys.changed() => {}
            }
        }
        let cause = lane.pause.probed(&lane.probe().await);
        debug!(lane = %lane.name, ?cause, "probed");
    }
}

/// Takes one delivery after the other and has it run, until something breaks, there is reason to be wary, or the lane
/// is paused.
async fn take(tenure: &Arc<Tenure>, intake: &mut Intake, jobs: &mut Jobs) -> Result<(), LaneError> {
    let slots = Arc::new(Semaphore::new(tenure.lane.concurrency as usize));
    loop {
        let slot = slot(&slots).await;
        while let Some(ended) = jobs.try_join_next() {
            broken(ended)?;
        }
        let delivery = tokio::select! {
            biased;
            () = tenure.lane.pause.begun() => return Ok(()),
            delivery = intake.next() => delivery?,
        };
        if delivery.count >= SUSPECT_AT {
            warn!(lane = %tenure.lane.name, deliveries = delivery.count, "one message at a time: this one may be what ended us");
            return Ok(());
        }
        let job = Job::admit(delivery, tenure.lane.name());
        // One job at a time waits here, and not in a queue of its own: so a due job is never far from the limiter.
        job.wait_for_its_turn(&tenure.lane).await;
        start(tenure, job, slot, jobs);
    }
}

/// Takes one message at a time from either queue in turn, until neither queue's next one is under suspicion and the lane
/// is not on trial. One that is suspected has the lane for itself.
async fn take_warily(tenure: &Arc<Tenure>, channel: &Channel, jobs: &mut Jobs) -> Result<(), LaneError> {
    let lane = &tenure.lane;
    let queues = [lane.names.due_of(&lane.name), lane.names.jobs_of(&lane.name)];
    let slots = Arc::new(Semaphore::new(queues.len()));
    let mut suspects = [true; 2];
    let mut found = true;
    while suspects.contains(&true) || (lane.pause.is_on_trial() && found) {
        found = false;
        for (queue, suspect) in queues.iter().zip(&mut suspects) {
            let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
            let delivery = got.map(|got| Delivery::from(got.delivery));
            *suspect = delivery.as_ref().is_some_and(|delivery| delivery.count >= SUSPECT_AT);
            let Some(delivery) = delivery else { continue };
            found = true;
            if *suspect {
                join_all(jobs).await?;
            }
            let job = Job::admit(delivery, lane.name());
            let is_start = job.is_start();
            job.wait_for_its_turn(lane).await;
            start(tenure, job, slot(&slots).await, jobs);
            // A poll is no trial: it waits for others, and says nothing of whether starts are allowed.
            if *suspect || (is_start && lane.pause.is_on_trial()) {
                join_all(jobs).await?;
            }
            if lane.pause.is_paused() {
                return Ok(());
            }
        }
    }
    // There is no job to be tried.
    lane.acquit();
    Ok(())
}

async fn slot(slots: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    slots.clone().acquire_owned().await.expect("nobody closes the semaphore")
}

async fn join_all(jobs: &mut Jobs) -> Result<(), LaneError> {
    while let Some(ended) = jobs.join_next().await {
        broken(ended)?;
    }
    Ok(())
}

fn start(tenure: &Arc<Tenure>, job: Job, slot: OwnedSemaphorePermit, jobs: &mut Jobs) {
    let tenure = tenure.clone();
    jobs.spawn(async move {
        let _in_flight = tenure.lane.metrics.in_flight();
        job.run(&tenure, slot).await
    });
}

/// Whether all of `jobs` were finished within the grace.
async fn drain(lane: &Lane, mut jobs: Jobs, stop: &Stop) -> Result<bool, LaneError> {
    if let Ok(finished) = timeout(stop.grace, join_all(&mut jobs)).await {
        return finished.map(|()| true);
    }
    warn!(lane = %lane.name, jobs = jobs.len(), "jobs still in flight after the grace go back to their queue");
    jobs.shutdown().await;
    Ok(false)
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

    /// Has every delivery run that came before the subscriptions ended.
    async fn empty(&mut self, tenure: &Arc<Tenure>, jobs: &mut Jobs) -> Result<(), LaneError> {
        let slots = Arc::new(Semaphore::new(tenure.lane.concurrency as usize));
        for consumer in [&mut self.due, &mut self.jobs] {
            while let Some(delivery) = consumer.next().await {
                start(tenure, Job::admit(delivery?.into(), tenure.lane.name()), slot(&slots).await, jobs);
            }
        }
        Ok(())
    }

    async fn cancel(&self, channel: &Channel) -> Result<(), LaneError> {
        for consumer in [&self.due, &self.jobs] {
            channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await?;
        }
        Ok(())
    }
}
