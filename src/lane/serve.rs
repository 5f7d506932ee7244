//! Takes deliveries while the lane is held, as fast as the limiter allows, with no more calls at a time than the lane's
//! concurrency. How many jobs wait for confirms beside that, the prefetch bounds.
//!
//! A message can end the process that reads it. RabbitMQ counts how often a message came back, but for all messages that
//! were handed out together. So a lane takes one message at a time at first, since the term before may have ended over a
//! message, and whenever one turns up that came back a few times: what comes back then is the one that did it, and no other. It
//! does so too while it is on trial after a pause.

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

/// Ceilings of the time between two probes of a paused lane. The first is also the least.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// How long a lane on trial waits for a job. A pause that was short has ended before the jobs it put back are in their
/// queue again: without one of them to be tried, all would be called at once.
const COME_BACK: Duration = Duration::from_secs(4);
const GLANCE: Duration = Duration::from_millis(100);

/// For what comes after a job's call, where a lane pauses: the evidence, a probe, and the broker's confirms. No trial goes on
/// then that a job could wait for.
const AFTER_A_CALL: Duration = Duration::from_secs(10);

/// Serves the lane until `stop` says so, and then finishes what is in flight; what is not done within the grace goes
/// back to its queue.
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
            // Nothing is left to end a trial that jobs in flight wait for.
            lane.gate.breaker().interrupt();
        }
        let mut emptied = true;
        if !stopped && !lane.gate.breaker().is_open() {
            readiness.lane(lane.name(), LaneState::Held);
            emptied = subscribe_and_take(running, &channel, &mut jobs, stop).await?;
        }
        // At once, and not only when the last call has ended.
        show_pause(lane, readiness);
        let drained = drain(lane, jobs, stop).await?;
        if emptied && drained && !stop.is_requested() {
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

/// While the lane is paused, probes at once, in case it was a hiccup, then now and then, and whenever there are new
/// keys, until that is answered.
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

/// Subscribes to the queues and takes from them, anew whenever the lane is to hold far more or far less of them. Returns
/// whether all that was taken was given to jobs.
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
        // What is in hand goes back as jobs that were not called, and not as deliveries, which are counted.
        intake.empty(jobs).await?;
        if taken == Taken::Paused {
            return Ok(true);
        }
    }
}

/// Why no more is taken.
#[derive(PartialEq, Eq)]
enum Taken {
    /// There is a stop, or a message under suspicion.
    Over,
    Paused,
    /// More is in hand than should be.
    TooMany,
}

/// Takes one delivery after the other and has it run, in a shared call where the lane has batches, until something breaks or
/// there is a reason to stop.
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
        // Not before there is a job: those whose shared call was refused need slots too.
        let slot = lane.calls.slot().await;
        // One job at a time waits here, and not in a queue of its own: so a due job is never far from the limiter.
        let entry = job.enter(lane, slot).await;
        job.spawn(running, entry, jobs);
    };
    coalescer.start(running, jobs).await;
    Ok(taken)
}

/// Takes one message at a time from each queue in turn, until no queue's next one is under suspicion and the lane is not
/// on trial. On trial no more are called at a time than belong to it. One that is suspected has the lane for itself.
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
            // A trial can be long, and polls are no part of it.
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
        // There is no other job to be tried, and the calls in flight may still tell.
        lane.gate.quiet().await;
        lane.gate.end_trial();
    }
    Ok(())
}

/// Waits for all `jobs`. Those that failed on trial wait for its end, so it is broken off once its calls are over.
async fn settle(lane: &Lane, jobs: &mut Jobs) -> Result<(), lapin::Error> {
    if lane.gate.breaker().is_half_open() {
        lane.gate.quiet().await;
        lane.gate.breaker().interrupt();
    }
    tasks::all(jobs).await
}

/// Whether all of `jobs` were finished in time: within the grace of a stop, and else within that of their calls, since a
/// pause is to break none off.
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
