//! `reveille status`: lanes and replicas, as far as they can be seen.
//!
//! Queues are counted by RabbitMQ, what only a replica knows is asked of all replicas ([`query`](crate::query)), and the
//! outcomes of the last minute are read from the log. Each can fail alone: the others are shown, and what failed is said.

mod gather;
mod minute;
mod picture;
mod table;

use std::process::ExitCode;

use super::{Failure, Output, print};
use crate::config::Config;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  reveille status
  reveille status --output json";

/// What `reveille status` takes.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// `json` is one object.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) async fn run(arguments: Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let (facts, failure) = gather::gather(config).await;
    let picture = facts.picture();
    match arguments.output {
        Output::Table => print(&picture)?,
        Output::Json => print(text::json(&format!("{:#}\n", serde_json::json!(picture))))?,
    }
    match failure {
        Some(failure) => Err(failure),
        None if picture.needs_a_person() => Ok(ExitCode::FAILURE),
        None => Ok(ExitCode::SUCCESS),
    }
}
