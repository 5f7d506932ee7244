//! Consumes deliveries while the lane is held, as fast as the limiter allows and with no more calls in flight than the
//! lane's concurrency. The prefetch bounds how many more jobs wait for publisher confirms.
//!
//! A message can crash the process that reads it. RabbitMQ counts how often a message was returned, but for all
//! messages that were delivered together. So the lane gets one message at a time: at first, since a message may have
//! ended the previous term; when a message comes that was returned a few times; and while half open after a pause. Then
//! only the message at fault is returned.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicGetOptions;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use super::intake::{Coalescer, Intake, QUEUES, Sizing, present_prefetch, queues};
use super::job::{Admitted, Jobs};
use super::parts::{Lane, Running};
use super::quarantine::SUSPECT_AT;
use crate::broker::{Connection, Delivery};
use crate::ownership::Interrupted;
use crate::retry::full_jitter;
use crate::stop::Stop;
use crate::tasks;
use crate::telemetry::{LaneState, Readiness};

/// Backoff between two probes of a paused lane: first and last ceiling. The first is also the minimum.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// How long a half-open lane waits for a job. After a short pause the jobs that were put back are not in their queue
/// yet: without one of them for a trial, all would be called at once.
const COME_BACK: Duration = Duration::from_secs(4);
const GLANCE: Duration = Duration::from_millis(100);

/// Time for what follows a job's call where the lane pauses: evidence, a probe, publisher confirms. No trial is on then
/// that a job could wait for.
const AFTER_A_CALL: Duration = Duration::from_secs(10);

/// Serves the lane until `stop` is requested, then finishes what is in flight. What is not finished within the grace
/// period goes back to its queue.
pub(super) async fn serve(
    running: &Arc<Running>,
    connection: &Connection,
    readiness: &Readiness,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let lane = &running.lane;
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
            done = take_singly(running, &channel, &mut jobs) => done.map(|()| false)?,
        };
        if stopped {
            // No further call will end the trial that jobs in flight wait for.
            lane.gate.breaker().interrupt();
        }
        let mut emptied = true;
        if !stopped && !lane.gate.breaker().is_open() {
            readiness.lane(lane.name(), LaneState::Held);
            emptied = subscribe_and_take(running, &channel, &mut jobs, stop).await?;
        }
        // Now, and not only once the last call has ended.
        show_pause(lane, readiness);
        let drained = drain(lane, jobs, stop).await?;
        if emptied && drained && !stop.is_requested() {
            // The channel holds no delivery, and closing it would lose acks that RabbitMQ has yet to process.
            continue;
        }
        // Closing returns the rest: prefetched deliveries, and jobs that outlasted the grace period.
        channel.close(200, "drained".into()).await?;
        if stop.is_requested() {
            return Ok(());
        }
        channel = connection.channel().await?;
    }
}

/// While the lane is paused: probes at once, in case the fault was brief, then with backoff, and whenever the keys
/// change, until a probe is answered.
async fn pause(lane: &Lane, readiness: &Readiness) {
    let mut keys = lane.calls.keys_changed();
    while lane.gate.breaker().is_open() {
        show_pause(lane, readiness);
        let probes = lane.gate.breaker().probes();
        if probes > 0 {
            let delay = full_jitter(FIRST_DELAY, LAST_DELAY, probes, rand::random());
            tokio::select! {
                () = sleep(delay.max(FIRST_DELAY)) => {}
                Ok(()) = keys.changed() => {}
            }
        }
        lane.calls.probe_pause().await;
        debug!(lane = %lane.name(), cause = ?lane.gate.breaker().cause(), "probed");
    }
}

/// Shows why the lane is paused, if it is.
fn show_pause(lane: &Lane, readiness: &Readiness) {
    if let Some(cause) = lane.gate.breaker().cause() {
        lane.gate.show_paused(Some(&cause));
        readiness.lane(lane.name(), LaneState::Paused(cause.text));
    }
}

/// Subscribes to the queues and consumes; subscribes anew when the prefetch should be far larger or smaller. Returns
/// whether every delivery was given to a job.
async fn subscribe_and_take(
    running: &Arc<Running>,
    channel: &Channel,
    jobs: &mut Jobs,
    stop: &Stop,
) -> Result<bool, Interrupted> {
    loop {
        let mut intake = Intake::open(running, channel).await?;
        let taken = tokio::select! {
            biased;
            () = stop.requested() => Taken::Over,
            taken = take(running, &mut intake, jobs) => taken?,
        };
        intake.cancel().await?;
        if taken == Taken::Over {
            return Ok(false);
        }
        // Prefetched deliveries are parked as uncalled jobs: RabbitMQ would count their return against them.
        intake.empty(jobs).await?;
        if taken == Taken::Paused {
            return Ok(true);
        }
    }
}

/// Why consuming stopped.
#[derive(PartialEq, Eq)]
enum Taken {
    /// A stop was requested, or a message is under suspicion.
    Over,
    Paused,
    /// The prefetch is larger than it should be.
    TooMany,
}

/// Consumes one delivery after the other and spawns its job, in a shared call if the lane has batches, until the
/// connection breaks or consuming has to stop.
async fn take(running: &Arc<Running>, intake: &mut Intake, jobs: &mut Jobs) -> Result<Taken, Interrupted> {
    let lane = &running.lane;
    let mut coalescer = Coalescer::default();
    let taken = loop {
        match intake.sizing() {
            Sizing::Keep => {}
            Sizing::Grow => intake.grow().await?,
            Sizing::Shrink => break Taken::TooMany,
        }
        let delivery = tokio::select! {
            biased;
            () = lane.gate.breaker().opened() => break Taken::Paused,
            Some(ended) = jobs.join_next() => {
                tasks::ended(ended)?;
                continue;
            }
            () = coalescer.over(lane.calls.batch_size()) => {
                coalescer.start(running, jobs).await;
                continue;
            }
            delivery = intake.next() => delivery?,
        };
        if lane.quarantine.suspicion(&delivery) >= SUSPECT_AT {
            warn!(
                lane = %lane.name(),
                deliveries = delivery.returns,
                "one message at a time: this one may be what ended us"
            );
            break Taken::Over;
        }
        let job = Admitted::read(delivery, lane);
        if lane.calls.batch_size() > 1 && job.can_share_a_call() {
            coalescer.add(job);
            continue;
        }
        // Only once there is a job: jobs whose shared call was refused need slots too.
        let slot = lane.calls.slot().await;
        // One job at a time waits here, and not in a further queue: so a due job is never far from the limiter.
        let entry = job.enter(lane, slot).await;
        job.spawn(running, entry, jobs);
    };
    coalescer.start(running, jobs).await;
    Ok(taken)
}

/// Gets one message at a time from each queue in turn, until no queue's next one is suspected and the breaker is not
/// half open. While it is, no more calls are in flight than the trial has. A suspected message is handled alone.
async fn take_singly(running: &Arc<Running>, channel: &Channel, jobs: &mut Jobs) -> Result<(), Interrupted> {
    let lane = &running.lane;
    let queues = queues(lane);
    let back = Instant::now() + COME_BACK;
    let mut suspects = [true; QUEUES];
    let mut found = true;
    while suspects.contains(&true) || (lane.gate.breaker().is_half_open() && (found || Instant::now() < back)) {
        if !found {
            sleep(GLANCE).await;
        }
        found = false;
        // Each trial begins with another queue, so that jobs which always fail cannot keep the lane from all others.
        let first = lane.gate.breaker().probes() as usize;
        for index in (first..first + QUEUES).map(|index| index % QUEUES) {
            while let Some(ended) = jobs.try_join_next() {
                tasks::ended(ended)?;
            }
            // A trial can be long, and polls do not count towards it.
            while jobs.len() >= present_prefetch(lane).into()
                && let Some(ended) = jobs.join_next().await
            {
                tasks::ended(ended)?;
            }
            let (queue, suspect) = (&queues[index], &mut suspects[index]);
            let got = channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?;
            let delivery = got.map(|got| Delivery::from(got.delivery));
            *suspect = delivery.as_ref().is_some_and(|delivery| lane.quarantine.suspicion(delivery) >= SUSPECT_AT);
            let Some(delivery) = delivery else { continue };
            found = true;
            if *suspect {
                settle(lane, jobs).await?;
            }
            let job = Admitted::read(delivery, lane);
            let slot = lane.calls.slot().await;
            let entry = job.enter(lane, slot).await;
            job.spawn(running, entry, jobs);
            if *suspect {
                settle(lane, jobs).await?;
            }
            if lane.gate.breaker().is_open() {
                return Ok(());
            }
        }
    }
    if lane.gate.breaker().is_half_open() {
        // No other job is left to try, and the calls in flight may still decide.
        lane.gate.quiet().await;
        lane.gate.end_trial();
    }
    Ok(())
}

/// Waits for all `jobs`. Those that failed on trial wait for its end, so it is interrupted once its calls have ended.
async fn settle(lane: &Lane, jobs: &mut Jobs) -> Result<(), lapin::Error> {
    if lane.gate.breaker().is_half_open() {
        lane.gate.quiet().await;
        lane.gate.breaker().interrupt();
    }
    tasks::all(jobs).await
}

/// Returns whether all `jobs` finished in time: within the grace period of a stop, else within the timeouts of their
/// calls, since a pause must not cut any off.
async fn drain(lane: &Lane, mut jobs: Jobs, stop: &Stop) -> Result<bool, Interrupted> {
    let time_is_up = async {
        let calls = stop.grace.max(lane.settings.lane.timeouts.total + AFTER_A_CALL);
        let _ = timeout(calls, stop.requested()).await;
        if stop.is_requested() {
            sleep(stop.grace).await;
        }
    };
    tokio::select! {
        biased;
        finished = tasks::all(&mut jobs) => {
            finished?;
            return Ok(true);
        }
        () = time_is_up => {}
    }
    warn!(lane = %lane.name(), jobs = jobs.len(), "jobs still in flight after the grace go back to their queue");
    jobs.shutdown().await;
    Ok(false)
}
