//! The polls of a lane: jobs in the confirm phase ask for their instances' states, up to a hundred in one call.
//!
//! Starts go first. A poll takes a token that no start wants or, while starts wait, its share of the rate; and no more
//! than that share of the calls in flight. So a poll can be late: a job that has waited [`PATIENCE`] is put back, since
//! it takes up prefetch that retries need too.
//!
//! Polls come due every five seconds, and the first one lingers for a second: otherwise, at 20 starts a second, a call
//! would have three or four jobs. A call goes out early once it has a hundred jobs, or all that the prefetch allows. A
//! job gives its slot back before it polls, and does not block the intake at the limiter. The share counts only while
//! starts wait; the rate is free for polls otherwise.
//!
//! A refused list (403, or any other 4xx) is no verdict on a hundred jobs, as one of them may be the cause. They are
//! polled again until the timeout ends them with that answer, as `ambiguous`. Asking for each alone would cost a
//! thousand calls where the key lacks the permission.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::api::{Api, Paged};
use crate::bce::{Answer, InstanceId, InstanceState, MOST_IDS, NoAnswer};
use crate::lane::quota::{Permit, Share};
use crate::lane::verdict::{self, Verdict};

/// Linger time of the first job of a call. Polls come due on one beat, to within a second.
const LINGER: Duration = Duration::from_secs(1);
/// How long a job waits for its poll to be made.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two checks whether the lane is still paused.
const GLANCE: Duration = Duration::from_millis(50);

/// What a poll showed of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// Its state.
    State(InstanceState),
    /// The API does not know it.
    Absent,
    /// Nothing: the call failed, or its answer could not be read.
    Nothing,
}

/// What a poll showed of one job's instance, and the answer it was read from.
#[derive(Debug, Clone)]
pub struct Polled {
    /// What it showed.
    pub observed: Observed,
    /// The answer.
    pub answer: Result<Answer, NoAnswer>,
}

/// Makes the polls of a lane.
#[derive(Debug)]
pub(in crate::lane) struct Polls {
    api: Arc<Api>,
    queue: Queue,
    /// The part of the rate that polls may take while starts wait.
    share: Share,
    /// Calls in flight, at most.
    most: usize,
}

/// Jobs that wait for a poll.
#[derive(Debug)]
struct Queue {
    /// Jobs that fill a call, or all that can be in hand: then no other job is waited for.
    full: usize,
    waiting: Mutex<Waiting>,
    joined: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: Vec<Asker>,
    /// The number of the last asker.
    last: u64,
}

#[derive(Debug)]
struct Asker {
    number: u64,
    instance: InstanceId,
    reply: oneshot::Sender<Polled>,
}

/// The jobs that one call is for, by instance: an instance can have two jobs.
type Picked = HashMap<InstanceId, Vec<oneshot::Sender<Polled>>>;

impl Queue {
    /// With `prefetch` jobs in hand at most.
    fn new(prefetch: u16) -> Self {
        Self { full: MOST_IDS.min(prefetch.into()), waiting: Mutex::default(), joined: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, instance: &InstanceId) -> (u64, oneshot::Receiver<Polled>) {
        let (reply, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let number = waiting.last;
        waiting.jobs.push(Asker { number, instance: instance.clone(), reply });
        self.joined.notify_one();
        (number, receiver)
    }

    /// Withdraws a job. `false`: its call is under way already and will answer it.
    fn withdraw(&self, number: u64) -> bool {
        let mut waiting = self.waiting();
        let before = waiting.jobs.len();
        waiting.jobs.retain(|job| job.number != number);
        waiting.jobs.len() < before
    }

    /// Waits until a call is worthwhile: for a first job, and then a moment for others.
    async fn gathered(&self) {
        self.are_waiting(1).await;
        let _ = timeout(LINGER, self.are_waiting(self.full)).await;
    }

    async fn are_waiting(&self, count: usize) {
        loop {
            {
                let mut waiting = self.waiting();
                // Jobs of a lost term are gone.
                waiting.jobs.retain(|job| !job.reply.is_closed());
                if waiting.jobs.len() >= count {
                    return;
                }
            }
            self.joined.notified().await;
        }
    }

    /// Takes the jobs that have waited longest, for as many instances as fit into a call.
    fn pick(&self) -> Picked {
        let mut picked = Picked::new();
        let mut waiting = self.waiting();
        for job in std::mem::take(&mut waiting.jobs) {
            if picked.len() < MOST_IDS || picked.contains_key(&job.instance) {
                picked.entry(job.instance).or_default().push(job.reply);
            } else {
                waiting.jobs.push(job);
            }
        }
        picked
    }
}

impl Polls {
    /// `share` is 0.01 to 1; of `concurrency` calls in flight; with `prefetch` jobs in hand at most.
    pub(super) fn new(api: Arc<Api>, share: f64, concurrency: u32, prefetch: u16) -> Self {
        let share = Share::new(share);
        let most = share.of(concurrency);
        Self { api, queue: Queue::new(prefetch), share, most }
    }

    /// Asks for an instance's state, together with other jobs. `None`: not in time, or the lane is paused.
    pub(in crate::lane) async fn ask(&self, instance: &InstanceId) -> Option<Polled> {
        let (number, mut reply) = self.queue.join(instance);
        tokio::select! {
            biased;
            reply = &mut reply => return reply.ok(),
            () = self.api.gate().breaker().opened() => {}
            () = sleep(PATIENCE) => {}
        }
        if self.queue.withdraw(number) { None } else { reply.await.ok() }
    }

    /// Lists a page of instances within the rate of polls, for a person. It says nothing of the lane: what is asked for may be
    /// wrong. `None`: the lane is paused, or is not this replica's any more.
    pub(in crate::lane) async fn list(
        &self,
        filters: &[(&str, &str)],
        marker: Option<&str>,
    ) -> Option<Result<Paged, NoAnswer>> {
        let permit = self.api.gate().enter_to_poll(&self.share).await.ok()?;
        self.api.list(permit, filters, marker).await.result
    }

    /// Makes polls for the jobs that wait, while the lane is held.
    pub(in crate::lane) async fn make(&self) -> Infallible {
        let mut calls = FuturesUnordered::new();
        // Once begun it is always polled: it may be first in line at the limiter, and calls behind it wait.
        let mut due = pin!(self.poll_is_due());
        loop {
            tokio::select! {
                Some(()) = calls.next() => {}
                permit = &mut due, if calls.len() < self.most => {
                    calls.push(self.make_poll(permit, self.queue.pick()));
                    due.set(self.poll_is_due());
                }
            }
        }
    }

    /// Waits for jobs to poll for, and for the permit.
    async fn poll_is_due(&self) -> Permit {
        loop {
            self.queue.gathered().await;
            match self.api.gate().enter_to_poll(&self.share).await {
                Ok(permit) => return permit,
                // The jobs that waited are put back.
                Err(_paused) => sleep(GLANCE).await,
            }
        }
    }

    /// Makes one call, and gives each job the state of its instance.
    async fn make_poll(&self, permit: Permit, jobs: Picked) {
        let instances: Vec<InstanceId> = jobs.keys().cloned().collect();
        if instances.is_empty() {
            return;
        }
        // Without a result no call was made, and the jobs are put back.
        let Some(result) = self.api.states(permit, &instances).await.result else { return };
        let (answer, states) = match result {
            Ok((answer, states)) => (Ok(answer), states),
            Err(error) => (Err(error), None),
        };
        let verdict = verdict::general(&answer);
        self.api.gate().record_poll(&verdict, &answer);
        if let (Verdict::Failed(_), Ok(refused)) = (&verdict, &answer) {
            warn!(answer = refused.to_string(), "states cannot be listed, so no instance is seen running");
        }
        debug!(instances = instances.len(), %verdict, "polled");
        for (instance, askers) in jobs {
            let observed = match &states {
                Some(states) => states.get(&instance).map_or(Observed::Absent, |state| Observed::State(*state)),
                None => Observed::Nothing,
            };
            for asker in askers {
                // A job that does not listen any more was dropped with its term.
                let _ = asker.send(Polled { observed, answer: answer.clone() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn instance(number: usize) -> InstanceId {
        InstanceId::parse(&format!("i-{number:05}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_waits_for_a_hundred_but_not_for_long() {
        let queue = Queue::new(192);
        let asked: Vec<_> = (0..150).map(|number| queue.join(&instance(number))).collect();
        let begun = Instant::now();
        queue.gathered().await;
        assert_eq!((queue.pick().len(), begun.elapsed()), (100, Duration::ZERO));
        queue.gathered().await;
        assert_eq!((queue.pick().len(), begun.elapsed()), (50, LINGER));
        drop(asked);
    }

    #[test]
    fn an_instance_is_named_once_however_many_ask_and_a_job_that_is_picked_cannot_go_back() {
        let queue = Queue::new(192);
        let (first, _one) = queue.join(&instance(1));
        let (_, _another) = queue.join(&instance(1));
        let (third, _two) = queue.join(&instance(2));
        assert!(queue.withdraw(third) && !queue.withdraw(third));
        let picked = queue.pick();
        assert_eq!((picked.len(), picked[&instance(1)].len()), (1, 2));
        assert!(!queue.withdraw(first));
    }
}
