//! `reveille submit`: a batch of jobs, and what became of them.

mod defaults;
mod read;
mod times;

use std::collections::{BTreeMap, HashMap};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use uuid::Uuid;

use self::defaults::Options;
use self::read::Format;
use super::report::{Report, ended};
use super::{Failure, print, tell};
use crate::bce::InstanceId;
use crate::broker::{
    self, Connection, ConnectionKind, Names, Outgoing, PublishError, Publisher, Subscription, Traffic,
};
use crate::config::{Config, LaneName};
use crate::events::{Batch, CONTENT_TYPE, Data, Event};
use crate::job::{Job, Priority};
use crate::text::Shown;

/// Jobs under way to the broker at a time.
const IN_FLIGHT: usize = 64;

const EXAMPLES: &str = "\
Examples:
  reveille submit --lane prod-bj --wait i-YufwpQAe
  reveille submit --lane prod-bj --batch morning --file fleet.csv \\
      --at 07:30 --tz Asia/Shanghai --deadline 90m
  reveille submit --lane prod-bj --urgent --confirm running --wait i-YufwpQAe
  produce-ids | reveille submit --lane prod-bj --file -";

/// What `reveille submit` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// Ids of instances to start.
    #[arg(value_name = "ID", required_unless_present = "files")]
    ids: Vec<String>,
    /// A file of jobs; `-` is standard input. Can be given more than once. Where its name ends in `.csv` or `.tsv` it is
    /// a table with a header, else each line is an id, or a whole job in JSON, and `#` begins a comment.
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How the files are written, whatever their names.
    #[arg(long)]
    format: Option<Format>,
    /// The lane to submit to.
    #[arg(long, default_value = "default")]
    lane: String,
    #[command(flatten)]
    options: Options,
    /// Wait until every job has ended, and exit with 1 if a machine stayed down.
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let lane = LaneName::parse(&arguments.lane)
        .ok_or_else(|| Failure::Usage(format!("{:?} is no lane name: expected a-z 0-9 -", arguments.lane)))?;
    let defaults = arguments.options.check(Timestamp::now())?;
    let jobs = read::jobs(&arguments.ids, &arguments.files, arguments.format, &defaults)?;
    let start = defaults.not_before.map(|start| format!(", not to start before {start}")).unwrap_or_default();
    let batch = defaults.batch;

    let connection = broker::connect(&config.broker, ConnectionKind::Submit).await.map_err(|error| {
        if error.is_refusal() { Failure::Usage(error.to_string()) } else { Failure::Unreachable(error.to_string()) }
    })?;
    let names = Names::new(&config.broker.prefix);
    check_lane(&connection, &names, &lane, &jobs, config).await?;
    // Subscribed before the first job goes out, so that no outcome is missed.
    let events = if arguments.wait { Some(subscribe(&connection, &names, &lane).await?) } else { None };

    let submitted = submit(&connection.publisher(Traffic::Jobs, 4), &names, &lane, &batch, jobs).await?;
    let jobs = if submitted.len() == 1 { "1 job".to_owned() } else { format!("{} jobs", submitted.len()) };
    tell(format_args!("{jobs} submitted to lane {lane} as batch {}{start}", Shown(&batch)));
    let code = match events {
        Some(events) => wait(events, submitted, &batch).await?,
        None => ExitCode::SUCCESS,
    };
    connection.close().await;
    Ok(code)
}

fn is_urgent(job: &Job) -> bool {
    job.priority == Some(Priority::Urgent)
}

/// A queue that was never declared takes nothing: its jobs would end among the dead letters as unroutable. Nor does one that is
/// not bound yet, and the lane's baton is declared after that.
///
/// Where the user may not look, which takes no permission before RabbitMQ 4.3, that is said and the jobs go out all the same.
async fn check_lane(
    connection: &Connection,
    names: &Names,
    lane: &LaneName,
    jobs: &[Job],
    config: &Config,
) -> Result<(), Failure> {
    let unseen = |error| failed(names, "cannot look for the lane's queues; no job was submitted", &error);
    let channel = connection.channel().await.map_err(unseen)?;
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let (urgent, others) = (jobs.iter().any(is_urgent), jobs.iter().any(|job| !is_urgent(job)));
    for (used, queue, lacking) in [
        (others, names.jobs_of(lane), format!("there is no lane {lane}")),
        (urgent, names.urgent_of(lane), format!("lane {lane} takes no urgent jobs")),
        (true, names.baton_of(lane), format!("lane {lane} is not set up yet")),
    ] {
        if !used {
            continue;
        }
        match channel.queue_declare(queue.as_str().into(), passive, FieldTable::default()).await {
            Ok(_) => {}
            Err(error) if error.is_amqp_soft_error() && !broker::is_access_refused(&error) => {
                return Err(Failure::Usage(format!(
                    "{lacking} at {}: {error}; a lane's queues exist once `reveille run` has run with it",
                    config.broker.address()
                )));
            }
            Err(error) if broker::is_access_refused(&error) => {
                tell(format_args!(
                    "cannot look for lane {lane}, so its jobs are submitted unseen, and become dead letters if there is none: {error}"
                ));
                return Ok(());
            }
            Err(error) => return Err(unseen(error)),
        }
    }
    Ok(())
}

async fn subscribe(connection: &Connection, names: &Names, lane: &LaneName) -> Result<Subscription, Failure> {
    let listening = async {
        let channel = connection.channel().await?;
        let ours = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let queue = channel.queue_declare("".into(), ours, FieldTable::default()).await?.name().clone();
        let (exchange, key) = (names.outcomes(), format!("{lane}.*"));
        let (from, key) = (exchange.as_str().into(), key.as_str().into());
        channel.queue_bind(queue.clone(), from, key, QueueBindOptions::default(), FieldTable::default()).await?;
        let unacked = BasicConsumeOptions { no_ack: true, ..Default::default() };
        Subscription::open(channel, queue.as_str(), unacked, FieldTable::default()).await
    };
    listening.await.map_err(|error| failed(names, "cannot listen to outcomes; no job was submitted", &error))
}

/// Publishes the announcement and the jobs, each confirmed. Returns the instances by job id.
async fn submit(
    publisher: &Publisher,
    names: &Names,
    lane: &LaneName,
    batch: &str,
    jobs: Vec<Job>,
) -> Result<HashMap<Uuid, InstanceId>, Failure> {
    let size = jobs.len();
    // A whole job of the file can name a batch of its own.
    let mut batches: BTreeMap<&str, usize> = BTreeMap::new();
    for job in &jobs {
        *batches.entry(job.batch_id.as_deref().unwrap_or(batch)).or_default() += 1;
    }
    for (batch_id, size) in batches {
        let announced = Batch { batch_id: batch_id.to_owned(), size, lane: lane.to_string() };
        let announcement = Event::new(lane.as_str(), Data::BatchSubmitted(announced), Timestamp::now());
        let properties = BasicProperties::default().with_content_type(CONTENT_TYPE.into());
        let (exchange, key, body) = (names.outcomes(), format!("{lane}.submitted"), announcement.to_bytes());
        let announced = publisher.try_publish(Arc::new(Outgoing { exchange, key, properties, body })).await;
        announced
            .map(drop)
            .map_err(|error| refused(names, "cannot announce the batch; no job was submitted", error))?;
    }

    let bar = progress_bar(size, "submitting");
    let exchange = names.jobs();
    let publishing = jobs.into_iter().map(|mut job| {
        let (exchange, bar) = (&exchange, &bar);
        async move {
            let id = Uuid::now_v7();
            job.batch_id.get_or_insert_with(|| batch.to_owned());
            let body = serde_json::to_vec(&job).context("a job holds nothing that JSON cannot")?;
            let properties = BasicProperties::default()
                .with_content_type("application/json".into())
                .with_message_id(id.to_string().into());
            let key = if is_urgent(&job) { broker::urgent_key(lane) } else { lane.to_string() };
            let exchange = exchange.clone();
            let submitted = publisher.try_publish(Arc::new(Outgoing { exchange, key, properties, body })).await;
            submitted.map(drop).map_err(|error| {
                let what = format!("submitted {} of {size} jobs as batch {batch}, then failed", bar.position());
                refused(names, &what, error)
            })?;
            bar.inc(1);
            Ok::<_, Failure>((id, job.instance_id))
        }
    });
    let submitted = stream::iter(publishing).buffer_unordered(IN_FLIGHT).try_collect().await?;
    bar.finish_and_clear();
    Ok(submitted)
}

/// What a message that was not taken means for the command.
fn refused(names: &Names, what: &str, error: PublishError) -> Failure {
    match error {
        PublishError::Broken(error) => failed(names, what, &error),
        PublishError::Forbidden { source, .. } if broker::is_access_refused(&source) => failed(names, what, &source),
        PublishError::Unconfirmed { .. } => Failure::Unreachable(format!("{what}: {error}")),
        error => Failure::Other(anyhow::Error::new(error).context(what.to_owned())),
    }
}

/// What an error of the broker's means for the command.
fn failed(names: &Names, what: &str, error: &lapin::Error) -> Failure {
    if broker::is_access_refused(error) {
        let (jobs, outcomes) = (names.jobs(), names.outcomes());
        Failure::Usage(format!(
            "{what}: {error}; the user needs permission to write {jobs} and {outcomes}, and with --wait to read \
             {outcomes} and to configure, write and read amq.gen"
        ))
    } else if error.is_amqp_soft_error() {
        Failure::Other(anyhow::Error::new(error.clone()).context(what.to_owned()))
    } else {
        Failure::Unreachable(format!("{what}: the connection to RabbitMQ is lost: {error}"))
    }
}

/// Waits for the final outcome of every job and prints what became of them.
async fn wait(
    mut events: Subscription,
    mut waiting: HashMap<Uuid, InstanceId>,
    batch: &str,
) -> Result<ExitCode, Failure> {
    let bar = progress_bar(waiting.len(), "waking");
    let mut report = Report::default();
    while !waiting.is_empty() {
        let event = events.next().await.transpose().map_err(|error| error.to_string());
        let event = event.and_then(|event| event.ok_or_else(|| "the broker ended the subscription".to_owned()));
        let event = event.map_err(|error| {
            let left = waiting.len();
            Failure::Unreachable(format!("{error}; {left} jobs of batch {batch} have not ended yet, and go on"))
        })?;
        // Whatever else is published there is not ours to judge.
        let Some(ended) = ended(&event.data) else { continue };
        if let Some(instance) = Uuid::parse_str(&ended.job_id).ok().and_then(|id| waiting.remove(&id)) {
            report.add(instance.to_string(), ended);
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    print(&report)?;
    Ok(if report.all_up() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// On a terminal only: indicatif draws nothing elsewhere.
fn progress_bar(length: usize, what: &'static str) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg:>10} [{bar:40}] {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(length as u64), target).with_style(style).with_message(what)
}
