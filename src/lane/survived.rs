//! Deliveries that nothing died of, and that came back all the same: the connection was lost while they were in hand.
//! RabbitMQ counts them like those over which a process died, and no message is to be suspected for them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::broker::Message;

/// More messages than a lane has in hand over many losses: about 2 MB.
const LIMIT: usize = 50_000;

/// How often each message was in hand when the connection was lost, since the process began.
#[derive(Debug, Default)]
pub(super) struct Survived {
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

impl Survived {
    /// How many deliveries of the message nothing died of.
    pub(super) fn of(&self, message: &Message) -> i64 {
        self.times().get(&self.name(message)).copied().unwrap_or(0)
    }

    pub(super) fn take(self: &Arc<Self>, message: &Message) -> InHand {
        InHand { survived: self.clone(), name: self.name(message), done: false }
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
        let survived = Arc::new(Survived::default());
        let message = |body: &str| Message { properties: BasicProperties::default(), body: body.as_bytes().to_vec() };
        let (one, other) = (message("one"), message("other"));
        for times in 1..=3 {
            drop(survived.take(&one));
            assert_eq!((survived.of(&one), survived.of(&other)), (times, 0));
        }
        survived.take(&one).done();
        assert_eq!(survived.of(&one), 0);
        for number in 0..=LIMIT {
            drop(survived.take(&message(&number.to_string())));
        }
        assert!(survived.times().len() <= LIMIT);
    }
}
