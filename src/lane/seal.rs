//! What shows that an event of the log, or a copy of a job, is the daemon's own.
//!
//! Anybody who may publish jobs can write an id and an instance that another job has, and whoever may publish outcomes can
//! write any event. So an order is known by a name that only the lane's replicas can work out, and an event that is believed
//! bears a seal. Both are made with a key that is derived from the lane's secret key, which all its replicas have, and from which
//! that cannot be worked out. The name of an order rides in the headers of its parked copies; events show only its mark.

use std::sync::{Mutex, PoisonError};

use hmac::{Hmac, KeyInit, Mac};
use lapin::types::{AMQPValue, FieldTable};
use secrecy::{ExposeSecret, SecretSlice};
use sha2::{Digest, Sha256};

use crate::headers::Headers;

/// Headers of an event.
const MARK: &str = "x-reveille-mark";
const SEAL: &str = "x-reveille-seal";
/// For which the key is derived: no signature of a call is ever made of this text.
const PURPOSE: &[u8] = b"reveille/orders/v1/";

/// What a producer asked for with one message: the same for every copy of that, and for a message with the same id and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Order(String);

/// By what an order is known where others can read it. The order cannot be worked out from it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Mark(String);

/// Makes and checks names and seals.
#[derive(Debug)]
pub(super) struct Seals {
    lane: String,
    /// The present key, and the one before: what was sealed just before keys were replaced is still believed.
    keys: Mutex<[Option<SecretSlice<u8>>; 2]>,
}

impl Seals {
    pub(super) fn new(lane: &str, secret_access_key: &str) -> Self {
        let seals = Self { lane: lane.to_owned(), keys: Mutex::default() };
        seals.replace(secret_access_key);
        seals
    }

    /// The lane has other keys from now on.
    pub(super) fn replace(&self, secret_access_key: &str) {
        let derived = mac(secret_access_key.as_bytes(), &[PURPOSE, self.lane.as_bytes()]).finalize().into_bytes();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let before = keys[0].replace(derived.to_vec().into());
        keys[1] = before;
    }

    /// The order of a message. `which` tells messages apart that are no copies of each other although they say the same.
    pub(super) fn order(&self, job_id: &str, body: &[u8], which: &str) -> Order {
        let length = |part: &[u8]| (part.len() as u64).to_be_bytes();
        let parts: [&[u8]; 6] = [
            b"order",
            &length(job_id.as_bytes()),
            job_id.as_bytes(),
            &length(which.as_bytes()),
            which.as_bytes(),
            body,
        ];
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys[0].as_ref().map_or(&[][..], ExposeSecret::expose_secret);
        Order(hex(&mac(key, &parts).finalize().into_bytes()))
    }

    /// The headers of an event about the order that `mark` stands for.
    pub(super) fn sealed(&self, mark: &Mark, event: &[u8]) -> FieldTable {
        let mut headers = FieldTable::default();
        headers.insert(MARK.into(), AMQPValue::LongString(mark.0.as_str().into()));
        headers.insert(SEAL.into(), AMQPValue::LongString(self.seal(mark, event).into()));
        headers
    }

    /// The order that an event is about, where the lane's own seal is on it.
    pub(super) fn open(&self, headers: Headers<'_>, event: &[u8]) -> Option<Mark> {
        let mark = Mark(headers.text(MARK).filter(|text| unhex(text).is_some())?.to_owned());
        self.is_ours(&mark, event, headers.text(SEAL)?).then_some(mark)
    }

    fn seal(&self, mark: &Mark, event: &[u8]) -> String {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys[0].as_ref().map_or(&[][..], ExposeSecret::expose_secret);
        hex(&mac(key, &[b"event", mark.0.as_bytes(), event]).finalize().into_bytes())
    }

    fn is_ours(&self, mark: &Mark, event: &[u8], seal: &str) -> bool {
        let Some(seal) = unhex(seal) else { return false };
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.iter().flatten().any(|key| {
            let sealed = mac(key.expose_secret(), &[b"event", mark.0.as_bytes(), event]);
            sealed.verify_truncated_left(&seal).is_ok()
        })
    }
}

impl Order {
    /// Reads the name in a header. What looks like none was not written by the daemon.
    pub(super) fn read(text: &str) -> Option<Self> {
        unhex(text).map(|_| Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(hex(&Sha256::digest(self.0.as_bytes())))
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// Half of a SHA-256 is more than anybody can guess.
const LENGTH: usize = 16;

fn hex(bytes: &[u8]) -> String {
    bytes[..LENGTH].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; LENGTH]> {
    let is_hex = text.len() == 2 * LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(u128::to_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_known_by_its_id_and_body_to_those_who_have_the_key() {
        let (ours, theirs) = (Seals::new("prod", "secret"), Seals::new("prod", "guess"));
        let order = ours.order("j", b"body", "");
        assert_eq!(Seals::new("prod", "secret").order("j", b"body", ""), order, "on every replica");
        for other in [
            ours.order("k", b"body", ""),
            ours.order("j", b"body ", ""),
            ours.order("j", b"body", "again"),
            ours.order("jb", b"ody", ""),
            theirs.order("j", b"body", ""),
            Seals::new("test", "secret").order("j", b"body", ""),
        ] {
            assert_ne!(other, order);
        }
        assert_eq!(Order::read(order.as_str()), Some(order.clone()));
        assert_ne!(order.mark().0, order.0);
        for nonsense in ["", "0", &"g".repeat(32), &"A".repeat(32), &format!("+{}", "0".repeat(31)), &"0".repeat(33)] {
            assert_eq!(Order::read(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn an_event_is_believed_with_its_seal_and_after_keys_were_replaced_once() {
        let seals = Seals::new("prod", "one");
        let mark = seals.order("j", b"body", "").mark();
        let seal = seals.seal(&mark, b"event");
        assert!(seals.is_ours(&mark, b"event", &seal));
        let other = seals.order("k", b"body", "").mark();
        assert!(!seals.is_ours(&other, b"event", &seal) && !seals.is_ours(&mark, b"Event", &seal));
        assert!(!seals.is_ours(&mark, b"event", "") && !seals.is_ours(&mark, b"event", &"0".repeat(32)));
        assert!(!Seals::new("prod", "other").is_ours(&mark, b"event", &seal));
        let headers = seals.sealed(&mark, b"event");
        assert_eq!(seals.open(Headers(Some(&headers)), b"event"), Some(mark.clone()));
        assert_eq!((seals.open(Headers(Some(&headers)), b"other"), seals.open(Headers(None), b"event")), (None, None));
        seals.replace("two");
        assert!(seals.is_ours(&mark, b"event", &seal));
        assert_ne!(seals.seal(&mark, b"event"), seal);
        seals.replace("three");
        assert!(!seals.is_ours(&mark, b"event", &seal));
    }
}
