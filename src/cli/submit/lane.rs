//! The lane to submit to, and how things stand there.

use std::fmt;

use jiff::SignedDuration;
use serde::Serialize;

use super::errors::failed;
use crate::broker::{self, Connection, Look, Names};
use crate::cli::watch::{is_paused, not_run};
use crate::cli::{Failure, lanes, tell};
use crate::config::{Config, Lane, LaneName};
use crate::events::MaxFailures;
use crate::fleet::Checked;
use crate::query::{LaneStatus, Statuses, ask_statuses};

/// The lane of this name, or the only one of the configuration.
///
/// # Errors
/// It is no name of a lane, or there are several lanes.
pub(super) fn choose(name: Option<&str>, config: &Config) -> Result<LaneName, Failure> {
    match (name, &config.lanes[..]) {
        (Some(name), _) => lanes::parse(name, config),
        (None, [only]) => Ok(only.name.clone()),
        (None, _) => Err(Failure::Usage(format!(
            "the configuration has several lanes: choose one with --lane; there are {}",
            lanes::known(config).join(", ")
        ))),
    }
}

/// A lane as it is found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Jobs that wait for their first call, and jobs that are due again. Those in the delay ladder are not known.
    waiting: u32,
    /// Urgent ones.
    urgent: u32,
    /// Whether a replica runs the lane, or stands by.
    is_run: bool,
    /// Whether no replica runs the scheduler, or stands by.
    is_unscheduled: bool,
    /// Why the lane makes no calls, if its holder says so.
    pub(super) paused: Option<String>,
    /// The lane's holder is of a version that has no waves, as it says.
    has_no_waves: bool,
}

/// A queue that was never declared takes nothing: its jobs would end among the dead letters as unroutable. Nor does one that is
/// not bound yet, and the lane's baton is declared after that.
///
/// Where the user may not look, which takes no permission before RabbitMQ 4.3, that is said and the jobs go out all the same:
/// `None`.
///
/// # Errors
/// The lane is not there, or takes no urgent jobs though some are to be submitted.
pub(super) async fn look(
    connection: &Connection,
    names: &Names,
    lane: &LaneName,
    jobs: &Checked,
    config: &Config,
) -> Result<Option<Standing>, Failure> {
    let unseen = |error| failed(names, "cannot look for the lane's queues; no job was submitted", &error);
    let channel = connection.channel().await.map_err(unseen)?;
    let mut standing = Standing::default();
    for (queue, is_used, lacking) in [
        (names.jobs_of(lane), jobs.has_others, format!("there is no lane {lane}")),
        (names.urgent_of(lane), jobs.has_urgent, format!("lane {lane} takes no urgent jobs")),
        (names.baton_of(lane), true, format!("lane {lane} is not set up yet")),
    ] {
        // Asking for a queue that is missing costs the channel.
        if !is_used {
            continue;
        }
        match broker::count(&channel, &queue).await {
            Ok(found) if queue == names.urgent_of(lane) => standing.urgent = found.messages,
            Ok(found) if queue == names.jobs_of(lane) => standing.waiting += found.messages,
            Ok(found) => standing.is_run = found.consumers > 0,
            Err(error) if error.is_amqp_soft_error() && !broker::is_access_refused(&error) => {
                // Where a lane lacks but one queue, it is known.
                let is_known = queue == names.urgent_of(lane)
                    && matches!(broker::look(connection, &names.jobs_of(lane)).await, Ok(Look::There(_)));
                let hint = if is_known { String::new() } else { lanes::unknown(lane, connection, names, config).await };
                return Err(Failure::Usage(format!(
                    "{lacking} at {}: {error}; a lane's queues exist once `reveille run` has run with it, some seconds after its start{hint}",
                    config.broker.address()
                )));
            }
            Err(error) if broker::is_access_refused(&error) => {
                tell(format_args!(
                    "cannot look for lane {lane}, so its jobs are submitted unseen, and become dead letters if there is none: {error}"
                ));
                return Ok(None);
            }
            Err(error) => return Err(unseen(error)),
        }
    }
    // Declared with the others; an older daemon's may be missing.
    if let Ok(due) = broker::count(&channel, &names.due_of(lane)).await {
        standing.waiting = standing.waiting.saturating_add(due.messages);
    }
    if let Ok(scheduler) = broker::count(&channel, &names.scheduler_baton()).await {
        standing.is_unscheduled = scheduler.consumers == 0;
    }
    if standing.is_run
        && let Some(told) = ask_holder(connection, names, lane).await
    {
        standing.has_no_waves = !told.waves;
        standing.paused = told.cause;
    }
    Ok(Some(standing))
}

/// What the lane's holder says of it. `None` where the user may not ask it, or it does not answer in time.
async fn ask_holder(connection: &Connection, names: &Names, lane: &LaneName) -> Option<LaneStatus> {
    let is_told = |statuses: &Statuses| statuses.holder_of(lane.as_str()).is_some();
    let (statuses, _) = ask_statuses(connection, names, lanes::ANSWERS, is_told).await;
    statuses.holder_of(lane.as_str()).cloned()
}

impl Standing {
    /// Checks that the lane's holder knows what the announcement says.
    ///
    /// # Errors
    /// It is of an earlier version.
    pub(super) fn check(
        &self,
        name: &LaneName,
        jobs: &Checked,
        ramp: bool,
        max_failures: Option<MaxFailures>,
    ) -> Result<(), Failure> {
        let (what, follows) = match max_failures {
            _ if !jobs.waves(ramp).is_empty() => ("waves", "it would start all jobs at once"),
            Some(MaxFailures::Percent(_)) => {
                ("--max-failures as a part of a batch", "it may not see that the batch is announced")
            }
            _ => return Ok(()),
        };
        if self.has_no_waves {
            return Err(Failure::Usage(format!(
                "nothing submitted: lane {name} is run by a replica of a version without {what}, so {follows}; upgrade all replicas \
                 first"
            )));
        }
        Ok(())
    }

    /// What a person should know before jobs are submitted: a line each. `lane`: its settings, if the configuration has it.
    pub(super) fn notes(&self, name: &LaneName, jobs: &Checked, lane: Option<&Lane>, ramp: bool) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.is_run {
            notes.push(not_run(name.as_str()));
        }
        if self.is_run && self.is_unscheduled && !jobs.waves(ramp).is_empty() {
            notes.push(
                "no replica runs the scheduler: waves after the first wait until one does (reveille_scheduler_held)"
                    .to_owned(),
            );
        }
        notes.extend(self.paused.as_ref().map(|cause| is_paused(name.as_str(), cause)));
        // Urgent jobs wait for urgent ones alone.
        let ahead = if jobs.has_others { self.waiting.saturating_add(self.urgent) } else { self.urgent };
        if ahead > 0 {
            let (jobs, go) =
                if ahead == 1 { ("1 job waits".to_owned(), "goes") } else { (format!("{ahead} jobs wait"), "go") };
            let length = lane
                .map(|lane| format!(", and {go} first: {}", Cost::of(ahead.into(), lane).length()))
                .unwrap_or_default();
            notes.push(format!("{jobs} in lane {name} already{length}"));
        }
        notes
    }
}

/// What it costs to start so many instances, by the settings of the lane: where none is refused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Cost {
    /// Start calls.
    calls: u64,
    /// Jobs in each, at most.
    batch: u32,
    /// Calls a second.
    rate: f64,
    /// How long they take at least.
    seconds: i64,
}

impl Cost {
    pub(super) fn of(jobs: u64, lane: &Lane) -> Self {
        Self::of_calls(jobs.div_ceil(lane.batch.into()), lane)
    }

    /// The same of all jobs of a command: jobs of two waves share no call. The time between waves is not known.
    pub(super) fn of_waves(jobs: &Checked, ramp: bool, lane: &Lane) -> Self {
        let calls = |jobs: usize| (jobs as u64).div_ceil(lane.batch.into());
        let waves = jobs.waves(ramp);
        let in_waves: usize = waves.iter().flat_map(|(_, sizes)| sizes.values()).sum();
        let shared = calls(jobs.size().saturating_sub(in_waves));
        Self::of_calls(
            waves.iter().flat_map(|(_, sizes)| sizes.values()).map(|size| calls(*size)).sum::<u64>() + shared,
            lane,
        )
    }

    fn of_calls(calls: u64, lane: &Lane) -> Self {
        // The cast of a float saturates.
        Self { calls, batch: lane.batch, rate: lane.rate, seconds: (calls as f64 / lane.rate).ceil() as i64 }
    }

    /// Such as `3s at least, with 20 calls a second of up to 10 jobs`.
    fn length(&self) -> String {
        let batch = if self.batch > 1 { format!(" of up to {} jobs", self.batch) } else { String::new() };
        format!("{:#} at least, with {} calls a second{batch}", SignedDuration::from_secs(self.seconds), self.rate)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls = if self.calls == 1 { "1 start call".to_owned() } else { format!("{} start calls", self.calls) };
        write!(f, "{calls}: {}", self.length())
    }
}
