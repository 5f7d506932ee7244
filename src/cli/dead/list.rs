//! `reveille dead list`

use std::process::ExitCode;

use indicatif::ProgressBar;
use jiff::Timestamp;

use super::filter::{Chosen, Filter};
use super::letter::{Facts, Letter, Why, count, shown, time};
use super::queue::{DeadQueue, End, Judge, Next};
use crate::cli::signals::Signals;
use crate::cli::{Failure, Output, print_after, tell};
use crate::config::Config;
use crate::text;

/// What `reveille dead list` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// How many letters to list at most; 0 lists all.
    #[arg(short = 'n', long, value_name = "LETTERS", default_value_t = 100)]
    limit: usize,
    /// `json` is an object for each letter, on a line of its own.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) async fn run(arguments: &Arguments, config: &Config, now: Timestamp) -> Result<ExitCode, Failure> {
    let chosen = arguments.filter.choose(&[], now)?;
    let mut signals = Signals::open()?;
    let queue = DeadQueue::open(config).await?;
    let letters = queue.letters().await?;
    let mut list = List { chosen, arguments, listed: 0, is_cut: false };
    let look = queue.look(&mut signals, letters, &mut list).await;
    queue.connection.close().await;
    match look.end {
        End::Done if list.is_cut => {
            tell("there are more: --limit 0 lists all of them");
            Ok(ExitCode::SUCCESS)
        }
        End::Done if list.listed == 0 => {
            tell(format_args!("no letter matches, of {}{}", count(look.letters), list.chosen.doubts(config)));
            Ok(ExitCode::SUCCESS)
        }
        End::Done => Ok(ExitCode::SUCCESS),
        End::Interrupted(code) => {
            tell(format_args!("left after {} of {letters}: all of them stay in the queue", look.letters));
            Ok(ExitCode::from(code))
        }
        End::Failed(failure) => Err(failure),
    }
}

struct List<'a> {
    chosen: Chosen<'a>,
    arguments: &'a Arguments,
    listed: usize,
    /// One more than the limit was found.
    is_cut: bool,
}

impl Judge for List<'_> {
    async fn judge(&mut self, _: &DeadQueue, bar: &ProgressBar, letter: Letter) -> Result<Next, Failure> {
        let Arguments { limit, output, .. } = *self.arguments;
        if !self.chosen.has(&letter.facts) {
            return Ok(Next::Keep);
        }
        if limit > 0 && self.listed == limit {
            self.is_cut = true;
            return Ok(Next::Stop);
        }
        let lines = match output {
            Output::Table if self.listed == 0 => format!("{HEAD}\n{}\n", row(&letter.facts)),
            Output::Table => row(&letter.facts) + "\n",
            Output::Json => json(&letter.facts)? + "\n",
        };
        self.listed += 1;
        let is_read = bar.suspend(|| print_after("", lines))?;
        Ok(if is_read { Next::Keep } else { Next::Stop })
    }
}

fn json(letter: &Facts) -> Result<String, Failure> {
    let line = serde_json::to_string(letter).map_err(|error| anyhow::anyhow!("cannot write JSON: {error}"))?;
    Ok(text::json(&line))
}

/// The last column has no width. The others fit what reveille itself writes.
const HEAD: &str =
    "DEAD SINCE            JOB                                   INSTANCE       LANE          BATCH             WHY";

fn row(letter: &Facts) -> String {
    format!(
        "{:<20}  {:<36}  {:<13}  {:<12}  {:<16}  {}",
        time(letter.dead_at),
        shown(letter.job_id.as_ref()),
        shown(letter.instance_id.as_ref()),
        shown(letter.lane.as_ref()),
        shown(letter.batch_id.as_ref()),
        Why(letter)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_columns_of_the_head_and_nothing_raw() {
        let text = |text: &str| Some(text.to_owned());
        let letter = Facts {
            job_id: text("01a2105b-8182-7209-8f46-cf214a87ac13"),
            lane: text("rehearsal"),
            reason: "not_found".to_owned(),
            dead_at: "2026-11-25T01:39:22.12089275Z".parse().ok(),
            http_status: Some(404),
            error_code: text("NoSuchObject"),
            error_message: text("\u{1b}[2J\nfine"),
            instance_id: text("i-gone0001"),
            ..Facts::default()
        };
        let row = row(&letter);
        for (column, value) in [
            ("DEAD SINCE", "2026-11-25T01:39:22Z"),
            ("JOB", "01a2105b-8182-7209-8f46-cf214a87ac13"),
            ("INSTANCE", "i-gone0001"),
            ("LANE", "rehearsal"),
            ("BATCH", "-"),
            ("WHY", r"not_found, HTTP 404 NoSuchObject: \u{1b}[2J\nfine"),
        ] {
            let at = HEAD.find(column).unwrap();
            assert!(row[at..].starts_with(value), "{column}: {row}");
        }
    }
}
