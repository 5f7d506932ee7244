//! Queues that are gone, with what was in them.
//!
//! A client is told nothing of policies. One with `expires` deletes a quorum queue that has no consumers, such as those of
//! the delay ladder, with all that is in it, and no declaration keeps it (rabbitmq-server issue 5894). So before anything is
//! declared again it is looked for: what was there once, and is not, is a loss.

use std::collections::HashMap;
use std::fmt;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tracing::error;

use super::connection::{Connection, is_not_found};
use super::topology::Topology;

/// Who is told of losses; nobody, by default.
pub(super) struct OnLoss(pub(super) Box<dyn Fn(usize) + Send + Sync>);

impl Default for OnLoss {
    fn default() -> Self {
        Self(Box::new(drop))
    }
}

impl fmt::Debug for OnLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLoss")
    }
}

/// The queues of `topology` that are missing, although they were there once. None, where that cannot be told: whatever keeps
/// it from being told keeps the topology from being declared too.
pub(super) async fn find<'a>(topology: &'a Topology, connection: &Connection) -> Vec<&'a str> {
    look_for_losses(topology, connection).await.unwrap_or_default()
}

async fn look_for_losses<'a>(topology: &'a Topology, connection: &Connection) -> Result<Vec<&'a str>, lapin::Error> {
    let mut lost = Vec::new();
    if !is_there(connection, &topology.log).await? {
        // It looks like a first start. Each further look for what is not there would cost a channel.
        return Ok(lost);
    }
    let mut witnesses = HashMap::from([(topology.log.as_str(), true)]);
    for queue in &topology.queues {
        let Some(witness) = queue.witness.as_deref() else { continue };
        let was_there = match witnesses.get(witness) {
            Some(is_there) => *is_there,
            None => *witnesses.entry(witness).or_insert(is_there(connection, witness).await?),
        };
        if was_there && !is_there(connection, &queue.name).await? {
            lost.push(queue.name.as_str());
        }
    }
    Ok(lost)
}

async fn is_there(connection: &Connection, queue: &str) -> Result<bool, lapin::Error> {
    let lent = connection.lend().await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match lent.channel().queue_declare(queue.into(), passive, FieldTable::default()).await {
        Ok(_) => {
            lent.keep();
            Ok(true)
        }
        // A queue that is only down is not found either, in other words.
        Err(error) if is_not_found(&error) && error.to_string().contains("no queue '") => Ok(false),
        Err(error) => Err(error),
    }
}

/// Says which queues were missing, now that they are there again.
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
