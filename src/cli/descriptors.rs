//! Checks that the process may open as many files and sockets as its lanes may need.
//!
//! The soft limit is raised to the hard one, as nothing here uses `select`. If the hard limit is too low for one call
//! per lane, the start is refused; if it is too low for all calls that may be in flight, which may never happen, there
//! is a warning.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{debug, warn};

use super::Failure;
use crate::config::Lane;
use crate::telemetry::MAX_CONNECTIONS;

/// Standard streams, the runtime's own, signals, the HTTP listener, connections to RabbitMQ, and a short-lived one for
/// name resolution.
const OF_THE_PROCESS: u64 = 32;
/// Beside its calls: a probe's connection, one for replies, and a read of its keys.
const OF_A_LANE: u64 = 3;

/// The remedy for too low a limit.
const REMEDY: &str =
    "raise it (LimitNOFILE= of the systemd unit, ulimits.nofile in docker compose, ulimit -n in a shell)";

/// Raises the soft limit of open files to the hard one, and warns if that is less than the lanes may need. A call
/// without a free descriptor would make a working API look like an outage.
///
/// # Errors
/// The limit is too low even for one call of each lane at a time.
pub(super) fn reserve(lanes: &[Lane]) -> Result<(), Failure> {
    let limit = raise();
    let (need, least) = (need(lanes, |lane| lane.concurrency), need(lanes, |_| 1));
    debug!(limit, need, "file descriptors");
    let told = format!("the limit of open files is {limit}, and the lanes may need {need}");
    if limit < least {
        return Err(Failure::Usage(format!(
            "{told}, {least} at least: {REMEDY}, or give some lanes to another daemon"
        )));
    }
    if limit < need {
        warn!("{told}: calls beyond it fail as if the API were out; {REMEDY}, or lower the lanes' concurrency");
    }
    Ok(())
}

/// Raises the limit, and returns the one in force.
fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = current != maximum && setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_ok();
    (if raised { maximum } else { current }).unwrap_or(u64::MAX)
}

fn need(lanes: &[Lane], calls: impl Fn(&Lane) -> u32) -> u64 {
    let of_lanes: u64 = lanes.iter().map(|lane| u64::from(calls(lane)) + OF_A_LANE).sum();
    OF_THE_PROCESS + MAX_CONNECTIONS as u64 + of_lanes
}
