//! `reveille snooze`: an instance is left alone until a time.

use std::process::ExitCode;

use jiff::Timestamp;

use super::cancel::instance;
use super::control::{self, Author};
use super::{Failure, tell, times};
use crate::bce::InstanceId;
use crate::config::Config;
use crate::events::Action;

const EXAMPLES: &str = "\
Examples:
  reveille snooze i-YufwpQAe --until 4h --reason patching
  reveille snooze i-YufwpQAe --until 07:30 --tz Asia/Shanghai
  reveille snooze i-YufwpQAe --end";

/// What `reveille snooze` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// The instance.
    #[arg(value_name = "ID", value_parser = instance)]
    instance: InstanceId,
    /// Until when: after a length of time (30m), at the next such time of day (07:30, with --tz), or at a timestamp with
    /// its offset, 30 days ahead at most.
    #[arg(long, value_name = "TIME", required_unless_present = "end")]
    until: Option<String>,
    /// The time zone of a time of day, as in Asia/Shanghai.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// End an earlier snooze now.
    #[arg(long, conflicts_with = "until")]
    end: bool,
    #[command(flatten)]
    author: Author,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let (now, instance_id) = (Timestamp::now(), arguments.instance.clone());
    let until = times::end("--until", arguments.until.as_deref(), arguments.tz.as_deref(), now)?;
    let (connection, names) = control::open(config).await?;
    let action = Action::Snooze { instance_id: instance_id.clone(), until: until.unwrap_or(now) };
    let given = control::give(&connection, &names, action, &arguments.author).await?;
    connection.close().await;
    match until {
        Some(until) => tell(format_args!(
            "instance {instance_id} is left alone until {until}: its jobs that come until then end as cancelled"
        )),
        None => tell(format_args!("instance {instance_id} is left alone no longer: its jobs are called")),
    }
    Ok(if given.tell_rest() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
