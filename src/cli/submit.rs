//! `reveille submit`: a batch of jobs, and what became of them.

mod api;
mod bar;
mod dry_run;
mod errors;
mod holder;
mod lane;
mod options;
mod send;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use self::api::Api;
use self::options::Options;
use self::send::Route;
use super::signals::Signals;
use super::times::{self, length};
use super::watch::{Ready, Submission, Submitted};
use super::{Failure, Output, tell};
use crate::bce::{InstanceId, InstanceState, Selection};
use crate::broker::{self, ConnectionKind, Names};
use crate::config::{Config, Lane, LaneName, Purpose};
use crate::events::MaxFailures;
use crate::fleet::{Format, Identity, Input, told};
use crate::text::Shown;

/// The longest that a wave waits once it may start, in seconds.
const LONGEST_SETTLE: u32 = 24 * 60 * 60;

const EXAMPLES: &str = "\
Examples:
  reveille submit --lane prod-bj --wait i-YufwpQAe
  reveille submit --lane prod-bj --batch morning --file fleet.csv \\
      --at 07:30 --tz Asia/Shanghai --deadline 90m
  reveille submit --lane prod-bj --urgent --confirm running --wait i-YufwpQAe
  reveille submit --lane prod-bj --select tag=wake:morning --dry-run
  reveille submit --lane prod-bj --batch morning --file fleet.csv --max-failures 5%
  reveille submit --lane prod-bj --batch patched --file fleet.csv --ramp
  produce-ids | reveille submit --lane prod-bj --file -";

/// What `reveille submit` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// Ids of instances to start.
    #[arg(value_name = "ID", required_unless_present_any = ["files", "select"])]
    ids: Vec<String>,
    /// A file of jobs; `-` is standard input. Can be given more than once. Where its name ends in `.csv` or `.tsv` it is
    /// a table with a header, else each line is an id, or a whole job in JSON, and `#` begins a comment.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How the files are written, whatever their names.
    #[arg(long)]
    format: Option<Format>,
    /// Submit the instances that meet all of these conditions, by the API's list: tag=KEY:VALUE or tag=KEY, zone=ZONE,
    /// name=PATTERN, in which * stands for any text; with commas in between.
    #[arg(long, value_name = "CONDITIONS", conflicts_with_all = ["ids", "files"])]
    select: Option<Selection>,
    /// The lane to submit to; can be left out where the configuration has one only.
    #[arg(long)]
    lane: Option<String>,
    #[command(flatten)]
    options: Options,
    /// Cancel the rest of a batch once more of its jobs than this have failed: a number, or a part of it (5%); 0 with --ramp.
    #[arg(long, value_name = "N|P%", value_parser = MaxFailures::parse)]
    max_failures: Option<MaxFailures>,
    /// How long each wave after the first waits once all jobs before it have ended: up to 24h.
    #[arg(long, value_name = "LENGTH", value_parser = settle)]
    settle: Option<u32>,
    /// Wait until every job has ended, and exit with 1 if a machine stayed down.
    #[arg(long)]
    wait: bool,
    /// How long --wait waits at most, once all is submitted; then exit with 124.
    #[arg(long, value_name = "TIME", value_parser = length, requires = "wait")]
    timeout: Option<Duration>,
    /// With --wait, write every machine that did not come up to this file, one JSON object on each line.
    #[arg(long, value_name = "FILE", requires = "wait")]
    failures_file: Option<PathBuf>,
    /// Submit nothing, and say what would be: how many jobs, the states of their instances, the calls, and how long they take.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    /// How --dry-run prints.
    #[arg(long, default_value = "table", requires = "dry_run")]
    output: Output,
}

impl Arguments {
    /// What the configuration is needed for.
    pub(super) fn purpose(&self) -> Purpose {
        if self.dry_run || self.select.is_some() { Purpose::Ask } else { Purpose::Talk }
    }

    /// The instances named, or selected; with states where the lane's holder has told them.
    async fn ids(&self, lane: Option<&Lane>, name: &LaneName, config: &Config) -> Result<Named, Failure> {
        let Some(selection) = &self.select else { return Ok((self.ids.clone(), None)) };
        let own =
            lane.map_or_else(|| Err(Failure::Usage(format!("the configuration does not have lane {name}"))), Api::of);
        let (found, states) = match own {
            Ok(api) => (api.select(selection).await?, None),
            Err(why) => {
                tell(format_args!("the replica that runs lane {name} is asked for its instances, as {why}"));
                let states = holder::select(config, name, selection).await?;
                (states.keys().cloned().collect(), Some(states))
            }
        };
        if found.is_empty() {
            return Err(Failure::Usage(format!("no instance of lane {name} meets --select {selection}")));
        }
        Ok((found.into_iter().map(|instance| instance.to_string()).collect(), states))
    }
}

/// Instances that were named, with states where these are known.
type Named = (Vec<String>, Option<BTreeMap<InstanceId, InstanceState>>);
/// Whole seconds, rounded up.
fn settle(text: &str) -> Result<u32, String> {
    let length = times::length(text)?;
    let seconds = length.as_secs().saturating_add(u64::from(length.subsec_nanos() > 0));
    let settle = u32::try_from(seconds).ok().filter(|seconds| *seconds <= LONGEST_SETTLE);
    settle.ok_or_else(|| "is longer than a day: expected 24h at most".to_owned())
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let lane = lane::choose(arguments.lane.as_deref(), config)?;
    let defaults = arguments.options.check(Timestamp::now())?;
    let start = defaults.not_before.map(|start| format!(", not to start before {start}")).unwrap_or_default();
    let (batch, moving_deadline) = (defaults.batch.clone(), defaults.moving_deadline);
    let identity = Identity { lane: lane.clone(), moving_deadline, ramp: defaults.ramp };
    let (not_before, settings) = (defaults.not_before, config.lanes.iter().find(|known| known.name == lane));
    let (ids, states) = arguments.ids(settings, &lane, config).await?;
    let mut input = Input::new(ids, &arguments.files, arguments.format, defaults, identity.clone())?;
    let checked = Arc::new(input.check()?);
    if let Some(told) = &checked.told {
        tell(told);
    }
    if arguments.settle.is_some() && checked.waves(identity.ramp).is_empty() {
        return Err(Failure::Usage(
            "--settle is the time between two waves, and there is one: add --ramp, or the column or field wave"
                .to_owned(),
        ));
    }
    if arguments.dry_run {
        let (ramp, output) = (identity.ramp, arguments.output);
        return dry_run::run(settings, not_before, ramp, input, &checked, states, output).await;
    }
    let jobs = if checked.size() == 1 { "1 job".to_owned() } else { format!("{} jobs", checked.size()) };
    let waves = match checked.waves(identity.ramp)[..] {
        [] => String::new(),
        [(_, ref waves)] => format!(", {}", told(waves)),
        [..] => ", in waves".to_owned(),
    };
    let to = format!("lane {lane} as batch {}{start}{waves}", Shown(&batch));
    tell(format_args!("submitting {jobs} to {to}"));

    let connection = broker::connect(&config.broker, ConnectionKind::Submit).await?;
    let names = Names::new(&config.broker.prefix);
    let standing = lane::look(&connection, &names, &lane, &checked, config).await?;
    // The first step that fails ends a ramp.
    let max_failures = arguments.max_failures.or(identity.ramp.then_some(MaxFailures::Jobs(0)));
    if let Some(standing) = &standing {
        standing.check(&lane, &checked, identity.ramp, max_failures)?;
        standing.notes(&lane, &checked, settings, identity.ramp).into_iter().for_each(tell);
    }
    // Opened before the first job goes out: what is wrong with it is no half submission, and no outcome is missed.
    let ready = if arguments.wait {
        let ready = Ready::open(config, arguments.timeout, arguments.failures_file.as_deref()).await;
        Some(ready.map_err(errors::nothing_submitted)?)
    } else {
        None
    };

    let mut signals = Signals::open()?;
    let announced_at = Timestamp::now();
    let (names, identity, settle_seconds) = (&names, &identity, arguments.settle);
    let route = Route { broker: &config.broker, names, identity, max_failures, settle_seconds, announced_at };
    let sent = match send::send(route, connection, input, &checked, &mut signals).await? {
        ControlFlow::Continue(sent) => sent,
        ControlFlow::Break(code) => return Ok(ExitCode::from(code)),
    };
    tell(format_args!("{jobs} submitted to {to}"));
    sent.connection.close().await;
    let Some(ready) = ready else { return Ok(ExitCode::SUCCESS) };
    let batches = checked.parts.keys().cloned().collect();
    let ids = Arc::try_unwrap(checked).map_or_else(|checked| checked.ids.clone(), |checked| checked.ids);
    let jobs = Submission { jobs: ids, announced: sent.announced, is_heard: false };
    let paused = standing.and_then(|standing| standing.paused);
    ready.wait(Submitted { jobs, batch, batches, lane, paused }, &mut signals).await
}
