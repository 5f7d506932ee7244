//! Messages that are suspected of ending the process that reads them.
//!
//! RabbitMQ counts how often a message came back, but for all messages that were handed out together. So a message that came
//! back [`SUSPECT_AT`] times is taken alone: what comes back then is the one that did it, and no other. At [`POISONED_AT`] its job
//! ends. Deliveries that nothing died of, as the connection was lost while they were in hand, are counted by RabbitMQ all the
//! same; no message is suspected for them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::{Delivery, Message};

/// A message that came back this often is suspected of ending the process that reads it.
pub(super) const SUSPECT_AT: i64 = 3;
/// A message that came back this often, and was never acked, is taken to have ended the process each time.
pub(super) const POISONED_AT: i64 = 20;
/// More messages than a lane has in hand over many losses: about 2 MB.
const LIMIT: usize = 50_000;

/// How often each message was in hand when the connection was lost, since the process began.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Arc<Survived>);

#[derive(Debug, Default)]
struct Survived {
    names: RandomState,
    times: Mutex<HashMap<u64, i64>>,
}

/// A message in hand. Dropped before it is [`done`](InHand::done), it has survived once more.
#[derive(Debug)]
pub(super) struct InHand {
    survived: Arc<Survived>,
    name: u64,
    done: bool,
}

impl Quarantine {
    /// How many returns of a message may be because of the message itself.
    pub(super) fn suspicion(&self, delivery: &Delivery) -> i64 {
        if delivery.returns == 0 {
            // As nearly all are: no name is worked out for them.
            return 0;
        }
        delivery.returns.saturating_sub(self.0.of(&delivery.message)).max(0)
    }

    /// Takes a message in hand.
    pub(super) fn take(&self, message: &Message) -> InHand {
        InHand { survived: self.0.clone(), name: self.0.name(message), done: false }
    }
}

impl Survived {
    /// How many deliveries of the message nothing died of.
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

impl InHand {
    /// The message was acked: it does not come again.
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for InHand {
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
            drop(quarantine.take(&one));
            assert_eq!((survived.of(&one), survived.of(&other)), (times, 0));
        }
        quarantine.take(&one).done();
        assert_eq!(survived.of(&one), 0);
        for number in 0..=LIMIT {
            drop(quarantine.take(&message(&number.to_string())));
        }
        assert!(survived.times().len() <= LIMIT);
    }
}
