//! Reads AMQP headers, which any client may have written.

use jiff::Timestamp;
use lapin::types::{AMQPValue, FieldTable};

/// Typed access to headers: a value of another type counts as absent.
#[derive(Debug, Clone, Copy)]
pub struct Headers<'a>(pub Option<&'a FieldTable>);

impl<'a> Headers<'a> {
    fn get(self, name: &str) -> Option<&'a AMQPValue> {
        self.0?.inner().get(name)
    }

    /// Whether there is a header of this name, whatever its value.
    pub fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// A UTF-8 string.
    pub fn text(self, name: &str) -> Option<&'a str> {
        match self.get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// An RFC 3339 instant.
    pub fn instant(self, name: &str) -> Option<Timestamp> {
        self.text(name)?.parse().ok()
    }

    /// A whole number of any width.
    pub fn integer(self, name: &str) -> Option<i64> {
        match *self.get(name)? {
            AMQPValue::LongLongInt(number) => Some(number),
            AMQPValue::LongInt(number) => Some(number.into()),
            AMQPValue::LongUInt(number) => Some(number.into()),
            AMQPValue::ShortInt(number) => Some(number.into()),
            AMQPValue::ShortUInt(number) => Some(number.into()),
            AMQPValue::ShortShortInt(number) => Some(number.into()),
            AMQPValue::ShortShortUInt(number) => Some(number.into()),
            _ => None,
        }
    }

    /// Whether a flag is set.
    pub fn flag(self, name: &str) -> bool {
        matches!(self.get(name), Some(AMQPValue::Boolean(true)))
    }
}
