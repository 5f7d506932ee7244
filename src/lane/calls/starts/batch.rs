//! Makes the call for the jobs of a shared call, and decides to which of them its answer applies.
//!
//! A batch is called at once, or its states are listed first (see [`strategy`](super::strategy)). After a 409 or 404 they
//! are listed too: then the stopped ones are called together, and each other one singly, for its own answer.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::debug;

use super::entry::{Member, Reply};
use super::strategy::{Choice, Strategy};
use crate::bce::{Answer, InstanceId, InstanceState, NoAnswer};
use crate::job::Conflict;
use crate::lane::calls::api::{Api, Made};
use crate::lane::quota::{Permit, Slot};
use crate::lane::verdict::{self, Circumstances, Verdict};

/// See the module.
#[derive(Debug)]
pub(super) struct Batches {
    api: Arc<Api>,
    /// Jobs per call, at most.
    size: usize,
    strategy: Strategy,
}

/// A batch that was refused because of one instance, which the API does not name: none was started.
struct Refused {
    members: Vec<Member>,
    /// Listing their states can show which one.
    is_listable: bool,
    slot: Slot,
}

impl Batches {
    pub(super) fn new(api: Arc<Api>, size: usize) -> Self {
        Self { api, size, strategy: Strategy::default() }
    }

    /// Jobs per call at present, at most.
    pub(super) fn size(&self) -> usize {
        if self.strategy.choose(self.size) == Choice::Singly { 1 } else { self.size }
    }

    /// Records the answer to a single call.
    pub(super) fn called_singly(&self, answer: &Answer) {
        self.strategy.called_singly(answer);
    }

    /// Makes the call for `members`, and replies to each.
    pub(super) async fn call(&self, permit: Permit, members: Vec<Member>) {
        match self.strategy.choose(distinct(&members).len()) {
            Choice::Singly => {
                let mut members = members.into_iter();
                if let Some(first) = members.next() {
                    first.reply(Reply::Permit(permit));
                }
                singly(members, false);
            }
            Choice::Together => {
                let Some(refused) = self.start_together(permit, members).await else { return };
                if !refused.is_listable || !self.strategy.may_ask() {
                    return singly(refused.members, false);
                }
                match self.api.gate().enter(refused.slot).await {
                    Ok(permit) => self.ask_and_start(permit, refused.members, true).await,
                    Err(_paused) => singly(refused.members, false),
                }
            }
            Choice::AskFirst => self.ask_and_start(permit, members, false).await,
        }
    }

    /// Lists states, and starts the stopped ones together.
    async fn ask_and_start(&self, permit: Permit, members: Vec<Member>, were_refused: bool) {
        let (stopped, slot) = self.ask(permit, &distinct(&members)).await;
        let Some(stopped) = stopped else { return singly(members, false) };
        let (members, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| stopped.contains(&member.instance));
        // One is no batch; and all of them were refused together just now, for another reason than their states.
        let is_of_use = members.len() > 1 && !(were_refused && others.is_empty());
        singly(others, false);
        if !is_of_use {
            return singly(members, false);
        }
        let refused = match self.api.gate().enter(slot).await {
            Ok(permit) => self.start_together(permit, members).await.map(|refused| refused.members),
            Err(_paused) => Some(members),
        };
        singly(refused.into_iter().flatten(), false);
    }

    /// Starts `members` in one call, and replies to each. Those of a refused batch are returned without a reply.
    async fn start_together(&self, permit: Permit, members: Vec<Member>) -> Option<Refused> {
        if !members.iter().any(|member| member.wanted.now()) {
            singly(members, false);
            return None;
        }
        let instances = || distinct(members.iter().filter(|member| member.wanted.now()));
        let batch = self.api.start_batch(permit, instances).await;
        let (result, named, failed) = match batch.result {
            None => {
                singly(members, batch.touched);
                return None;
            }
            Some(Ok((answer, (named, failed)))) => (Ok(answer), named, failed),
            Some(Err(error)) => (Err(error), distinct(&members), None),
        };
        let verdict = verdict::of_start(&result, Circumstances { policy: Conflict::Verify, first_touch: true });
        let evidence = self.api.gate().record(&members.first()?.instance, &verdict, &result);
        let reach = Reach::of(&verdict, &result, failed);
        let (jobs, answered) = (members.len(), reach.answered(named.len()));
        self.api.gate().span().in_scope(|| {
            debug!(jobs, instances = named.len(), %verdict, answered, "called together");
        });
        match &reach {
            Reach::AllBut(_) if matches!(verdict, Verdict::Started { .. }) => self.strategy.called_together(answered),
            Reach::None { touched: false } => self.strategy.refused(),
            Reach::AllBut(_) | Reach::None { touched: true } => {}
        }
        if reach == (Reach::None { touched: false }) && !batch.touched {
            let is_listable = matches!(&result, Ok(Answer { status: 404 | 409, .. }))
                && !matches!(verdict, Verdict::NoCapacity { .. });
            return Some(Refused { members, is_listable, slot: batch.slot });
        }
        // Only now that the result is recorded: if the call failed, the breaker may withhold the next one.
        drop(batch.slot);
        let mut named: HashSet<InstanceId> = named.into_iter().collect();
        for member in members {
            let reply = match &reach {
                // The instance was already answered for another job, or its call was not wanted any more.
                _ if !named.remove(&member.instance) => Reply::Second { touched: batch.touched },
                Reach::AllBut(failed) if !failed.contains(&member.instance) => {
                    Reply::Answer { result: result.clone(), evidence, touched: batch.touched }
                }
                Reach::AllBut(_) => Reply::Singly { touched: batch.touched },
                Reach::None { touched } => Reply::Singly { touched: *touched || batch.touched },
            };
            member.reply(reply);
        }
        None
    }

    /// Lists which of `instances` are stopped; `None` if the API did not say. Returns the slot.
    async fn ask(&self, permit: Permit, instances: &[InstanceId]) -> (Option<HashSet<InstanceId>>, Slot) {
        let Made { result, slot, .. } = self.api.states(permit, instances).await;
        let Some(listed) = result else { return (None, slot) };
        if let Ok((answer, Some(states))) = &listed
            && !answer.from_proxy
        {
            let stopped: HashSet<InstanceId> = states
                .iter()
                .filter(|(_, state)| **state == InstanceState::Stopped)
                .map(|(id, _)| id.clone())
                .collect();
            self.strategy.asked(stopped.len() == instances.len());
            return (Some(stopped), slot);
        }
        let result = listed.map(|(answer, _)| answer);
        let verdict = verdict::general(&result);
        // A key without permission to list may still start.
        let is_refused = matches!(verdict, Verdict::Failed(_) | Verdict::NoCapacity { .. });
        self.strategy.asked_in_vain(is_refused);
        if !is_refused {
            self.api.gate().record(&instances[0], &verdict, &result);
        }
        (None, slot)
    }
}

/// The instances to which a shared call's answer applies.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    AllBut(Vec<InstanceId>),
    /// `touched`: some instances may have been started.
    None {
        touched: bool,
    },
}

impl Reach {
    /// `failed`: which instances a 2xx names; `None` where it could not be read.
    fn of(verdict: &Verdict, result: &Result<Answer, NoAnswer>, failed: Option<Vec<InstanceId>>) -> Self {
        match (verdict, result) {
            (Verdict::Started { .. }, _) => failed.map_or(Self::None { touched: true }, Self::AllBut),
            (Verdict::Throttled { .. } | Verdict::ClockSkew { .. } | Verdict::LaneFault, _) => Self::AllBut(vec![]),
            // The API refused all because of one instance, which it does not name, so it started none.
            (_, Ok(answer)) if answer.status >= 400 && verdict::is_judged(verdict, answer) => {
                Self::None { touched: false }
            }
            _ => Self::AllBut(vec![]),
        }
    }

    /// Number of the `named` instances to which the answer applies.
    fn answered(&self, named: usize) -> usize {
        match self {
            Self::AllBut(failed) => named.saturating_sub(failed.len()),
            Self::None { .. } => 0,
        }
    }
}

fn singly(members: impl IntoIterator<Item = Member>, touched: bool) {
    members.into_iter().for_each(|member| member.reply(Reply::Singly { touched }));
}

/// Each instance once, however many jobs there are for it.
fn distinct<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<InstanceId> {
    let mut seen = HashSet::new();
    let first = members.into_iter().filter(|member| seen.insert(&member.instance));
    first.map(|member| member.instance.clone()).collect()
}

#[cfg(test)]
mod tests;
