//! What became of a batch, as a table.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::text::Shown;

/// More machines than this are better looked up among the dead letters.
const MACHINES_SHOWN: usize = 20;

/// What an outcome event says of a job that has ended.
#[derive(Debug, Deserialize)]
pub(super) struct Ended {
    pub(super) job_id: String,
    outcome: String,
    reason: Option<String>,
    http_status: Option<u16>,
    error_code: Option<String>,
    error_message: Option<String>,
    #[serde(rename = "final")]
    is_final: bool,
}

impl Ended {
    /// `None` where the event is another one, or not the job's last.
    pub(super) fn read(event: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Event {
            data: Ended,
        }
        serde_json::from_slice::<Event>(event).ok().map(|event| event.data).filter(|ended| ended.is_final)
    }

    fn is_up(&self) -> bool {
        matches!(self.outcome.as_str(), "started" | "running" | "already_done")
    }
}

/// The outcomes so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    counts: BTreeMap<(String, String), usize>,
    down: Vec<(String, Ended)>,
}

impl Report {
    pub(super) fn add(&mut self, instance: String, ended: Ended) {
        *self.counts.entry((ended.outcome.clone(), ended.reason.clone().unwrap_or_default())).or_default() += 1;
        if !ended.is_up() {
            self.down.push((instance, ended));
        }
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
        let shown = |(outcome, reason): &(String, String)| (Shown(outcome).to_string(), Shown(reason).to_string());
        let rows: Vec<_> = self.counts.iter().map(|(row, count)| (shown(row), count)).collect();
        let first = width(14, rows.iter().map(|((outcome, _), _)| outcome));
        let second = width(22, rows.iter().map(|((_, reason), _)| reason));
        writeln!(f, "{:first$}{:second$}{:>7}", "OUTCOME", "REASON", "JOBS")?;
        for ((outcome, reason), count) in rows {
            writeln!(f, "{outcome:first$}{reason:second$}{count:>7}")?;
        }
        if self.down.is_empty() {
            return Ok(());
        }
        writeln!(f, "\nnot up:")?;
        let mut down: Vec<&(String, Ended)> = self.down.iter().collect();
        down.sort_by(|a, b| a.0.cmp(&b.0));
        for (instance, ended) in down.iter().take(MACHINES_SHOWN) {
            let reason = ended.reason.as_deref().unwrap_or(&ended.outcome);
            write!(f, "  {}  {}", Shown(instance), Shown(reason))?;
            if let Some(status) = ended.http_status {
                write!(f, ", HTTP {status}")?;
            }
            match (&ended.error_code, &ended.error_message) {
                (Some(code), _) => writeln!(f, " {}", Shown(code))?,
                (None, Some(message)) => writeln!(f, ": {}", Shown(message))?,
                (None, None) => writeln!(f)?,
            }
        }
        if down.len() > MACHINES_SHOWN {
            writeln!(f, "  and {} more", down.len() - MACHINES_SHOWN)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(outcome: &str, reason: Option<&str>, is_final: bool) -> Vec<u8> {
        serde_json::json!({"data": {"job_id": "j", "outcome": outcome, "reason": reason, "final": is_final,
            "http_status": 404, "error_code": "NoSuchObject"}})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn only_final_outcomes_count() {
        assert!(Ended::read(&event("started", None, false)).is_none());
        assert!(Ended::read(br#"{"data":{"batch_id":"b","size":1,"lane":"l"}}"#).is_none());
        assert!(Ended::read(b"noise").is_none());
        let mut report = Report::default();
        report.add("i-0000".to_owned(), Ended::read(&event("started", None, true)).unwrap());
        assert!(report.all_up());
        report.add("i-0001".to_owned(), Ended::read(&event("failed", Some("not_found"), true)).unwrap());
        assert!(!report.all_up());
        let text = report.to_string();
        assert!(text.contains("i-0001  not_found, HTTP 404 NoSuchObject"), "{text}");
    }

    #[test]
    fn no_event_forges_a_line_and_columns_stay_columns() {
        let evil = "\u{1b}[2J\u{9b}\r\nstarted\t\u{202e}";
        let mut report = Report::default();
        let code = |code: Option<&str>, outcome: &str, reason: &str| {
            let data = serde_json::json!({"data": {"job_id": "j", "outcome": outcome, "reason": reason, "final": true,
                "http_status": 400, "error_code": code, "error_message": evil}});
            Ended::read(data.to_string().as_bytes()).unwrap()
        };
        report.add("i-0000".to_owned(), code(Some(evil), evil, evil));
        report.add("i-0001".to_owned(), code(None, "failed", "refused"));
        report.add(evil.to_owned(), code(None, "failed", "refused"));
        let text = report.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 8, "{text}");
        assert!(lines.iter().all(|line| line.chars().all(|c| !c.is_control() && c != '\u{202e}')), "{text:?}");
        assert!(text.contains(r"  i-0001  refused, HTTP 400: \u{1b}[2J\u{9b}\r\nstarted\t\u{202e}"), "{text}");
        let width = lines[0].len();
        assert!(lines[..3].iter().all(|line| line.len() == width), "{text}");
    }
}
