//! Lines of text, each with an id or a whole job in JSON.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;

use super::table::ID_COLUMNS;
use crate::bce::InstanceId;
use crate::bce::answer::shorten;
use crate::job::{self, Job};
use crate::similar;

/// Longest unknown field that is quoted, in characters.
const FIELD_LIMIT: usize = 60;
const AS_A_TABLE: &str = "expected a file whose name ends in .csv or .tsv, or --format csv or tsv";

/// The job of a line, or what is wrong with it; `None` for an empty line or a comment.
pub(super) fn job(line: &str) -> Option<Result<Job, String>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    Some(if line.starts_with('{') {
        whole(line)
    } else {
        InstanceId::parse(without_comment(line)).map(Job::of).map_err(|error| match column_of_ids(line) {
            Some(name) => format!("{name} begins a table: {AS_A_TABLE}"),
            None => error.to_string(),
        })
    })
}

/// What stands before a `#` that follows a space.
fn without_comment(line: &str) -> &str {
    match line.split_once(char::is_whitespace) {
        Some((id, rest)) if rest.trim_start().starts_with('#') => id,
        _ => line,
    }
}

/// The name of the column of ids, where it begins this line.
fn column_of_ids(line: &str) -> Option<&'static str> {
    let name = line.split([',', ';', '\t']).next()?.trim().trim_matches('"');
    ID_COLUMNS.into_iter().find(|known| *known == name)
}

fn whole(json: &str) -> Result<Job, String> {
    match unknown_fields(json) {
        Some(problem) => Err(problem),
        None => Job::parse(json.as_bytes()).map_err(|error| error.to_string()),
    }
}

/// The daemon ignores fields that it does not know, so with a misspelt `not_before` it would start the instance at once.
fn unknown_fields(json: &str) -> Option<String> {
    // What is no JSON object is for `Job::parse` to explain.
    let fields: BTreeMap<String, IgnoredAny> = serde_json::from_str(json).ok()?;
    let unknown = fields.into_keys().filter(|name| !job::FIELDS.contains(&name.as_str()));
    let problems: Vec<String> = unknown
        .map(|name| {
            let hint = similar::hint(&name, &job::FIELDS);
            format!("{:?} is no field of a job{hint}", shorten(name, FIELD_LIMIT))
        })
        .collect();
    (!problems.is_empty()).then(|| problems.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_id_or_a_whole_job() {
        assert_eq!(job(" i-YufwpQAe ").unwrap().unwrap().instance_id.as_str(), "i-YufwpQAe");
        let whole = job(r#"{"instance_id":"i-0000","batch_id":"own","labels":{"a":"b"}}"#).unwrap().unwrap();
        assert_eq!((whole.batch_id.as_deref(), whole.labels.len()), (Some("own"), 1));
        assert!(job("i-1").unwrap().unwrap_err().contains("is no instance id"));
        assert!(job("{").unwrap().unwrap_err().contains("EOF"));
        for nothing in ["", " \t", "# i-0000", "  #"] {
            assert!(job(nothing).is_none(), "{nothing:?}");
        }
    }

    #[test]
    fn a_table_that_is_read_as_lines_is_told_what_makes_it_one() {
        for line in ["instance_id", "\"id\",\"name\"", "instanceId\tname"] {
            let told = job(line).unwrap().unwrap_err();
            assert!(told.contains("begins a table") && told.contains("--format"), "{told}");
        }
    }

    #[test]
    fn a_comment_may_follow_an_id_and_nothing_else_may() {
        for line in ["i-0000 # web-1", "i-0000\t#", "i-0000  # a # b"] {
            assert_eq!(job(line).unwrap().unwrap().instance_id.as_str(), "i-0000", "{line}");
        }
        for line in ["i-0000#web-1", "i-0000 web-1", "i-0000 web-1 # a", "i-0000 i-0001", "i-0000,web-1"] {
            assert!(job(line).unwrap().unwrap_err().contains("is no instance id"), "{line}");
        }
    }

    #[test]
    fn a_field_that_there_is_not_is_refused_with_the_one_that_was_meant() {
        let refused = |more: &str| job(&format!(r#"{{"instance_id":"i-0000",{more}}}"#)).unwrap().unwrap_err();
        assert_eq!(
            refused(r#""not_befor":"2026-11-25T07:30:00Z""#),
            r#""not_befor" is no field of a job; did you mean not_before?"#
        );
        let both = refused(r#""dedline":null,"Conflict":"fail""#);
        assert!(both.contains("did you mean deadline?") && both.contains("did you mean conflict?"), "{both}");
        assert!(refused(r#""xyz":1"#).contains("there are instance_id, batch_id"));
        assert!(job(r#"{"instanceId":"i-0000"}"#).unwrap().unwrap_err().contains("did you mean instance_id?"));
        assert!(refused(&format!("\"{}\":1", "x".repeat(60_000))).len() < 400);
    }
}
