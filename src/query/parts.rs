//! Answers that come in several messages.

use serde::Serialize;

/// Most bytes of what is listed in one part of an answer. A message of up to 64 KiB is read ([`broker`](crate::broker)).
const PART: usize = 48 * 1024;

/// Splits `listed` so that each part fits into a message: one part at least.
pub(super) fn split<T: Serialize>(listed: Vec<T>) -> Vec<Vec<T>> {
    let mut split: Vec<Vec<T>> = vec![Vec::new()];
    let mut room = PART;
    for item in listed {
        let size = bytes(&item).len() + 1;
        if size > room {
            split.push(Vec::new());
            room = PART;
        }
        room = room.saturating_sub(size);
        split.last_mut().expect("it is never empty").push(item);
    }
    split
}

/// As JSON.
pub(super) fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("it holds nothing but texts, numbers and lists")
}
