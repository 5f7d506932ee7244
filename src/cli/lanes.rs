//! Names of lanes on the command line.

use super::Failure;
use crate::config::{Config, LaneName};
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

/// What follows the name of a lane that is not there: the one that was meant, or all of the configuration.
pub(super) fn unknown(lane: &LaneName, config: &Config) -> String {
    let known = known(config);
    if known.contains(&lane.as_str()) { String::new() } else { similar::hint(lane.as_str(), &known) }
}

/// The lanes of the configuration.
pub(super) fn known(config: &Config) -> Vec<&str> {
    config.lanes.iter().map(|lane| lane.name.as_str()).collect()
}
