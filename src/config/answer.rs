//! `[[answer]]`: the meaning of an error code of the API, for all lanes or for one.

use super::reader::{Reader, Table};
use super::{Lane, LaneName};
use crate::bce::codes::{Pattern, Rule};
use crate::bce::{AtFault, Codes, Meaning, Word};
use crate::events::Outcome;
use crate::similar;

/// Built-in reasons that a rule with the meaning `failed` can give: those that are decided by an answer of the API.
const FAILED_REASONS: [&str; 5] = ["refused", "not_found", "wrong_state", "instance_expired", "access_denied"];
/// The built-in reason for the meaning `no_capacity`.
const NO_CAPACITY_REASON: &str = "no_capacity";

const CODE: &str =
    "1 to 128 letters, digits or . _ - : and * for any text, such as *Stock*, with a letter or digit in it";
const MEANINGS: [&str; 5] = ["retry", "no_capacity", "throttled", "failed", "lane_fault"];
const REASON: &str = "1 to 40 of a-z 0-9 _, such as no_stock";

struct Answer {
    rule: Rule,
    /// `None` if it is for all lanes.
    lane: Option<LaneName>,
}

/// Reads all rules, and gives each lane its own, followed by those for all lanes. `is_whole`: every lane could be read;
/// otherwise a rule's lane may be among the others.
pub(super) fn read_answers(reader: &mut Reader, lanes: &mut [Lane], is_whole: bool) {
    let mut answers: Vec<Answer> = Vec::new();
    for member in reader.members("answer") {
        let mut table = reader.table(&member);
        let lane = table.optional("lane", "the name of a lane", |raw| LaneName::parse(raw.text()?));
        if let Some(lane) = lane.as_ref().filter(|lane| is_whole && !lanes.iter().any(|one| one.name == **lane)) {
            let names: Vec<&str> = lanes.iter().map(|lane| lane.name.as_str()).collect();
            table.problem("lane", format!("there is no lane {lane}: {}", similar::expected(lane.as_str(), &names)));
        }
        if let Some(answer) = read_rule(&mut table).map(|rule| Answer { rule, lane }) {
            let code = answer.rule.code.as_str();
            let same =
                |other: &Answer| other.rule.code.as_str().eq_ignore_ascii_case(code) && other.lane == answer.lane;
            if answers.iter().any(same) {
                table.problem(
                    "code",
                    format!("{code} has a rule above, which is asked first: expected another code or lane"),
                );
            }
            answers.push(answer);
        }
        table.finish();
    }
    for lane in lanes {
        let own = answers.iter().filter(|answer| answer.lane.as_ref() == Some(&lane.name));
        let all = answers.iter().filter(|answer| answer.lane.is_none());
        lane.reading.codes = Codes::new(own.chain(all).map(|answer| answer.rule.clone()));
    }
}

fn read_rule(table: &mut Table<'_>) -> Option<Rule> {
    for (key, example) in [("code", "*Stock*"), ("meaning", "no_capacity")] {
        if !table.has(key) {
            table.problem(key, format!("missing: expected one such as {example}"));
        }
    }
    let code = table.optional("code", CODE, |raw| Pattern::parse(raw.text()?));
    if let Some(code) = code.as_ref().filter(|code| code.is_fixed()) {
        let code = code.as_str();
        table.problem("code", format!("{code} has a meaning that cannot be changed: expected another code"));
    }
    let has_reason = table.has("reason");
    let reason = table.optional("reason", REASON, |raw| Word::parse(raw.text()?));
    let meaning = table.named("meaning", &MEANINGS.map(|name| (name, name)));
    let ours = |word: Word, own: &[&str]| {
        Outcome::ALL.iter().all(|known| known.reason() != word.as_str()) || own.contains(&word.as_str())
    };
    let (meaning, own) = match meaning? {
        "retry" => (Meaning::Retry, None),
        "throttled" => (Meaning::Throttled, None),
        "lane_fault" => (Meaning::LaneFault(AtFault::Account), None),
        "no_capacity" => {
            let word = reason.or_else(|| Word::parse(NO_CAPACITY_REASON))?;
            (Meaning::NoCapacity(word), Some((word, &[NO_CAPACITY_REASON][..])))
        }
        // Nothing else is named above.
        _ => {
            let word = reason.or_else(|| Word::parse(FAILED_REASONS[0]))?;
            (Meaning::Failed(word), Some((word, &FAILED_REASONS[..])))
        }
    };
    match own {
        None if has_reason => {
            table.problem("reason", "beside this meaning: expected it with no_capacity or failed alone".to_owned());
        }
        Some((word, own)) if !ours(word, own) => {
            let own = own.join(", ");
            table.problem(
                "reason",
                format!("{word} is reveille's own word for something else: expected another, or {own}"),
            );
        }
        None | Some(_) => {}
    }
    Some(Rule { code: code?, meaning })
}
