//! `reveille dead discard`

use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;

use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::filter::{Chosen, Filter};
use super::letter::{Letter, count};
use super::queue::{DeadQueue, End, Judge, Look, Next};
use crate::cli::signals::Signals;
use crate::cli::{Failure, tell};
use crate::config::Config;

/// What `reveille dead discard` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Ids of jobs whose letters to discard; all that match the options where none is given.
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// Discard without being asked.
    #[arg(short, long)]
    yes: bool,
    /// Say how many letters would be discarded, and leave them.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config, now: Timestamp) -> Result<ExitCode, Failure> {
    let chosen = arguments.filter.choose(&arguments.jobs, now)?;
    let asks = !arguments.yes && !arguments.dry_run;
    if asks && !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(Failure::Usage(
            "discard deletes letters for good, and there is no terminal to ask on: --yes discards, --dry-run counts"
                .to_owned(),
        ));
    }
    let mut signals = Signals::open()?;
    let queue = DeadQueue::open(config).await?;
    let mut letters = queue.letters().await?;
    let mut discard = Discard { chosen, is_meant: !asks && !arguments.dry_run, found: 0 };
    if asks {
        let look = queue.look(&mut signals, letters, &mut discard).await;
        if !matches!(look.end, End::Done) || discard.found == 0 {
            queue.connection.close().await;
            discard.found = 0;
            return discard.report(look, arguments, config);
        }
        // What comes meanwhile comes behind these, and was not asked about.
        letters = look.letters;
        let found = discard.found;
        let answer = spawn_blocking(move || ask(found, letters));
        let is_meant = tokio::select! {
            answer = answer => answer.unwrap_or(false),
            code = signals.next() => {
                tell("nothing was discarded");
                return Ok(ExitCode::from(code));
            }
        };
        if !is_meant {
            tell("nothing was discarded");
            return Ok(ExitCode::FAILURE);
        }
        discard = Discard { is_meant: true, found: 0, ..discard };
    }
    let look = queue.look(&mut signals, letters, &mut discard).await;
    queue.connection.close().await;
    discard.report(look, arguments, config)
}

/// Counts the chosen letters, and discards them if that is meant.
struct Discard<'a> {
    chosen: Chosen<'a>,
    is_meant: bool,
    found: usize,
}

impl Judge for Discard<'_> {
    async fn judge(&mut self, queue: &DeadQueue, _: &ProgressBar, letter: Letter) -> Result<Next, Failure> {
        if !self.chosen.has(&letter.facts) {
            return Ok(Next::Keep);
        }
        if self.is_meant {
            letter.taking.discard().await.map_err(|error| queue.failure(&error))?;
        }
        self.found += 1;
        Ok(if self.is_meant { Next::Take } else { Next::Keep })
    }
}

impl Discard<'_> {
    fn report(self, look: Look, arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
        let Look { letters, end } = look;
        let (found, would) = (count(self.found), if arguments.dry_run { "would be " } else { "" });
        match end {
            End::Done if self.found == 0 => {
                let doubts = self.chosen.doubts(config);
                tell(format_args!("no letter matches, of {}{doubts}; nothing was discarded", count(letters)));
                Ok(ExitCode::SUCCESS)
            }
            End::Done => {
                tell(format_args!("{found} {would}discarded, of {letters}"));
                Ok(ExitCode::SUCCESS)
            }
            End::Interrupted(code) => {
                tell(format_args!("left after {}: {found} {would}discarded, and the others stay", count(letters)));
                Ok(ExitCode::from(code))
            }
            End::Failed(failure) => {
                tell(format_args!("{found} {would}discarded until then; RabbitMQ may still have the last of them"));
                Err(failure)
            }
        }
    }
}

/// Asks on the terminal.
fn ask(found: usize, letters: usize) -> bool {
    tell(format_args!("{} of {letters} would be deleted for good; type yes to discard:", count(found)));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).is_ok() && ["y", "yes"].contains(&answer.trim().to_lowercase().as_str())
}
