//! Fires a due time: its machines are named, the batch is announced, and a job is submitted for each.
//!
//! Jobs and announcement have ids that derive from the schedule's batch, which its due time names. So whoever fires the same due
//! time again, after a crash for instance, submits copies, which their lane knows.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tracing::info;

use super::past::batch_of;
use crate::broker::connection::ConnectError;
use crate::broker::{self, Connection, ConnectionKind, Names, Outgoing, PublishError, Traffic};
use crate::config::{Broker, Machines, Schedule};
use crate::events::{Batch, Plan, ScheduleFired};
use crate::fleet::{Checked, Defaults, Identity, Input, InputFault, announced, announcement, message};
use crate::query::select::Wanted;
use crate::query::{SelectError, ask_selected};

/// Jobs under way to the broker at a time.
const IN_FLIGHT: usize = 256;
/// Groups of them that wait for confirms.
const GROUPS: usize = 4;

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
    #[error("its file was changed while it was read: {0}")]
    Changed(String),
    #[error("RabbitMQ has not taken all jobs: {0}")]
    Unsubmitted(#[from] PublishError),
}

/// Submits the jobs of a due time, over a connection of its own. `plan`: its machines are to be up by then.
///
/// # Errors
/// [`FireError`]: some of the jobs may be submitted.
pub(super) async fn fire(
    broker: &Broker,
    names: &Names,
    schedule: &Schedule,
    due: Timestamp,
    plan: Option<Plan>,
) -> Result<ScheduleFired, FireError> {
    let connection = broker::connect(broker, ConnectionKind::Scheduler).await?;
    let fired = submit(&connection, names, schedule, due, plan).await;
    connection.close().await;
    fired
}

async fn submit(
    connection: &Connection,
    names: &Names,
    schedule: &Schedule,
    due: Timestamp,
    plan: Option<Plan>,
) -> Result<ScheduleFired, FireError> {
    let batch = batch_of(schedule, due);
    let (ids, file) = machines(connection, names, schedule).await?;
    let (deadline, confirm, conflict) = (schedule.deadline, schedule.confirm, schedule.conflict);
    let defaults = Defaults {
        deadline: deadline.and_then(|deadline| due.checked_add(deadline).ok()),
        confirm,
        conflict,
        ..Defaults::new(batch.clone(), Timestamp::now())
    };
    let identity = Identity { lane: schedule.lane.clone(), moving_deadline: None, ramp: false };
    let files = file.into_iter().collect::<Vec<_>>();
    let mut input = Input::new(ids, &files, None, defaults, identity.clone())?;
    let (input, checked) =
        spawn_blocking(move || input.check().map(|checked| (input, checked))).await.expect("reading does not panic")?;
    let checked = Arc::new(checked);
    if let Some(told) = &checked.told {
        info!(schedule = schedule.name, "{told}");
    }
    let now = Timestamp::now();
    let publisher = connection.publisher(Traffic::Jobs, GROUPS);
    for (batch, part) in &checked.parts {
        let batch = Batch {
            max_failures: schedule.max_failures,
            waves: part.waves(false),
            ready_by: plan.map(|_| due),
            ..Batch::new(batch.clone(), part.size, schedule.lane.to_string())
        };
        let announcement = announcement(&identity, part, batch, now);
        let outgoing = announced(names.outcomes(), &schedule.lane, &announcement);
        let _confirmed = publisher.try_publish(Arc::new(outgoing)).await?;
    }
    let jobs = read(input, checked.clone(), names.jobs(), now);
    let jobs = stream::unfold(jobs, async |mut jobs| jobs.recv().await.map(|job| (job, jobs)));
    let submitting = jobs.map(|job| async {
        let job = job.map_err(FireError::Changed)?;
        let _confirmed = publisher.try_publish(Arc::new(job)).await?;
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
        waves: checked.waves(false).iter().map(|(_, sizes)| sizes.len()).max().unwrap_or(1),
        previous_size: None,
        small: false,
        plan,
    })
}

/// Ids, or the file that has them.
async fn machines(
    connection: &Connection,
    names: &Names,
    schedule: &Schedule,
) -> Result<(Vec<String>, Option<PathBuf>), FireError> {
    match &schedule.machines {
        Machines::Listed(ids) => Ok((ids.iter().map(ToString::to_string).collect(), None)),
        Machines::File(path) => Ok((Vec::new(), Some(path.clone()))),
        Machines::Selected(selection) => {
            let wanted = Wanted { lane: schedule.lane.to_string(), select: selection.to_string() };
            let found = ask_selected(connection, names, &wanted).await?;
            if found.is_empty() {
                return Err(FireError::Nothing(wanted.select));
            }
            Ok((found.into_keys().map(|id| id.to_string()).collect(), None))
        }
    }
}

/// Reads the jobs a second time, in a thread of its own, no faster than they are sent. The last item says what was wrong.
fn read(
    mut input: Input,
    checked: Arc<Checked>,
    exchange: String,
    announced_at: Timestamp,
) -> mpsc::Receiver<Result<Outgoing, String>> {
    let (sender, jobs) = mpsc::channel(IN_FLIGHT);
    spawn_blocking(move || {
        let lane = input.lane().clone();
        let end = input.jobs(&checked, |id, job| {
            match sender.blocking_send(Ok(message(&exchange, &lane, id, &job, announced_at))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        if let Err(problem) = end {
            // Without a receiver, sending is over.
            let _ = sender.blocking_send(Err(problem));
        }
    });
    jobs
}
