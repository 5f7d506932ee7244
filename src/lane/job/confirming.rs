//! A job whose start was accepted, and that is done only when its instance runs.

use jiff::Timestamp;

use super::confirm::{self, Step};
use super::{Conclusion, Job, NOT_THE_APIS, Next};
use crate::broker::Confirmed;
use crate::events::Outcome;
use crate::job::{Confirming, Progress};
use crate::lane::calls::{Entry, Sight};
use crate::lane::parts::{Lane, Running};
use crate::telemetry::ParkCause;

impl Job {
    /// Polls the instance's state, together with other jobs, and decides. That takes a second or more, so `entry` is
    /// given back first: no start has to wait for it.
    pub(super) async fn poll(&self, lane: &Lane, confirming: &Confirming, entry: Entry) -> Next {
        drop(entry);
        if lane.gate.breaker().is_open() {
            return self.unharmed(false);
        }
        let told = lane.calls.poll(&self.job.instance_id).await;
        let now = Timestamp::now();
        let Some(told) = told else {
            let delay = confirm::delay(confirming, lane.settings.lane.confirm_timeout, now);
            return if lane.gate.breaker().is_open() {
                self.unharmed(false)
            } else {
                self.later(false, delay, ParkCause::PollPostponed)
            };
        };
        // What failed this poll fails others too, and is not the job's fault.
        let spared =
            lane.gate.breaker().is_open() && !confirm::is_overdue(confirming, lane.settings.lane.confirm_timeout, now);
        if told.sight == Sight::Nothing && spared {
            return self.unharmed(false);
        }
        match confirm::judge(told.sight, confirming, lane.settings.lane.confirm_timeout, now) {
            Step::Wait(confirming, delay) => {
                let progress = Progress { confirming: Some(confirming), ..self.held.progress.clone() };
                Next::Park { progress, delay, cause: ParkCause::Confirm }
            }
            Step::End { outcome, ambiguous, why } => {
                if outcome == Outcome::Running {
                    lane.metrics.runs(now.duration_since(confirming.since));
                }
                let is_foreign = told.answer.as_ref().is_ok_and(|answer| answer.foreign);
                let why = if is_foreign { format!("{why}; {NOT_THE_APIS}") } else { why };
                let explanation = (!why.is_empty()).then_some(why);
                let attempts = self.held.progress.attempts;
                Next::Conclude(Conclusion { outcome, ambiguous, attempts, answer: told.answer.ok(), explanation })
            }
        }
    }

    /// If a copy of this job was published as started, the same is published again.
    pub(super) fn started_before(&self, lane: &Lane) -> Option<Next> {
        let (since, ambiguous) = lane.history.jobs.started(self.key)?;
        let started = self.held.conclusion(Outcome::Started, ambiguous, "a copy of this job was started before");
        let attempts = started.attempts;
        Some(Next::GoOn { started: Some(started), attempts, confirming: super::confirming(since, ambiguous) })
    }

    /// Publishes the `started` event, if there is one, and then parks the job until the first poll. In this order: a
    /// crash in between would else leave a job that runs without a `started` event.
    pub(super) async fn go_on(
        &self,
        running: &Running,
        started: Option<Conclusion>,
        attempts: u32,
        confirming: Confirming,
    ) -> Result<Confirmed, lapin::Error> {
        let lane = &running.lane;
        let told = if let Some(started) = &started {
            lane.history.jobs.start(self.key, confirming.since, confirming.ambiguous);
            let event = self.held.event(lane, started, Some(&self.job), false, confirming.since);
            let told = running.outbox.event(event).await?;
            lane.history.jobs.published(self.key);
            Some(told)
        } else {
            None
        };
        let delay = confirm::delay(&confirming, lane.settings.lane.confirm_timeout, Timestamp::now());
        let progress = Progress { touched: true, attempts, confirming: Some(confirming), ..self.held.progress.clone() };
        let kept = self.held.park(running, &progress, delay, ParkCause::Confirm).await?;
        Ok(kept.with(told))
    }
}
