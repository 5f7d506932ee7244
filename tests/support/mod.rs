//! Shared by the tests.

pub mod account;
pub mod broker;
pub mod calls;
pub mod child;
pub mod clock;
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

/// Timeout of every wait here. Only a test that would hang fails by it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two checks.
pub const GLANCE: Duration = Duration::from_millis(25);

/// The id of the simulated instance of this number, from 1 on, as numbered by `bcc-sim --fleet`.
pub fn instance(number: usize) -> String {
    format!("i-sim{number:05}")
}

/// Checks until there is a result.
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, look).await
}

/// Checks until there is a result, with another timeout.
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

/// An HTTP client. Its servers are on loopback, so it uses no proxy.
pub fn http() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().expect("a client")
}
