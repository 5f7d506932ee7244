//! Instances that meet conditions, listed by the replica that holds the lane: for a machine without the lane's keys.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::timeout;

use super::errors::failed;
use crate::bce::{InstanceId, InstanceState, Selection};
use crate::broker::{self, Connection, ConnectionKind, Look, Names};
use crate::cli::{Failure, lanes};
use crate::config::{Config, LaneName};
use crate::query::select::{ALIVE, MOST, Part, Wanted};
use crate::query::{AskError, Query, ask};
use crate::text::Shown;

/// How long the holder may take to begin.
const BEGIN: Duration = Duration::from_secs(5);
/// How long it may be silent then. It says more often than that that it is at work.
const SILENT: Duration = Duration::from_secs(4 * ALIVE.as_secs());

/// All instances that meet `selection`, with their states.
///
/// # Errors
/// There is no lane, it is not run, its holder does not answer, or it could not read the list to its end.
pub(super) async fn select(
    config: &Config,
    lane: &LaneName,
    selection: &Selection,
) -> Result<BTreeMap<InstanceId, InstanceState>, Failure> {
    let connection = broker::connect(&config.broker, ConnectionKind::Submit).await?;
    let names = Names::new(&config.broker.prefix);
    let wanted = Wanted { lane: lane.to_string(), select: selection.to_string() };
    let found = match is_run(&connection, &names, lane, config).await {
        Ok(()) => answer(&connection, &names, &wanted).await,
        Err(failure) => Err(failure),
    };
    connection.close().await;
    found
}

/// # Errors
/// The lane is seen not to be there, or not to be run.
async fn is_run(connection: &Connection, names: &Names, lane: &LaneName, config: &Config) -> Result<(), Failure> {
    let address = config.broker.address();
    match broker::look(connection, &names.baton_of(lane)).await {
        Ok(Look::There(counts)) if counts.consumers == 0 => Err(Failure::Unreachable(format!(
            "no daemon runs lane {lane} at {address}, so none can be asked for its instances: start one, or put keys of the lane \
             here"
        ))),
        Ok(Look::There(_) | Look::Refused) => Ok(()),
        Ok(Look::Missing) => Err(Failure::Usage(format!(
            "there is no lane {lane} at {address}; a lane exists once `reveille run` has run with it{}",
            lanes::unknown(lane, connection, names, config).await
        ))),
        Err(error) => Err(failed(names, "cannot look for the lane", &error)),
    }
}

async fn answer(
    connection: &Connection,
    names: &Names,
    wanted: &Wanted,
) -> Result<BTreeMap<InstanceId, InstanceState>, Failure> {
    let lane = &wanted.lane;
    let body = wanted.to_bytes().ok_or_else(|| {
        Failure::Usage("--select is too long to be asked of a replica: expected less than 4 KiB".to_owned())
    })?;
    let mut asked = ask(connection, names, Query::Select, &body).await.map_err(|error| refused(names, lane, error))?;
    let (mut found, mut holder) = (BTreeMap::new(), None);
    loop {
        let patience = if holder.is_none() { BEGIN } else { SILENT };
        let Ok(message) = timeout(patience, asked.next()).await else {
            return Err(Failure::Unreachable(match holder {
                None => format!(
                    "the replica that runs lane {lane} has not answered within {patience:?}: it is of a version that cannot, or \
                     answers no queries, which its log says; keys of the lane on this machine make do without it"
                ),
                Some(_) => format!("the replica that runs lane {lane} went silent for {patience:?}, midway: try again"),
            }));
        };
        let message = message.map_err(|error| refused(names, lane, error))?;
        let Some(part) = Part::read(&message, wanted) else { continue };
        // Two replicas can take themselves for the holder for a moment.
        if *holder.get_or_insert_with(|| part.replica.clone()) != part.replica {
            continue;
        }
        if let Some(problem) = part.problem {
            return Err(anyhow::anyhow!("the replica that runs lane {lane} says: {}", Shown(problem)).into());
        }
        found.extend(part.instances.into_iter().map(|found| (found.id, InstanceState::of_word(&found.state))));
        if part.is_last {
            return Ok(found);
        }
        if found.len() > MOST {
            return Err(anyhow::anyhow!("the replica that runs lane {lane} tells of more than {MOST} instances").into());
        }
    }
}

fn refused(names: &Names, lane: &str, error: AskError) -> Failure {
    let control = names.control();
    match error {
        AskError::Broken(error) if broker::is_access_refused(&error) => Failure::Usage(format!(
            "the replica that runs lane {lane} cannot be asked: {error}; the user needs permission to write {control} with the \
             routing key {}",
            Query::Select.routing_key()
        )),
        AskError::Broken(error) if broker::is_not_found(&error) => Failure::Usage(format!(
            "the replica that runs lane {lane} cannot be asked: {error}; {control} exists once `reveille run` of this version \
             has run there"
        )),
        AskError::Broken(error) => failed(names, "replicas cannot be asked", &error),
        AskError::Ended => Failure::Unreachable(error.to_string()),
    }
}
