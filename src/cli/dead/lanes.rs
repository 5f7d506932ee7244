//! Which lanes have queues.

use std::collections::HashMap;

use super::queue::DeadQueue;
use crate::broker;
use crate::cli::{Failure, tell};
use crate::config::LaneName;

/// Lanes that are missing at most: RabbitMQ closes a channel over each look at one, and lapin forgets none of them. Anybody may have
/// sent messages to lanes that do not exist.
const MISSING: usize = 100;

/// Lanes that were looked for. A job for a lane without queues would come back as a dead letter.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    seen: HashMap<(LaneName, bool), bool>,
    missing: usize,
}

impl Lanes {
    /// Whether the lane has a queue for such jobs, and takes any. Where the user may not look, which takes no permission before
    /// RabbitMQ 4.3, that is said, and the lane taken to be there.
    pub(super) async fn has(&mut self, queue: &DeadQueue, lane: &LaneName, is_urgent: bool) -> Result<bool, Failure> {
        if let Some(is_there) = self.seen.get(&(lane.clone(), is_urgent)) {
            return Ok(*is_there);
        }
        let (baton, jobs) = (queue.names.baton_of(lane), queue.names.jobs_of(lane));
        let jobs = if is_urgent { queue.names.urgent_of(lane) } else { jobs };
        let is_there = is_there(queue, &jobs).await? && is_there(queue, &baton).await?;
        self.missing += usize::from(!is_there);
        if self.missing > MISSING {
            return Err(anyhow::anyhow!(
                "the letters name more than {MISSING} lanes that do not exist: choose lanes with --lane"
            )
            .into());
        }
        self.seen.insert((lane.clone(), is_urgent), is_there);
        Ok(is_there)
    }
}

async fn is_there(queue: &DeadQueue, name: &str) -> Result<bool, Failure> {
    let channel = queue.connection.channel().await.map_err(|error| queue.failure(&error))?;
    match broker::count(&channel, name).await {
        Ok(_) => {
            channel.close(200, "done".into()).await.map_err(|error| queue.failure(&error))?;
            Ok(true)
        }
        Err(error) if broker::is_access_refused(&error) => {
            tell(format_args!(
                "cannot look for {name}, so jobs are replayed unseen, and come back if it is missing: {error}"
            ));
            Ok(true)
        }
        Err(error) if broker::is_not_found(&error) => Ok(false),
        Err(error) => Err(queue.failure(&error)),
    }
}
