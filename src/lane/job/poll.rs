//! A job whose start was accepted, and that is done only when its instance runs.

use jiff::Timestamp;

use super::boot::{self, Step};
use super::{Conclusion, NOT_THE_APIS, Next, Task};
use crate::broker::Confirmed;
use crate::events::Outcome;
use crate::job::{Boot, ParkCause, Progress};
use crate::lane::calls::{Entry, Observed};
use crate::lane::parts::{Lane, Session};

impl Task {
    /// Polls the instance's state, together with other jobs, and decides. That takes a second or more, so `entry` is
    /// given back first: no start has to wait for it.
    pub(super) async fn poll(&self, lane: &Lane, boot: &Boot, entry: Entry) -> Next {
        drop(entry);
        if lane.gate.breaker().is_open() {
            return self.park_paused(false);
        }
        let polled = lane.calls.polls.ask(&self.job.instance_id).await;
        let now = Timestamp::now();
        let Some(polled) = polled else {
            let delay = boot::delay(boot, lane.settings.lane.confirm_timeout, now);
            return if lane.gate.breaker().is_open() {
                self.park_paused(false)
            } else {
                self.later(false, delay, ParkCause::PollPostponed)
            };
        };
        // What failed this poll fails others too, and is not the job's fault.
        let spared = lane.gate.breaker().is_open() && !boot::is_overdue(boot, lane.settings.lane.confirm_timeout, now);
        if polled.observed == Observed::Nothing && spared {
            return self.park_paused(false);
        }
        match boot::judge(polled.observed, boot, lane.settings.lane.confirm_timeout, now) {
            Step::Wait(boot, delay) => {
                let progress = Progress { boot: Some(boot), ..self.held.progress.clone() };
                Next::Park { progress, delay, cause: ParkCause::Confirm }
            }
            Step::End { outcome, ambiguous, why } => {
                if outcome == Outcome::Running {
                    lane.metrics.runs(now.duration_since(boot.since));
                }
                let is_from_proxy = polled.answer.as_ref().is_ok_and(|answer| answer.from_proxy);
                let why = if is_from_proxy { format!("{why}; {NOT_THE_APIS}") } else { why };
                let explanation = (!why.is_empty()).then_some(why);
                let attempts = self.held.progress.attempts;
                Next::Conclude(Conclusion { outcome, ambiguous, attempts, answer: polled.answer.ok(), explanation })
            }
        }
    }

    /// If a copy of this job was published as started, the same is published again.
    pub(super) fn started_before(&self, lane: &Lane) -> Option<Next> {
        let (since, ambiguous) = lane.history.seen.started(self.key)?;
        let started = self.held.conclusion(Outcome::Started, ambiguous, "a copy of this job was started before");
        let attempts = started.attempts;
        Some(Next::GoOn { started: Some(started), attempts, boot: Boot::begun(since, ambiguous) })
    }

    /// Publishes the `started` event, if there is one, and then parks the job until the first poll. In this order: a
    /// crash in between would else leave a job that runs without a `started` event.
    pub(super) async fn go_on(
        &self,
        session: &Session,
        started: Option<Conclusion>,
        attempts: u32,
        boot: Boot,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &session.lane;
        let published = if let Some(started) = &started {
            lane.history.seen.record_started(self.key, boot.since, boot.ambiguous);
            let event = self.held.event(lane, started, Some(&self.job), false, boot.since);
            let published = session.outbox.event(event).await?;
            lane.history.seen.record_published(self.key);
            Some(published)
        } else {
            None
        };
        let delay = boot::delay(&boot, lane.settings.lane.confirm_timeout, Timestamp::now());
        let progress = Progress { touched: true, attempts, boot: Some(boot), ..self.held.progress.clone() };
        let parked = self.held.park(session, &progress, delay, ParkCause::Confirm).await?;
        Ok(parked.with(published))
    }
}
