//! Reads settings by name from the file and the environment, and collects every problem.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::SignedDuration;
use toml::Value;

use super::near_miss;
use crate::similar;
use crate::text::Shown;

/// The beginning of variables' names.
const PREFIX: &str = "REVEILLE_";
const SEPARATOR: &str = "__";

/// A problem in the configuration: an error, or a warning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file and key, or the variable.
    place: String,
    /// What is there, and what would be right.
    problem: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Shown(&self.place), Shown(&self.problem))
    }
}

/// All errors in the configuration, and its warnings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl Problems {
    /// One that hides all others.
    pub(super) fn one(place: String, problem: String) -> Self {
        Self { problems: vec![Problem { place, problem }], warnings: Vec::new() }
    }

    /// The errors, one or more.
    pub fn errors(&self) -> &[Problem] {
        &self.problems
    }

    /// The warnings.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "the configuration has {count} {}:", if count == 1 { "fault" } else { "faults" })?;
        self.problems.iter().try_for_each(|fault| write!(f, "\n  {fault}"))?;
        self.warnings.iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

/// A value, as found in one of the sources.
#[derive(Debug)]
pub struct Raw {
    value: Value,
    place: String,
    /// The environment has only strings, so a number may be one there.
    from_environment: bool,
}

/// The tables of the configuration, and the problems found so far.
#[derive(Debug)]
pub struct Reader {
    tables: BTreeMap<String, BTreeMap<String, Raw>>,
    file: String,
    /// The tables and keys that exist, as far as they were read.
    settings: Vec<(String, &'static str)>,
    /// Variables that are not settings.
    others: Vec<String>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Reader {
    /// Overlays the text of `file` with `environment`. `tables` are the names of possible tables, `lists` those of
    /// lists of tables, whose members are called `lane[0]` here and `REVEILLE_LANE__0__…` in the environment.
    ///
    /// # Errors
    /// The text is not TOML: then nothing is known of missing settings.
    pub fn new(
        file: Option<(&str, &str)>,
        environment: impl IntoIterator<Item = (String, String)>,
        tables: &[&str],
        lists: &[&str],
    ) -> Result<Self, Problems> {
        let (name, text) = file.unwrap_or(("configuration", ""));
        let mut reader = Self {
            tables: BTreeMap::new(),
            file: name.to_owned(),
            settings: Vec::new(),
            others: Vec::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
        };
        match text.parse::<toml::Table>() {
            Ok(root) => reader.lay_file(root, tables, lists),
            Err(error) => {
                let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
                // Only the message: the error's own text quotes the line, which may contain a password.
                return Err(Problems::one(format!("{name}, line {line}"), format!("not TOML: {}", error.message())));
            }
        }
        let mut environment: Vec<(String, String)> = environment.into_iter().collect();
        environment.sort();
        for (variable, value) in environment {
            match variable.strip_prefix(PREFIX).filter(|_| near_miss::is_setting(&variable)) {
                Some(path) => reader.lay_variable(&variable, path, value, tables, lists),
                None => reader.others.push(variable),
            }
        }
        Ok(reader)
    }

    fn lay_file(&mut self, root: toml::Table, tables: &[&str], lists: &[&str]) {
        for (name, value) in root {
            match value {
                Value::Table(table) if tables.contains(&name.as_str()) => self.lay_table(&name, table),
                Value::Array(members) if lists.contains(&name.as_str()) => {
                    for (index, member) in members.into_iter().enumerate() {
                        match member {
                            Value::Table(table) => self.lay_table(&format!("{name}[{index}]"), table),
                            _ => self.problem(format!("{}: {name}", self.file), format!("expected [[{name}]] tables")),
                        }
                    }
                }
                _ if tables.contains(&name.as_str()) => {
                    self.problem(format!("{}: {name}", self.file), format!("expected a table, [{name}]"));
                }
                _ if lists.contains(&name.as_str()) => {
                    let place = format!("{}: {name}", self.file);
                    self.problem(place, format!("expected [[{name}]] tables, in two brackets"));
                    // The intended table is read all the same, so that it is not reported as missing.
                    if let Value::Table(meant) = value {
                        self.lay_table(&format!("{name}[0]"), meant);
                    }
                }
                _ => {
                    let known = [tables, lists].concat();
                    self.problem(
                        format!("{}: {name}", self.file),
                        format!("no such table{}", similar::hint(&name, &known)),
                    );
                }
            }
        }
    }

    fn lay_table(&mut self, table: &str, settings: toml::Table) {
        let laid = self.tables.entry(table.to_owned()).or_default();
        for (key, value) in settings {
            let place = format!("{}: {table}.{key}", self.file);
            laid.insert(key, Raw { value, place, from_environment: false });
        }
    }

    fn lay_variable(&mut self, variable: &str, path: &str, value: String, tables: &[&str], lists: &[&str]) {
        let place = format!("environment {variable}");
        if value.contains(char::REPLACEMENT_CHARACTER) {
            return self.problem(place, "is not UTF-8: expected a text".to_owned());
        }
        let path = path.to_ascii_lowercase();
        let levels: Vec<&str> = path.split(SEPARATOR).collect();
        let (table, key) = match levels[..] {
            [table, key] if tables.contains(&table) => (table.to_owned(), key),
            [list, index, key] if lists.contains(&list) && is_index(index) => (format!("{list}[{index}]"), key),
            _ => {
                let known = [tables, lists].concat();
                let hint = similar::hint(levels[0], &known);
                let forms = "expected REVEILLE_TABLE__KEY or REVEILLE_LANE__0__KEY";
                return self.problem(place, format!("no such setting{hint} ({forms})"));
            }
        };
        let setting = Raw { value: Value::String(value), place, from_environment: true };
        self.tables.entry(table).or_default().insert(key.to_owned(), setting);
    }

    /// The members of a list, by their names here.
    pub fn members(&self, list: &str) -> Vec<String> {
        let mut members: Vec<&String> = self
            .tables
            .keys()
            .filter(|name| name.strip_prefix(list).is_some_and(|rest| rest.starts_with('[')))
            .collect();
        members.sort_by_key(|name| (name.len(), (*name).clone()));
        members.into_iter().cloned().collect()
    }

    /// Opens a table for reading. A missing table reads as an empty one.
    pub fn table(&mut self, name: &str) -> Table<'_> {
        let settings = self.tables.remove(name).unwrap_or_default();
        Table { name: name.to_owned(), settings, known: Vec::new(), reader: self }
    }

    /// Records an error.
    pub fn problem(&mut self, place: String, problem: String) {
        self.problems.push(Problem { place, problem });
    }

    /// Records a warning.
    pub fn warn(&mut self, place: String, problem: String) {
        self.warnings.push(Problem { place, problem });
    }

    /// The warnings, once all tables were read; `Err` with every problem, if there is an error.
    pub fn finish(mut self) -> Result<Vec<Problem>, Problems> {
        for variable in std::mem::take(&mut self.others) {
            if let Some(problem) = near_miss::problem(&variable, &self.settings) {
                self.warn(format!("environment {variable}"), problem);
            }
        }
        let Self { problems, warnings, .. } = self;
        if problems.is_empty() { Ok(warnings) } else { Err(Problems { problems, warnings }) }
    }
}

/// Canonical only, so that `00` is not another member than `0`.
fn is_index(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|index| index.to_string() == text)
}

/// One table, read key by key. Keys that are never read are unknown.
#[derive(Debug)]
pub struct Table<'a> {
    name: String,
    settings: BTreeMap<String, Raw>,
    known: Vec<&'static str>,
    reader: &'a mut Reader,
}

impl Table<'_> {
    /// A key's value, parsed by `parse`; `None` if it is absent or wrong. `expected` says what would be right.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl FnOnce(&Raw) -> Option<T>,
    ) -> Option<T> {
        self.read(key, |raw| parse(raw).ok_or_else(|| format!("{} is wrong: expected {expected}", raw.value)))
    }

    /// As [`Table::optional`], with a default.
    pub fn or<T>(&mut self, key: &'static str, default: T, expected: &str, parse: impl FnOnce(&Raw) -> Option<T>) -> T {
        self.optional(key, expected, parse).unwrap_or(default)
    }

    /// As [`Table::optional`], for one of these names.
    pub fn named<T: Copy>(&mut self, key: &'static str, names: &[(&str, T)]) -> Option<T> {
        self.read(key, |raw| {
            let text = raw.text().unwrap_or_default();
            let value = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
            let known = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>();
            value.ok_or_else(|| format!("{} is wrong: {}", raw.value, similar::expected(text, &known())))
        })
    }

    /// As [`Table::optional`], for a value that must not be shown: the problem has only the text of `parse`.
    pub fn secret<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.read(key, |raw| parse(raw.text().ok_or("expected a text")?))
    }

    /// As [`Table::optional`], where `parse` says itself what would be right.
    pub fn checked<T>(&mut self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.read(key, |raw| {
            let text = raw.text().ok_or_else(|| format!("{} is wrong: expected a text", raw.value))?;
            parse(text).map_err(|problem| format!("{text:?} is wrong: {problem}"))
        })
    }

    fn read<T>(&mut self, key: &'static str, parse: impl FnOnce(&Raw) -> Result<T, String>) -> Option<T> {
        self.known.push(key);
        let setting = self.settings.remove(key)?;
        parse(&setting).map_err(|problem| self.reader.problem(setting.place, problem)).ok()
    }

    /// Whether the key is there and not read yet.
    pub fn has(&self, key: &str) -> bool {
        self.settings.contains_key(key)
    }

    /// Records an error of the table as a whole, or of `key` in it.
    pub fn problem(&mut self, key: &str, problem: String) {
        let place = format!("{}: {}.{key}", self.reader.file, self.name);
        self.reader.problem(place, problem);
    }

    /// Records a warning about `key`.
    pub fn warn(&mut self, key: &str, problem: String) {
        let place = format!("{}: {}.{key}", self.reader.file, self.name);
        self.reader.warn(place, problem);
    }

    /// Reports every key that was not read as unknown.
    pub fn finish(self) {
        self.reader.settings.extend(self.known.iter().map(|key| (self.name.clone(), *key)));
        for (key, setting) in self.settings {
            let hint = similar::hint(&key, &self.known);
            self.reader.problem(setting.place, format!("no such setting{hint}"));
        }
    }
}

impl Raw {
    /// A string.
    pub fn text(&self) -> Option<&str> {
        self.value.as_str()
    }

    /// A finite number, whole or not.
    pub fn number(&self) -> Option<f64> {
        let number = match &self.value {
            Value::Float(number) => *number,
            #[expect(clippy::cast_precision_loss, reason = "no setting is anywhere near 2^53")]
            Value::Integer(number) => *number as f64,
            Value::String(text) if self.from_environment => text.trim().parse().ok()?,
            _ => return None,
        };
        number.is_finite().then_some(number)
    }

    /// A whole number of 0 or more.
    pub fn count(&self) -> Option<u32> {
        match &self.value {
            Value::Integer(number) => u32::try_from(*number).ok(),
            Value::String(text) if self.from_environment => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// Yes or no.
    pub fn flag(&self) -> Option<bool> {
        match &self.value {
            Value::Boolean(flag) => Some(*flag),
            Value::String(text) if self.from_environment => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A list of strings; from the environment a string, with commas between them.
    pub fn texts(&self) -> Option<Vec<String>> {
        match &self.value {
            Value::Array(members) => members.iter().map(|member| member.as_str().map(str::to_owned)).collect(),
            Value::String(text) if self.from_environment => {
                Some(text.split(',').map(|member| member.trim().to_owned()).collect())
            }
            _ => None,
        }
    }

    /// A duration above zero: `500ms`, `25s`, `2m`, `1h30m`.
    pub fn duration(&self) -> Option<Duration> {
        duration(self.text()?)
    }
}

/// Reads a length of time such as `90s` or `1h 30m`: more than none.
pub fn duration(text: &str) -> Option<Duration> {
    let duration: SignedDuration = text.trim().parse().ok()?;
    Duration::try_from(duration).ok().filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_with_nothing_raw_whatever_it_quotes() {
        let evil = "\u{1b}]0;\u{7}\n\u{9b}2J\u{202e}";
        let key = r#""\u001B]0;\u0007\n\u009B2J\u202E""#;
        let file = format!("{key} = 1\n[broker]\n{key} = 1\nprefix = {key}");
        let environment = [(format!("REVEILLE_{evil}__X"), evil.to_owned())];
        let mut reader = Reader::new(Some((evil, &file)), environment, &["broker"], &[]).unwrap();
        let mut table = reader.table("broker");
        assert_eq!(table.or("prefix", 7, evil, |_| None), 7);
        table.finish();
        let text = reader.finish().unwrap_err().to_string();
        assert_eq!(text.lines().count(), 5, "{text}");
        let shown = |character: char| character == '\n' || !character.is_control() && character != '\u{202e}';
        assert!(text.chars().all(shown), "{text:?}");
        assert!(text.lines().skip(1).all(|line| line.contains(r"]0;\u{7}\n\u{9b}2J\u{202e}")), "{text}");
    }
}
