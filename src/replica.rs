//! Which process this is, as events, answers and RabbitMQ's list of connections show it.

use serde::{Deserialize, Serialize};

/// A running process of reveille.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Replica {
    /// The name of its host: in a container the container's.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// The version of reveille that it runs.
    pub version: String,
}

impl Replica {
    /// This process.
    pub fn this() -> Self {
        Self { host: host(), pid: std::process::id(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// The name of this host, from the kernel.
pub fn host() -> String {
    let told = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let told = told.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    let host = told.trim();
    if host.is_empty() { "unknown-host".to_owned() } else { host.to_owned() }
}
