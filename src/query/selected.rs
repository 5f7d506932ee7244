//! The requester of [`Query::Select`].

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::select::{ALIVE, MOST, Part, Wanted};
use super::{AskError, Query, ask};
use crate::bce::{InstanceId, InstanceState};
use crate::broker::{Connection, Names};

/// How long the holder may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How long it may be silent then. It says more often than that that it is at work.
const SILENT: Duration = Duration::from_secs(4 * ALIVE.as_secs());

/// Why instances are not known.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The conditions are longer than a query may be.
    #[error("the conditions are too long to be asked of a replica: expected less than 4 KiB")]
    TooLong,
    /// The query cannot be sent, or nothing be received.
    #[error("the replica that runs lane {lane} cannot be asked: {error}")]
    Unasked {
        /// The lane.
        lane: String,
        /// Why.
        error: AskError,
    },
    /// No answer.
    #[error(
        "the replica that runs lane {0} has not answered within {BEGIN:?}: it is busy with other queries, of a version that cannot, or \
         answers none, which its log says"
    )]
    Unanswered(String),
    /// Half an answer.
    #[error("the replica that runs lane {0} went silent for {SILENT:?}, midway: try again")]
    Silent(String),
    /// The replica could not read the list to its end.
    #[error("the replica that runs lane {lane} says: {problem}")]
    Problem {
        /// The lane.
        lane: String,
        /// As the replica says it.
        problem: String,
    },
    /// More than a lane has.
    #[error("the replica that runs lane {0} tells of more than {MOST} instances")]
    TooMany(String),
}

/// All instances that are `wanted`, with their states, as the holder of the lane lists them: [`MOST`] at most.
///
/// # Errors
/// [`SelectError`].
pub async fn ask_selected(
    connection: &Connection,
    names: &Names,
    wanted: &Wanted,
) -> Result<BTreeMap<InstanceId, InstanceState>, SelectError> {
    let lane = || wanted.lane.clone();
    let unasked = |error| SelectError::Unasked { lane: lane(), error };
    let body = wanted.to_bytes().ok_or(SelectError::TooLong)?;
    let mut asked = ask(connection, names, Query::Select, &body).await.map_err(unasked)?;
    let (mut found, mut holder) = (BTreeMap::new(), None);
    loop {
        let patience = if holder.is_none() { BEGIN } else { SILENT };
        let Ok(message) = timeout(patience, asked.next()).await else {
            return Err(if holder.is_none() { SelectError::Unanswered(lane()) } else { SelectError::Silent(lane()) });
        };
        let Some(part) = Part::read(&message.map_err(unasked)?, wanted) else { continue };
        // Two replicas can take themselves for the holder for a moment.
        if *holder.get_or_insert_with(|| part.replica.clone()) != part.replica {
            continue;
        }
        if let Some(problem) = part.problem {
            return Err(SelectError::Problem { lane: lane(), problem });
        }
        found.extend(part.instances.into_iter().map(|found| (found.id, InstanceState::of_word(&found.state))));
        if part.is_last {
            return Ok(found);
        }
        if found.len() > MOST {
            return Err(SelectError::TooMany(lane()));
        }
    }
}
