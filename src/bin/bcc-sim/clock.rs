//! The simulated clock.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::span::{LONGEST, Span};

/// Signatures are judged by it, and `Date` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Clock {
    /// How far it is ahead of this machine's.
    #[serde(serialize_with = "show", deserialize_with = "read")]
    pub offset: SignedDuration,
    /// How far a request's date may be from it, either way.
    pub tolerance: Span,
}

impl Clock {
    pub fn now(&self) -> Timestamp {
        let now = Timestamp::now();
        now.checked_add(self.offset).unwrap_or(now)
    }

    pub fn tolerance(&self) -> SignedDuration {
        SignedDuration::try_from(self.tolerance.0).unwrap_or(LONGEST)
    }
}

/// Right, and as tolerant as the API.
impl Default for Clock {
    fn default() -> Self {
        Self { offset: SignedDuration::ZERO, tolerance: Span(std::time::Duration::from_secs(30 * 60)) }
    }
}

/// An offset such as `40m` or `-40m`.
pub fn offset(text: &str) -> Result<SignedDuration, String> {
    let offset: SignedDuration = text.parse().map_err(|why| format!("{why}"))?;
    // Dates beyond the year 9999 cannot be written.
    if offset.abs() > LONGEST { Err(format!("{text:?} is more than a year")) } else { Ok(offset) }
}

fn show<S: Serializer>(offset: &SignedDuration, serializer: S) -> Result<S::Ok, S::Error> {
    let sign = if offset.is_negative() { "-" } else { "" };
    serializer.collect_str(&format_args!("{sign}{:#}", offset.abs()))
}

fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SignedDuration, D::Error> {
    offset(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_read_and_printed_alike() {
        for (text, offset) in [("20m", 20), ("-40m", -40), ("0s", 0), ("2h", 120), ("-1h 30m", -90)] {
            let json = format!(r#"{{"offset":"{text}","tolerance":"30m"}}"#);
            let clock: Clock = serde_json::from_str(&json).unwrap();
            assert_eq!(clock, Clock { offset: SignedDuration::from_mins(offset), ..Clock::default() });
            assert_eq!(serde_json::to_string(&clock).unwrap(), json);
        }
        assert_eq!(serde_json::from_str::<Clock>("{}").unwrap(), Clock::default());
        for (json, part) in [
            (r#"{"offset":"9000h"}"#, "a year"),
            (r#"{"offset":20}"#, "string"),
            (r#"{"tolerance":"-1m"}"#, "negative"),
            (r#"{"shift":"1m"}"#, "shift"),
        ] {
            let error = serde_json::from_str::<Clock>(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
