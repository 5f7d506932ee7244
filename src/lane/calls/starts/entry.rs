//! Shared calls: one call that names the instances of several jobs.
//!
//! Each job runs by itself, with an [`Entry`] to its call. Jobs of a shared call are its [`Waiter`]s: a job joins where
//! it would make a call of its own, or leaves if it is not to be called now. Once each has joined or left, the first
//! one makes the call for all, and gives each the result.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::bce::{Answer, InstanceId, NoAnswer};
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

/// A call for several jobs.
#[derive(Debug)]
struct SharedCall {
    state: Mutex<State>,
    completed: Notify,
}

#[derive(Debug)]
struct State {
    /// Jobs that have neither joined nor left.
    missing: usize,
    members: Vec<Member>,
    permit: Option<Permit>,
}

/// Whether a start call for a job is still wanted: its deadline may have passed by now, or a command ended it.
#[derive(Clone)]
pub(in crate::lane) struct Wanted(Arc<dyn Fn() -> bool + Send + Sync>);

impl Wanted {
    /// For as long as `is_wanted` says so.
    pub(in crate::lane) fn while_so(is_wanted: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_wanted))
    }

    /// Whether it is wanted now.
    pub(super) fn now(&self) -> bool {
        (self.0)()
    }
}

impl fmt::Debug for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Wanted").field(&self.now()).finish()
    }
}

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: InstanceId,
    pub(super) wanted: Wanted,
    reply: oneshot::Sender<Reply>,
}

impl Member {
    #[cfg(test)]
    pub(super) fn for_tests(instance: InstanceId, is_wanted: bool) -> Self {
        Self { instance, wanted: Wanted::while_so(move || is_wanted), reply: oneshot::channel().0 }
    }

    /// A job that no longer waits is back in its queue.
    pub(super) fn reply(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }
}

/// What came of a shared call for one of its jobs.
#[derive(Debug)]
pub(super) enum Reply {
    /// The answer to all of them. `touched`: an earlier call may have started the instance.
    Answer { result: Result<Answer, NoAnswer>, evidence: Evidence, touched: bool },
    /// No call was made: to be called singly, with this permit.
    Permit(Permit),
    /// To be called singly, with a permit of its own.
    Singly { touched: bool },
    /// The same, after another job's call for this instance: its answer does not show how the instance was met.
    Second { touched: bool },
}

/// A job's place in a shared call.
#[derive(Debug)]
pub(in crate::lane) struct Waiter {
    call: Arc<SharedCall>,
    has_arrived: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.arrive(None);
    }
}

impl Entry {
    /// For `count` jobs that share the call of `permit`. Jobs that have to be called singly take permits of their own.
    pub(in crate::lane) fn shared(count: usize, permit: Permit) -> impl Iterator<Item = Self> {
        let state = State { missing: count, members: Vec::with_capacity(count), permit: Some(permit) };
        let call = Arc::new(SharedCall { state: Mutex::new(state), completed: Notify::new() });
        (0..count).map(move |_| Self::Waiter(Waiter { call: call.clone(), has_arrived: false }))
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

impl Waiter {
    /// Joins the shared call. Once each of its jobs has joined or left, the first one gets the call to make. The reply
    /// comes once it was made.
    pub(super) async fn join(
        mut self,
        instance: &InstanceId,
        wanted: Wanted,
    ) -> (Option<(Permit, Vec<Member>)>, oneshot::Receiver<Reply>) {
        let (reply, replied) = oneshot::channel();
        let is_first = self.arrive(Some(Member { instance: instance.clone(), wanted, reply }));
        if !is_first {
            return (None, replied);
        }
        self.call.completed.notified().await;
        (self.call.take(), replied)
    }

    /// Counts this job as no longer missing. Returns whether it is the first member.
    fn arrive(&mut self, member: Option<Member>) -> bool {
        if std::mem::replace(&mut self.has_arrived, true) {
            return false;
        }
        let mut state = self.call.state();
        let is_first = member.is_some() && state.members.is_empty();
        state.members.extend(member);
        state.missing -= 1;
        if state.missing == 0 {
            self.call.completed.notify_one();
        }
        is_first
    }
}

impl SharedCall {
    fn take(&self) -> Option<(Permit, Vec<Member>)> {
        let mut state = self.state();
        Some((state.permit.take()?, std::mem::take(&mut state.members)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
