//! The name of a connection in RabbitMQ's lists and logs.

use lapin::ConnectionProperties;

use crate::replica::host;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionKind {
    /// The lanes of a daemon.
    Run,
    /// Reading the log of outcomes back.
    Log,
    /// Following the commands.
    Control,
    /// For the scheduler: reading the log, discarding dead letters.
    Scheduler,
    /// Replies to producers.
    Replies,
    /// `reveille check`.
    Check,
    /// Queries to a daemon.
    Queries,
    /// `reveille submit`.
    Submit,
    /// `reveille cancel`, `pause`, `resume`, `snooze`.
    Command,
    /// `reveille watch`.
    Watch,
    /// `reveille dead`.
    Dead,
    /// `reveille batches`.
    Batches,
    /// `reveille status`.
    Status,
}

impl ConnectionKind {
    fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Log => "log",
            Self::Control => "control",
            Self::Scheduler => "scheduler",
            Self::Replies => "replies",
            Self::Check => "check",
            Self::Queries => "queries",
            Self::Submit => "submit",
            Self::Command => "command",
            Self::Watch => "watch",
            Self::Dead => "dead",
            Self::Batches => "batches",
            Self::Status => "status",
        }
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The connection's name, with product and version: lapin's own otherwise.
pub(super) fn properties(kind: ConnectionKind) -> ConnectionProperties {
    ConnectionProperties::default()
        .with_connection_name(name(kind).into())
        .with_client_property("product".into(), "reveille".into())
        .with_client_property("version".into(), VERSION.into())
}

/// Such as `reveille run HOST pid PID v0.1.0`.
fn name(kind: ConnectionKind) -> String {
    format!("reveille {} {} pid {} v{VERSION}", kind.name(), host(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connections_name_tells_what_it_is_for_and_which_process_has_it() {
        let end = format!(" pid {} v{VERSION}", std::process::id());
        for (kind, start) in [
            (ConnectionKind::Run, "reveille run "),
            (ConnectionKind::Log, "reveille log "),
            (ConnectionKind::Control, "reveille control "),
            (ConnectionKind::Scheduler, "reveille scheduler "),
            (ConnectionKind::Replies, "reveille replies "),
            (ConnectionKind::Check, "reveille check "),
            (ConnectionKind::Queries, "reveille queries "),
            (ConnectionKind::Submit, "reveille submit "),
            (ConnectionKind::Command, "reveille command "),
            (ConnectionKind::Watch, "reveille watch "),
            (ConnectionKind::Dead, "reveille dead "),
            (ConnectionKind::Batches, "reveille batches "),
            (ConnectionKind::Status, "reveille status "),
        ] {
            let name = name(kind);
            let host = name.strip_prefix(start).and_then(|rest| rest.strip_suffix(&end));
            assert!(host.is_some_and(|host| !host.is_empty() && !host.contains(char::is_whitespace)), "{name}");
        }
    }
}
