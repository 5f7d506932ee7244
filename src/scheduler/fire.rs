//! Fires a due time: its machines are named, the batch is announced, and a job is submitted for each.
//!
//! Jobs and announcement have ids that derive from the schedule's batch, which its due time names. So whoever fires the same due
//! time again, after a crash for instance, submits copies, which their lane knows.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tracing::info;

use super::past::{LONGEST_LEAD, batch_of};
use crate::broker::connection::ConnectError;
use crate::broker::{self, Connection, ConnectionKind, Names, PublishError, Traffic};
use crate::config::{Broker, Machines, Schedule};
use crate::events::{Batch, Plan, ScheduleFired};
use crate::fleet::{Defaults, IN_FLIGHT, Identity, Input, InputFault, announced, announcement, of_batch, outgoing};
use crate::query::select::Wanted;
use crate::query::{SelectError, ask_selected};

/// Groups of them that wait for confirms.
const GROUPS: usize = 4;
/// Problems of a file that are named.
const NAMED: usize = 3;

/// Why a due time is not fired.
#[derive(Debug, thiserror::Error)]
pub(super) enum FireError {
    #[error(transparent)]
    Unconnected(#[from] ConnectError),
    #[error(transparent)]
    Unselected(#[from] SelectError),
    #[error("no instance meets {0}")]
    Nothing(String),
    #[error("its machines cannot be read: {0}")]
    Unread(#[from] InputFault),
    #[error("its file names the batch {0:?}: leave out batch_id, as a due time has a batch of its own")]
    OtherBatch(String),
    #[error("{} is no regular file: expected a list or a table", .0.display())]
    NoFile(PathBuf),
    #[error("its file was changed while it was read: {0}")]
    Changed(String),
    #[error("it was not done within {0:?}")]
    TooLong(Duration),
    #[error("a fault of reveille's: {0}")]
    Panicked(String),
    #[error("RabbitMQ has not taken all jobs: {0}")]
    Unsubmitted(#[from] PublishError),
}

/// Submits the jobs of a due time, over a connection of its own. Instances are selected in their `turn`. `plan`: its machines are to
/// be up by then.
///
/// # Errors
/// [`FireError`]: some of the jobs may be submitted.
pub(super) async fn fire(
    broker: &Broker,
    names: &Names,
    schedule: &Schedule,
    due: Timestamp,
    plan: Option<Plan>,
    turn: &Semaphore,
) -> Result<ScheduleFired, FireError> {
    let connection = broker::connect(broker, ConnectionKind::Scheduler).await?;
    let fired = submit(&connection, names, schedule, due, plan, turn).await;
    connection.close().await;
    fired
}

async fn submit(
    connection: &Connection,
    names: &Names,
    schedule: &Schedule,
    due: Timestamp,
    plan: Option<Plan>,
    turn: &Semaphore,
) -> Result<ScheduleFired, FireError> {
    let batch = batch_of(schedule, due);
    let (ids, file) = machines(connection, names, schedule, turn).await?;
    let (deadline, confirm, conflict) = (schedule.deadline, schedule.confirm, schedule.conflict);
    let defaults = Defaults {
        deadline: deadline.and_then(|deadline| due.checked_add(deadline).ok()),
        confirm,
        conflict,
        ..Defaults::new(batch.clone(), Timestamp::now())
    };
    let identity = Identity { lane: schedule.lane.clone(), moving_deadline: None, ramp: false };
    let files = file.into_iter().collect::<Vec<_>>();
    let mut input = Input::new(ids, &files, None, defaults, identity)?.naming(NAMED);
    let (input, checked) =
        spawn_blocking(move || input.check().map(|checked| (input, checked))).await.expect("reading does not panic")?;
    let checked = Arc::new(checked);
    if let Some(told) = &checked.told {
        info!(schedule = schedule.name, "{told}");
    }
    if let Some(other) = checked.parts.keys().find(|other| **other != batch) {
        return Err(FireError::OtherBatch(other.clone()));
    }
    let announced_at = announced_at(schedule, due);
    let publisher = connection.publisher(Traffic::Jobs, GROUPS);
    let announce = async |size, waves| {
        let announced_batch = Batch {
            max_failures: schedule.max_failures,
            waves,
            ready_by: plan.map(|_| due),
            ..Batch::new(batch.clone(), size, schedule.lane.to_string())
        };
        // Whoever fires the same due time again announces the size anew, under the same id.
        let announcement = announcement(of_batch(&schedule.lane, &batch), announced_batch, announced_at);
        publisher.try_publish(Arc::new(announced(names.outcomes(), &schedule.lane, &announcement))).await.map(drop)
    };
    let sizes = checked.parts.get(&batch).map(|part| part.waves(false)).unwrap_or_default();
    let waves = sizes.len();
    announce(checked.size(), sizes).await?;
    let jobs = outgoing(input, checked.clone(), names.jobs(), announced_at);
    let jobs = stream::unfold(jobs, async |mut jobs| jobs.recv().await.map(|job| (job, jobs)));
    let submitting = jobs.map(|job| async {
        let job = job.map_err(FireError::Changed)?;
        let _confirmed = publisher.try_publish(job.message).await?;
        Ok::<(), FireError>(())
    });
    let mut submitted = pin!(submitting.buffer_unordered(IN_FLIGHT));
    while let Some(submitted) = submitted.next().await {
        submitted?;
    }
    Ok(ScheduleFired {
        schedule: schedule.name.clone(),
        lane: schedule.lane.to_string(),
        due,
        batch_id: batch,
        size: checked.size(),
        waves: waves.max(1),
        previous_size: None,
        small: false,
        plan,
        by_hand: None,
    })
}

/// When the jobs of a due time say that they were announced. It is the same whoever fires it, and however often: a command to start a
/// wave is for the jobs that were announced at one time. Nor is it to come: a cancellation is for the jobs that were announced before
/// it. So where machines are to be up by the due time, it is the earliest at which that may be fired.
fn announced_at(schedule: &Schedule, due: Timestamp) -> Timestamp {
    if schedule.ready_by && schedule.timetable.is_due(due) {
        due.checked_sub(LONGEST_LEAD).unwrap_or(Timestamp::MIN)
    } else {
        due
    }
}

/// Ids, or the file that has them.
async fn machines(
    connection: &Connection,
    names: &Names,
    schedule: &Schedule,
    turn: &Semaphore,
) -> Result<(Vec<String>, Option<PathBuf>), FireError> {
    match &schedule.machines {
        Machines::Listed(ids) => Ok((ids.iter().map(ToString::to_string).collect(), None)),
        Machines::File(path) => {
            let looked_at = path.clone();
            let found = spawn_blocking(move || std::fs::metadata(looked_at)).await.expect("looking does not panic");
            // What is not there is for the reader to say. A pipe would be waited for.
            if found.is_ok_and(|found| !found.is_file()) {
                return Err(FireError::NoFile(path.clone()));
            }
            Ok((Vec::new(), Some(path.clone())))
        }
        Machines::Selected(selection) => {
            // A lane reads two lists at a time, and others ask for one too.
            let _turn = turn.acquire().await;
            let wanted = Wanted { lane: schedule.lane.to_string(), select: selection.to_string() };
            let found = ask_selected(connection, names, &wanted).await?;
            if found.is_empty() {
                return Err(FireError::Nothing(wanted.select));
            }
            Ok((found.into_keys().map(|id| id.to_string()).collect(), None))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::agenda::tests::{at, schedule};

    #[test]
    fn jobs_that_are_fired_ahead_were_announced_by_then() {
        let ahead = schedule("morning", "30 7 * * *");
        assert_eq!(announced_at(&ahead, at("25T07:30")), at("25T07:00"), "by hand, too");
        assert_eq!(announced_at(&ahead, at("25T09:12")), at("25T09:12"), "by hand, of no due time");
        let other = Schedule { ready_by: false, ..ahead };
        assert_eq!(announced_at(&other, at("25T07:30")), at("25T07:30"));
    }
}
