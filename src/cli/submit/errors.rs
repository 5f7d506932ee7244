//! What errors of the broker mean for the command.

use crate::broker::{self, Names, PublishError};
use crate::cli::Failure;

/// What a message that was not taken means for the command.
pub(super) fn refused(names: &Names, what: &str, error: PublishError) -> Failure {
    match error {
        PublishError::Broken(error) => failed(names, what, &error),
        PublishError::Forbidden { source, .. } if broker::is_access_refused(&source) => failed(names, what, &source),
        PublishError::Unconfirmed { .. } => Failure::Unreachable(format!("{what}: {error}")),
        error => Failure::Other(anyhow::Error::new(error).context(what.to_owned())),
    }
}

/// What an error of the broker's means for the command.
pub(super) fn failed(names: &Names, what: &str, error: &lapin::Error) -> Failure {
    if broker::is_access_refused(error) {
        let (jobs, outcomes) = (names.jobs(), names.outcomes());
        Failure::Usage(format!("{what}: {error}; the user needs permission to write {jobs} and {outcomes}"))
    } else if error.is_amqp_soft_error() {
        Failure::Other(anyhow::Error::new(error.clone()).context(what.to_owned()))
    } else {
        Failure::Unreachable(format!("{what}: the connection to RabbitMQ is lost: {error}"))
    }
}

/// The same failure, before anything was sent.
pub(super) fn nothing_submitted(failure: Failure) -> Failure {
    match failure {
        Failure::Usage(problem) => Failure::Usage(format!("{problem}; no job was submitted")),
        Failure::Unreachable(problem) => Failure::Unreachable(format!("{problem}; no job was submitted")),
        other => other,
    }
}
