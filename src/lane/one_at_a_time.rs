//! One message at a time, by `basic.get`: those under suspicion, and those of the trial of a half-open breaker.
//!
//! A message can crash the process that reads it. RabbitMQ counts how often a message was returned, but for all
//! messages that were delivered together. So a suspected message is handled alone: then only the message at fault is
//! returned.

use std::sync::Arc;
use std::time::Duration;

use lapin::Channel;
use lapin::options::BasicGetOptions;
use tokio::time::{Instant, sleep};

use super::intake::{QUEUES, present_prefetch, queues};
use super::job::{Admitted, Tasks};
use super::parts::{Lane, Session};
use super::quarantine::SUSPECT_AT;
use crate::broker::Delivery;
use crate::ownership::Interrupted;
use crate::tasks;

/// How long a trial waits for a job. After a short pause the jobs that were put back are not in their queue yet: else
/// the trial would find no job and end, and all of them would be called at once.
const TRIAL_WAIT: Duration = Duration::from_secs(4);
/// Between two looks for a job.
const INTERVAL: Duration = Duration::from_millis(100);

/// What the next message of a queue was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Got {
    /// The queue is empty.
    Nothing,
    /// A message whose job was spawned.
    Job,
    /// A message under suspicion. It was handled alone.
    Suspect,
}

/// Gets one message at a time until none is under suspicion and the breaker is not half open, or the lane is paused. A
/// message may have ended the previous term, so every term begins with this.
pub(super) async fn serve(session: &Arc<Session>, channel: &Channel, tasks: &mut Tasks) -> Result<(), Interrupted> {
    loop {
        quarantine(session, channel, tasks).await?;
        let met_suspect = trial(session, channel, tasks).await?;
        if !met_suspect || session.lane.gate.breaker().is_open() {
            return Ok(());
        }
    }
}

/// Gets one message of each queue in turn until no queue's next one is under suspicion, or the lane is paused.
async fn quarantine(session: &Arc<Session>, channel: &Channel, tasks: &mut Tasks) -> Result<(), Interrupted> {
    let queues = queues(&session.lane);
    let mut suspects = [true; QUEUES];
    while suspects.contains(&true) {
        for queue in order(&session.lane) {
            suspects[queue] = get(session, channel, &queues[queue], tasks).await? == Got::Suspect;
            if session.lane.gate.breaker().is_open() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Gets one message of each queue in turn while the breaker is half open. At most the trial's number of calls is in
/// flight. Returns whether a message was under suspicion: it may not be the only one.
async fn trial(session: &Arc<Session>, channel: &Channel, tasks: &mut Tasks) -> Result<bool, Interrupted> {
    let (gate, queues) = (&session.lane.gate, queues(&session.lane));
    let waits_until = Instant::now() + TRIAL_WAIT;
    let (mut found, mut met_suspect) = (true, false);
    while gate.breaker().is_half_open() && (found || Instant::now() < waits_until) {
        if !found {
            sleep(INTERVAL).await;
        }
        found = false;
        for queue in order(&session.lane) {
            let got = get(session, channel, &queues[queue], tasks).await?;
            found |= got != Got::Nothing;
            met_suspect |= got == Got::Suspect;
            if gate.breaker().is_open() {
                return Ok(met_suspect);
            }
        }
    }
    if gate.breaker().is_half_open() {
        // No other job is left to try, and the calls in flight may still decide.
        gate.quiet().await;
        gate.end_trial();
    }
    Ok(met_suspect)
}

/// The queues, beginning with another one in each trial, so that jobs which always fail cannot keep the lane from all
/// others.
fn order(lane: &Lane) -> impl Iterator<Item = usize> + use<> {
    let first = lane.gate.breaker().probes() as usize;
    (first..first + QUEUES).map(|index| index % QUEUES)
}

/// Gets the next message of a queue and spawns its job.
async fn get(session: &Arc<Session>, channel: &Channel, queue: &str, tasks: &mut Tasks) -> Result<Got, Interrupted> {
    let lane = &session.lane;
    while let Some(ended) = tasks.try_join_next() {
        tasks::ended(ended)?;
    }
    // A trial can be long, and polls do not count towards it.
    while tasks.len() >= present_prefetch(lane).into()
        && let Some(ended) = tasks.join_next().await
    {
        tasks::ended(ended)?;
    }
    let got = channel.basic_get(queue.into(), BasicGetOptions::default()).await?;
    let Some(delivery) = got.map(|got| Delivery::from(got.delivery)) else { return Ok(Got::Nothing) };
    if lane.quarantine.suspicion(&delivery) < SUSPECT_AT {
        Admitted::read(delivery, lane).enter_and_spawn(session, tasks).await;
        return Ok(Got::Job);
    }
    settle(lane, tasks).await?;
    Admitted::read(delivery, lane).enter_and_spawn(session, tasks).await;
    settle(lane, tasks).await?;
    Ok(Got::Suspect)
}

/// Waits for all `tasks`. Jobs that failed on trial wait for its end, so it is interrupted once its calls have ended.
async fn settle(lane: &Lane, tasks: &mut Tasks) -> Result<(), lapin::Error> {
    if lane.gate.breaker().is_half_open() {
        lane.gate.quiet().await;
        lane.gate.breaker().interrupt();
    }
    tasks::all(tasks).await
}
