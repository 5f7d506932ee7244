//! Log lines.

use std::env::{self, VarError};
use std::ffi::OsStr;
use std::fmt::{self, Debug};
use std::io::IsTerminal;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::Registry;
use tracing_subscriber::field::{RecordFields, VisitOutput};
use tracing_subscriber::filter::{FilterFn, Targets, filter_fn};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::directives;
use crate::text::Shown;

/// Logs to standard error, in colour on a terminal unless `NO_COLOR` is set. `RUST_LOG` selects targets and levels, as
/// in `reveille=debug,lapin=warn`.
///
/// # Errors
/// `RUST_LOG` cannot be read, or names an unknown target.
pub fn init_logs() -> Result<(), String> {
    let filter = match env::var("RUST_LOG") {
        Ok(text) => directives::read(&text).map_err(|problem| format!("RUST_LOG {text:?}: {problem}"))?,
        Err(VarError::NotPresent) => None,
        Err(VarError::NotUnicode(_)) => return Err("RUST_LOG is not UTF-8: expected a text".to_owned()),
    };
    // We log a broken connection ourselves, once and with its consequences.
    let usual = || {
        Targets::new()
            .with_default(LevelFilter::WARN)
            .with_target("reveille", LevelFilter::INFO)
            .with_target("lapin", LevelFilter::OFF)
    };
    let filter = filter.unwrap_or_else(usual);
    // At that level lapin logs the login, password included.
    let no_login = filter_fn(|event| !(*event.level() == Level::TRACE && event.target().starts_with("lapin")));
    let format = tracing_subscriber::fmt::layer()
        .fmt_fields(OneLine)
        .with_writer(std::io::stderr)
        .with_ansi(is_coloured(std::io::stderr().is_terminal()));
    tracing_subscriber::registry().with(format).with(lines(filter)).with(no_login).init();
    Ok(())
}

/// Enables the lines that `targets` ask for, and all spans of reveille, whatever their module: they name the lane and
/// the job of each enabled line.
fn lines(targets: Targets) -> FilterFn<impl Fn(&Metadata<'_>) -> bool> {
    let most = Layer::<Registry>::max_level_hint(&targets).unwrap_or(LevelFilter::TRACE);
    let is_ours = |target: &str| target.split("::").next() == Some(directives::OURS);
    let is_let_through = move |metadata: &Metadata<'_>| {
        let is_span_of_ours = metadata.is_span() && is_ours(metadata.target());
        *metadata.level() <= most && (is_span_of_ours || targets.would_enable(metadata.target(), metadata.level()))
    };
    filter_fn(is_let_through).with_max_level_hint(most)
}

/// Whether output may have colours: on a terminal, unless `NO_COLOR` is set.
pub fn is_coloured(is_terminal: bool) -> bool {
    is_wanted(is_terminal, env::var_os("NO_COLOR").as_deref())
}

/// As in <https://no-color.org>: any text in `NO_COLOR` but an empty one.
fn is_wanted(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Default formatting of fields, with their values escaped: much of that text is from outside.
struct OneLine;

impl<'w> FormatFields<'w> for OneLine {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = Escaping(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

/// Values of all types but strings arrive at [`Visit::record_debug`] by themselves.
struct Escaping<'w>(DefaultVisitor<'w>);

impl Visit for Escaping<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.record_debug(field, &format_args!("{}", Shown(format_args!("{value:?}"))));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::{error_span, info, info_span, warn};

    use super::*;

    #[test]
    fn there_is_colour_on_a_terminal_unless_it_is_not_wanted() {
        assert!(is_wanted(true, None));
        assert!(is_wanted(true, Some(OsStr::new(""))));
        assert!(!is_wanted(true, Some(OsStr::new("1"))));
        assert!(!is_wanted(true, Some(OsStr::new("0"))));
        assert!(!is_wanted(false, None));
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged<F>(fields: F, ansi: bool, log: impl Fn()) -> String
    where
        F: for<'w> FormatFields<'w> + Send + Sync + 'static,
    {
        logged_of(Targets::new().with_default(LevelFilter::TRACE), fields, ansi, log)
    }

    fn logged_of<F>(targets: Targets, fields: F, ansi: bool, log: impl Fn()) -> String
    where
        F: for<'w> FormatFields<'w> + Send + Sync + 'static,
    {
        let written = Written::default();
        let to = written.clone();
        let format = tracing_subscriber::fmt::layer().fmt_fields(fields).with_ansi(ansi).without_time();
        let subscriber = tracing_subscriber::registry().with(format.with_writer(move || to.clone()));
        tracing::subscriber::with_default(subscriber.with(lines(targets)), log);
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_line_that_is_asked_for_tells_of_which_lane_and_job_it_is_and_no_other_line_is_written() {
        let log = || {
            let _job = error_span!(target: "reveille::lane::job", "job", lane = "prod").entered();
            let _others = info_span!(target: "hyper_util", "connection", of = 7).entered();
            info!(target: "reveille::lane::job", "step");
            warn!(target: "reveille::lane::quota", "slow");
        };
        let asked = |directives: &str| {
            let targets = directives::read(directives).unwrap().unwrap();
            logged_of(targets, OneLine, false, log)
        };
        let slow = " WARN job{lane=\"prod\"}: reveille::lane::quota: slow\n";
        assert_eq!(asked("warn"), slow);
        assert_eq!(asked("reveille::lane::quota=debug"), slow);
        assert_eq!(asked("reveille::lane=info").lines().count(), 2);
        assert_eq!(asked("lapin=trace"), "");
        assert_eq!(asked("off"), "");
    }

    #[test]
    fn no_value_of_any_kind_gets_a_control_character_into_the_log_or_begins_a_line() {
        let evil = "\u{1b}]52;c;aGk=\u{7}\r\n2026 INFO forged\u{9b}2J\u{202e}\u{2028}\t";
        let error = io::Error::other(evil);
        let line = logged(OneLine, false, || {
            let _span = info_span!("span", of = %evil).entered();
            info!(text = evil, shown = %evil, debug = ?Some(evil), fmt = ?format_args!("{evil}"), "{evil} {error}");
            info!(error = &error as &dyn std::error::Error, message = evil);
        });
        let lines: Vec<&str> = line.split('\n').collect();
        assert!(lines.len() == 3 && lines[2].is_empty(), "a line for each event: {line:?}");
        let is_seen = |c: char| !c.is_control() && !"\u{202e}\u{2028}".contains(c);
        assert!(lines.iter().all(|line| line.chars().all(is_seen)), "{line:?}");
        assert_eq!(line.matches("forged").count(), 10, "{line}");
        assert!(line.contains(r"\u{1b}]52;c;aGk=\u{7}\r\n2026 INFO forged\u{9b}2J\u{202e}\u{2028}\t"), "{line}");
    }

    #[test]
    fn a_line_looks_as_it_does_by_default_in_colour_and_without() {
        let log = || {
            let _span = info_span!("span", of = 7).entered();
            info!(text = "a \"b\" \\ c", shown = %"bare", debug = ?Some("x"), number = -7, flag = true, "实例 {}", "words");
            info!(share = 0.5, message = "a text");
        };
        for ansi in [false, true] {
            let ours = logged(OneLine, ansi, log);
            assert_eq!(ours, logged(tracing_subscriber::fmt::format::DefaultFields::new(), ansi, log));
            assert_eq!(ours.contains("\u{1b}[3mtext\u{1b}[0m\u{1b}[2m=\u{1b}[0m"), ansi, "{ours:?}");
        }
    }
}
