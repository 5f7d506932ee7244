//! Durations as people write them: `2s`, `500ms`, `1m 30s`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Longer ones are mistakes, and sums of them would not fit the clock.
pub const LONGEST: SignedDuration = SignedDuration::from_hours(365 * 24);

/// A duration that parses and prints as text, on the command line and in JSON alike.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &dyn fmt::Display| format!("{text:?} is not a length of time such as 2s or 500ms: {why}");
        let signed: SignedDuration = text.parse().map_err(|why: jiff::Error| wrong(&why))?;
        if signed > LONGEST {
            return Err(wrong(&"it is more than a year"));
        }
        Duration::try_from(signed).map(Self).map_err(|_| wrong(&"it is negative"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SignedDuration::try_from(self.0) {
            Ok(signed) => write!(f, "{signed:#}"),
            Err(_) => write!(f, "{}s", self.0.as_secs()),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_and_printed_alike() {
        for (text, millis) in [("2s", 2_000), ("500ms", 500), ("1m 30s", 90_000), ("0s", 0)] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.0, Duration::from_millis(millis), "{text}");
            assert_eq!(span.to_string(), text);
        }
    }

    #[test]
    fn a_bare_number_or_a_senseless_length_is_refused_with_the_text_in_the_message() {
        for text in ["2", "-2s", "", "soon", "9000h", "9999999999999999s"] {
            let error = text.parse::<Span>().unwrap_err();
            assert!(error.contains(&format!("{text:?}")), "{error}");
        }
    }
}
