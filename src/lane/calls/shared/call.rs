//! Makes a shared call, and maps its answer to the members.

use std::collections::HashSet;

use tracing::debug;

use super::{Member, Told, in_time};
use crate::bce::{Answer, InstanceId, InstanceState, NoAnswer};
use crate::job::Conflict;
use crate::lane::calls::strategy::Way;
use crate::lane::calls::{Calls, Made};
use crate::lane::quota::{Permit, Slot};
use crate::lane::verdict::{self, Circumstances, Verdict};

impl Calls {
    /// Makes the call for `members`, and gives each its result.
    pub(super) async fn call_for(&self, mut permit: Permit, mut members: Vec<Member>) {
        let instances = distinct(&members);
        let way = self.strategy.way(instances.len());
        if way == Way::Singly {
            let mut members = members.into_iter();
            if let Some(first) = members.next() {
                let _ = first.tell.send(Told::Permit(permit));
            }
            return singly(members, false, false);
        }
        let is_counted = way == Way::AskFirst;
        if is_counted {
            let (stopped, slot) = self.ask(permit, &instances).await;
            let Some(stopped) = stopped else { return singly(members, false, false) };
            let (called, others) = members.into_iter().partition(|member| stopped.contains(&member.instance));
            singly(others, false, true);
            members = called;
            if members.len() < 2 {
                return singly(members, false, true);
            }
            match self.gate.enter(slot).await {
                Ok(another) => permit = another,
                Err(_paused) => return singly(members, false, true),
            }
        }
        if !members.iter().any(|member| in_time(member.deadline)) {
            return singly(members, false, is_counted);
        }
        let instances = || {
            let wanted = members.iter().filter(|member| in_time(member.deadline));
            distinct(wanted)
        };
        let batch = self.start_batch(permit, instances).await;
        let (result, named, failed) = match batch.result {
            None => return singly(members, batch.touched, is_counted),
            Some(Ok((answer, (named, failed)))) => (Ok(answer), named, failed),
            Some(Err(error)) => (Err(error), distinct(&members), None),
        };
        let verdict = verdict::of_start(&result, Circumstances { policy: Conflict::Verify, first_touch: true });
        let Some(first) = members.first() else { return };
        let evidence = self.gate.record(&first.instance, &verdict, &result);
        // Only now that the result is recorded: if the call failed, the breaker may withhold the next one.
        drop(batch.slot);
        let reach = Reach::of(&verdict, &result, failed);
        if let (Reach::AllBut(failed), Verdict::Started { .. }, false) = (&reach, &verdict, is_counted) {
            self.strategy.saw(named.len() - failed.len(), 0);
        }
        debug!(lane = %self.lane, jobs = members.len(), instances = named.len(), ?verdict, ?reach, "called together");
        let mut named: HashSet<InstanceId> = named.into_iter().collect();
        for member in members {
            let told = match &reach {
                // The instance was already answered for another job, or its deadline had passed.
                _ if !named.remove(&member.instance) => Told::Singly { touched: batch.touched, is_counted: true },
                Reach::AllBut(failed) if !failed.contains(&member.instance) => {
                    Told::Answer { result: result.clone(), evidence, touched: batch.touched }
                }
                Reach::AllBut(_) => Told::Singly { touched: batch.touched, is_counted },
                Reach::None { touched } => Told::Singly { touched: *touched || batch.touched, is_counted },
            };
            // A job that does not wait any more is back in its queue.
            let _ = member.tell.send(told);
        }
    }

    /// Lists which of `instances` are stopped; `None` if the API did not say. Returns the slot.
    async fn ask(&self, permit: Permit, instances: &[InstanceId]) -> (Option<HashSet<InstanceId>>, Slot) {
        let Made { result, slot, .. } = self.states(permit, instances).await;
        let Some(listed) = result else { return (None, slot) };
        if let Ok((answer, Some(states))) = &listed
            && !answer.foreign
        {
            let stopped: HashSet<InstanceId> = states
                .iter()
                .filter(|(_, state)| **state == InstanceState::Stopped)
                .map(|(id, _)| id.clone())
                .collect();
            self.strategy.saw(stopped.len(), instances.len() - stopped.len());
            return (Some(stopped), slot);
        }
        self.strategy.asked_in_vain();
        let result = listed.map(|(answer, _)| answer);
        let verdict = verdict::general(&result);
        // A key without permission to list may still start.
        if !matches!(verdict, Verdict::Failed(_) | Verdict::NoCapacity { .. }) {
            self.gate.record(&instances[0], &verdict, &result);
        }
        (None, slot)
    }
}

/// Which jobs learn from a shared call's answer what happened to their own instance.
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
}

fn singly(members: impl IntoIterator<Item = Member>, touched: bool, is_counted: bool) {
    for member in members {
        let _ = member.tell.send(Told::Singly { touched, is_counted });
    }
}

/// Each instance once, however many jobs there are for it.
fn distinct<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<InstanceId> {
    let mut seen = HashSet::new();
    let first = members.into_iter().filter(|member| seen.insert(&member.instance));
    first.map(|member| member.instance.clone()).collect()
}

#[cfg(test)]
mod tests;
