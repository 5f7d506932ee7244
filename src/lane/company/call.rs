//! The call for all members of a company, and whom its answer tells what.

use std::collections::HashSet;

use tokio::sync::OwnedSemaphorePermit;
use tracing::debug;

use super::{Member, Told, in_time};
use crate::bce::{Answer, InstanceId, InstanceState, NoAnswer};
use crate::job::Conflict;
use crate::lane::Lane;
use crate::lane::plan::Way;
use crate::lane::verdict::{self, Circumstances, Verdict};

/// Makes the call for `members`, in the turn that was waited for and in its slot, and tells each what came of it.
pub(super) async fn call(lane: &Lane, slot: OwnedSemaphorePermit, mut members: Vec<Member>) {
    let instances = distinct(&members);
    let way = lane.plan.way(instances.len());
    if way == Way::Singly {
        let mut members = members.into_iter();
        if let Some(first) = members.next() {
            let _ = first.tell.send(Told::Turn(slot));
        }
        return singly(members, false, false);
    }
    let is_counted = way == Way::AskFirst;
    if is_counted {
        let Some(stopped) = ask(lane, &instances).await else { return singly(members, false, false) };
        let (called, others) = members.into_iter().partition(|member| stopped.contains(&member.instance));
        singly(others, false, true);
        members = called;
        if members.len() < 2 || lane.limited().await.is_err() {
            return singly(members, false, true);
        }
    }
    if !members.iter().any(|member| in_time(member.deadline)) {
        return singly(members, false, is_counted);
    }
    let instances = || {
        let wanted = members.iter().filter(|member| in_time(member.deadline));
        distinct(wanted)
    };
    let batch = lane.start_batch(instances).await;
    let (result, named, failed) = match batch.result {
        Err(NoAnswer::Stale { .. }) => return singly(members, batch.touched, is_counted),
        Ok((answer, (named, failed))) => (Ok(answer), named, failed),
        Err(error) => (Err(error), distinct(&members), None),
    };
    let verdict = verdict::of_start(&result, Circumstances { policy: Conflict::Verify, first_touch: true });
    let Some(first) = members.first() else { return };
    let evidence = lane.record(&first.instance, &verdict, &result);
    // No earlier: the next call is one too many where this one failed.
    drop(slot);
    let reach = Reach::of(&verdict, &result, failed);
    if let (Reach::AllBut(failed), Verdict::Started { .. }, false) = (&reach, &verdict, is_counted) {
        lane.plan.saw(named.len() - failed.len(), 0);
    }
    debug!(lane = %lane.name, jobs = members.len(), instances = named.len(), ?verdict, ?reach, "called together");
    let mut named: HashSet<InstanceId> = named.into_iter().collect();
    for member in members {
        let told = match &reach {
            // Another job for this instance was called for, and had the answer; or a deadline had passed.
            _ if !named.remove(&member.instance) => Told::Singly { touched: batch.touched, is_counted: true },
            Reach::AllBut(failed) if !failed.contains(&member.instance) => {
                Told::Answer { result: result.clone(), evidence, touched: batch.touched }
            }
            Reach::AllBut(_) => Told::Singly { touched: batch.touched, is_counted },
            Reach::Nobody { touched } => Told::Singly { touched: *touched || batch.touched, is_counted },
        };
        // Who does not wait any more is gone, and its job back in its queue.
        let _ = member.tell.send(told);
    }
}

/// Whom a company's answer tells what has become of its own instance.
#[derive(Debug, PartialEq, Eq)]
enum Reach {
    AllBut(Vec<InstanceId>),
    /// `touched`: some may have been started.
    Nobody {
        touched: bool,
    },
}

impl Reach {
    /// `failed`: whom a 2xx names; `None` where it could not be read.
    fn of(verdict: &Verdict, result: &Result<Answer, NoAnswer>, failed: Option<Vec<InstanceId>>) -> Self {
        match (verdict, result) {
            (Verdict::Started { .. }, _) => failed.map_or(Self::Nobody { touched: true }, Self::AllBut),
            (Verdict::Throttled { .. } | Verdict::ClockSkew { .. } | Verdict::LaneFault, _) => Self::AllBut(vec![]),
            // The API refused all because of one, whom it does not name, so it started none.
            (_, Ok(answer)) if answer.status >= 400 && verdict::is_judged(verdict, answer) => {
                Self::Nobody { touched: false }
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

/// Those of `instances` that are stopped, in the turn that was waited for; `None` where that was not told.
async fn ask(lane: &Lane, instances: &[InstanceId]) -> Option<HashSet<InstanceId>> {
    let listed = lane.states(instances).await;
    if let Err(NoAnswer::Stale { .. }) = listed {
        return None;
    }
    if let Ok((answer, Some(states))) = &listed
        && !answer.foreign
    {
        let stopped: HashSet<InstanceId> =
            states.iter().filter(|(_, state)| **state == InstanceState::Stopped).map(|(id, _)| id.clone()).collect();
        lane.plan.saw(stopped.len(), instances.len() - stopped.len());
        return Some(stopped);
    }
    lane.plan.asked_in_vain();
    let result = listed.map(|(answer, _)| answer);
    let verdict = verdict::general(&result);
    // Who may not list may start all the same.
    if !matches!(verdict, Verdict::Failed(_) | Verdict::NoCapacity { .. }) {
        lane.record(&instances[0], &verdict, &result);
    }
    None
}

#[cfg(test)]
mod tests;
