//! A bar of what is done so far.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// On a terminal only: indicatif draws nothing elsewhere.
pub(super) fn progress_bar(length: usize, what: &'static str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg:>10} {pos}/{len} {elapsed} [{bar:20}]")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style).with_message(what)
}
