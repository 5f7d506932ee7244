//! A delivered message, how it is acked, and how it is passed on.

use lapin::BasicProperties;
use lapin::options::{BasicAckOptions, BasicRejectOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};

use super::inbound::{IMMOVABLE, MOST_VALUES, UNREADABLE};
use super::publisher::Confirmed;
use crate::headers::Headers;

/// A delivered message, not yet acked.
#[derive(Debug)]
pub struct Delivery {
    /// What the message says.
    pub message: Message,
    /// It was delivered before, to us or to another consumer.
    pub redelivered: bool,
    /// How often it was returned unacked, as far as the broker counts; 0 at the first delivery.
    pub returns: i64,
    /// Why it cannot be read, if so: then its body is empty, and only the broker has the whole message.
    pub unreadable: Option<String>,
    /// Whether the broker may dead-letter it if it cannot be read.
    pub is_movable: bool,
    /// The right to ack it.
    pub unacked: Unacked,
}

impl From<lapin::message::Delivery> for Delivery {
    fn from(delivery: lapin::message::Delivery) -> Self {
        // At the first delivery, the header may be the producer's own.
        let headers = Headers(delivery.properties.headers().as_ref().filter(|_| delivery.redelivered));
        let returns = headers.integer("x-delivery-count").unwrap_or(0);
        let written = Headers(delivery.properties.headers().as_ref());
        let unreadable = written.text(UNREADABLE).map(str::to_owned);
        let is_movable = written.text(IMMOVABLE).is_none();
        Self {
            message: Message { properties: delivery.properties, body: delivery.data },
            redelivered: delivery.redelivered,
            returns,
            unreadable,
            is_movable,
            unacked: Unacked(delivery.acker),
        }
    }
}

/// The right to ack a delivery. Dropped, the delivery stays unacked, and is requeued when the channel closes.
#[derive(Debug)]
pub struct Unacked(lapin::Acker);

impl Unacked {
    /// Acks the delivery. The broker has confirmed all that replaces it.
    ///
    /// # Errors
    /// The channel or the connection broke: the broker redelivers the message.
    pub async fn ack(self, _proof: Confirmed) -> Result<(), lapin::Error> {
        self.0.ack(BasicAckOptions::default()).await.map(drop)
    }

    /// Acks the delivery of a message that somebody does not want any more: nothing replaces it.
    ///
    /// # Errors
    /// The channel or the connection broke: the broker keeps the message.
    pub async fn discard(self) -> Result<(), lapin::Error> {
        self.0.ack(BasicAckOptions::default()).await.map(drop)
    }

    /// Returns the delivery to its queue.
    ///
    /// # Errors
    /// The channel or the connection broke, which returns it.
    pub async fn put_back(self) -> Result<(), lapin::Error> {
        self.0.reject(BasicRejectOptions { requeue: true }).await.map(drop)
    }

    /// Makes the broker dead-letter the whole message. The broker keeps it until that is done.
    ///
    /// # Errors
    /// The channel or the connection broke: the broker redelivers the message.
    pub async fn put_aside(self, _proof: Confirmed) -> Result<(), lapin::Error> {
        self.0.reject(BasicRejectOptions { requeue: false }).await.map(drop)
    }
}

/// Properties and body.
#[derive(Debug, Clone)]
pub struct Message {
    /// Properties, headers among them.
    pub properties: BasicProperties,
    /// The body.
    pub body: Vec<u8>,
}

/// Largest headers of a producer that are passed on, in bytes.
const HEADERS_LIMIT: usize = 110 * 1024;
/// Most values in a producer's headers that are passed on, nested ones included: with some 25 of ours, and 150 of
/// RabbitMQ's from the whole ladder, they are still readable on return.
const VALUES_LIMIT: usize = MOST_VALUES / 2;
/// What RabbitMQ adds to a message's headers on its way through the whole ladder, in bytes, delivery count included.
const BROKERS: usize = 4608;
/// What a frame holds beside the headers: eight texts of 255 bytes, and some numbers.
const PROPERTIES: usize = 2176;

impl Message {
    /// The properties for publishing the message again, with `ours` among its headers. They and what RabbitMQ adds fit
    /// into a frame of `frame_max` bytes: if the producer's headers do not, they are left out.
    ///
    /// They are the producer's, except for those that would act on the broker a second time: a `user_id` other than
    /// ours closes the channel; an `expiration` would cut a delay short; `CC` and `BCC` would send copies; and RabbitMQ
    /// drops a message as a cycle if its own `x-death` says that it was in the queue before.
    pub fn forward(&self, ours: FieldTable, frame_max: usize) -> BasicProperties {
        let mut properties = BasicProperties::default();
        macro_rules! keep {
            ($($get:ident $with:ident),*) => {$(
                if let Some(value) = self.properties.$get() {
                    properties = properties.$with(value.clone());
                }
            )*};
        }
        keep!(
            content_type with_content_type, content_encoding with_content_encoding, priority with_priority,
            correlation_id with_correlation_id, reply_to with_reply_to, message_id with_message_id,
            timestamp with_timestamp, kind with_type, app_id with_app_id
        );
        let mut headers = ours;
        if let Some(theirs) = self.properties.headers() {
            let own = headers.inner().keys().cloned().collect::<Vec<_>>();
            let kept = || {
                let theirs = theirs.inner().iter();
                theirs.filter(|(name, _)| !is_replaced(name.as_str()) && !own.contains(name))
            };
            let others = PROPERTIES + headers.inner().iter().map(entry_size).sum::<usize>() + BROKERS;
            let fits = kept().map(entry_size).sum::<usize>() <= frame_max.saturating_sub(others).min(HEADERS_LIMIT);
            if fits && kept().map(|(_, value)| values(value)).sum::<usize>() <= VALUES_LIMIT {
                for (name, value) in kept() {
                    headers.insert(name.clone(), value.clone());
                }
            } else {
                headers.insert(HEADERS_DROPPED.into(), AMQPValue::Boolean(true));
            }
        }
        properties.with_headers(headers)
    }
}

impl Message {
    /// Whether both say the same, whatever the broker has noted on them.
    pub(super) fn says_what(&self, other: &Self) -> bool {
        let noted = |message: &Self| {
            let headers = message.properties.headers().iter().flat_map(|headers| headers.inner());
            let mut producers = FieldTable::default();
            for (name, value) in headers.filter(|(name, _)| !is_brokers(name.as_str())) {
                producers.insert(name.clone(), value.clone());
            }
            message.properties.clone().with_headers(producers)
        };
        self.body == other.body && noted(self) == noted(other)
    }
}

/// Marks a message whose headers were left out.
const HEADERS_DROPPED: &str = "x-reveille-headers-dropped";

/// Names the job of which the job of a message is a replay. It stays with the job until its end.
pub const REPLAY_OF: &str = "x-reveille-replay-of";

/// Headers on which RabbitMQ would act, and the daemon's own, which are written anew: old values would be wrong.
fn is_replaced(name: &str) -> bool {
    (name.starts_with("x-reveille-") && ![HEADERS_DROPPED, REPLAY_OF].contains(&name)) || is_brokers(name)
}

fn is_brokers(name: &str) -> bool {
    matches!(name, "CC" | "BCC" | "x-death" | "x-delivery-count" | "x-acquired-count" | "x-opt-delivery-count")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// Approximate bytes of a table's entry on the wire: a byte for the length of its name, the name, and the value.
fn entry_size((name, value): (&ShortString, &AMQPValue)) -> usize {
    1 + name.as_str().len() + size(value)
}

/// Approximate bytes of a value on the wire.
fn size(value: &AMQPValue) -> usize {
    5 + match value {
        AMQPValue::LongString(text) => text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().len(),
        AMQPValue::FieldArray(values) => values.as_slice().iter().map(size).sum(),
        AMQPValue::FieldTable(table) => table.inner().iter().map(entry_size).sum(),
        _ => 8,
    }
}

/// Number of values in a value, itself and nested ones included.
fn values(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::FieldArray(inside) => inside.as_slice().iter().map(values).sum(),
        AMQPValue::FieldTable(table) => table.inner().values().map(values).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RabbitMQ's default.
    const FRAME: usize = 128 * 1024;

    #[test]
    fn what_would_act_on_the_broker_again_is_not_passed_on() {
        let mut headers = FieldTable::default();
        for name in
            ["team", REPLAY_OF, "x-reveille-outcome", "CC", "x-death", "x-first-death-queue", "x-delivery-count"]
        {
            headers.insert(name.into(), AMQPValue::LongString("v".into()));
        }
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_message_id("m".into())
            .with_user_id("producer".into())
            .with_expiration("1000".into());
        let mut ours = FieldTable::default();
        ours.insert("x-reveille-attempts".into(), AMQPValue::LongLongInt(1));
        let message = Message { properties, body: Vec::new() };
        let forwarded = message.forward(ours, FRAME);
        assert_eq!((forwarded.user_id(), forwarded.expiration()), (&None, &None));
        assert_eq!(forwarded.message_id().as_ref().unwrap().as_str(), "m");
        let names: Vec<&str> = forwarded.headers().as_ref().unwrap().inner().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["team", "x-reveille-attempts", REPLAY_OF]);
        let mut ours = FieldTable::default();
        ours.insert(REPLAY_OF.into(), AMQPValue::LongString("j".into()));
        let forwarded = message.forward(ours, FRAME);
        let replay_of = Headers(forwarded.headers().as_ref()).text(REPLAY_OF);
        assert_eq!(replay_of, Some("j"), "the last one counts");
    }

    #[test]
    fn headers_that_would_burst_the_frame_are_dropped_and_it_is_said() {
        let mut headers = FieldTable::default();
        headers.insert("big".into(), AMQPValue::LongString("v".repeat(HEADERS_LIMIT).into()));
        let properties = BasicProperties::default().with_headers(headers);
        let forwarded = Message { properties, body: Vec::new() }.forward(FieldTable::default(), FRAME);
        let names: Vec<&str> = forwarded.headers().as_ref().unwrap().inner().keys().map(|name| name.as_str()).collect();
        assert_eq!(names, ["x-reveille-headers-dropped"]);
    }

    #[test]
    fn headers_fit_into_the_frame_agreed_on_with_what_rabbitmq_adds() {
        let kept = |size: usize, frame_max| {
            let mut headers = FieldTable::default();
            headers.insert("big".into(), AMQPValue::LongString("v".repeat(size).into()));
            let mut ours = FieldTable::default();
            ours.insert("x-reveille-reason".into(), AMQPValue::LongString("r".repeat(500).into()));
            let properties = BasicProperties::default().with_headers(headers);
            let forwarded = Message { properties, body: Vec::new() }.forward(ours, frame_max);
            forwarded.headers().as_ref().unwrap().inner().contains_key("big")
        };
        assert!(kept(500, 8192) && !kept(1_000, 8192) && !kept(7_700, 8192));
        assert!(kept(7_700, 16_384) && kept(110_000, FRAME) && !kept(120_000, FRAME));
    }

    #[test]
    fn a_headers_name_takes_a_byte_for_its_length() {
        // On the wire each takes 1,000 bytes: the length, the name, the kind of value, the length of a text, and the text.
        let kept = |more: usize| {
            let mut headers = FieldTable::default();
            for number in 0..112 {
                headers.insert(format!("{number:04x}").into(), AMQPValue::LongString("v".repeat(990).into()));
            }
            headers.insert("last".into(), AMQPValue::LongString("v".repeat(more).into()));
            let properties = BasicProperties::default().with_headers(headers);
            let forwarded = Message { properties, body: Vec::new() }.forward(FieldTable::default(), FRAME);
            forwarded.headers().as_ref().unwrap().inner().contains_key("0000")
        };
        let left = HEADERS_LIMIT - 112 * 1_000 - 10;
        assert!(kept(left) && !kept(left + 1));
    }

    #[test]
    fn headers_that_could_not_be_read_when_they_come_back_are_dropped() {
        let kept = |values: usize, nested: bool| {
            let mut headers = FieldTable::default();
            if nested {
                headers.insert("all".into(), AMQPValue::FieldArray(vec![AMQPValue::Void; values - 1].into()));
            } else {
                for number in 0..values {
                    headers.insert(number.to_string().into(), AMQPValue::Void);
                }
            }
            let properties = BasicProperties::default().with_headers(headers);
            let forwarded = Message { properties, body: Vec::new() }.forward(FieldTable::default(), FRAME);
            !forwarded.headers().as_ref().unwrap().inner().contains_key(HEADERS_DROPPED)
        };
        for nested in [false, true] {
            assert!(kept(VALUES_LIMIT, nested) && !kept(VALUES_LIMIT + 1, nested));
        }
    }
}
