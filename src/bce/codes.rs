//! Meanings of error codes: by rules of the configuration, and by a table of known and likely codes.
//!
//! BCC documents no code for "out of stock", "balance too low" or throttling on a start
//! (<https://cloud.baidu.com/doc/BCC/s/Ojwvyo6nc>, <https://cloud.baidu.com/doc/BCC/s/Mjwvyobl0>). So the table guesses
//! by the words that such codes have elsewhere, and a rule can name the real one, once it is known. A code without a
//! match concerns its job only.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::wildcard;

/// What an answer with a code means for its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// A retry may succeed: counted as an attempt.
    Retry,
    /// No capacity at present: retried slowly, and finally failed with this reason.
    NoCapacity(Word),
    /// Throttled.
    Throttled,
    /// A retry cannot help: failed with this reason.
    Failed(Word),
    /// Every call will get this answer: the lane pauses.
    LaneFault(AtFault),
}

/// The cause if every call gets the same answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtFault {
    /// The keys, or what was signed with them.
    Keys,
    /// The account is not open for BCC.
    NotOpened,
    /// The account can start nothing, by a guess or a rule.
    Account,
    /// The endpoint.
    Endpoint,
}

/// A reason as in events and metrics: 1 to 40 of `a-z 0-9 _`. Never freed, so create them only from bounded sources:
/// the configuration, and events that bear a lane's seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word(&'static str);

/// Longest word, in bytes.
const WORD_LIMIT: usize = 40;
/// Each word once, however often it is parsed.
static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

impl Word {
    /// `None` if `text` is no word.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        if text.is_empty() || text.len() > WORD_LIMIT || !text.bytes().all(plain) || text.starts_with('_') {
            return None;
        }
        let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        let known = words.get(text).copied();
        Some(Self(known.unwrap_or_else(|| {
            let word: &'static str = Box::leak(text.into());
            words.insert(word);
            word
        })))
    }

    /// The word.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An error code, or a pattern of codes: `*` stands for any text, and case is ignored, since the spelling of such codes
/// is not published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Longest pattern, in bytes: codes are truncated to that.
const PATTERN_LIMIT: usize = 128;

impl Pattern {
    /// `None` if `text` is no pattern: empty, too long, with characters that codes do not have, or nothing but `*`.
    pub fn parse(text: &str) -> Option<Self> {
        let of_codes = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:*".contains(&byte);
        let says_something = text.bytes().any(|byte| byte.is_ascii_alphanumeric());
        (text.len() <= PATTERN_LIMIT && says_something && text.bytes().all(of_codes)).then(|| Self(text.to_owned()))
    }

    /// The pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is one of the codes whose meaning no rule can change.
    pub fn is_fixed(&self) -> bool {
        is_fixed(&self.0)
    }
}

/// One `[[answer]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The codes it applies to.
    pub code: Pattern,
    /// Their meaning.
    pub meaning: Meaning,
}

/// The meanings of codes for a lane: by the first rule that matches, else by the built-in table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Codes(Arc<[Rule]>);

impl Codes {
    /// `rules` in order of precedence: a lane's own before those of all lanes.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Self(rules.into_iter().collect())
    }

    /// The reasons in the rules, one for each rule that has one.
    pub fn reasons(&self) -> Vec<Word> {
        let of_rule = |rule: &Rule| match rule.meaning {
            Meaning::NoCapacity(word) | Meaning::Failed(word) => Some(word),
            Meaning::Retry | Meaning::Throttled | Meaning::LaneFault(_) => None,
        };
        self.0.iter().filter_map(of_rule).collect()
    }

    /// The meaning of `code` in an answer with this HTTP status; `None` if the status decides.
    pub fn meaning(&self, status: u16, code: &str) -> Option<Meaning> {
        if !(400..600).contains(&status) || is_fixed(code) {
            return None;
        }
        let rule = self.0.iter().find(|rule| matches(&rule.code.0, code));
        rule.map_or_else(|| built_in(status, code), |rule| Some(rule.meaning))
    }
}

/// Codes whose meaning rules cannot change: 409s that are judged by the instance's state, and the one that corrects the
/// clock.
const FIXED: [&str; 4] = [
    "Instance.StartInstanceOperationForbidden",
    "Instance.StartInstanceWhenCreating",
    "Instance.StartExpiredInstance",
    "RequestExpired",
];

fn is_fixed(code: &str) -> bool {
    FIXED.iter().any(|fixed| fixed.eq_ignore_ascii_case(code))
}

/// The keys or their signature are at fault (<https://cloud.baidu.com/doc/BCC/s/Ojwvyo6nc>; the last two are from
/// reports on the SDKs, such as <https://github.com/baidubce/bce-sdk-go/issues/104>).
const OF_KEYS: [&str; 5] =
    ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidHTTPAuthHeader", "IamSignatureInvalid", "AuthError"];

const NO_CAPACITY: Meaning = Meaning::NoCapacity(Word("no_capacity"));

/// Codes in order of precedence.
const BUILT_IN: [(&str, Meaning); 27] = [
    // Known: documented by Baidu for other services (cloud.baidu.com/doc/AIGC_SEC/s/llvyoiys7, …/doc/AIHC/s/kmbknv7gq):
    // the account is not open for the service, and the version in the path.
    ("OptInRequired", Meaning::LaneFault(AtFault::NotOpened)),
    ("InvalidVersion", Meaning::LaneFault(AtFault::Endpoint)),
    // Known from Baidu's Terraform provider, which retries BCC calls on it (resource_baiducloud_instance.go).
    ("OperationDenied", Meaning::Retry),
    // Likely: none is published for BCC. Baidu's and similar gateways use these with statuses other than 429.
    ("RequestLimitExceeded", Meaning::Throttled),
    ("RequestRateLimitExceeded", Meaning::Throttled),
    ("Throttling", Meaning::Throttled),
    ("Throttling.*", Meaning::Throttled),
    ("TooManyRequests", Meaning::Throttled),
    ("SlowDown", Meaning::Throttled),
    // Likely: no machine of the type is left, by codes of other clouds: OperationDenied.NoStock and NoInstanceStock
    // (Alibaba), ResourceInsufficient and ResourcesSoldOut (Tencent), InsufficientInstanceCapacity (AWS).
    ("*NoStock*", NO_CAPACITY),
    ("*OutOfStock*", NO_CAPACITY),
    ("*InstanceStock*", NO_CAPACITY),
    ("*StockNotEnough*", NO_CAPACITY),
    ("*StockInsufficient*", NO_CAPACITY),
    ("*InsufficientStock*", NO_CAPACITY),
    ("*SoldOut*", NO_CAPACITY),
    ("*InsufficientCapacity*", NO_CAPACITY),
    ("*InsufficientInstanceCapacity*", NO_CAPACITY),
    ("*ResourceInsufficient*", NO_CAPACITY),
    ("*InsufficientResource*", NO_CAPACITY),
    ("*ResourceNotEnough*", NO_CAPACITY),
    // Likely: a quota of instances or cores is used up. It is free again as others stop, or once it is raised.
    ("*QuotaExceed*", NO_CAPACITY),
    ("*ExceedQuota*", NO_CAPACITY),
    // Likely: the account cannot pay, by codes of other clouds: PAY.INSUFFICIENT_BALANCE (Alibaba), BalanceNotEnough,
    // AccountArrears. Codes about an overdue instance are no fault of the lane, and not included.
    ("*Insufficient*Balance*", Meaning::LaneFault(AtFault::Account)),
    ("*Balance*Insufficient*", Meaning::LaneFault(AtFault::Account)),
    ("*BalanceNotEnough*", Meaning::LaneFault(AtFault::Account)),
    ("*AccountArrear*", Meaning::LaneFault(AtFault::Account)),
];

fn built_in(status: u16, code: &str) -> Option<Meaning> {
    let of_keys = OF_KEYS.contains(&code).then_some(Meaning::LaneFault(AtFault::Keys));
    let listed = || BUILT_IN.iter().find(|(pattern, _)| matches(pattern, code)).map(|(_, meaning)| *meaning);
    let meaning = of_keys.or_else(listed)?;
    let fits = match meaning {
        // A 409 is about the instance, and a 5xx about the API.
        Meaning::LaneFault(_) => status != 409 && status != 429 && status < 500,
        // A 429 means throttling, and a 5xx is retried anyway.
        Meaning::Retry | Meaning::NoCapacity(_) | Meaning::Failed(_) => status != 429,
        Meaning::Throttled => true,
    };
    fits.then_some(meaning)
}

/// Whether a pattern matches a code.
fn matches(pattern: &str, code: &str) -> bool {
    wildcard::matches(pattern, code, u8::eq_ignore_ascii_case)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(code: &str, meaning: Meaning) -> Rule {
        Rule { code: Pattern::parse(code).unwrap(), meaning }
    }

    fn word(text: &str) -> Word {
        Word::parse(text).unwrap()
    }

    #[test]
    fn a_star_stands_for_any_text_and_case_for_nothing() {
        for (pattern, code, is_for) in [
            ("NoStock", "NoStock", true),
            ("nostock", "NoStock", true),
            ("NoStock", "NoStock2", false),
            ("NoStock", "ANoStock", false),
            ("*Stock*", "Stock", true),
            ("*Stock*", "Instance.OutOfStockNow", true),
            ("*Stock", "Stock.Out", false),
            ("Stock*", "Instance.Stock", false),
            ("Instance.*.Gone", "Instance.A.B.Gone", true),
            ("Instance.*.Gone", "Instance.Gone", false),
            ("*ab*abc", "ababab.abc", true),
            ("*ab*abc", "abc", false),
            ("a**c", "ac", true),
            ("*a*", "", false),
            ("*é*", "café", true),
        ] {
            assert_eq!(matches(pattern, code), is_for, "{pattern} {code}");
        }
        // No code makes it slow.
        assert!(!matches(&"*a".repeat(63), &"a".repeat(62)));
    }

    #[test]
    fn what_is_a_pattern_and_what_a_word() {
        for text in ["*Stock*", "Instance.NoStock", "A", "a:b-c_d", &"x".repeat(128)] {
            assert_eq!(Pattern::parse(text).map(|pattern| pattern.0), Some(text.to_owned()));
        }
        for text in ["", "*", "**", "*.*", "No Stock", "[a]", "é", &"x".repeat(129)] {
            assert_eq!(Pattern::parse(text), None, "{text}");
        }
        for text in ["no_stock", "a", "7", &"x".repeat(40)] {
            assert_eq!(word(text).as_str(), text);
            assert!(std::ptr::eq(word(text).as_str(), word(text).as_str()), "kept once");
        }
        for text in ["", "_a", "No", "no-stock", "no stock", "no.stock", &"x".repeat(41)] {
            assert_eq!(Word::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_rule_counts_and_goes_before_the_table() {
        let lane = rule("Instance.*", Meaning::Failed(word("lanes_own")));
        let all = [rule("*Stock*", Meaning::Failed(word("no_stock"))), rule("slowdown", Meaning::Retry)];
        let codes = Codes::new([lane].into_iter().chain(all));
        assert_eq!(codes.meaning(403, "Instance.NoStock"), Some(Meaning::Failed(word("lanes_own"))));
        assert_eq!(codes.meaning(403, "Bcc.NoStock"), Some(Meaning::Failed(word("no_stock"))));
        assert_eq!(codes.meaning(503, "SlowDown"), Some(Meaning::Retry));
        assert_eq!(codes.meaning(429, "SlowDown"), Some(Meaning::Retry));
        assert_eq!(codes.meaning(403, "TooManyRequests"), Some(Meaning::Throttled));
        assert_eq!(codes.reasons(), [word("lanes_own"), word("no_stock")]);
        for status in [200, 302] {
            assert_eq!(codes.meaning(status, "Bcc.NoStock"), None, "{status}");
        }
        for fixed in FIXED {
            assert_eq!(codes.meaning(409, fixed), None, "{fixed}");
            assert!(Pattern::parse(&fixed.to_uppercase()).unwrap().is_fixed());
        }
        assert!(!Pattern::parse("Instance.*").unwrap().is_fixed());
    }

    #[test]
    fn the_table_knows_what_likely_codes_mean_and_no_others() {
        let codes = Codes::default();
        for code in ["Instance.OutOfStock", "NoInstanceStock", "InsufficientInstanceCapacity", "Instance.QuotaExceeded"]
        {
            for status in [400, 403, 409, 503] {
                assert_eq!(codes.meaning(status, code), Some(NO_CAPACITY), "{status} {code}");
            }
            assert_eq!(codes.meaning(429, code), None, "a 429 is one");
        }
        let faults = [
            ("InsufficientBalance", AtFault::Account),
            ("PAY.INSUFFICIENT_BALANCE", AtFault::Account),
            ("OptInRequired", AtFault::NotOpened),
            ("InvalidVersion", AtFault::Endpoint),
            ("InvalidAccessKeyId", AtFault::Keys),
        ];
        for (code, fault) in faults {
            assert_eq!(codes.meaning(403, code), Some(Meaning::LaneFault(fault)), "{code}");
            for status in [409, 429, 500] {
                assert_eq!(codes.meaning(status, code), None, "{status} {code}");
            }
        }
        assert_eq!(codes.meaning(403, "OperationDenied"), Some(Meaning::Retry));
        assert_eq!(codes.meaning(403, "Throttling.User"), Some(Meaning::Throttled));
        for code in ["AccessDenied", "NoSuchObject", "InternalError", "Instance.Overdue", "LoadBalancer.Stuck", ""] {
            assert_eq!(codes.meaning(403, code), None, "{code}");
        }
        for (pattern, _) in BUILT_IN {
            assert!(Pattern::parse(pattern).is_some_and(|pattern| !pattern.is_fixed()), "{pattern}");
        }
    }
}
