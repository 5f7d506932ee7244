//! Messages that the broker refuses at present: one line in the log when the first is refused, and one when none is left,
//! for each exchange and routing key. A full queue refuses hundreds at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use super::outgoing::{Outgoing, PublishError};

/// How many messages of each exchange and routing key are refused at present.
#[derive(Debug, Clone, Default)]
pub(super) struct Refused(Arc<Mutex<HashMap<(String, String), usize>>>);

/// A refused message that is going to be tried again, until this is dropped.
#[derive(Debug)]
pub(super) struct Retried {
    refused: Refused,
    kind: (String, String),
}

impl Refused {
    /// Counts a message that was refused because of `error`.
    pub(super) fn add(&self, message: &Outgoing, error: &PublishError) -> Retried {
        let kind = (message.exchange.clone(), message.key.clone());
        let mut counts = self.counts();
        let count = counts.entry(kind.clone()).or_default();
        *count += 1;
        if *count == 1 {
            error!("{error}; jobs wait until that is mended");
        }
        Retried { refused: self.clone(), kind }
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<(String, String), usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Retried {
    /// The broker took the message.
    pub(super) fn taken(self) {
        let (exchange, key) = &self.kind;
        // This one is counted until it is dropped.
        if self.refused.counts().get(&self.kind) == Some(&1) {
            info!(exchange, key, "the broker takes these messages now");
        }
    }
}

impl Drop for Retried {
    fn drop(&mut self) {
        let mut counts = self.refused.counts();
        if let Some(count) = counts.get_mut(&self.kind) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.kind);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    #[test]
    fn a_message_is_counted_until_it_is_dropped_and_nothing_is_kept_of_it() {
        let refused = Refused::default();
        let message = |key: &str| Outgoing {
            exchange: "x".to_owned(),
            key: key.to_owned(),
            properties: BasicProperties::default(),
            body: Vec::new(),
        };
        let error = PublishError::Rejected { exchange: "x".to_owned(), key: "k".to_owned() };
        let count = |key: &str| refused.counts().get(&("x".to_owned(), key.to_owned())).copied();
        let (first, second) = (refused.add(&message("k"), &error), refused.add(&message("k"), &error));
        let other = refused.add(&message("other"), &error);
        assert_eq!((count("k"), count("other")), (Some(2), Some(1)));
        first.taken();
        drop(other);
        assert_eq!((count("k"), count("other")), (Some(1), None));
        drop(second);
        assert!(refused.counts().is_empty());
    }
}
