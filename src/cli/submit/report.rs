//! What became of a batch, as a table.

use std::collections::BTreeMap;
use std::fmt;

use crate::events::{Data, Event, JobEvent};
use crate::text::Shown;

/// More machines than this are better looked up among the dead letters.
const MACHINES_SHOWN: usize = 20;

/// What an event says of a job that has ended. `None` where the event is another one, or not the job's last.
pub(super) fn ended(event: &[u8]) -> Option<JobEvent> {
    match Event::read(event)?.data {
        Data::Job(job) if job.is_final => Some(*job),
        _ => None,
    }
}

/// The outcomes so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    counts: BTreeMap<(String, String), usize>,
    down: Vec<(String, JobEvent)>,
}

impl Report {
    pub(super) fn add(&mut self, instance: String, ended: JobEvent) {
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
        let mut down: Vec<&(String, JobEvent)> = self.down.iter().collect();
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
    use serde_json::{Value, json};

    use super::*;
    use crate::events::Batch;

    /// An event as the daemon writes it, with a 404 and `more`.
    fn event(outcome: &str, is_final: bool, more: Value) -> Vec<u8> {
        let now = "2026-11-25T07:30:00Z";
        let mut data = json!({"job_id": "j", "lane": "prod", "outcome": outcome, "final": is_final, "attempts": 1,
            "http_status": 404, "error_code": "NoSuchObject", "ambiguous": false, "received_at": now, "finished_at": now,
            "duration_ms": 0});
        data.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        json!({"specversion": "1.0", "id": "j/start", "source": "/reveille/lanes/prod", "time": now,
            "type": format!("io.reveille.instance.{outcome}.v1"), "data": data})
        .to_string()
        .into_bytes()
    }

    #[test]
    fn only_final_outcomes_count() {
        assert!(ended(&event("started", false, json!({}))).is_none());
        let batch = Batch { batch_id: "b".to_owned(), size: 1, lane: "l".to_owned() };
        let submitted = Event::new("l", Data::BatchSubmitted(batch), jiff::Timestamp::UNIX_EPOCH);
        assert!(ended(&submitted.to_bytes()).is_none());
        assert!(ended(b"noise").is_none());
        let mut report = Report::default();
        report.add("i-0000".to_owned(), ended(&event("started", true, json!({}))).unwrap());
        assert!(report.all_up());
        report.add("i-0001".to_owned(), ended(&event("failed", true, json!({"reason": "not_found"}))).unwrap());
        assert!(!report.all_up());
        let text = report.to_string();
        assert!(text.contains("i-0001  not_found, HTTP 404 NoSuchObject"), "{text}");
    }

    #[test]
    fn no_event_forges_a_line_and_columns_stay_columns() {
        let evil = "\u{1b}[2J\u{9b}\r\nstarted\t\u{202e}";
        let mut report = Report::default();
        let code = |code: Option<&str>, outcome: &str, reason: &str| {
            let more = json!({"reason": reason, "http_status": 400, "error_code": code, "error_message": evil});
            ended(&event(outcome, true, more)).unwrap()
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
