//! The polls of a lane: jobs in the confirm phase that ask for their instance's state, a hundred in one call.
//!
//! Starts go first. A poll takes a slot of the limiter that no start wants, or, while starts wait, its share of the
//! rate; and of the calls in flight no more than that share either. So it can be long in coming: a job that has waited
//! [`PATIENCE`] is put back, since it holds one of the deliveries that retries need too.
//!
//! Polls come due every five seconds, and the first waits a second for others: jobs started one after the other at 20 a
//! second would else be polled three or four in a call. A call goes out early where a hundred are together, or as many as
//! the prefetch lets in. A job gives its slot back before it polls, and does not wait in the intake for the limiter. The
//! share is counted only while starts wait: what they leave is free.
//!
//! A refused list (403, or any other 4xx) is no verdict on a hundred jobs, as one of them may be the cause. They are
//! polled again until the timeout ends them, with that answer, as `ambiguous`. To ask for each alone would cost a thousand
//! calls where the key lacks the permission.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Calls;
use crate::bce::{Answer, InstanceId, InstanceState, MOST_IDS, NoAnswer};
use crate::lane::quota::{Permit, Share};
use crate::lane::verdict::{self, Verdict};

/// How long the first of a call waits for others. They come due on one beat, to a second exactly.
const LINGER: Duration = Duration::from_secs(1);
/// How long a job waits for its poll to be made.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether polls are of use.
const GLANCE: Duration = Duration::from_millis(50);

/// What a poll told of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// Its state.
    State(InstanceState),
    /// The API does not know it.
    Absent,
    /// Nothing: the call failed, or its answer could not be read.
    Nothing,
}

/// What a poll told a job of its instance, and the answer it was read from.
#[derive(Debug, Clone)]
pub struct Polled {
    /// What it told.
    pub sight: Sight,
    /// From this.
    pub answer: Result<Answer, NoAnswer>,
}

/// The jobs that wait for a poll, and when the share of the rate allows the next one.
#[derive(Debug)]
pub(super) struct Polls {
    /// The part of the rate that polls may take while starts wait.
    pub(super) share: Share,
    /// Calls in flight, at most.
    most: usize,
    /// As many as can be in hand, and fit into a call: then no other job is waited for.
    full: usize,
    waiting: Mutex<Waiting>,
    joined: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    jobs: Vec<Asker>,
    /// Names an asker.
    last: u64,
}

#[derive(Debug)]
struct Asker {
    number: u64,
    instance: InstanceId,
    told: oneshot::Sender<Polled>,
}

/// Those that one call is for, by instance: an instance can have two jobs.
type Picked = HashMap<InstanceId, Vec<oneshot::Sender<Polled>>>;

impl Polls {
    /// `share` is 0.01 to 1; of `concurrency` calls in flight; with `prefetch` jobs in hand at most.
    pub(super) fn new(share: f64, concurrency: u32, prefetch: u16) -> Self {
        let share = Share::new(share);
        let most = share.of(concurrency);
        let full = MOST_IDS.min(prefetch.into());
        Self { share, most, full, waiting: Mutex::default(), joined: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, instance: &InstanceId) -> (u64, oneshot::Receiver<Polled>) {
        let (told, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        waiting.last += 1;
        let number = waiting.last;
        waiting.jobs.push(Asker { number, instance: instance.clone(), told });
        self.joined.notify_one();
        (number, receiver)
    }

    /// Whether a job could go back: once it is picked, its call is under way and tells it something.
    fn withdraw(&self, number: u64) -> bool {
        let mut waiting = self.waiting();
        let before = waiting.jobs.len();
        waiting.jobs.retain(|job| job.number != number);
        waiting.jobs.len() < before
    }

    /// Waits until a call is worth it: until a job waits, and then for others, but not for long.
    async fn gathered(&self) {
        self.are_waiting(1).await;
        let _ = timeout(LINGER, self.are_waiting(self.full)).await;
    }

    async fn are_waiting(&self, count: usize) {
        loop {
            {
                let mut waiting = self.waiting();
                // Of a term that was lost, no job is left.
                waiting.jobs.retain(|job| !job.told.is_closed());
                if waiting.jobs.len() >= count {
                    return;
                }
            }
            self.joined.notified().await;
        }
    }

    /// Takes those that have waited longest, as many instances as fit into a call.
    fn pick(&self) -> Picked {
        let mut picked = Picked::new();
        let mut waiting = self.waiting();
        for job in std::mem::take(&mut waiting.jobs) {
            if picked.len() < MOST_IDS || picked.contains_key(&job.instance) {
                picked.entry(job.instance).or_default().push(job.told);
            } else {
                waiting.jobs.push(job);
            }
        }
        picked
    }
}

impl Calls {
    /// Asks for an instance's state, together with others. `None`: not in time, or not while the lane is paused.
    pub(in crate::lane) async fn poll(&self, instance: &InstanceId) -> Option<Polled> {
        let (number, mut told) = self.polls.join(instance);
        tokio::select! {
            biased;
            told = &mut told => return told.ok(),
            () = self.gate.breaker().opened() => {}
            () = sleep(PATIENCE) => {}
        }
        if self.polls.withdraw(number) { None } else { told.await.ok() }
    }

    /// Makes the polls that jobs wait for, as long as the lane is held.
    pub(in crate::lane) async fn make_polls(&self) -> Infallible {
        let mut calls = FuturesUnordered::new();
        // Left alone only before it has begun: it may stand in the limiter's line, and what stands there has to move.
        let mut due = pin!(self.poll_is_due());
        loop {
            tokio::select! {
                Some(()) = calls.next() => {}
                permit = &mut due, if calls.len() < self.polls.most => {
                    calls.push(self.make_poll(permit, self.polls.pick()));
                    due.set(self.poll_is_due());
                }
            }
        }
    }

    /// Waits until there are jobs to ask for, and the right to.
    async fn poll_is_due(&self) -> Permit {
        loop {
            self.polls.gathered().await;
            match self.gate.enter_to_poll(&self.polls.share).await {
                Ok(permit) => return permit,
                // Those that waited go back.
                Err(_paused) => sleep(GLANCE).await,
            }
        }
    }

    /// Makes one call, and tells each job what it says of its instance.
    async fn make_poll(&self, permit: Permit, jobs: Picked) {
        let instances: Vec<InstanceId> = jobs.keys().cloned().collect();
        if instances.is_empty() {
            return;
        }
        // Without a result nothing was asked, and those that wait go back.
        let Some(result) = self.states(permit, &instances).await.result else { return };
        let (answer, states) = match result {
            Ok((answer, states)) => (Ok(answer), states),
            Err(error) => (Err(error), None),
        };
        let verdict = verdict::general(&answer);
        self.gate.record_poll(&verdict, &answer);
        if let (Verdict::Failed(_), Ok(refused)) = (&verdict, &answer) {
            warn!(lane = %self.lane, "states are not told, so no instance is seen running: {refused}");
        }
        debug!(lane = %self.lane, instances = instances.len(), ?verdict, "polled");
        for (instance, askers) in jobs {
            let sight = match &states {
                Some(states) => states.get(&instance).map_or(Sight::Absent, |state| Sight::State(*state)),
                None => Sight::Nothing,
            };
            for asker in askers {
                // A job that does not listen any more was dropped with its term.
                let _ = asker.send(Polled { sight, answer: answer.clone() });
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
        let polls = Polls::new(0.1, 32, 192);
        let asked: Vec<_> = (0..150).map(|number| polls.join(&instance(number))).collect();
        let begun = Instant::now();
        polls.gathered().await;
        assert_eq!((polls.pick().len(), begun.elapsed()), (100, Duration::ZERO));
        polls.gathered().await;
        assert_eq!((polls.pick().len(), begun.elapsed()), (50, LINGER));
        drop(asked);
    }

    #[test]
    fn an_instance_is_named_once_however_many_ask_and_a_job_that_is_picked_cannot_go_back() {
        let polls = Polls::new(0.1, 32, 192);
        let (first, _one) = polls.join(&instance(1));
        let (_, _another) = polls.join(&instance(1));
        let (third, _two) = polls.join(&instance(2));
        assert!(polls.withdraw(third) && !polls.withdraw(third));
        let picked = polls.pick();
        assert_eq!((picked.len(), picked[&instance(1)].len()), (1, 2));
        assert!(!polls.withdraw(first));
    }
}
