//! Instances chosen by what the API says of them. Pure: no call is made here.

use std::fmt;
use std::str::FromStr;

use super::list::Listed;
use crate::similar;
use crate::wildcard;

const EXPECTED: &str = "expected conditions such as tag=wake:morning,zone=cn-bj-a,name=web-*";
/// What a condition can be about.
const KEYS: [&str; 3] = ["name", "tag", "zone"];

/// Conditions, all of which an instance has to meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// As it was given.
    text: String,
    conditions: Vec<Condition>,
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Condition {
    /// A tag with this key, and with this value if there is one.
    Tag(String, Option<String>),
    /// The zone of this name.
    Zone(String),
    /// A name of this pattern, in which `*` stands for any text.
    Name(String),
}

impl FromStr for Selection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let conditions: Vec<Condition> = text.split(',').map(Condition::parse).collect::<Result<_, _>>()?;
        let zones = conditions.iter().filter(|condition| matches!(condition, Condition::Zone(_))).count();
        if zones > 1 {
            return Err("an instance is in one zone: expected one zone=…".to_owned());
        }
        Ok(Self { text: text.to_owned(), conditions })
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.trim().split_once('=').ok_or_else(|| format!("{text:?} has no =: {EXPECTED}"))?;
        if value.is_empty() {
            return Err(format!("{key}= has no value: {EXPECTED}"));
        }
        match key {
            "tag" => Ok(match value.split_once(':') {
                Some(("", _)) => return Err(format!("{text:?} names no tag: expected tag=KEY:VALUE, or tag=KEY")),
                Some((key, value)) => Self::Tag(key.to_owned(), Some(value.to_owned())),
                None => Self::Tag(value.to_owned(), None),
            }),
            "zone" => Ok(Self::Zone(value.to_owned())),
            "name" => Ok(Self::Name(value.to_owned())),
            other => Err(format!("there is no condition {other:?}{}", similar::hint(other, &KEYS))),
        }
    }

    fn is_met_by(&self, instance: &Listed) -> bool {
        match self {
            Self::Tag(key, value) => {
                let is_value = |other: &String| value.as_ref().is_none_or(|value| value == other);
                instance.tags.iter().any(|(other, value)| other == key && is_value(value))
            }
            Self::Zone(zone) => instance.zone == *zone,
            Self::Name(pattern) => wildcard::matches(pattern, &instance.name, u8::eq),
        }
    }
}

impl Selection {
    /// Whether an instance meets all conditions.
    pub fn is_met_by(&self, instance: &Listed) -> bool {
        self.conditions.iter().all(|condition| condition.is_met_by(instance))
    }

    /// The conditions that the API can check itself, as its parameters: fewer pages are listed then. What it sends is checked
    /// all the same, since several values of one parameter are alternatives to it, and commas part values.
    pub fn filters(&self) -> Vec<(&'static str, String)> {
        let mut filters: Vec<(&'static str, String)> = Vec::new();
        for condition in &self.conditions {
            let filter = match condition {
                Condition::Tag(key, Some(value)) if !value.is_empty() => ("tags", format!("{key}:{value}")),
                Condition::Tag(key, _) => ("tags", key.clone()),
                Condition::Zone(zone) => ("zoneName", zone.clone()),
                Condition::Name(_) => continue,
            };
            if filters.iter().all(|(name, _)| *name != filter.0) {
                filters.push(filter);
            }
        }
        filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bce::{InstanceId, InstanceState};

    fn instance(name: &str, zone: &str, tags: &[(&str, &str)]) -> Listed {
        Listed {
            id: InstanceId::parse("i-0000").unwrap(),
            name: name.to_owned(),
            zone: zone.to_owned(),
            tags: tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            state: InstanceState::Stopped,
        }
    }

    #[test]
    fn an_instance_has_to_meet_all_conditions() {
        let web = instance("web-1", "cn-bj-a", &[("wake", "morning"), ("team", "search")]);
        for (text, is_met) in [
            ("tag=wake:morning,zone=cn-bj-a,name=web-*", true),
            ("tag=wake:morning, tag=team:search", true),
            ("tag=wake", true),
            ("tag=wake:evening", false),
            ("tag=wake:", false),
            ("tag=morning", false),
            ("tag=wake:morning,tag=team:ops", false),
            ("zone=cn-bj-b", false),
            ("zone=cn-bj", false),
            ("name=Web-*", false),
            ("name=web-1,name=*-1", true),
        ] {
            let selection: Selection = text.parse().unwrap();
            assert_eq!(selection.is_met_by(&web), is_met, "{text}");
        }
    }

    #[test]
    fn the_api_checks_the_zone_and_one_tag_itself() {
        let filters = |text: &str| text.parse::<Selection>().unwrap().filters();
        assert_eq!(filters("name=web-*"), []);
        let expected = [("tags", "wake:morning".to_owned()), ("zoneName", "cn-bj-a".to_owned())];
        assert_eq!(filters("tag=wake:morning,tag=team,zone=cn-bj-a"), expected);
    }

    #[test]
    fn what_is_no_condition_is_told_with_what_was_meant() {
        for (text, told) in [
            ("", "\"\" has no =: expected conditions such as"),
            ("web-*", "\"web-*\" has no =: expected conditions such as"),
            ("nam=web-*", "there is no condition \"nam\"; did you mean name?"),
            ("tags=a:b", "there is no condition \"tags\"; did you mean tag?"),
            ("state=Stopped", "there is no condition \"state\"; there are name, tag, zone"),
            ("zone=", "zone= has no value: expected"),
            ("tag=:b", "\"tag=:b\" names no tag: expected tag=KEY:VALUE"),
            ("zone=a,zone=b", "an instance is in one zone"),
        ] {
            let problem = text.parse::<Selection>().unwrap_err();
            assert!(problem.starts_with(told), "{problem}");
        }
    }
}
