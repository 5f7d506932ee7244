//! What the answer to a list call shows of a lane's keys, and how it is shown.

use super::breaker::{CauseKind, Signal};
use super::verdict;
use crate::bce::{Answer, NoAnswer};
use crate::telemetry::LaneMetrics;

/// The name in metrics for keys that are accepted. Other results have the names of a pause's reasons.
const ACCEPTED: &str = "accepted";

/// What the answer to a list call shows of the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyCheck {
    /// `None`: they are accepted.
    problem: Option<CauseKind>,
    /// For a person, with the remedy.
    text: String,
}

impl KeyCheck {
    /// Reads it from the result of [`Client::probe`](crate::bce::Client::probe).
    pub fn read(result: &Result<Answer, NoAnswer>) -> Self {
        let described = || result.as_ref().map_or_else(ToString::to_string, ToString::to_string);
        match Signal::read(&verdict::general(result), result) {
            Signal::Good => Self { problem: None, text: "the API accepts the keys".to_owned() },
            Signal::Denied(_) => Self {
                problem: Some(CauseKind::AccessDenied),
                text: format!(
                    "the keys are good, but their user may not list instances ({}): give it that permission, for batch and \
                     confirm = \"running\"",
                    described()
                ),
            },
            Signal::Alive => Self {
                problem: Some(CauseKind::Outage),
                text: format!("the API throttles, and so says nothing of the keys ({})", described()),
            },
            Signal::Fault(cause) | Signal::NoAnswer(cause) | Signal::Inconclusive(cause) => {
                Self { problem: Some(cause.kind), text: cause.text }
            }
        }
    }

    /// Whether the API accepts the keys, and lists instances for them.
    pub fn is_accepted(&self) -> bool {
        self.problem.is_none()
    }

    /// Whether the keys are good, and only their user's permission to list instances is missing.
    pub fn may_not_list(&self) -> bool {
        self.problem == Some(CauseKind::AccessDenied)
    }

    /// What was found and, unless the keys are accepted, what to do.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The name in metrics.
    pub(super) fn name(&self) -> &'static str {
        self.problem.map_or(ACCEPTED, CauseKind::as_str)
    }

    /// Whether asking again would show nothing else.
    pub(super) fn is_final(&self) -> bool {
        self.is_accepted() || self.may_not_list()
    }
}

/// Shows what was found in the metrics; `None`: this replica does not hold the lane.
pub(super) fn show(metrics: &LaneMetrics, check: Option<&KeyCheck>) {
    let mut results = vec![ACCEPTED];
    results.extend(CauseKind::ALL.map(CauseKind::as_str));
    metrics.keys_checked(check.map(KeyCheck::name), &results);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, code: &str) -> Result<Answer, NoAnswer> {
        let body = format!(r#"{{"requestId":"r","code":"{code}","message":"m"}}"#);
        Ok(Answer::read(status, |_| None, body.as_bytes(), &crate::bce::Reading::default()))
    }

    #[test]
    fn each_answer_shows_what_is_wrong_with_the_keys_and_what_to_do() {
        let check = KeyCheck::read(&answer(200, ""));
        assert!(check.is_accepted() && check.is_final() && check.name() == "accepted");
        for (result, name, words) in [
            (answer(403, "InvalidAccessKeyId"), "keys", "put valid keys"),
            (answer(400, "SignatureDoesNotMatch"), "keys", "put valid keys"),
            (Err(NoAnswer::NoKeys("the keys expired".to_owned())), "keys", "nothing is sent until then"),
            (answer(400, "RequestExpired"), "clock", "by NTP"),
            (Ok(Answer { status: 302, ..Answer::default() }), "endpoint", "check the lane's endpoint"),
            (answer(503, "X"), "outage", "HTTP 503, X"),
            (answer(429, "X"), "outage", "the API throttles"),
            (Err(NoAnswer::TimedOut), "outage", "did not answer in time"),
        ] {
            let check = KeyCheck::read(&result);
            assert!(!check.is_final() && check.name() == name && check.text().contains(words), "{result:?}: {check:?}");
        }
        let check = KeyCheck::read(&answer(403, "AccessDenied"));
        assert!(check.may_not_list() && check.is_final() && check.name() == "access_denied");
        assert!(check.text().contains("may not list instances (HTTP 403, AccessDenied, m)"), "{check:?}");
    }
}
