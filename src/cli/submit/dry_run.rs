//! `reveille submit --dry-run`: what would be submitted, and what it would meet.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;

use jiff::Timestamp;
use serde::Serialize;

use super::api::Api;
use super::bar::progress_bar;
use super::lane::Cost;
use crate::bce::{InstanceId, InstanceState};
use crate::cli::{Failure, Output, print, tell};
use crate::config::Lane;
use crate::events::Wave;
use crate::fleet::{Checked, Input, told};
use crate::text::Shown;

/// What would be submitted.
#[derive(Debug, Serialize)]
struct Plan<'a> {
    lane: &'a str,
    /// The number of jobs of each batch.
    batches: BTreeMap<&'a str, usize>,
    jobs: usize,
    /// How many jobs each wave has, of the batches that have several.
    waves: BTreeMap<&'a str, BTreeMap<Wave, usize>>,
    /// As the options say.
    not_before: Option<Timestamp>,
    /// How many instances are in which state; `null` where they could not be asked for.
    states: Option<BTreeMap<&'static str, usize>>,
    /// `null` where the configuration does not have the lane.
    cost: Option<Cost>,
    /// Each instance with its state; `null` as `states`.
    instances: Option<Vec<Found>>,
}

#[derive(Debug, Serialize)]
struct Found {
    instance_id: InstanceId,
    state: &'static str,
}

/// Prints what would be submitted. `lane`: its settings, if the configuration has it. `states`: those of all instances, where
/// they are known.
///
/// # Errors
/// The API does not answer.
pub(super) async fn run(
    lane: Option<&Lane>,
    not_before: Option<Timestamp>,
    ramp: bool,
    mut input: Input,
    checked: &Checked,
    states: Option<BTreeMap<InstanceId, InstanceState>>,
    output: Output,
) -> Result<ExitCode, Failure> {
    let name = input.lane().clone();
    let instances = match lane.map(Api::of) {
        _ if let Some(states) = states => Some(found(states)),
        Some(Ok(api)) => Some(ask(&api, &mut input, checked).await?),
        Some(Err(failure)) => {
            tell(format_args!("without states of the instances: {failure}"));
            None
        }
        None => {
            tell(format_args!("without states, calls and time: the configuration does not have lane {name}"));
            None
        }
    };
    let states = instances.as_ref().map(|instances| {
        let mut states = BTreeMap::new();
        instances.iter().for_each(|found| *states.entry(found.state).or_default() += 1);
        states
    });
    let plan = Plan {
        lane: name.as_str(),
        batches: checked.parts.iter().map(|(batch, part)| (batch.as_str(), part.size)).collect(),
        jobs: checked.size(),
        waves: checked.waves(ramp).into_iter().collect(),
        not_before,
        states,
        cost: lane.map(|lane| Cost::of_waves(checked, ramp, lane)),
        instances,
    };
    match output {
        Output::Table => print(&plan)?,
        Output::Json => {
            let json =
                serde_json::to_string_pretty(&plan).map_err(|error| anyhow::anyhow!("cannot be JSON: {error}"))?;
            print(json + "\n")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(api: &Api, input: &mut Input, checked: &Checked) -> Result<Vec<Found>, Failure> {
    let mut instances = BTreeSet::new();
    let read = input.jobs(checked, |_, job| {
        instances.insert(job.instance_id);
        ControlFlow::Continue(())
    });
    read.map_err(|problem| Failure::Usage(format!("a file was changed since it was checked: {problem}")))?;
    let instances: Vec<InstanceId> = instances.into_iter().collect();
    let bar = progress_bar(instances.len(), "asking");
    let states = api.states(&instances, |count| bar.inc(count as u64)).await;
    bar.finish_and_clear();
    let states = states?;
    let found = instances.into_iter().map(|instance_id| Found {
        state: states.get(&instance_id).map_or("not_found", |state| state.word()),
        instance_id,
    });
    Ok(found.collect())
}

fn found(states: BTreeMap<InstanceId, InstanceState>) -> Vec<Found> {
    states.into_iter().map(|(instance_id, state)| Found { instance_id, state: state.word() }).collect()
}

/// For people.
impl fmt::Display for Plan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let batches: Vec<(String, usize)> =
            self.batches.iter().map(|(batch, jobs)| (Shown(batch).to_string(), *jobs)).collect();
        let first = batches.iter().map(|(batch, _)| batch.chars().count() + 2).fold(9, usize::max);
        writeln!(f, "{:first$}{:10}{:>7}", "BATCH", "LANE", "JOBS")?;
        for (batch, jobs) in batches {
            writeln!(f, "{batch:first$}{:10}{jobs:>7}", self.lane)?;
        }
        if let Some(states) = &self.states {
            writeln!(f, "\n{:12}{:>9}", "STATE", "INSTANCES")?;
            for (state, count) in states {
                writeln!(f, "{state:12}{count:>9}")?;
            }
        }
        f.write_char('\n')?;
        if let Some(running) = self.states.as_ref().and_then(|states| states.get("running")) {
            writeln!(f, "{running} {} already", if *running == 1 { "runs" } else { "run" })?;
        }
        for (batch, waves) in &self.waves {
            writeln!(f, "batch {}: {}", Shown(batch), told(waves))?;
        }
        if let Some(not_before) = self.not_before {
            writeln!(f, "not to start before {not_before}")?;
        }
        if let Some(cost) = &self.cost {
            writeln!(f, "{cost}")?;
        }
        writeln!(f, "nothing was submitted")
    }
}
