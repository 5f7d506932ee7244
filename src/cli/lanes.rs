//! Names of lanes on the command line.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Failure;
use crate::broker::{self, Connection, Look, Names};
use crate::config::{Config, LaneName};
use crate::query::ask_statuses;
use crate::similar;

/// The lane of this name, which need not be one of the configuration.
///
/// # Errors
/// It is no name of a lane.
pub(super) fn parse(name: &str, config: &Config) -> Result<LaneName, Failure> {
    LaneName::parse(name).ok_or_else(|| {
        let hint = similar::hint(name, &known(config));
        Failure::Usage(format!("{name:?} is no lane name: expected a-z 0-9 -{hint}"))
    })
}

/// What follows the name of a lane that is not there: the one that was meant, or all that there are. Those are the lanes of the
/// configuration, and those that replicas name within two seconds, where the user may ask them.
pub(super) async fn unknown(lane: &LaneName, connection: &Connection, names: &Names, config: &Config) -> String {
    let configured = known(config);
    if configured.contains(&lane.as_str()) {
        return String::new();
    }
    let replicas = match broker::look(connection, &names.replicas()).await {
        Ok(Look::There(counts)) => counts.consumers as usize,
        // It is not known how many answers there will be.
        Ok(Look::Refused) => usize::MAX,
        Ok(Look::Missing) | Err(_) => 0,
    };
    let (told, _) = ask_statuses(connection, names, ANSWERS, |statuses| statuses.complete() >= replicas).await;
    let told: BTreeSet<&str> = told.lanes().map(|status| status.lane.as_str()).filter(is_name).collect();
    let known: Vec<&str> = told.into_iter().chain(configured).collect::<BTreeSet<_>>().into_iter().collect();
    if known.is_empty() { String::new() } else { similar::hint(lane.as_str(), &known) }
}

/// How long replicas have to answer.
pub(super) const ANSWERS: Duration = Duration::from_secs(2);

/// What an answer says may be anybody's text.
fn is_name(text: &&str) -> bool {
    LaneName::parse(text).is_some()
}

/// The lanes that the configuration names.
pub(super) fn known(config: &Config) -> Vec<&str> {
    config.lanes.iter().filter(|lane| !lane.is_implied).map(|lane| lane.name.as_str()).collect()
}
