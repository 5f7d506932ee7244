//! What an answer says of the lane, and why a lane is paused.

use crate::bce::{Answer, AtFault, Meaning, NoAnswer};
use crate::events::Reason;
use crate::lane::verdict::{self, Verdict};

/// Why a lane is paused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// Its kind.
    pub kind: CauseKind,
    /// What happened and what to do, for a person.
    pub text: String,
}

/// The kinds of [`Cause`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CauseKind {
    /// The keys are refused, missing or expired.
    Keys,
    /// The account may not use BCC, or cannot pay for it.
    Account,
    /// This machine's clock and the API's differ too much.
    Clock,
    /// The endpoint is not BCC's, or its certificate is refused.
    Endpoint,
    /// The keys' user may not start instances.
    AccessDenied,
    /// The API does not answer as it should.
    Outage,
    /// A command paused it.
    ByHand,
}

impl CauseKind {
    /// All kinds.
    pub const ALL: [Self; 7] =
        [Self::Keys, Self::Account, Self::Clock, Self::Endpoint, Self::AccessDenied, Self::Outage, Self::ByHand];

    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Account => "account",
            Self::Clock => "clock",
            Self::Endpoint => "endpoint",
            Self::AccessDenied => "access_denied",
            Self::Outage => "outage",
            Self::ByHand => "by_hand",
        }
    }
}

/// What one answer says about the lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// Every other call will fail so too.
    Fault(Cause),
    /// Every other call may fail so too: the API may be down.
    NoAnswer(Cause),
    /// Every other call may fail so too: a permission may be gone.
    Denied(Cause),
    /// The API answers; more is not known.
    Alive,
    /// Keys, clock and permission are good.
    Good,
    /// A proxy throttles, which says nothing of the API. The cause is shown if nothing else is known.
    Inconclusive(Cause),
}

impl Signal {
    /// Reads the signal from the result of a call, and its verdict.
    pub fn read(verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Self {
        match (verdict, result) {
            (Verdict::ClockSkew { .. }, result) => Self::Fault(Cause {
                kind: CauseKind::Clock,
                text: format!("the API finds our clock off ({}): set this machine's clock, by NTP", described(result)),
            }),
            (Verdict::LaneFault, result) => Self::Fault(fault(result)),
            (Verdict::Failed(Reason::AccessDenied), result) => Self::Denied(Cause {
                kind: CauseKind::AccessDenied,
                text: format!(
                    "one instance after the other is refused ({}): give the key's user permission to operate them",
                    described(result)
                ),
            }),
            (Verdict::Throttled { .. }, Ok(answer)) if answer.from_proxy => Self::Inconclusive(outage(result)),
            (Verdict::Throttled { .. }, _) => Self::Alive,
            (verdict, Ok(answer)) if verdict::is_judged(verdict, answer) => Self::Good,
            (_, result) => Self::NoAnswer(outage(result)),
        }
    }
}

fn outage(result: &Result<Answer, NoAnswer>) -> Cause {
    let described = described(result);
    let text = match result {
        Ok(answer) if answer.from_proxy => format!(
            "something else answers in the API's place ({described}, without x-bce-request-id): check the lane's endpoint, and \
             gateways and proxies on the way; for one that only strips that header there is the lane's setting \
             request_id = \"optional\""
        ),
        _ => format!("the API does not answer as it should ({described}): it is asked again every few seconds"),
    };
    Cause { kind: CauseKind::Outage, text }
}

const KEYS: (CauseKind, &str) = (CauseKind::Keys, "put valid keys where the lane takes them from");

fn fault(result: &Result<Answer, NoAnswer>) -> Cause {
    let (kind, remedy) = match result {
        Err(NoAnswer::NoKeys(_)) => (CauseKind::Keys, "nothing is sent until then"),
        Err(NoAnswer::Proxy(fault)) => return Cause { kind: CauseKind::Endpoint, text: fault.clone() },
        Err(_) => (CauseKind::Endpoint, "check the lane's endpoint, and the certificates this machine trusts"),
        Ok(answer) if (300..400).contains(&answer.status) => (
            CauseKind::Endpoint,
            "redirects are not followed; check the lane's endpoint or region, and any proxy on the way",
        ),
        Ok(Answer { meaning: Some(Meaning::LaneFault(fault)), .. }) => match fault {
            AtFault::Keys => KEYS,
            AtFault::NotOpened => (CauseKind::Account, "the account has to be opened for BCC, or paid for"),
            AtFault::Account => (
                CauseKind::Account,
                "by this code the account can start nothing; see to its balance and quotas, or give the code another \
                 meaning with an [[answer]] rule",
            ),
            AtFault::Endpoint => {
                (CauseKind::Endpoint, "it is no BCC endpoint that reveille knows; check the lane's endpoint or region")
            }
        },
        Ok(_) => KEYS,
    };
    Cause { kind, text: format!("{}: {remedy}", described(result)) }
}

fn described(result: &Result<Answer, NoAnswer>) -> String {
    let described = result.as_ref().map_or_else(ToString::to_string, ToString::to_string);
    // The remedy follows in the same sentence.
    described.trim_end_matches('.').to_owned()
}
