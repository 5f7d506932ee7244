//! Shared calls: one call that names the instances of several jobs.
//!
//! Each job runs by itself, with an [`Entry`] to its call. Jobs of a shared call are its [`Waiter`]s: a job joins where
//! it would make a call of its own, or leaves if it is not to be called now. Once each has joined or left, the first
//! one makes the call for all, and gives each the result.
//!
//! The API starts all of them or none and names none, or names those it did not start, and never says why. So a job
//! that may have been refused is then called singly, with a permit of its own, for an answer of its own. A failure that
//! concerns no single instance, such as a 503, is the answer for all.

mod call;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, oneshot};

use super::Calls;
use crate::bce::{Answer, InstanceId, NoAnswer};
use crate::job::is_past;
use crate::lane::breaker::Evidence;
use crate::lane::quota::{Permit, Slot};

/// A job's entry to its call, given back on drop.
#[derive(Debug)]
pub(in crate::lane) enum Entry {
    /// For a job that is called by itself.
    Permit(Permit),
    /// For a job that is called together with others.
    Waiter(Waiter),
    /// For a job that had no call to make as it was admitted.
    Slot(Slot),
    /// For a job that is not to be started now: it is put back or, past its deadline, described in a slot of its own.
    None,
}

/// The result of a job's call.
#[derive(Debug)]
pub(in crate::lane) struct Called {
    pub(in crate::lane) result: Result<Answer, NoAnswer>,
    pub(in crate::lane) origin: Origin,
    /// An earlier call than the one answered may have started the instance.
    pub(in crate::lane) touched: bool,
}

/// Which call it was.
#[derive(Debug)]
pub(in crate::lane) enum Origin {
    /// The job's own, made in this slot.
    Own(Slot),
    /// A shared one, which has been recorded once for all of its jobs.
    Shared(Evidence),
}

/// The job got no answer of its own: the lane is paused, its deadline has passed, or it is to be put back. A repeated
/// or a shared call may have been made for it.
#[derive(Debug)]
pub(in crate::lane) struct NotCalled {
    /// Such a call may have started the instance.
    pub(in crate::lane) touched: bool,
}

/// A call for several jobs.
#[derive(Debug)]
struct SharedCall {
    state: Mutex<State>,
    complete: Notify,
}

#[derive(Debug)]
struct State {
    /// Jobs that have neither joined nor left.
    missing: usize,
    members: Vec<Member>,
    permit: Option<Permit>,
}

#[derive(Debug)]
struct Member {
    instance: InstanceId,
    deadline: Option<Timestamp>,
    tell: oneshot::Sender<Told>,
}

/// What a member is told.
#[derive(Debug)]
enum Told {
    /// The answer to all of them. `touched`: an earlier call may have started the instance.
    Answer { result: Result<Answer, NoAnswer>, evidence: Evidence, touched: bool },
    /// No call was made: to be called singly, with this permit.
    Permit(Permit),
    /// To be called singly, with a permit of its own.
    Singly { touched: bool, is_counted: bool },
}

/// A job's place in a shared call.
#[derive(Debug)]
pub(in crate::lane) struct Waiter {
    call: Arc<SharedCall>,
    is_settled: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.settle(None);
    }
}

impl Entry {
    /// For `count` jobs that share the call of `permit`. Jobs that have to be called singly take permits of their own.
    pub(in crate::lane) fn shared(count: usize, permit: Permit) -> impl Iterator<Item = Self> {
        let state = State { missing: count, members: Vec::with_capacity(count), permit: Some(permit) };
        let (state, complete) = (Mutex::new(state), Notify::new());
        let call = Arc::new(SharedCall { state, complete });
        (0..count).map(move |_| Self::Waiter(Waiter { call: call.clone(), is_settled: false }))
    }

    /// The slot for a job that is described instead of started. A waiter has none: it lets the others go without it.
    pub(in crate::lane) fn into_slot(self) -> Option<Slot> {
        match self {
            Self::Permit(permit) => Some(permit.into_slot()),
            Self::Slot(slot) => Some(slot),
            Self::Waiter(_) | Self::None => None,
        }
    }
}

impl Calls {
    /// Starts a job's instance, in a shared call or singly, unless `deadline` passes first.
    ///
    /// # Errors
    /// [`NotCalled`]: no call was wanted any more.
    pub(in crate::lane) async fn start_for_job(
        &self,
        entry: Entry,
        instance: &InstanceId,
        deadline: Option<Timestamp>,
    ) -> Result<Called, NotCalled> {
        let (mut touched, mut is_counted) = (false, false);
        let permit = match entry {
            Entry::Permit(permit) => permit,
            Entry::Slot(_) | Entry::None => return Err(NotCalled { touched }),
            Entry::Waiter(mut waiter) => match waiter.call(self, instance, deadline).await {
                Told::Answer { result, evidence, touched } => {
                    return Ok(Called { result, origin: Origin::Shared(evidence), touched });
                }
                Told::Permit(permit) => permit,
                Told::Singly { touched: by_all, is_counted: in_list } => {
                    (touched, is_counted) = (by_all, in_list);
                    match self.gate.enter(self.slot().await).await {
                        Ok(permit) if in_time(deadline) => permit,
                        _ => return Err(NotCalled { touched }),
                    }
                }
            },
        };
        let made = self.start(permit, instance, || in_time(deadline)).await;
        touched |= made.touched;
        let Some(result) = made.result else { return Err(NotCalled { touched }) };
        if let Ok(answer) = result.as_ref()
            && !is_counted
        {
            self.strategy.saw_one(answer);
        }
        Ok(Called { result, origin: Origin::Own(made.slot), touched })
    }
}

fn in_time(deadline: Option<Timestamp>) -> bool {
    !is_past(deadline, Timestamp::now())
}

impl Waiter {
    /// Joins the call, and waits for its result. The first to join makes it.
    async fn call(&mut self, calls: &Calls, instance: &InstanceId, deadline: Option<Timestamp>) -> Told {
        let (tell, told) = oneshot::channel();
        if self.settle(Some(Member { instance: instance.clone(), deadline, tell })) {
            self.call.complete.notified().await;
            if let (Some(permit), members) = self.call.take() {
                calls.call_for(permit, members).await;
            }
        }
        // The task that made the call was cancelled, as this one is about to be; the outcome is unknown.
        told.await.unwrap_or(Told::Singly { touched: true, is_counted: false })
    }

    /// This job is not missing any more. Returns whether it is the first member.
    fn settle(&mut self, member: Option<Member>) -> bool {
        if std::mem::replace(&mut self.is_settled, true) {
            return false;
        }
        let mut state = self.call.state();
        let is_first = member.is_some() && state.members.is_empty();
        state.members.extend(member);
        state.missing -= 1;
        if state.missing == 0 {
            self.call.complete.notify_one();
        }
        is_first
    }
}

impl SharedCall {
    fn take(&self) -> (Option<Permit>, Vec<Member>) {
        let mut state = self.state();
        (state.permit.take(), std::mem::take(&mut state.members))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
