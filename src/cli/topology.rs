//! `reveille topology`

use std::process::ExitCode;

use super::{Failure, Output, print};
use crate::broker::{Names, Topology};
use crate::config::Config;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  reveille topology
  reveille topology --output json >definitions.json";

/// What `reveille topology` takes.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// `json` is RabbitMQ's definitions.json.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

pub(super) fn run(arguments: Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let names = Names::new(&config.broker.prefix);
    let topology = Topology::new(&names, config.lanes.iter().map(|lane| &lane.name));
    match arguments.output {
        Output::Table => print(topology)?,
        Output::Json => print(text::json(&format!("{:#}\n", topology.definitions(&config.broker.uri.vhost))))?,
    }
    Ok(ExitCode::SUCCESS)
}
