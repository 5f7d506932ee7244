//! Waits for the outcomes of the jobs that were submitted.

use std::process::ExitCode;

use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use uuid::Uuid;

use super::bar::progress_bar;
use super::errors::failed;
use crate::broker::{Connection, Names, Subscription};
use crate::cli::report::{Report, ended};
use crate::cli::signals::Signals;
use crate::cli::{Failure, print, tell};
use crate::config::LaneName;
use crate::text::Shown;

/// Listens to the outcomes of a lane.
///
/// # Errors
/// The broker's.
pub(super) async fn subscribe(
    connection: &Connection,
    names: &Names,
    lane: &LaneName,
) -> Result<Subscription, Failure> {
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

/// Waits for the final outcome of every job and prints what became of them. `ids` are sorted.
///
/// # Errors
/// The connection is lost.
pub(super) async fn wait(
    mut events: Subscription,
    ids: &[u128],
    batch: &str,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    let bar = progress_bar(ids.len(), "waking");
    let (mut report, mut has_ended, mut left) = (Report::default(), vec![false; ids.len()], ids.len());
    let go_on = |left: usize| {
        let batch = Shown(batch);
        format!("{left} jobs of batch {batch} have not ended yet, and go on; to watch them: reveille watch {batch}")
    };
    let mut stopped = None;
    while left > 0 {
        let event = tokio::select! {
            event = events.next() => event,
            code = signals.next() => {
                stopped = Some(code);
                break;
            }
        };
        let event = event.transpose().map_err(|error| error.to_string());
        let event = event.and_then(|event| event.ok_or_else(|| "the broker ended the subscription".to_owned()));
        let event = event.map_err(|error| Failure::Unreachable(format!("{error}; {}", go_on(left))))?;
        // Whatever else is published there is not ours to judge.
        let Some(ended) = ended(&event.data) else { continue };
        let place = Uuid::parse_str(&ended.job_id).ok().and_then(|id| ids.binary_search(&id.as_u128()).ok());
        let Some(is_new) = place.and_then(|place| has_ended.get_mut(place)) else { continue };
        if !std::mem::replace(is_new, true) {
            left -= 1;
            bar.inc(1);
            let instance = ended.instance_id.as_ref().map_or_else(|| ended.job_id.clone(), ToString::to_string);
            report.add(instance, ended);
        }
    }
    bar.finish_and_clear();
    if stopped.is_none() || report.jobs() > 0 {
        print(&report)?;
    }
    Ok(match stopped {
        Some(code) => {
            tell(go_on(left));
            ExitCode::from(code)
        }
        None if report.all_up() => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    })
}
