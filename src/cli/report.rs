//! What became of a batch, as a table. It takes the same memory however many jobs end.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::events::JobEvent;
use crate::text::Shown;

/// Machines that are shown of each outcome and reason, and of all together. More are better read in a file.
const MACHINES_SHOWN: usize = 20;
const MACHINES: usize = 100;
/// Longest line of a machine, in characters: it quotes what the API answered.
const LINE_LIMIT: usize = 300;

/// Pairs of outcome and reason with a row of their own: more than reveille and a configuration have. Anybody who may publish
/// events can make up others.
const ROWS: usize = 100;

/// Outcome and reason.
pub(super) type Row = (String, String);

/// The outcomes so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    counts: BTreeMap<Arc<Row>, usize>,
    /// Machines that are not up, by outcome and reason.
    down: BTreeMap<Arc<Row>, Group>,
    /// How many of them are shown.
    shown: usize,
}

/// Machines that are not up for the same reason.
#[derive(Debug, Default)]
struct Group {
    count: usize,
    /// A line for each of the first ones, by instance, with the job's id.
    lines: Vec<(String, String)>,
}

/// One machine that is not up, and why: a line.
#[derive(Debug)]
pub(super) struct Down<'a>(pub &'a str, pub &'a JobEvent);

impl Report {
    /// Adds a job that has ended, and returns the row in which it is counted.
    pub(super) fn add(&mut self, instance: &str, ended: &JobEvent) -> Arc<Row> {
        let row = (ended.outcome.clone(), ended.reason.clone().unwrap_or_default());
        let has_row = self.counts.len() < ROWS || self.counts.contains_key(&row);
        let row = if has_row { row } else { ("others".to_owned(), String::new()) };
        let row = self.counts.get_key_value(&row).map_or_else(|| Arc::new(row), |(known, _)| known.clone());
        *self.counts.entry(row.clone()).or_default() += 1;
        if !ended.is_up() {
            let group = self.down.entry(row.clone()).or_default();
            group.count += 1;
            let line: String = Down(instance, ended).to_string().chars().take(LINE_LIMIT).collect();
            let place = group.lines.partition_point(|(other, _)| *other <= line);
            if place < MACHINES_SHOWN && (self.shown < MACHINES || place < group.lines.len()) {
                group.lines.insert(place, (line, ended.job_id.clone()));
                self.shown += 1;
                if group.lines.len() > MACHINES_SHOWN || self.shown > MACHINES {
                    group.lines.pop();
                    self.shown -= 1;
                }
            }
        }
        row
    }

    /// Takes a job that is not up out again, with the row in which it was counted.
    pub(super) fn take_back(&mut self, job_id: &str, row: &Row) {
        let Some(count) = self.counts.get_mut(row) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(row);
        }
        if let Some(group) = self.down.get_mut(row) {
            let before = group.lines.len();
            group.lines.retain(|(_, other)| other != job_id);
            group.count -= 1;
            self.shown -= before - group.lines.len();
            if group.count == 0 {
                self.down.remove(row);
            }
        }
    }

    /// How many jobs ended with each outcome, whatever the reason.
    pub(super) fn outcomes(&self) -> BTreeMap<&str, usize> {
        let mut outcomes = BTreeMap::new();
        for (row, count) in &self.counts {
            let (outcome, _) = &**row;
            *outcomes.entry(outcome.as_str()).or_default() += count;
        }
        outcomes
    }

    /// How many jobs ended.
    pub(super) fn jobs(&self) -> usize {
        self.counts.values().sum()
    }

    pub(super) fn all_up(&self) -> bool {
        self.down.is_empty()
    }
}

/// Of a column, with two spaces at least behind each text.
fn width<'a>(least: usize, texts: impl Iterator<Item = &'a String>) -> usize {
    texts.map(|text| text.chars().count() + 2).fold(least, usize::max)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |(outcome, reason): &Row| (Shown(outcome).to_string(), Shown(reason).to_string());
        let rows: Vec<_> = self.counts.iter().map(|(row, count)| (shown(row), count)).collect();
        let first = width(14, rows.iter().map(|((outcome, _), _)| outcome));
        let second = width(22, rows.iter().map(|((_, reason), _)| reason));
        writeln!(f, "{:first$}{:second$}{:>7}", "OUTCOME", "REASON", "JOBS")?;
        for ((outcome, reason), count) in rows {
            writeln!(f, "{outcome:first$}{reason:second$}{count:>7}")?;
        }
        if self.all_up() {
            return Ok(());
        }
        writeln!(f, "\nnot up:")?;
        for (row, group) in &self.down {
            let (outcome, reason) = &**row;
            for (line, _) in &group.lines {
                writeln!(f, "  {line}")?;
            }
            let more = group.count - group.lines.len();
            if more > 0 {
                let reason = if reason.is_empty() { outcome } else { reason };
                writeln!(f, "  and {more} more: {}", Shown(reason))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Down<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(instance, ended) = self;
        let reason = ended.reason.as_deref().unwrap_or(&ended.outcome);
        write!(f, "{}  {}", Shown(instance), Shown(reason))?;
        if let Some(status) = ended.http_status {
            write!(f, ", HTTP {status}")?;
        }
        match (&ended.error_code, &ended.error_message) {
            (Some(code), _) => write!(f, " {}", Shown(code)),
            (None, Some(message)) => write!(f, ": {}", Shown(message)),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A job as an event has it that the daemon writes, with a 404 and `more`.
    fn ended(outcome: &str, more: Value) -> JobEvent {
        let now = "2026-11-25T07:30:00Z";
        let mut data = json!({"job_id": "j", "lane": "prod", "outcome": outcome, "final": true, "attempts": 1,
            "http_status": 404, "error_code": "NoSuchObject", "ambiguous": false, "received_at": now, "finished_at": now,
            "duration_ms": 0});
        data.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        serde_json::from_value(data).unwrap()
    }

    #[test]
    fn a_machine_that_is_not_up_has_a_line_that_says_why() {
        let mut report = Report::default();
        report.add("i-0000", &ended("started", json!({})));
        assert!(report.all_up());
        report.add("i-0001", &ended("failed", json!({"reason": "not_found"})));
        assert!(!report.all_up());
        let text = report.to_string();
        assert!(text.contains("i-0001  not_found, HTTP 404 NoSuchObject"), "{text}");
    }

    #[test]
    fn however_many_jobs_end_the_table_stays_short_and_counts_them_all() {
        let mut report = Report::default();
        for number in (0..500).rev() {
            let more = json!({"reason": format!("reason_{number}")});
            report.add(&format!("i-{number:04}"), &ended("failed", more));
        }
        assert_eq!(report.outcomes(), [("failed", ROWS), ("others", 500 - ROWS)].into());
        let text = report.to_string();
        let down: Vec<&str> = text.lines().skip_while(|line| *line != "not up:").skip(1).collect();
        let machines = down.iter().filter(|line| line.starts_with("  i-")).count();
        assert!(machines <= MACHINES && down.len() <= MACHINES + ROWS + 1, "{text}");
        let more = down.iter().filter_map(|line| line.strip_prefix("  and ")?.split(' ').next()?.parse::<usize>().ok());
        assert_eq!(machines + more.sum::<usize>(), 500, "none is left out: {text}");
        assert!(!report.all_up());
    }

    #[test]
    fn machines_are_grouped_by_reason_and_the_first_of_each_are_shown() {
        let mut report = Report::default();
        for number in (0..30).rev() {
            report.add(&format!("i-{number:04}"), &ended("failed", json!({"reason": "not_found"})));
        }
        report.add("i-9999", &ended("failed", json!({"reason": "expired", "error_message": "x".repeat(9_999)})));
        report.add("i-0007", &ended("failed", json!({"reason": "expired"})));
        let text = report.to_string();
        let down: Vec<&str> = text.lines().skip_while(|line| *line != "not up:").skip(1).collect();
        assert_eq!(down.len(), 2 + MACHINES_SHOWN + 1, "{text}");
        assert!(down[0].starts_with("  i-0007  expired") && down[1].starts_with("  i-9999  expired"), "{text}");
        assert!(down[2].starts_with("  i-0000  not_found") && down[21].starts_with("  i-0019  not_found"), "{text}");
        assert_eq!(down[22], "  and 10 more: not_found");
        assert!(down.iter().all(|line| line.len() <= LINE_LIMIT + 2));
    }

    #[test]
    fn no_event_forges_a_line_and_columns_stay_columns() {
        let evil = "\u{1b}[2J\u{9b}\r\nstarted\t\u{202e}";
        let mut report = Report::default();
        let code = |code: Option<&str>, outcome: &str, reason: &str| {
            let more = json!({"reason": reason, "http_status": 400, "error_code": code, "error_message": evil});
            ended(outcome, more)
        };
        report.add("i-0000", &code(Some(evil), evil, evil));
        report.add("i-0001", &code(None, "failed", "refused"));
        report.add(evil, &code(None, "failed", "refused"));
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 8, "{text}");
        assert!(lines.iter().all(|line| line.chars().all(|c| !c.is_control() && c != '\u{202e}')), "{text:?}");
        assert!(text.contains(r"  i-0001  refused, HTTP 400: \u{1b}[2J\u{9b}\r\nstarted\t\u{202e}"), "{text}");
        let width = lines[0].len();
        assert!(lines[..3].iter().all(|line| line.len() == width), "{text}");
    }
}
