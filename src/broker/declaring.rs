//! Declaring a topology over a connection.

use std::time::Duration;

use lapin::Channel;
use tokio::time::timeout;

use super::channels::Lent;
use super::connection::Connection;
use super::losses;
use super::refusal::DeclareError;
use super::topology::Topology;
use crate::config::Broker;

/// Timeout of declaring, and how much more for each queue: a new quorum queue takes 5 to 20 ms.
const DECLARE_TIMEOUT: Duration = Duration::from_secs(60);
const DECLARE_TIMEOUT_OF_A_QUEUE: Duration = Duration::from_millis(100);
/// Most channels that declare in parallel: RabbitMQ spends most of a new queue's time waiting for disks.
const DECLARING: usize = 8;

/// Why a declaration failed.
#[derive(Debug, thiserror::Error)]
pub enum DeclareFailure {
    /// The broker refused it.
    #[error(transparent)]
    Refused(#[from] DeclareError),
    /// The channel for it broke.
    #[error("no channel of RabbitMQ's to declare exchanges and queues: {source}")]
    Broken {
        /// Why.
        source: lapin::Error,
    },
    /// The broker took too long over it.
    #[error("RabbitMQ did not declare exchanges and queues within {patience:?}")]
    TimedOut {
        /// How long it was waited for.
        patience: Duration,
    },
}

/// Declares `topology` at `broker`, to which the connection leads. Logs the queues that were lost meanwhile.
///
/// # Errors
/// [`DeclareFailure`].
pub(super) async fn declare(
    connection: &Connection,
    topology: &Topology,
    broker: &Broker,
) -> Result<(), DeclareFailure> {
    let declaring = async {
        let lost = losses::find(topology, connection, broker).await;
        let broken = |source| DeclareFailure::Broken { source };
        let mut lent = vec![connection.lend().await.map_err(broken)?];
        while lent.len() < DECLARING
            && let Some(more) = connection.lend_more().await
        {
            lent.push(more.map_err(broken)?);
        }
        let channels: Vec<&Channel> = lent.iter().map(Lent::channel).collect();
        topology.declare(&channels).await?;
        lent.into_iter().for_each(Lent::keep);
        losses::tell(topology, &lost);
        Ok(())
    };
    let patience =
        DECLARE_TIMEOUT + DECLARE_TIMEOUT_OF_A_QUEUE * u32::try_from(topology.queues.len()).unwrap_or(u32::MAX);
    timeout(patience, declaring).await.map_err(|_| DeclareFailure::TimedOut { patience })?
}
