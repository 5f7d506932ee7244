//! An instance's id and its states.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de};

/// A checked instance id: `^i-[A-Za-z0-9]{4,64}$`. Nothing else ever reaches a URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct InstanceId(String);

impl InstanceId {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`InvalidInstanceId`], which shows the text (shortened) and what an id looks like.
    pub fn parse(text: &str) -> Result<Self, InvalidInstanceId> {
        let valid = text.strip_prefix("i-").is_some_and(|rest| {
            (4..=64).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidInstanceId(text.chars().take(80).collect())) }
    }

    /// The id as it stands in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InstanceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

/// A text that is no instance id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no instance id: expected \"i-\" and 4 to 64 ASCII letters or digits, as in i-YufwpQAe")]
pub struct InvalidInstanceId(String);

/// The meaning of an instance's state for a start call.
///
/// The API documents 19 strings (<https://cloud.baidu.com/doc/BCC/s/6jwvyo0q2>) and has added to them before, so an
/// unknown string counts as passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    /// `Running`.
    Running,
    /// `Starting`: on its way to running.
    Starting,
    /// `Stopped`: the only state in which a start call is accepted.
    Stopped,
    /// `Deleted`, `Expired`, `Recycled`, `Error`: waiting does not help.
    Ended,
    /// `Stopping`, `Scaling`, … and every unknown string: it will soon change.
    Passing,
}

impl InstanceState {
    /// All there are.
    const ALL: [Self; 5] = [Self::Running, Self::Starting, Self::Stopped, Self::Ended, Self::Passing];

    /// The word for it, for people and programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Starting => "starting",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
            Self::Passing => "passing",
        }
    }

    /// The state of this [`InstanceState::word`]; one that only another version has is a passing one.
    pub fn of_word(word: &str) -> Self {
        Self::ALL.into_iter().find(|state| state.word() == word).unwrap_or(Self::Passing)
    }

    /// Reads the API's `status` string.
    pub fn parse(status: &str) -> Self {
        match status {
            "Running" => Self::Running,
            "Starting" => Self::Starting,
            "Stopped" => Self::Stopped,
            "Deleted" | "Expired" | "Recycled" | "Error" => Self::Ended,
            _ => Self::Passing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_instance_id_is_one() {
        for id in ["i-YufwpQAe", "i-0000", &format!("i-{}", "a".repeat(64))] {
            assert_eq!(InstanceId::parse(id).unwrap().as_str(), id);
        }
        let too_long = format!("i-{}", "a".repeat(65));
        for text in [
            "",
            "i-",
            "i-abc",
            &too_long,
            "I-abcd",
            "i-ab/cd",
            "i-..",
            "i-a?start",
            "i-%2f00",
            " i-abcd",
            "i-abcd\n",
            "i-абвг",
        ] {
            let error = InstanceId::parse(text).unwrap_err().to_string();
            assert!(error.contains("i-YufwpQAe"), "{error}");
        }
    }

    #[test]
    fn a_state_is_read_from_its_word() {
        for state in InstanceState::ALL {
            assert_eq!(InstanceState::of_word(state.word()), state);
        }
        assert_eq!(InstanceState::of_word("asleep"), InstanceState::Passing);
    }

    #[test]
    fn a_state_not_known_yet_is_a_passing_one() {
        assert_eq!(InstanceState::parse("Hibernating"), InstanceState::Passing);
        assert_eq!(InstanceState::parse("ChangeVpc"), InstanceState::Passing);
        assert_eq!(InstanceState::parse("Recycled"), InstanceState::Ended);
    }
}
