//! `reveille cancel`: jobs that wait end without a call.

use std::process::ExitCode;

use super::control::{self, Author};
use super::{Failure, tell};
use crate::bce::InstanceId;
use crate::config::Config;
use crate::events::Action;
use crate::job::BATCH_ID_LIMIT;
use crate::text::Shown;

const EXAMPLES: &str = "\
Examples:
  reveille cancel morning --reason \"wrong list\"
  reveille cancel morning --lane prod-bj
  reveille cancel --instance i-YufwpQAe";

/// What `reveille cancel` takes.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["batch", "instance"]))]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// The batch whose jobs end.
    #[arg(value_name = "BATCH", value_parser = batch)]
    batch: Option<String>,
    /// The instance whose jobs end, of whatever batch.
    #[arg(long, value_name = "ID", value_parser = instance)]
    instance: Option<InstanceId>,
    /// The lane in which the batch is; else all.
    #[arg(long, value_name = "LANE", conflicts_with = "instance")]
    lane: Option<String>,
    #[command(flatten)]
    author: Author,
}

fn batch(text: &str) -> Result<String, String> {
    match text.len() {
        1..=BATCH_ID_LIMIT => Ok(text.to_owned()),
        length => Err(format!("it has {length} bytes: expected 1 to {BATCH_ID_LIMIT}")),
    }
}

/// An instance of the command line.
pub(super) fn instance(text: &str) -> Result<InstanceId, String> {
    InstanceId::parse(text).map_err(|error| error.to_string())
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let (connection, names) = control::open(config).await?;
    let lane = match &arguments.lane {
        Some(name) => Some(control::lane(name, &connection, &names, config).await?.to_string()),
        None => None,
    };
    let (action, what) = match (&arguments.batch, &arguments.instance) {
        (Some(batch_id), _) => {
            let of = lane.as_ref().map(|lane| format!(" in lane {lane}")).unwrap_or_default();
            (Action::CancelBatch { batch_id: batch_id.clone(), lane }, format!("batch {}{of}", Shown(batch_id)))
        }
        (None, Some(instance_id)) => {
            (Action::CancelInstance { instance_id: instance_id.clone() }, format!("instance {instance_id}"))
        }
        (None, None) => return Err(Failure::Usage("expected a BATCH, or an --instance".to_owned())),
    };
    let given = control::give(&connection, &names, action, &arguments.author).await?;
    connection.close().await;
    tell(format_args!(
        "jobs of {what} that were submitted until now, or are within a minute, are cancelled: none of them is called any more, but \
         for calls in flight; those that wait for a retry or a time end once that is over"
    ));
    Ok(if given.tell_rest() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
