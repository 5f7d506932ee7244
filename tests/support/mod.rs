//! What the tests share.

pub mod account;
pub mod broker;
pub mod calls;
pub mod child;
pub mod cluster;
pub mod daemon;
pub mod files;
pub mod front;
pub mod hosts;
pub mod http_proxy;
pub mod key_folder;
pub mod lossy;
pub mod pace;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod queues;
pub mod scene;
pub mod sim;
pub mod stage;
pub mod tls;
pub mod trouble;

use std::time::Duration;

/// How long anything here may take. No test passes or fails by it but one that would hang.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
pub const GLANCE: Duration = Duration::from_millis(25);

/// The id of the simulated instance of this number, from 1 on, as `bcc-sim --fleet` gives them.
pub fn instance(number: usize) -> String {
    format!("i-sim{number:05}")
}

/// Looks until there is something to see.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, look).await
}

/// Looks until there is something to see, for what may take longer than other things.
pub async fn eventually_within<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let waiting = async {
        loop {
            if let Some(seen) = look().await {
                return seen;
            }
            tokio::time::sleep(GLANCE).await;
        }
    };
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {patience:?}"))
}

/// An HTTP client. What it talks to is on loopback, so no proxy comes between.
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}
