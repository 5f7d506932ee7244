//! Instances that meet conditions, listed by the replica that holds the lane: for a machine without the lane's keys.

use std::collections::BTreeMap;

use super::errors::failed;
use crate::bce::{InstanceId, InstanceState, Selection};
use crate::broker::{self, Connection, ConnectionKind, Look, Names};
use crate::cli::{Failure, lanes};
use crate::config::{Config, LaneName};
use crate::query::select::Wanted;
use crate::query::{AskError, Query, SelectError, ask_selected};

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
        Ok(()) => ask_selected(&connection, &names, &wanted).await.map_err(|error| refused(&names, error)),
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

fn refused(names: &Names, error: SelectError) -> Failure {
    let control = names.control();
    match error {
        SelectError::TooLong => Failure::Usage(format!("--select: {error}")),
        SelectError::Unasked { error: AskError::Broken(ref broken), .. } if broker::is_access_refused(broken) => {
            Failure::Usage(format!(
                "{error}; the user needs permission to write {control} with the routing key {}",
                Query::Select.routing_key()
            ))
        }
        SelectError::Unasked { error: AskError::Broken(ref broken), .. } if broker::is_not_found(broken) => {
            Failure::Usage(format!("{error}; {control} exists once `reveille run` of this version has run there"))
        }
        SelectError::Unasked { error: AskError::Broken(ref broken), .. } => {
            failed(names, "replicas cannot be asked", broken)
        }
        SelectError::Unanswered(_) => {
            Failure::Unreachable(format!("{error}; keys of the lane on this machine make do without it"))
        }
        SelectError::Unasked { .. } | SelectError::Silent(_) => Failure::Unreachable(error.to_string()),
        SelectError::Problem { .. } | SelectError::TooMany(_) => Failure::Other(error.into()),
    }
}
