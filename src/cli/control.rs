//! What the commands share that change something: `cancel`, `pause`, `resume`, `snooze`, and those of `schedules`. A command is published, and then
//! the replicas say, in the log of outcomes, that it has taken effect.

use std::env;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Failure, lanes, tell};
use crate::broker::names::COMMAND;
use crate::broker::{
    self, Connection, ConnectionKind, Look, Names, Outgoing, Position, PublishError, Stream, StreamError, Traffic,
};
use crate::config::{Config, LaneName};
use crate::events::{Action, Applied, BY_LIMIT, Command, Data, Event, REASON_LIMIT};
use crate::replica::host;

/// How long to wait until all replicas have said that the command has taken effect.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much earlier than the command the reading of the log begins: RabbitMQ knows its times to the second.
const EARLIER: Duration = Duration::from_secs(5);
/// A difference of clocks that is told.
const CLOCKS: Duration = Duration::from_secs(30);

/// What any such command takes.
#[derive(Debug, clap::Args)]
pub(super) struct Author {
    /// Why: it stands in events, in the log, and in `/readyz`.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// The person or program that the command is from; else USER@HOST.
    #[arg(long = "as", value_name = "NAME", value_parser = author)]
    by: Option<String>,
}

fn reason(text: &str) -> Result<String, String> {
    short(text, REASON_LIMIT)
}

fn author(text: &str) -> Result<String, String> {
    short(text, BY_LIMIT)
}

fn short(text: &str, limit: usize) -> Result<String, String> {
    match text.len() {
        0 => Err("expected a text".to_owned()),
        length if length > limit => Err(format!("it has {length} bytes: expected {limit} at most")),
        _ => Ok(text.to_owned()),
    }
}

impl Author {
    fn by(&self) -> String {
        let user = || env::var("USER").or_else(|_| env::var("LOGNAME")).unwrap_or_else(|_| "unknown".to_owned());
        let mut by = self.by.clone().unwrap_or_else(|| format!("{}@{}", user(), host()));
        by.truncate(by.floor_char_boundary(BY_LIMIT));
        by
    }
}

/// What came of a command that was published.
#[derive(Debug)]
pub(super) struct Given {
    /// The id of the command.
    pub(super) id: String,
    at: Timestamp,
    /// Replicas in which it has taken effect.
    applied: Vec<Applied>,
    /// How many replicas there are; `None` where that cannot be seen.
    replicas: Option<u32>,
}

impl Given {
    /// The replica that held `lane` when the command took effect there.
    pub(super) fn holder_of(&self, lane: &LaneName) -> Option<&Applied> {
        self.applied.iter().find(|applied| applied.lanes.iter().any(|held| held == lane.as_str()))
    }

    /// Whether no daemon runs that could do what the command says.
    pub(super) fn is_for_later(&self) -> bool {
        self.replicas == Some(0)
    }

    /// Says where the command has not taken effect yet. Returns whether it has everywhere.
    pub(super) fn tell_rest(&self) -> bool {
        let seen = self.applied.len();
        match self.replicas {
            Some(0) => tell("no daemon runs: it takes effect when one starts"),
            Some(replicas) if seen < replicas as usize => tell(format_args!(
                "{} of {replicas} replicas have not said within {} s that it has taken effect: `/readyz`, and their logs, say why",
                replicas as usize - seen,
                PATIENCE.as_secs()
            )),
            None if seen == 0 => tell("no replica has said that it knows of it; it is in force once one reads it"),
            None => {
                tell(format_args!(
                    "how many replicas there are is not seen; so many have said that it has taken effect: {seen}"
                ));
                return true;
            }
            Some(_) => return true,
        }
        self.replicas == Some(0)
    }
}

/// A connection for commands.
pub(super) async fn open(config: &Config) -> Result<(Connection, Names), Failure> {
    let connection = broker::connect(&config.broker, ConnectionKind::Command).await?;
    Ok((connection, Names::new(&config.broker.prefix)))
}

/// The lane of this name, which has to exist.
pub(super) async fn lane(
    name: &str,
    connection: &Connection,
    names: &Names,
    config: &Config,
) -> Result<LaneName, Failure> {
    let lane = lanes::parse(name, config)?;
    match broker::look(connection, &names.baton_of(&lane)).await.map_err(|error| lost(&error))? {
        Look::There(_) | Look::Refused => Ok(lane),
        Look::Missing => Err(Failure::Usage(format!(
            "there is no lane {lane} at {}; a lane exists once `reveille run` has run with it{}",
            config.broker.address(),
            lanes::unknown(&lane, connection, names, config).await
        ))),
    }
}

/// Gives a command, and waits until the replicas have said that it has taken effect.
pub(super) async fn give(
    connection: &Connection,
    names: &Names,
    action: Action,
    author: &Author,
) -> Result<Given, Failure> {
    let name = action.name();
    let replicas = match broker::look(connection, &names.replicas()).await.map_err(|error| lost(&error))? {
        Look::There(counts) => Some(counts.consumers),
        Look::Missing | Look::Refused => None,
    };
    let now = Timestamp::now();
    let log = names.outcomes_log();
    let from = Position::Time(now.saturating_sub(EARLIER).unwrap_or(now));
    let log = match Stream::open(connection, &log, from).await {
        Ok(log) => Some(log),
        Err(StreamError::Broken(error)) if broker::is_access_refused(&error) => {
            tell(format_args!("whether it has taken effect is not seen: the user may not read {log}"));
            None
        }
        Err(StreamError::Broken(error)) if broker::is_not_found(&error) => None,
        Err(error) => return Err(Failure::Unreachable(error.to_string())),
    };
    let command = Command { action, by: author.by(), reason: author.reason.clone() };
    let event = Event::of_process(Data::Command(command), now);
    let outgoing = Outgoing::event(&event, names.control(), format!("{COMMAND}.{name}"));
    let published = connection.publisher(Traffic::Jobs, 1).try_publish(Arc::new(outgoing)).await;
    published.map(drop).map_err(|error| refused(names, error))?;
    let (Some(mut log), None | Some(1..)) = (log, replicas) else {
        return Ok(Given { id: event.id, at: now, applied: Vec::new(), replicas });
    };
    let until = Instant::now() + PATIENCE;
    let mut applied: Vec<Applied> = Vec::new();
    while replicas.is_none_or(|replicas| applied.len() < replicas as usize) {
        let Ok(entry) = timeout_at(until, log.next()).await else { break };
        let entry = entry.map_err(|error| Failure::Unreachable(format!("the command was given; then {error}")))?;
        let Some(Event { time, data: Data::ControlApplied(news), .. }) = Event::read(&entry.message.body) else {
            continue;
        };
        if news.command_id == event.id && applied.iter().all(|known| known.replica != news.replica) {
            tell_clocks(time, now, &news);
            applied.push(news);
        }
    }
    Ok(Given { id: event.id, at: now, applied, replicas })
}

/// Waits for what `take` finds among the outcomes since a command was given; `None`: it did not come in time.
pub(super) async fn hear<T>(
    connection: &Connection,
    names: &Names,
    given: &Given,
    patience: Duration,
    mut take: impl FnMut(Data) -> Option<T>,
) -> Result<Option<T>, Failure> {
    let from = Position::Time(given.at.saturating_sub(EARLIER).unwrap_or(given.at));
    let heard = async {
        let mut log = Stream::open(connection, &names.outcomes_log(), from).await?;
        loop {
            let event = Event::read(&log.next().await?.message.body);
            if let Some(found) = event.and_then(|event| take(event.data)) {
                return Ok(found);
            }
        }
    };
    match timeout(patience, heard).await {
        Ok(Ok(found)) => Ok(Some(found)),
        Ok(Err(StreamError::Broken(error))) if broker::is_access_refused(&error) => Err(Failure::Usage(format!(
            "the command was given, and what comes of it is not seen: {error}; the user needs permission to read {}",
            names.outcomes_log()
        ))),
        Ok(Err(error)) => Err(Failure::Unreachable(format!("the command was given; then {error}"))),
        Err(_) => Ok(None),
    }
}

/// Clocks that differ by more than the allowance make a cancellation miss jobs, or meet later ones.
fn tell_clocks(applied: Timestamp, given: Timestamp, Applied { replica, .. }: &Applied) {
    let apart = applied.duration_since(given);
    if apart.unsigned_abs() > CLOCKS + PATIENCE {
        tell(format_args!(
            "this machine's clock and that of {} (pid {}) differ by {} s: set them by NTP, since a cancellation is for the \
             jobs that were submitted before it",
            crate::text::Shown(&replica.host),
            replica.pid,
            apart.as_secs()
        ));
    }
}

fn refused(names: &Names, error: PublishError) -> Failure {
    let control = names.control();
    match error {
        PublishError::Broken(error) => lost(&error),
        PublishError::Forbidden { source, .. } if broker::is_access_refused(&source) => {
            Failure::Usage(format!("the command was not given: {source}; the user needs permission to write {control}"))
        }
        PublishError::Forbidden { source, .. } if broker::is_not_found(&source) => Failure::Usage(format!(
            "the command was not given: {source}; {control} exists once `reveille run` of this version has run there"
        )),
        PublishError::Unconfirmed { .. } => {
            Failure::Unreachable(format!("the command may not have been given: {error}"))
        }
        error => Failure::Other(anyhow::Error::new(error).context("the command was not given")),
    }
}

fn lost(error: &lapin::Error) -> Failure {
    Failure::Unreachable(format!("the connection to RabbitMQ is lost: {error}"))
}
