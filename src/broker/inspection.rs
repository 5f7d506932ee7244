//! What a user may do at a broker, and which parts of a topology exist there, for `reveille check`.
//!
//! Every right is tried, and nothing is left behind, moved or published that others see:
//!
//! - **configure**: a queue of its own, exclusive, under the prefix. What exists is declared once more, which changes
//!   nothing, and shows whether its arguments are the same. What is missing is found by passive declarations, and not
//!   declared.
//! - **write**: a mandatory message to the default exchange with a key that leads nowhere. For queues and exchanges that
//!   exist, a binding is undone that does not exist.
//! - **read**: a message is fetched from the queue of its own, which is empty. For exchanges the same unbinding.
//!
//! Bindings cannot be asked for over AMQP, so they are not looked at.

use std::fmt;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, ExchangeUnbindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, ExchangeKind};
use tokio::time::timeout;
use uuid::Uuid;

use super::client::ConnectionKind;
use super::connection::{Connection, connect};
use super::errors::{is_access_refused, is_not_found};
use super::names::Names;
use super::refusal::DeclareError;
use super::topology::{Exchange, Queue, Refused, Topology};
use crate::config::Broker;

/// Timeout of a trial.
const TRIAL: Duration = Duration::from_secs(5);
/// Timeout of looking at a topology, and how much more for each of its parts.
const LOOK: Duration = Duration::from_secs(20);
const LOOK_AT_ONE: Duration = Duration::from_millis(50);
/// Parts for each connection that looks in parallel, and the most of those.
const EACH: usize = 50;
const LOOKING: usize = 8;

/// A kind of permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// To declare and delete.
    Configure,
    /// To publish, and to bind a queue.
    Write,
    /// To consume, and to bind an exchange.
    Read,
}

impl Right {
    /// All of them, in RabbitMQ's order.
    pub const ALL: [Self; 3] = [Self::Configure, Self::Write, Self::Read];

    /// RabbitMQ's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Write => "write",
            Self::Read => "read",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a right could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The user does not have it.
    #[error("{0}")]
    Refused(lapin::Error),
    /// The broker accepts no messages: memory or disk are short.
    #[error("RabbitMQ accepts no messages, short of memory or disk")]
    Blocked,
    /// The broker took too long.
    #[error("no answer within {TRIAL:?}")]
    TimedOut,
    /// The broker's, for another reason.
    #[error("{0}")]
    Other(lapin::Error),
}

/// Tries a right at names with the prefix.
///
/// # Errors
/// [`TrialError`].
pub async fn try_right(connection: &Connection, names: &Names, right: Right) -> Result<(), TrialError> {
    let name = names.check(&Uuid::now_v7().to_string());
    let trying = async {
        let channel = connection.channel().await?;
        let (queue, none) = (name.as_str(), FieldTable::default());
        match right {
            Right::Configure => {
                let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
                let mut classic = none;
                // Whatever the vhost's default is.
                classic.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
                channel.queue_declare(queue.into(), options, classic).await?;
                channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
            }
            Right::Write => {
                channel.confirm_select(ConfirmSelectOptions::default()).await?;
                let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
                let properties = BasicProperties::default();
                channel.basic_publish("".into(), queue.into(), options, b"", properties).await?.await?;
            }
            Right::Read => match channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await {
                // There is no such queue, and it may be read.
                Err(error) if is_not_found(&error) => return Ok(()),
                got => _ = got?,
            },
        }
        channel.close(200, "done".into()).await
    };
    match timeout(TRIAL, trying).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if is_access_refused(&error) => Err(TrialError::Refused(error)),
        Ok(Err(error)) => Err(TrialError::Other(error)),
        Err(_) if connection.is_blocked() => Err(TrialError::Blocked),
        Err(_) => Err(TrialError::TimedOut),
    }
}

/// What was found of a topology.
#[derive(Debug, Default)]
pub struct Inspection {
    /// How many exchanges and queues exist.
    pub present: usize,
    /// Those that do not.
    pub missing: Vec<String>,
    /// Those that exist with other arguments, or are broken: what RabbitMQ says, and the remedy.
    pub unfit: Vec<String>,
    /// What the user may not do, with what RabbitMQ says.
    refused: Vec<(Right, String)>,
    /// The same for declarations that lack the right to configure or, for a queue with a dead-letter exchange, to read:
    /// RabbitMQ before 4.0 says the same of both.
    unclear: Vec<String>,
}

impl Inspection {
    /// What RabbitMQ says where the user lacks this right for a part. `may_read`: whether reading was found to be allowed
    /// otherwise, which tells the rights apart that RabbitMQ's words do not.
    pub fn refusal(&self, right: Right, may_read: bool) -> Option<&str> {
        let may_read = may_read && !self.refused.iter().any(|(right, _)| *right == Right::Read);
        let meant = if may_read { Right::Configure } else { Right::Read };
        let unclear = self.unclear.iter().filter(|_| right == meant);
        let clear = self.refused.iter().filter(|(of, _)| *of == right).map(|(_, why)| why);
        clear.chain(unclear).next().map(String::as_str)
    }

    fn add(&mut self, other: Self) {
        self.present += other.present;
        self.missing.extend(other.missing);
        self.unfit.extend(other.unfit);
        self.refused.extend(other.refused);
        self.unclear.extend(other.unclear);
    }
}

/// Why a topology could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The connection broke, or has no channel.
    #[error("{0}")]
    Broken(String),
    /// The broker took too long.
    #[error("not all exchanges and queues could be looked at within {0:?}")]
    TimedOut(Duration),
}

/// Looks at every exchange and queue of `topology`.
///
/// # Errors
/// [`InspectError`].
pub async fn inspect(broker: &Broker, topology: &Topology, names: &Names) -> Result<Inspection, InspectError> {
    let exchanges = topology.exchanges.iter().map(Part::Exchange);
    let parts: Vec<Part<'_>> = exchanges.chain(topology.queues.iter().map(Part::Queue)).collect();
    let patience = LOOK + LOOK_AT_ONE * u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let looks = parts.len().div_ceil(EACH).clamp(1, LOOKING);
    let looking = (0..looks).map(|first| {
        let parts = parts.iter().skip(first).step_by(looks);
        async move {
            let mut look =
                Look { broker, names, queues: topology.queues.len(), link: None, found: Inspection::default() };
            for part in parts {
                look.at(part).await?;
            }
            if let Some((connection, _)) = &look.link {
                connection.close().await;
            }
            Ok::<_, InspectError>(look.found)
        }
    });
    let looked = timeout(patience, join_all(looking)).await.map_err(|_| InspectError::TimedOut(patience))?;
    let mut found = Inspection::default();
    for part in looked {
        found.add(part?);
    }
    Ok(found)
}

enum Part<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
}

impl Part<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Exchange(exchange) => &exchange.name,
            Self::Queue(queue) => &queue.name,
        }
    }

    async fn is_there(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let none = FieldTable::default();
        match self {
            Self::Exchange(exchange) => {
                let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
                channel.exchange_declare(exchange.name.as_str().into(), ExchangeKind::Topic, options, none).await
            }
            Self::Queue(queue) => {
                let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
                channel.queue_declare(queue.name.as_str().into(), options, none).await.map(drop)
            }
        }
    }

    async fn declare(&self, channel: &Channel) -> Result<(), Refused<'_>> {
        match self {
            Self::Exchange(exchange) => exchange.declare(channel).await,
            Self::Queue(queue) => queue.declare(channel).await,
        }
    }

    /// Undoes a binding that does not exist: that takes the right to write to this, and to read from `source`.
    async fn unbind(&self, channel: &Channel, source: &str, key: &str) -> Result<(), lapin::Error> {
        let (source, key, none) = (source.into(), key.into(), FieldTable::default());
        match self {
            Self::Exchange(exchange) => {
                let options = ExchangeUnbindOptions::default();
                channel.exchange_unbind(exchange.name.as_str().into(), source, key, options, none).await
            }
            Self::Queue(queue) => channel.queue_unbind(queue.name.as_str().into(), source, key, none).await,
        }
    }
}

/// Looks at one part after the other, over a channel of its own. Each error costs that channel, and its connection the
/// channel's number ([`open_channel`](super::channels::open_channel)): so looks share no connection, and open another
/// where one has no channel left.
struct Look<'a> {
    broker: &'a Broker,
    names: &'a Names,
    queues: usize,
    link: Option<(Connection, Option<Channel>)>,
    found: Inspection,
}

impl Look<'_> {
    async fn at(&mut self, part: &Part<'_>) -> Result<(), InspectError> {
        let channel = self.channel().await?;
        if let Err(error) = part.is_there(&channel).await {
            if is_not_found(&error) && error.to_string().contains("no ") {
                self.found.missing.push(part.name().to_owned());
            } else {
                self.found.unfit.push(error.to_string());
            }
            return Ok(());
        }
        self.found.present += 1;
        if let Err((what, name, source)) = part.declare(&channel).await {
            let said = source.to_string();
            if is_access_refused(&source) && !said.contains(&format!("'{}'", part.name())) {
                // The exchange that a queue dead-letters to, or an exchange's alternate.
                self.found.refused.push((Right::Write, said));
            } else if is_access_refused(&source) {
                self.found.unclear.push(said);
            } else {
                let error = DeclareError { what, name: name.to_owned(), queues: self.queues, source };
                self.found.unfit.push(error.to_string());
            }
        }
        let channel = self.channel().await?;
        // Another one, to tell which of the two is refused.
        let outcomes = self.names.outcomes();
        let source = if part.name() == outcomes { self.names.jobs() } else { outcomes };
        match part.unbind(&channel, &source, &self.names.check("none")).await {
            Err(error) if is_access_refused(&error) => {
                // RabbitMQ names what may not be read or written.
                let right =
                    if error.to_string().contains(&format!("'{}'", part.name())) { Right::Write } else { Right::Read };
                self.found.refused.push((right, error.to_string()));
            }
            // Without the exchange nothing can be unbound.
            Err(error) if is_not_found(&error) => {}
            unbound => unbound.map_err(|error| InspectError::Broken(error.to_string()))?,
        }
        Ok(())
    }

    /// An open channel.
    async fn channel(&mut self) -> Result<Channel, InspectError> {
        let broken = |error: lapin::Error| InspectError::Broken(error.to_string());
        if let Some((connection, kept)) = &mut self.link {
            if let Some(channel) = kept.as_ref().filter(|channel| channel.status().connected()) {
                return Ok(channel.clone());
            }
            if let Ok(channel) = connection.channel().await {
                *kept = Some(channel.clone());
                return Ok(channel);
            }
        }
        let connected = connect(self.broker, ConnectionKind::Check).await;
        let connection = connected.map_err(|error| InspectError::Broken(error.to_string()))?;
        let channel = connection.channel().await.map_err(broken)?;
        self.link = Some((connection, Some(channel.clone())));
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_is_refused_for_want_of_reading_where_reading_is_refused_elsewhere() {
        let found = |refused: &[Right]| Inspection {
            refused: refused.iter().map(|right| (*right, "refused".to_owned())).collect(),
            unclear: vec!["unclear".to_owned()],
            ..Inspection::default()
        };
        let none = found(&[]);
        assert_eq!((none.refusal(Right::Configure, true), none.refusal(Right::Read, true)), (Some("unclear"), None));
        assert_eq!((none.refusal(Right::Configure, false), none.refusal(Right::Read, false)), (None, Some("unclear")));
        let read = found(&[Right::Read]);
        assert_eq!((read.refusal(Right::Configure, true), read.refusal(Right::Read, true)), (None, Some("refused")));
        assert_eq!(none.refusal(Right::Write, true), None);
    }
}
