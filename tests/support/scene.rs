//! A separate node with a lane and jobs: for faults of a broker.

use std::ops::Range;
use std::time::Duration;

use serde_json::Value;

use super::account::Account;
use super::broker::Node;
use super::daemon::Daemon;
use super::sim::Sim;
use super::stage::{Wishes, config};
use super::{GLANCE, eventually, instance};

/// RabbitMQ 3.10 loses the messages of a queue in a kill if the queue was declared less than about a second before.
const SETTLED: Duration = Duration::from_secs(3);

pub struct Scene {
    pub node: Node,
    pub sim: Sim,
    pub daemon: Daemon,
    pub account: Account,
}

impl Scene {
    /// `jobs` stopped instances, one for each job, and a lane ready to wake them.
    pub async fn set(jobs: usize, wishes: Wishes<'_>) -> Self {
        let node = Node::start(&[]);
        let url = node.url.clone();
        Self::on(node, &url, jobs, wishes).await
    }

    /// The same on a running node, which the daemon reaches at `url`.
    pub async fn on(node: Node, url: &str, jobs: usize, wishes: Wishes<'_>) -> Self {
        let sim = Sim::start(&[&["--fleet", &format!("Stopped={jobs}")], wishes.sim].concat());
        let daemon = Daemon::start(&config(url, &sim.url(), &wishes));
        daemon.ready().await;
        tokio::time::sleep(SETTLED).await;
        let account = Account::open(&node.url).await;
        tokio::time::sleep(SETTLED / 2).await;
        Self { node, sim, daemon, account }
    }

    /// Submits jobs for the instances of these numbers, from 1 on.
    pub async fn submit(&mut self, instances: Range<usize>, more: Value) {
        self.account.submit(instances.map(instance), more).await;
    }

    /// Waits until this many calls were made in all.
    pub async fn calls(&self, count: usize) {
        eventually("calls are made", async || {
            // The whole log is read each time, so not too often.
            tokio::time::sleep(GLANCE * 4).await;
            (self.sim.log().await.len() >= count).then_some(())
        })
        .await;
    }

    /// Waits until readiness shows this, and returns its status.
    pub async fn readiness(&self, says: &str) -> u16 {
        eventually(says, async || {
            let (status, body) = self.daemon.get("/readyz").await;
            body.contains(says).then_some(status)
        })
        .await
    }
}
