//! What a watch shows meanwhile, on standard error: on a terminal a line that changes, elsewhere a line now and then.

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use super::failures::Flood;
use super::progress::{Progress, State};
use crate::cli::report::Down;
use crate::cli::tell;
use crate::events::JobEvent;
use crate::text::Shown;

/// Between two lines at least …
const AT_LEAST: Duration = Duration::from_secs(5);
/// … and at most, where nothing happens.
const AT_MOST: Duration = Duration::from_secs(30);
/// How often the failures that were not shown are counted.
const FLOOD: Duration = Duration::from_secs(10);

/// Both cut the line off at the terminal's width.
const WAITING: &str = "{spinner} {wide_msg}";
const WAKING: &str = "[{bar:20}] {wide_msg}";

pub(super) struct Screen {
    /// Hidden where there is no terminal, or one that cannot move its cursor.
    bar: ProgressBar,
    flood: Flood,
    flood_since: Instant,
    /// When the last line was written, and the state it told.
    told: Option<(Instant, State)>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style(WAITING));
        Self { bar, flood: Flood::default(), flood_since: Instant::now(), told: None }
    }

    /// Writes a line that stays.
    pub(super) fn say(&self, text: impl Display) {
        self.bar.suspend(|| tell(text));
    }

    /// Shows a machine that did not come up, unless there are too many.
    pub(super) fn down(&mut self, instance: &str, ended: &JobEvent) {
        if self.flood.shows() {
            self.say(format_args!("not up: {}", Down(instance, ended)));
        }
    }

    /// Shows how far the batch is, and why its jobs wait: to be called several times a second.
    pub(super) fn show(&mut self, progress: &Progress, trouble: Option<&str>, now: Timestamp) {
        if self.flood_since.elapsed() >= FLOOD {
            self.rest_of_flood();
        }
        if self.bar.is_hidden() {
            self.tell_progress(progress, trouble, now);
            return;
        }
        if let Some(jobs) = progress.announced() {
            if self.bar.length().is_none() {
                self.bar.set_style(style(WAKING));
            }
            self.bar.set_length(jobs as u64);
            self.bar.set_position(progress.ended() as u64);
        }
        self.bar.set_message(progress.line(trouble, now));
        self.bar.tick();
    }

    fn tell_progress(&mut self, progress: &Progress, trouble: Option<&str>, now: Timestamp) {
        let state = progress.state();
        let is_due = self.told.is_none_or(|(at, told)| {
            let patience = if told == state { AT_MOST } else { AT_LEAST };
            at.elapsed() >= patience
        });
        if is_due {
            self.told = Some((Instant::now(), state));
            tell(format_args!("{}: {}", Shown(progress.batch()), progress.line(trouble, now)));
        }
    }

    fn rest_of_flood(&mut self) {
        self.flood_since = Instant::now();
        let more = self.flood.rest();
        if more > 0 {
            self.say(format_args!("not up: {more} more"));
        }
    }

    /// Leaves nothing behind but lines that stay.
    pub(super) fn close(mut self) {
        self.rest_of_flood();
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}
