//! The graceful stop of running tasks.

use std::time::Duration;

use tokio::sync::watch;

/// A request to all running tasks to finish what they have begun, and to begin nothing new.
#[derive(Debug, Clone)]
pub struct Stop {
    requested: watch::Receiver<bool>,
    /// A second source, for some tasks only.
    also: Option<watch::Receiver<bool>>,
    /// Grace period: how long finishing may take.
    pub grace: Duration,
}

impl Stop {
    /// A stop that is requested by sending `true`.
    pub fn new(grace: Duration) -> (watch::Sender<bool>, Self) {
        let (sender, requested) = watch::channel(false);
        (sender, Self { requested, also: None, grace })
    }

    /// A stop that is requested with this one, or by `also` alone.
    pub fn or(&self, also: watch::Receiver<bool>) -> Self {
        Self { also: Some(also), ..self.clone() }
    }

    /// Whether the stop is requested.
    pub fn is_requested(&self) -> bool {
        *self.requested.borrow() || self.also.as_ref().is_some_and(|also| *also.borrow())
    }

    /// Waits until the stop is requested.
    pub async fn requested(&self) {
        let said = async |receiver: Option<&watch::Receiver<bool>>| {
            let Some(mut receiver) = receiver.cloned() else { return std::future::pending().await };
            if receiver.wait_for(|requested| *requested).await.is_err() {
                // No sender is left that could request it.
                std::future::pending().await
            }
        };
        tokio::select! {
            () = said(Some(&self.requested)) => {}
            () = said(self.also.as_ref()) => {}
        }
    }
}
