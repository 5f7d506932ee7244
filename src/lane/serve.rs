//! Consumes deliveries while the lane is held, as fast as the limiter allows and with no more calls in flight than the
//! lane's concurrency. The prefetch bounds how many more jobs wait for publisher confirms.
//!
//! Before it consumes, the lane gets one message at a time (`one_at_a_time`): those under suspicion, and after a pause
//! those of the trial.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::intake::{Coalescer, Intake, Sizing};
use super::job::{Admitted, Tasks};
use super::one_at_a_time;
use super::parts::{Lane, Session};
use super::quarantine::SUSPECT_AT;
use crate::broker::Connection;
use crate::ownership::Interrupted;
use crate::retry::full_jitter;
use crate::stop::Stop;
use crate::tasks;
use crate::telemetry::{LaneState, Readiness};

/// Backoff between two probes of a paused lane: first and last ceiling. The first is also the minimum.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Time for what follows a job's call where the lane pauses: evidence, a probe, publisher confirms. No trial is on then
/// that a job could wait for.
const AFTER_CALL: Duration = Duration::from_secs(10);

/// Serves the lane until `stop` is requested, then finishes what is in flight. What is not finished within the grace
/// period goes back to its queue.
pub(super) async fn serve(
    session: &Arc<Session>,
    connection: &Connection,
    readiness: &Readiness,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let lane = &session.lane;
    let mut channel = connection.channel().await?;
    loop {
        tokio::select! {
            biased;
            () = stop.requested() => {}
            () = pause(lane, readiness) => {}
        }
        let mut tasks = JoinSet::new();
        let stopped = tokio::select! {
            biased;
            () = stop.requested() => true,
            done = one_at_a_time::serve(session, &channel, &mut tasks) => done.map(|()| false)?,
        };
        if stopped {
            // No further call will end the trial that jobs in flight wait for.
            lane.gate.breaker().interrupt();
        }
        let mut emptied = true;
        if !stopped && !lane.gate.breaker().is_open() {
            readiness.lane(lane.name(), LaneState::Held);
            emptied = subscribe_and_consume(session, &channel, &mut tasks, stop).await?;
        }
        // Now, and not only once the last call has ended.
        show_pause(lane, readiness);
        let drained = drain(lane, tasks, stop).await?;
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
/// change, until a probe is answered. A pause by hand is waited for, without a probe.
async fn pause(lane: &Lane, readiness: &Readiness) {
    let mut keys = lane.calls.api.keys_changed();
    while lane.gate.breaker().is_open() {
        show_pause(lane, readiness);
        if let Some(cause) = lane.gate.breaker().by_hand_for() {
            lane.gate.breaker().is_by_hand_otherwise(&cause).await;
            continue;
        }
        let probes = lane.gate.breaker().probes();
        if probes > 0 {
            let delay = full_jitter(FIRST_DELAY, LAST_DELAY, probes, rand::random());
            tokio::select! {
                () = sleep(delay.max(FIRST_DELAY)) => {}
                Ok(()) = keys.changed() => {}
            }
        }
        lane.calls.api.probe_pause().await;
        let cause = lane.gate.breaker().cause();
        debug!(cause = cause.as_ref().map(|cause| cause.text.as_str()), "probed");
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
async fn subscribe_and_consume(
    session: &Arc<Session>,
    channel: &Channel,
    tasks: &mut Tasks,
    stop: &Stop,
) -> Result<bool, Interrupted> {
    loop {
        let mut intake = Intake::open(session, channel).await?;
        let ended = tokio::select! {
            biased;
            () = stop.requested() => Ended::Abandoned,
            ended = consume(session, &mut intake, tasks) => ended?,
        };
        intake.cancel().await?;
        if ended == Ended::Abandoned {
            return Ok(false);
        }
        // Prefetched deliveries are parked as uncalled jobs: RabbitMQ would count their return against them.
        intake.empty(tasks).await?;
        if ended == Ended::Paused {
            return Ok(true);
        }
    }
}

/// Why consuming stopped.
#[derive(PartialEq, Eq)]
enum Ended {
    /// A stop was requested, or a message is under suspicion.
    Abandoned,
    Paused,
    /// The prefetch is larger than it should be.
    Oversized,
}

/// Consumes one delivery after the other and spawns its job, in a shared call if the lane has batches, until the
/// connection breaks or consuming has to stop.
async fn consume(session: &Arc<Session>, intake: &mut Intake, tasks: &mut Tasks) -> Result<Ended, Interrupted> {
    let lane = &session.lane;
    let mut coalescer = Coalescer::default();
    let ended = loop {
        match intake.sizing() {
            Sizing::Keep => {}
            Sizing::Grow => intake.grow().await?,
            Sizing::Shrink => break Ended::Oversized,
        }
        let delivery = tokio::select! {
            biased;
            () = lane.gate.breaker().opened() => break Ended::Paused,
            Some(done) = tasks.join_next() => {
                tasks::ended(done)?;
                continue;
            }
            () = coalescer.ready(lane.calls.starts.batch_size()) => {
                coalescer.flush(session, tasks).await;
                continue;
            }
            delivery = intake.next() => delivery?,
        };
        if lane.quarantine.suspicion(&delivery) >= SUSPECT_AT {
            warn!(deliveries = delivery.returns, "one message at a time: this one may have crashed the process");
            break Ended::Abandoned;
        }
        let job = Admitted::read(delivery, lane);
        if lane.calls.starts.batch_size() > 1 && job.can_share_a_call(lane) {
            coalescer.add(job);
            continue;
        }
        // Jobs wait for their entry one at a time, in the loop: a queue of waiting jobs would delay due ones.
        job.enter_and_spawn(session, tasks).await;
    };
    coalescer.flush(session, tasks).await;
    Ok(ended)
}

/// Returns whether all `jobs` finished in time: within the grace period of a stop, else within the timeouts of their
/// calls, since a pause must not cut any off.
async fn drain(lane: &Lane, mut tasks: Tasks, stop: &Stop) -> Result<bool, Interrupted> {
    let time_is_up = async {
        let calls = stop.grace.max(lane.settings.lane.timeouts.total + AFTER_CALL);
        let _ = timeout(calls, stop.requested()).await;
        if stop.is_requested() {
            sleep(stop.grace).await;
        }
    };
    tokio::select! {
        biased;
        finished = tasks::all(&mut tasks) => {
            finished?;
            return Ok(true);
        }
        () = time_is_up => {}
    }
    warn!(jobs = tasks.len(), "jobs still in flight after the grace go back to their queue");
    tasks.shutdown().await;
    Ok(false)
}
