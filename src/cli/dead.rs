//! `reveille dead`: jobs that failed, and messages that could not be read.
//!
//! They are messages of one queue, which keeps no index: each command reads it from its head on ([`Walk`](crate::broker::Walk)), and
//! leaves in it, in order, what it does not take out. So all take time in proportion to the letters before the ones that are looked
//! for, and no more memory for it. One command reads the queue at a time.

mod discard;
mod filter;
mod lanes;
mod letter;
mod list;
mod order;
mod queue;
mod replay;
mod show;

use std::process::ExitCode;

use clap::Subcommand;
use jiff::Timestamp;

use super::Failure;
use crate::config::Config;

const EXAMPLES: &str = "\
Examples:
  reveille dead list --lane prod-bj --newer-than 12h
  reveille dead show i-YufwpQAe
  reveille dead replay --batch morning --deadline 30m
  reveille dead discard --reason not_found --yes";

/// What `reveille dead` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, the oldest first.
    List(list::Arguments),
    /// Show one dead letter whole: its headers, its body, why it failed, and how to replay it.
    Show(show::Arguments),
    /// Submit failed jobs again, under new ids.
    Replay(replay::Arguments),
    /// Delete dead letters for good.
    Discard(discard::Arguments),
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let now = Timestamp::now();
    match &arguments.command {
        Command::List(list) => list::run(list, config, now).await,
        Command::Show(show) => show::run(show, config, now).await,
        Command::Replay(replay) => replay::run(replay, config, now).await,
        Command::Discard(discard) => discard::run(discard, config, now).await,
    }
}
