//! Proves that an event of the log, or a copy of a job, was written by the daemon.
//!
//! A client that may publish jobs can reuse another job's id and instance, and one that may publish outcomes can write
//! any event. So an order has a name that only the lane's replicas can compute, and an event is believed only with a
//! seal. Both are MACs under a key derived from the lane's secret key, which all its replicas have and which cannot be
//! computed from them. The name of an order travels in the headers of its parked copies; events show only its mark.

use std::mem::replace;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use lapin::types::{AMQPValue, FieldTable};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};

use crate::headers::Headers;

/// Headers of an event.
const MARK: &str = "x-reveille-mark";
const SEAL: &str = "x-reveille-seal";
/// What the key is derived for: no signature of an API call is ever made of this text.
const PURPOSE: &[u8] = b"reveille/orders/v1/";

/// One request of a producer: the same for every copy of its message, and for a message with the same id and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::lane) struct Order(String);

/// The public identifier of an order. The order's name cannot be computed from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::lane) struct Mark(String);

/// Computes and verifies names and seals.
#[derive(Debug)]
pub(in crate::lane) struct Seals {
    lane: String,
    keys: Mutex<Keys>,
}

#[derive(Debug)]
struct Keys {
    present: SecretSlice<u8>,
    /// Accepts what was sealed just before the keys were replaced.
    before: Option<SecretSlice<u8>>,
}

impl Seals {
    pub(in crate::lane) fn new(lane: &str, secret_access_key: &str) -> Self {
        let keys = Mutex::new(Keys { present: derive(lane, secret_access_key), before: None });
        Self { lane: lane.to_owned(), keys }
    }

    /// Sets the lane's key, which may be the one it had.
    pub(in crate::lane) fn replace(&self, secret_access_key: &str) {
        let present = derive(&self.lane, secret_access_key);
        let mut keys = self.keys();
        if present.expose_secret() != keys.present.expose_secret() {
            keys.before = Some(replace(&mut keys.present, present));
        }
    }

    /// The order of a message: its name under the present key, and under the previous one. `which` distinguishes
    /// messages that are no copies of each other although id and body are the same.
    pub(in crate::lane) fn orders(&self, job_id: &str, body: &[u8], which: &str) -> (Order, Option<Order>) {
        let length = |part: &str| (part.len() as u64).to_be_bytes();
        let (id_length, which_length) = (length(job_id), length(which));
        let parts = [b"order", &id_length[..], job_id.as_bytes(), &which_length, which.as_bytes(), body];
        let keys = self.keys();
        let under = |key: &SecretSlice<u8>| Order(hex(&mac(key.expose_secret(), &parts).finalize().into_bytes()));
        (under(&keys.present), keys.before.as_ref().map(under))
    }

    /// The headers of an event about the order with this `mark`.
    pub(in crate::lane) fn sealed(&self, mark: &Mark, event: &[u8]) -> FieldTable {
        let seal = seal(&self.keys().present, mark, event).finalize().into_bytes();
        let mut headers = FieldTable::default();
        headers.insert(MARK.into(), AMQPValue::LongString(mark.0.as_str().into()));
        headers.insert(SEAL.into(), AMQPValue::LongString(hex(&seal).into()));
        headers
    }

    /// The mark of the order that an event is about, if the event bears the lane's seal.
    pub(in crate::lane) fn open(&self, headers: Headers<'_>, event: &[u8]) -> Option<Mark> {
        let mark = Mark(headers.text(MARK).filter(|text| unhex(text).is_some())?.to_owned());
        let found = headers.text(SEAL).and_then(unhex)?;
        let keys = self.keys();
        let mut all = std::iter::once(&keys.present).chain(&keys.before);
        all.any(|key| seal(key, &mark, event).verify_truncated_left(&found).is_ok()).then_some(mark)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn derive(lane: &str, secret_access_key: &str) -> SecretSlice<u8> {
    mac(secret_access_key.as_bytes(), &[PURPOSE, lane.as_bytes()]).finalize().into_bytes().to_vec().into()
}

fn seal(key: &SecretSlice<u8>, mark: &Mark, event: &[u8]) -> Hmac<Sha256> {
    mac(key.expose_secret(), &[b"event", mark.0.as_bytes(), event])
}

impl Order {
    /// Reads a name from a header. Text of another form was not written by the daemon.
    pub(in crate::lane) fn read(text: &str) -> Option<Self> {
        unhex(text).map(|_| Self(text.to_owned()))
    }

    pub(in crate::lane) fn as_str(&self) -> &str {
        &self.0
    }

    pub(in crate::lane) fn mark(&self) -> Mark {
        Mark(hex(&Sha256::digest(self.0.as_bytes())))
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// Half of a SHA-256: 128 bits are beyond guessing.
const LENGTH: usize = 16;

fn hex(bytes: &[u8]) -> String {
    let half = bytes.first_chunk::<LENGTH>().expect("a SHA-256 has twice as many");
    format!("{:032x}", u128::from_be_bytes(*half))
}

fn unhex(text: &str) -> Option<[u8; LENGTH]> {
    let is_hex = text.len() == 2 * LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seals: &Seals, job_id: &str, body: &[u8], which: &str) -> Order {
        seals.orders(job_id, body, which).0
    }

    #[test]
    fn an_order_is_known_by_its_id_and_body_to_those_who_have_the_key() {
        let (ours, theirs) = (Seals::new("prod", "secret"), Seals::new("prod", "guess"));
        let name = order(&ours, "j", b"body", "");
        assert_eq!(order(&Seals::new("prod", "secret"), "j", b"body", ""), name, "on every replica");
        for other in [
            order(&ours, "k", b"body", ""),
            order(&ours, "j", b"body ", ""),
            order(&ours, "j", b"body", "again"),
            order(&ours, "jb", b"ody", ""),
            order(&theirs, "j", b"body", ""),
            order(&Seals::new("test", "secret"), "j", b"body", ""),
        ] {
            assert_ne!(other, name);
        }
        assert_eq!(Order::read(name.as_str()), Some(name.clone()));
        assert_ne!(name.mark().0, name.0);
        for nonsense in ["", "0", &"g".repeat(32), &"A".repeat(32), &format!("+{}", "0".repeat(31)), &"0".repeat(33)] {
            assert_eq!(Order::read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn an_event_is_believed_with_its_seal_and_after_keys_were_replaced_once() {
        let seals = Seals::new("prod", "one");
        let (mark, other) = (order(&seals, "j", b"body", "").mark(), order(&seals, "k", b"body", "").mark());
        let headers = seals.sealed(&mark, b"event");
        let opened = |seals: &Seals, headers: &FieldTable, event: &[u8]| seals.open(Headers(Some(headers)), event);
        assert_eq!(opened(&seals, &headers, b"event"), Some(mark.clone()));
        assert_eq!((opened(&seals, &headers, b"Event"), seals.open(Headers(None), b"event")), (None, None));
        for (name, forged) in [(MARK, other.0.as_str()), (SEAL, ""), (SEAL, "0"), (SEAL, other.0.as_str())] {
            let mut headers = headers.clone();
            headers.insert(name.into(), AMQPValue::LongString(forged.into()));
            assert_eq!(opened(&seals, &headers, b"event"), None, "{name} {forged}");
        }
        assert_eq!(opened(&Seals::new("prod", "other"), &headers, b"event"), None);

        // The same key again, as temporary ones come with a new token, is no other key.
        for (key, is_believed) in [("one", true), ("two", true), ("two", true), ("three", false)] {
            seals.replace(key);
            assert_eq!(opened(&seals, &headers, b"event").is_some(), is_believed, "{key}");
            let (present, before) = seals.orders("j", b"body", "");
            let is_known = present.mark() == mark || before.is_some_and(|before| before.mark() == mark);
            assert_eq!(is_known, is_believed, "{key}");
        }
    }
}
