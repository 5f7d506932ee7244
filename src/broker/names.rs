//! Names of exchanges and queues.

use uuid::Uuid;

use crate::config::LaneName;

/// Levels of the delay ladder, each with a queue.
pub const LEVELS: u32 = 18;

/// The first word of a command's routing key at the exchange [`Names::control`].
pub const COMMAND: &str = "command";

/// The first word of a query's routing key there. No stream keeps queries.
pub const ASK: &str = "ask";

/// The names of exchanges and queues, all under one prefix.
#[derive(Debug, Clone)]
pub struct Names {
    prefix: String,
}

impl Names {
    /// Names that begin with `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// What all of them begin with, without the dot.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn name(&self, rest: &str) -> String {
        format!("{}.{rest}", self.prefix)
    }

    /// The exchange to which producers publish jobs; the routing key is the lane, or [`urgent_key`] of it.
    pub fn jobs(&self) -> String {
        self.name("jobs")
    }

    /// The queue of a lane's new jobs.
    pub fn jobs_of(&self, lane: &LaneName) -> String {
        self.name(&format!("jobs.{lane}"))
    }

    /// The queue of a lane's urgent jobs.
    pub fn urgent_of(&self, lane: &LaneName) -> String {
        self.name(&format!("urgent.{lane}"))
    }

    /// The queue of a lane's jobs that return from the ladder.
    pub fn due_of(&self, lane: &LaneName) -> String {
        self.name(&format!("due.{lane}"))
    }

    /// The queue whose only message, the baton, makes its holder the replica that runs the lane.
    pub fn baton_of(&self, lane: &LaneName) -> String {
        self.name(&format!("baton.{lane}"))
    }

    /// The queue whose baton makes its holder the replica that runs the scheduler. No lane's name begins with `_`.
    pub fn scheduler_baton(&self) -> String {
        self.name("baton._scheduler")
    }

    /// The queue on which each replica is a consumer.
    pub fn replicas(&self) -> String {
        self.name("replicas")
    }

    /// The name of a level of the delay ladder, exchange and queue alike.
    pub fn delay(&self, level: u32) -> String {
        self.name(&format!("delay.{level:02}"))
    }

    /// The level of the delay ladder whose queue this is.
    pub fn level_of(&self, queue: &str) -> Option<u32> {
        let level = queue.strip_prefix(self.prefix.as_str())?.strip_prefix(".delay.")?.parse().ok()?;
        (level < LEVELS).then_some(level)
    }

    /// The exchange at the ladder's foot.
    pub fn delay_return(&self) -> String {
        self.name("delay.return")
    }

    /// The exchange for unroutable messages.
    pub fn unroutable(&self) -> String {
        self.name("unroutable")
    }

    /// The queue of dead letters.
    pub fn dead(&self) -> String {
        self.name("dead")
    }

    /// The queue that is a lock on the dead letters: the connection that has it reads them alone.
    pub fn dead_lock(&self) -> String {
        self.name("dead.lock")
    }

    /// A name that nothing has, for trials: `id` makes it unique.
    pub fn check(&self, id: &str) -> String {
        self.name(&format!("check.{id}"))
    }

    /// The exchange of outcome events.
    pub fn outcomes(&self) -> String {
        self.name("outcomes")
    }

    /// The stream of outcome events.
    pub fn outcomes_log(&self) -> String {
        self.name("outcomes.log")
    }

    /// The exchange for commands and queries, under routing keys that begin with [`COMMAND`] and [`ASK`].
    pub fn control(&self) -> String {
        self.name("control")
    }

    /// The queue over which one replica gets queries; it lives as long as the replica's connection.
    pub fn replica(&self, id: Uuid) -> String {
        self.name(&format!("replica.{id}"))
    }

    /// The stream of commands.
    pub fn control_log(&self) -> String {
        self.name("control.log")
    }
}

/// The routing key of a lane's urgent jobs. It is no lane's name, since those have no dot.
pub fn urgent_key(lane: &LaneName) -> String {
    format!("{lane}.urgent")
}
