//! `reveille batches`: the latest batches, by the log of outcomes.

mod listing;

use std::process::ExitCode;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use self::listing::{Listing, MOST};
use super::log::Log;
use super::times::{length, told};
use super::{Failure, Output, print, tell};
use crate::broker::ConnectionKind;
use crate::config::{Config, LaneName};
use crate::similar::hint;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  reveille batches
  reveille batches --lane prod-bj --since 7h
  reveille batches --output json | jq .batch_id";

/// What `reveille batches` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// How far back in the log to begin.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = length)]
    since: Duration,
    /// List so many batches at most, those with the latest events.
    #[arg(short = 'n', long = "number", value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=MOST))]
    number: u16,
    /// Only the jobs of this lane.
    #[arg(long)]
    lane: Option<String>,
    /// `json` is a list of objects.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let lane = arguments.lane.as_ref().map(|lane| {
        LaneName::parse(lane).ok_or_else(|| Failure::Usage(format!("{lane:?} is no lane name: expected a-z 0-9 -")))
    });
    let lane = lane.transpose()?;
    let now = Timestamp::now();
    let since = SignedDuration::try_from(arguments.since).unwrap_or(SignedDuration::MAX);
    let from = now.checked_sub(since).unwrap_or(Timestamp::MIN);
    let mut listing = Listing::new(lane.clone(), now);
    let log = Log::new(config, ConnectionKind::Batches);
    log.replay(from, |event| listing.take(event)).await.map_err(|error| log.failure(error))?;

    let rows = listing.rows(arguments.number.into());
    let within = told(arguments.since);
    if rows.is_empty() {
        if let Some(lane) = &lane {
            let known = config.lanes.iter().map(|lane| &lane.name).chain(listing.lanes()).map(LaneName::as_str);
            let known: Vec<&str> = known.collect();
            if !known.contains(&lane.as_str()) {
                return Err(Failure::Usage(format!(
                    "lane {lane} is not configured here, and nothing is in the log of it within the last {within}{}",
                    hint(lane.as_str(), &known)
                )));
            }
        }
        tell(format_args!("no batch within the last {within}: begin earlier with --since"));
    }
    match arguments.output {
        Output::Table if rows.is_empty() => {}
        Output::Table => print(listing::table(&rows))?,
        Output::Json => print(text::json(&format!("{:#}\n", serde_json::json!(rows))))?,
    }
    Ok(ExitCode::SUCCESS)
}
