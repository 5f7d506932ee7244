//! Faults on demand: rules that choose calls by chance, by instance or by operation. The command line and the control
//! endpoint fill the same [`Faults`]; scripts are lists of the same [`Fault`].

mod fault;
mod wire;

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::fault::Fault;
pub use self::wire::name;
use crate::request::{Ask, Operation};
use crate::span::Span;

/// All faults in force.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Delay of every answer, beside a fault's own delay.
    pub latency: Span,
    pub rules: Vec<Rule>,
}

/// A fault and the calls it applies to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub fault: Fault,
    /// The share of its calls that it affects.
    #[serde(default)]
    pub share: Share,
    /// Only calls that name one of these; empty: any call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub instances: Vec<String>,
    /// Only these operations; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub operations: Vec<Operation>,
}

/// A share of calls, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64")]
pub struct Share(f64);

impl Default for Share {
    fn default() -> Self {
        Self(1.0)
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if (0.0..=1.0).contains(&share) { Ok(Self(share)) } else { Err(format!("share {share}: must be 0 to 1")) }
    }
}

impl Faults {
    /// The fault for a call, given a draw from 0 to 1.
    ///
    /// One draw serves all rules: each takes its share of what the previous ones left, so two rules of 0.1 each affect
    /// exactly a tenth of the calls, and never the same call.
    pub fn choose(&self, ask: &Ask, draw: f64) -> Option<&Fault> {
        let mut left = draw;
        for rule in self.rules.iter().filter(|rule| rule.applies(ask)) {
            if left < rule.share.0 {
                return Some(&rule.fault);
            }
            left -= rule.share.0;
        }
        None
    }

    pub fn latency(&self) -> Duration {
        self.latency.0
    }
}

impl Rule {
    fn applies(&self, ask: &Ask) -> bool {
        (self.operations.is_empty() || self.operations.contains(&ask.operation))
            && (self.instances.is_empty() || self.instances.iter().any(|id| ask.subject.names(id)))
    }
}

/// As on the command line: `NAME=SHARE`, `NAME@INSTANCE,INSTANCE=SHARE`, or the JSON of a rule.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('{') {
            return serde_json::from_str(text).map_err(|error| error.to_string());
        }
        // From the right: a redirect's location can contain both characters.
        let (what, share) = text.rsplit_once('=').ok_or("is NAME=SHARE, NAME@INSTANCE=SHARE or a rule in JSON")?;
        let (name, instances) = match what.rsplit_once('@') {
            Some((name, ids)) => (name, ids.split(',').map(str::to_owned).collect()),
            None => (what, Vec::new()),
        };
        let share: f64 = share.parse().map_err(|_| format!("{share:?} is not a share from 0 to 1"))?;
        Ok(Self { fault: name.parse()?, share: share.try_into()?, instances, operations: Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Subject;

    fn faults(rules: &[&str]) -> Faults {
        let rules = rules.iter().map(|text| text.parse().unwrap()).collect();
        Faults { latency: Span::default(), rules }
    }

    fn start(id: &str) -> Ask {
        Ask { operation: Operation::Start, subject: Subject::One(id.into()), trouble: None }
    }

    fn chosen(faults: &Faults, id: &str, draw: f64) -> Option<String> {
        faults.choose(&start(id), draw).and_then(name)
    }

    #[test]
    fn each_rule_gets_its_share_of_the_draws_and_no_other() {
        let faults = faults(&["status-500=0.1", "hang-after=0.2"]);
        assert_eq!(chosen(&faults, "i-a", 0.0).as_deref(), Some("status-500"));
        assert_eq!(chosen(&faults, "i-a", 0.0999).as_deref(), Some("status-500"));
        assert_eq!(chosen(&faults, "i-a", 0.1001).as_deref(), Some("hang-after"));
        assert_eq!(chosen(&faults, "i-a", 0.2999).as_deref(), Some("hang-after"));
        assert_eq!(chosen(&faults, "i-a", 0.3001), None);
    }

    #[test]
    fn rules_can_be_for_some_instances_or_some_operations_only() {
        let faults = faults(&[
            "access-denied@i-a,i-b=1",
            r#"{"fault": "cut", "operations": ["describe"]}"#,
            r#"{"fault": {"hang": "after"}, "share": 0.5, "operations": ["start"]}"#,
        ]);
        assert_eq!(chosen(&faults, "i-b", 0.99).as_deref(), Some("status-403"));
        assert_eq!(chosen(&faults, "i-c", 0.49).as_deref(), Some("hang-after"));
        assert_eq!(chosen(&faults, "i-c", 0.51), None);
        let batch = Ask {
            operation: Operation::BatchStart,
            subject: Subject::Many(["i-x".into(), "i-a".into()].into()),
            trouble: None,
        };
        assert_eq!(faults.choose(&batch, 0.99).and_then(name).as_deref(), Some("status-403"));
    }

    #[test]
    fn a_share_of_nothing_meets_nothing_and_of_all_meets_all() {
        assert_eq!(chosen(&faults(&["cut=0"]), "i-a", 0.0), None);
        assert_eq!(chosen(&faults(&["cut=1"]), "i-a", 0.999_999).as_deref(), Some("cut"));
    }

    #[test]
    fn slips_on_the_command_line_are_named() {
        for (text, part) in
            [("cut", "NAME=SHARE"), ("cut=often", "often"), ("cut=1.5", "1.5"), ("bang=1", "bang"), ("{}", "fault")]
        {
            let error = text.parse::<Rule>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
