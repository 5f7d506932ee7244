//! Detects queues that were deleted with their messages.
//!
//! Clients are not told of policies. One with `expires` deletes a quorum queue without consumers, such as those of the
//! delay ladder, with all its messages, and declaring it does not prevent that (rabbitmq-server issue 5894). So queues
//! are checked before anything is declared again: one that existed before and is missing is a loss.

use std::collections::HashMap;

use tracing::{debug, error};

use super::channels::Lent;
use super::client::ConnectionKind;
use super::connection::{Connection, connect};
use super::errors::is_not_found;
use super::inspect::count;
use super::topology::Topology;
use crate::config::Broker;

/// The queues of `topology` that existed before and are missing. If checking fails, those found so far: what prevents
/// checking mostly prevents declaring too.
pub(super) async fn find<'a>(topology: &'a Topology, connection: &Connection, broker: &Broker) -> Vec<&'a str> {
    let mut lost = Vec::new();
    let mut looks = Looks { connection, broker, apart: None, has_missed: false };
    if let Err(error) = looks.for_losses(topology, &mut lost).await {
        debug!("cannot look for all queues: {error:#}");
    }
    if let Some(apart) = looks.apart {
        apart.close().await;
    }
    lost
}

/// Each check of a missing queue costs its connection a channel for good
/// ([`open_channel`](super::channels::open_channel)). So after the first one, separate connections are used.
struct Looks<'a> {
    connection: &'a Connection,
    broker: &'a Broker,
    apart: Option<Connection>,
    has_missed: bool,
}

impl Looks<'_> {
    async fn for_losses<'a>(&mut self, topology: &'a Topology, lost: &mut Vec<&'a str>) -> anyhow::Result<()> {
        if !self.is_there(&topology.log).await? {
            // It looks like a first start.
            return Ok(());
        }
        let mut witnesses = HashMap::from([(topology.log.as_str(), true)]);
        for queue in &topology.queues {
            let Some(witness) = queue.witness.as_deref() else { continue };
            let was_there = match witnesses.get(witness) {
                Some(is_there) => *is_there,
                None => *witnesses.entry(witness).or_insert(self.is_there(witness).await?),
            };
            if was_there && !self.is_there(&queue.name).await? {
                lost.push(queue.name.as_str());
            }
        }
        Ok(())
    }

    async fn is_there(&mut self, queue: &str) -> anyhow::Result<bool> {
        let lent = self.lend().await?;
        match count(lent.channel(), queue).await {
            Ok(_) => {
                lent.keep();
                Ok(true)
            }
            // A queue that is only down is not found either, but with another text.
            Err(error) if is_not_found(&error) && error.to_string().contains("no queue '") => {
                self.has_missed = true;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn lend(&mut self) -> anyhow::Result<Lent> {
        if !self.has_missed {
            return Ok(self.connection.lend().await?);
        }
        if let Some(apart) = &self.apart
            && let Ok(lent) = apart.lend().await
        {
            return Ok(lent);
        }
        // The first one, or its predecessor has no channel left.
        let apart = self.apart.insert(connect(self.broker, ConnectionKind::Run).await?);
        Ok(apart.lend().await?)
    }
}

/// Logs the queues that were missing, and calls back, now that they are declared again.
pub(super) fn tell(topology: &Topology, lost: &[&str]) {
    if lost.is_empty() {
        return;
    }
    error!(
        queues = lost.join(", "),
        "queues were gone, with all that was in them, and are declared again. Either somebody deleted them, or a policy with \
         expires: rabbitmqctl list_policies, list_operator_policies. docs/rabbitmq.md has a policy that protects them"
    );
    (topology.on_loss.0)(lost.len());
}
