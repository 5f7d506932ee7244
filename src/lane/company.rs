//! Jobs that are called together, in one call that names all their instances.
//!
//! Each job goes its own way, and holds a [`Ticket`]: the right to one call. Those of a company have a seat instead of a
//! slot. A job takes its seat where it would make its call, or leaves, since it turned out that it is not to be called
//! now. Once nobody is missing, the first one makes the call for all, and tells each what came of it.
//!
//! The API starts all or none of them and names nobody, or names those it did not start, and never says why. So whoever
//! may have been refused is called singly then, in a turn of its own, for an answer of its own. What has nothing to do
//! with one instance, such as a 503, is the answer for all.

mod call;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};

use super::Lane;
use super::breaker::Evidence;
use super::run::is_late;
use super::slots::Slots;
use crate::bce::{Answer, InstanceId, NoAnswer};

/// A job's right to one call, with the slot it is made in. Dropped, it is given back.
#[derive(Debug)]
pub(super) struct Ticket(Right);

#[derive(Debug)]
enum Right {
    Alone(#[expect(dead_code, reason = "held until the call is over")] OwnedSemaphorePermit),
    Seat(Seat),
    None,
}

/// What came of a job's call.
#[derive(Debug)]
pub(super) struct Called {
    pub(super) result: Result<Answer, NoAnswer>,
    /// Of the company's call, which has been recorded once for all of them.
    pub(super) evidence: Option<Evidence>,
    /// A call before the one that was answered may have started the instance.
    pub(super) touched: bool,
}

/// No call was made for the job, but perhaps one that came to nothing, or one for its company: the lane is paused, the job's
/// deadline has passed, or it is to be put back.
#[derive(Debug)]
pub(super) struct NotCalled {
    /// That call may have started the instance.
    pub(super) touched: bool,
}

/// One call's worth of jobs.
#[derive(Debug)]
struct Company {
    /// Where those get a slot that are called singly.
    slots: Arc<Slots>,
    state: Mutex<State>,
    complete: Notify,
}

#[derive(Debug)]
struct State {
    /// Jobs that have neither taken their seat nor left.
    missing: usize,
    members: Vec<Member>,
    slot: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Member {
    instance: InstanceId,
    deadline: Option<Timestamp>,
    tell: oneshot::Sender<Told>,
}

/// What a member learns.
#[derive(Debug)]
enum Told {
    /// The answer to all of them. `touched`: an earlier call may have started the instance.
    Answer { result: Result<Answer, NoAnswer>, evidence: Evidence, touched: bool },
    /// Nothing was called: to be called singly, in the turn that was waited for.
    Turn(OwnedSemaphorePermit),
    /// To be called singly, in a turn of its own.
    Singly { touched: bool, is_counted: bool },
}

#[derive(Debug)]
struct Seat {
    company: Arc<Company>,
    is_settled: bool,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.settle(None);
    }
}

impl Ticket {
    /// For a job that is called by itself.
    pub(super) fn alone(slot: OwnedSemaphorePermit) -> Self {
        Self(Right::Alone(slot))
    }

    /// For a job that is not to be called, but put back.
    pub(super) fn invalid() -> Self {
        Self(Right::None)
    }

    /// Whether it is good for a call.
    pub(super) fn is_valid(&self) -> bool {
        !matches!(self.0, Right::None)
    }

    /// For `count` jobs that are called together in `slot`. Where that does not do, they take others from `slots`.
    pub(super) fn together(count: usize, slot: OwnedSemaphorePermit, slots: &Arc<Slots>) -> impl Iterator<Item = Self> {
        let state = State { missing: count, members: Vec::with_capacity(count), slot: Some(slot) };
        let (slots, state, complete) = (slots.clone(), Mutex::new(state), Notify::new());
        let company = Arc::new(Company { slots, state, complete });
        (0..count).map(move |_| Self(Right::Seat(Seat { company: company.clone(), is_settled: false })))
    }

    /// Lets the company go without this job, which is about to wait for something else. Who is alone keeps its slot.
    pub(super) fn leave_company(&mut self) {
        if let Right::Seat(_) = self.0 {
            self.0 = Right::None;
        }
    }

    /// Has the instance started, in company or alone, unless `deadline` passes first.
    ///
    /// # Errors
    /// [`NotCalled`], since no call was to be made any more.
    pub(super) async fn start(
        &mut self,
        lane: &Lane,
        instance: &InstanceId,
        deadline: Option<Timestamp>,
    ) -> Result<Called, NotCalled> {
        let (mut touched, mut is_counted) = (false, false);
        if !self.is_valid() {
            return Err(NotCalled { touched });
        }
        if let Right::Seat(seat) = &mut self.0 {
            match seat.call(lane, instance, deadline).await {
                Told::Answer { result, evidence, touched } => {
                    return Ok(Called { result, evidence: Some(evidence), touched });
                }
                Told::Turn(slot) => self.0 = Right::Alone(slot),
                Told::Singly { touched: by_all, is_counted: in_list } => {
                    (touched, is_counted) = (by_all, in_list);
                    let slot = seat.company.slots.take(lane).await;
                    self.0 = Right::Alone(slot);
                    if lane.limited().await.is_err() || !in_time(deadline) {
                        return Err(NotCalled { touched });
                    }
                }
            }
        }
        let made = lane.start(instance, || in_time(deadline)).await;
        touched |= made.touched;
        let result = match made.result {
            Err(NoAnswer::Stale { .. }) => return Err(NotCalled { touched }),
            result => result,
        };
        if let Ok(answer) = result.as_ref()
            && !is_counted
        {
            lane.plan.saw_one(answer);
        }
        Ok(Called { result, evidence: None, touched })
    }
}

fn in_time(deadline: Option<Timestamp>) -> bool {
    !is_late(deadline, Timestamp::now())
}

impl Seat {
    /// Takes the seat, and waits for what comes of the company's call. The first to sit makes it.
    async fn call(&mut self, lane: &Lane, instance: &InstanceId, deadline: Option<Timestamp>) -> Told {
        let (tell, told) = oneshot::channel();
        if self.settle(Some(Member { instance: instance.clone(), deadline, tell })) {
            self.company.complete.notified().await;
            if let (Some(slot), members) = self.company.take() {
                call::call(lane, slot, members).await;
            }
        }
        // Whoever was to tell went away in the middle of it, as everything that runs here is about to.
        told.await.unwrap_or(Told::Singly { touched: true, is_counted: false })
    }

    /// Notes that this job is not missing any more. Returns whether it is the first member.
    fn settle(&mut self, member: Option<Member>) -> bool {
        if std::mem::replace(&mut self.is_settled, true) {
            return false;
        }
        let mut state = self.company.state();
        let is_first = member.is_some() && state.members.is_empty();
        state.members.extend(member);
        state.missing -= 1;
        if state.missing == 0 {
            self.company.complete.notify_one();
        }
        is_first
    }
}

impl Company {
    fn take(&self) -> (Option<OwnedSemaphorePermit>, Vec<Member>) {
        let mut state = self.state();
        (state.slot.take(), std::mem::take(&mut state.members))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
