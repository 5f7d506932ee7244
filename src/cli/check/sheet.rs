//! The lines of a check, printed as they come: a table for people, JSON lines for programs.

use std::fmt::Display;
use std::io::IsTerminal;

use serde_json::json;

use crate::cli::{Failure, Output, print, print_after};
use crate::telemetry::is_coloured;
use crate::text::{self, Shown};

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Passed,
    /// Passed, and worth a look.
    Warning,
    Failed,
    /// Not made, because of another check, or because there is nothing to check.
    Skipped,
}

impl Mark {
    /// In JSON, and where there is no terminal.
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }

    fn sign(self) -> &'static str {
        match self {
            Self::Passed => "✓",
            Self::Warning => "!",
            Self::Failed => "✗",
            Self::Skipped => "-",
        }
    }

    /// The number of its colour in a terminal (ECMA-48, SGR).
    fn colour(self) -> u8 {
        match self {
            Self::Passed => 32,
            Self::Warning => 33,
            Self::Failed => 31,
            Self::Skipped => 90,
        }
    }
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Such as `broker.tls`.
    check: &'static str,
    /// Of this lane alone.
    lane: Option<String>,
    pub(super) mark: Mark,
    found: String,
    /// What to do.
    remedy: Option<String>,
}

impl Line {
    fn new(check: &'static str, mark: Mark, found: impl Display) -> Self {
        Self { check, lane: None, mark, found: found.to_string(), remedy: None }
    }

    pub(super) fn passed(check: &'static str, found: impl Display) -> Self {
        Self::new(check, Mark::Passed, found)
    }

    pub(super) fn warning(check: &'static str, found: impl Display) -> Self {
        Self::new(check, Mark::Warning, found)
    }

    pub(super) fn failed(check: &'static str, found: impl Display) -> Self {
        Self::new(check, Mark::Failed, found)
    }

    pub(super) fn skipped(check: &'static str, found: impl Display) -> Self {
        Self::new(check, Mark::Skipped, found)
    }

    /// With what to do, unless `found` says that already.
    pub(super) fn remedy(self, remedy: impl Display) -> Self {
        Self { remedy: Some(remedy.to_string()), ..self }
    }

    #[cfg(test)]
    pub(super) fn found(&self) -> &str {
        &self.found
    }

    pub(super) fn of_lane(self, lane: &str) -> Self {
        Self { lane: Some(lane.to_owned()), ..self }
    }
}

/// Prints lines, and counts them.
#[derive(Debug)]
pub(super) struct Sheet {
    output: Output,
    style: Style,
    /// Of the names of checks.
    width: usize,
    lines: usize,
    failed: usize,
    warnings: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Coloured,
    Signs,
    Words,
}

/// The longest name of a check.
const LONGEST_NAME: usize = "broker.configure".len();

impl Sheet {
    /// For the standard output. `lanes`: the names of those that have lines.
    pub(super) fn new<'a>(output: Output, lanes: impl IntoIterator<Item = &'a str>) -> Self {
        let is_terminal = std::io::stdout().is_terminal();
        let style = match is_terminal {
            true if is_coloured(is_terminal) => Style::Coloured,
            true => Style::Signs,
            false => Style::Words,
        };
        let lane = lanes.into_iter().map(|lane| lane.len() + 1).max().unwrap_or(0);
        Self { output, style, width: LONGEST_NAME + lane, lines: 0, failed: 0, warnings: 0 }
    }

    pub(super) fn add(&mut self, line: &Line) -> Result<(), Failure> {
        self.lines += 1;
        self.failed += usize::from(line.mark == Mark::Failed);
        self.warnings += usize::from(line.mark == Mark::Warning);
        match self.output {
            Output::Table => {
                print_after(Painted(self.style, line.mark), format_args!(" {}\n", self.text(line))).map(drop)
            }
            Output::Json => print(text::json(&format!("{}\n", object(line)))),
        }
    }

    /// Says how many failed. Returns whether any did.
    pub(super) fn close(&self) -> Result<bool, Failure> {
        if self.output == Output::Table {
            let Self { lines, failed, warnings, .. } = self;
            let count = |count: usize| if count == 0 { "none".to_owned() } else { count.to_string() };
            print(format_args!(
                "\nof {lines} checks: {} failed, {} with a warning\n",
                count(*failed),
                count(*warnings)
            ))?;
        }
        Ok(self.failed > 0)
    }

    fn text(&self, line: &Line) -> String {
        let name = match &line.lane {
            Some(lane) => format!("{lane} {}", line.check),
            None => line.check.to_owned(),
        };
        let remedy = line.remedy.as_ref().map(|remedy| format!("; {}", Shown(remedy))).unwrap_or_default();
        format!("{name:width$}  {}{remedy}", Shown(&line.found), width = self.width)
    }
}

fn object(line: &Line) -> serde_json::Value {
    let result = line.mark.word().to_lowercase();
    json!({"check": line.check, "lane": line.lane, "result": result, "found": line.found, "remedy": line.remedy})
}

struct Painted(Style, Mark);

impl Display for Painted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(style, mark) = self;
        match style {
            Style::Coloured => write!(f, "\u{1b}[{}m{}\u{1b}[0m", mark.colour(), mark.sign()),
            Style::Signs => f.write_str(mark.sign()),
            Style::Words => write!(f, "{:7}", mark.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_whatever_was_found() {
        let line = Line::failed("broker.login", "\u{1b}[2J\nall is well").remedy("a\nb").of_lane("prod");
        let sheet = Sheet::new(Output::Table, ["prod", "a"]);
        assert_eq!(sheet.text(&line), r"prod broker.login      \u{1b}[2J\nall is well; a\nb");
        let json = text::json(&object(&line).to_string());
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(!json.contains('\n') && !json.contains('\u{1b}'));
        let expected = json!({"check": "broker.login", "lane": "prod", "result": "failed",
                              "found": "\u{1b}[2J\nall is well", "remedy": "a\nb"});
        assert_eq!(read, expected);
    }
}
