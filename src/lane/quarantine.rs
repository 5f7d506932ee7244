//! Messages suspected of crashing the process that reads them.
//!
//! RabbitMQ counts how often a message was returned, but for all messages that were delivered together. So a message
//! that was returned [`SUSPECT_AT`] times is handled alone: then only the message at fault is returned. At
//! [`POISONED_AT`] its job ends. RabbitMQ also counts the returns after a lost connection, which the process survived;
//! those raise no suspicion.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::{Delivery, Message};

/// Returns after which a message is suspected of crashing the process that reads it.
pub(super) const SUSPECT_AT: i64 = 3;
/// Returns after which a message that was never acked is taken to have crashed the process each time.
pub(super) const POISONED_AT: i64 = 20;
/// Messages remembered, about 2 MB: more than a lane has in hand over many lost connections.
const LIMIT: usize = 50_000;

/// How often each message was in hand when the connection was lost, since the process began.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Arc<Survived>);

#[derive(Debug, Default)]
struct Survived {
    names: RandomState,
    times: Mutex<HashMap<u64, i64>>,
}

/// A message in hand. If it is dropped before it is [`done`](Tracked::done), the process has survived it once more.
#[derive(Debug)]
pub(super) struct Tracked {
    survived: Arc<Survived>,
    name: u64,
    done: bool,
}

impl Quarantine {
    /// How many returns of a message may be its own fault.
    pub(super) fn suspicion(&self, delivery: &Delivery) -> i64 {
        if delivery.returns == 0 {
            // As of nearly all messages: saves the hash.
            return 0;
        }
        delivery.returns.saturating_sub(self.0.of(&delivery.message)).max(0)
    }

    /// Marks a message as in hand.
    pub(super) fn track(&self, message: &Message) -> Tracked {
        Tracked { survived: self.0.clone(), name: self.0.name(message), done: false }
    }
}

impl Survived {
    /// How many deliveries of the message the process survived.
    fn of(&self, message: &Message) -> i64 {
        self.times().get(&self.name(message)).copied().unwrap_or(0)
    }

    fn name(&self, message: &Message) -> u64 {
        let id = message.properties.message_id().as_ref().map(|id| id.as_str());
        self.names.hash_one((id, &message.body))
    }

    fn times(&self) -> MutexGuard<'_, HashMap<u64, i64>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tracked {
    /// The message was acked, so it is not delivered again.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let mut times = self.survived.times();
        if self.done {
            times.remove(&self.name);
            return;
        }
        if times.len() >= LIMIT {
            times.clear();
        }
        *times.entry(self.name).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::*;

    #[test]
    fn what_was_dropped_unacked_has_survived_and_what_was_acked_is_forgotten() {
        let quarantine = Quarantine::default();
        let survived = &quarantine.0;
        let message = |body: &str| Message { properties: BasicProperties::default(), body: body.as_bytes().to_vec() };
        let (one, other) = (message("one"), message("other"));
        for times in 1..=3 {
            drop(quarantine.track(&one));
            assert_eq!((survived.of(&one), survived.of(&other)), (times, 0));
        }
        quarantine.track(&one).done();
        assert_eq!(survived.of(&one), 0);
        for number in 0..=LIMIT {
            drop(quarantine.track(&message(&number.to_string())));
        }
        assert!(survived.times().len() <= LIMIT);
    }
}
