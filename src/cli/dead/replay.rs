//! `reveille dead replay`
//!
//! Each job is published, confirmed, and only then its letter acked. So it is never lost; and where a crash comes in between it is in
//! both places, and replayed again under the same id.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;

use indicatif::ProgressBar;
use jiff::Timestamp;
use tokio::task::{JoinError, JoinSet};

use super::filter::{Chosen, Filter};
use super::lanes::Lanes;
use super::letter::{Letter, count, shown};
use super::order::{Order, Refusal};
use super::queue::{DeadQueue, End, Judge, Look, Next};
use crate::broker::{self, Outgoing, PublishError, Publisher, Traffic};
use crate::cli::signals::Signals;
use crate::cli::{Failure, print, tell, times};
use crate::config::Config;
use crate::fleet::check_times;

/// Jobs under way to the broker at a time.
const IN_FLIGHT: usize = 64;

/// What `reveille dead replay` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Ids of jobs to replay; all that match the options where none is given.
    #[arg(value_name = "JOB")]
    jobs: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// The deadline of jobs whose own has passed: in a length of time (30m), at the next such time of day (09:00, with --tz), or
    /// at a timestamp with its offset. Without it, those are not replayed.
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// The time zone of a time of day, as in Asia/Shanghai.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Say what would be replayed, and leave it.
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    fn deadline(&self, now: Timestamp) -> Result<Option<Timestamp>, Failure> {
        let Some(text) = &self.deadline else { return Ok(None) };
        let wrong = |problem: String| Failure::Usage(format!("--deadline {text:?} {problem}"));
        let zone = self.tz.as_deref().map(times::zone).transpose().map_err(Failure::Usage)?;
        let deadline = times::instant(text, now, zone.as_ref()).map_err(wrong)?;
        check_times(None, Some(deadline), now).map_err(Failure::Usage)?;
        Ok(Some(deadline))
    }
}

pub(super) async fn run(arguments: &Arguments, config: &Config, now: Timestamp) -> Result<ExitCode, Failure> {
    let chosen = arguments.filter.choose(&arguments.jobs, now)?;
    let deadline = arguments.deadline(now)?;
    let mut signals = Signals::open()?;
    let queue = DeadQueue::open(config).await?;
    let letters = queue.letters().await?;
    let mut replay = Replay {
        chosen,
        deadline,
        now,
        is_dry: arguments.dry_run,
        lanes: Lanes::default(),
        publisher: queue.connection.publisher(Traffic::Jobs, 4),
        under_way: JoinSet::new(),
        replayed: 0,
        unsure: 0,
        refused: BTreeMap::new(),
        failure: None,
    };
    let look = queue.look(&mut signals, letters, &mut replay).await;
    queue.connection.close().await;
    replay.report(look, config)
}

struct Replay<'a> {
    chosen: Chosen<'a>,
    deadline: Option<Timestamp>,
    now: Timestamp,
    is_dry: bool,
    lanes: Lanes,
    publisher: Publisher,
    under_way: JoinSet<Result<String, Missed>>,
    replayed: usize,
    /// Jobs that may have been submitted, and are still among the letters.
    unsure: usize,
    /// How many were not replayed, and the id of the first.
    refused: BTreeMap<Refusal, (usize, Option<String>)>,
    /// Why no more are submitted.
    failure: Option<Failure>,
}

/// A letter that stays.
#[derive(Debug)]
enum Missed {
    /// Its job was not taken, or is not known to be.
    Unpublished(PublishError),
    /// It was published, and not acked.
    Unacked,
}

impl Judge for Replay<'_> {
    async fn judge(&mut self, queue: &DeadQueue, bar: &ProgressBar, letter: Letter) -> Result<Next, Failure> {
        while let Some(done) = self.under_way.try_join_next() {
            self.record(bar, done)?;
        }
        while self.under_way.len() >= IN_FLIGHT
            && let Some(done) = self.under_way.join_next().await
        {
            self.record(bar, done)?;
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if !self.chosen.has(&letter.facts) {
            return Ok(Next::Keep);
        }
        let order = Order::of(&letter, self.deadline, self.now, queue.connection.frame_max());
        let order = match order {
            Ok(order) if self.lanes.has(queue, &order.lane, order.is_urgent).await? => Ok(order),
            Ok(_) => Err(Refusal::LaneIsMissing),
            Err(refusal) => Err(refusal),
        };
        let order = match order {
            Ok(order) => order,
            Err(refusal) => {
                self.refused.entry(refusal).or_insert_with(|| (0, letter.facts.job_id)).0 += 1;
                return Ok(Next::Keep);
            }
        };
        let Order { id, lane, is_urgent, properties, body } = order;
        let (old, instance) = (shown(letter.facts.job_id.as_ref()), shown(letter.facts.instance_id.as_ref()));
        let line = format!("{old} as {id}  {instance}\n");
        if self.is_dry {
            self.replayed += 1;
            bar.suspend(|| print(line))?;
            return Ok(Next::Keep);
        }
        let key = if is_urgent { broker::urgent_key(&lane) } else { lane.to_string() };
        let job = Arc::new(Outgoing { exchange: queue.names.jobs(), key, properties, body });
        let (publisher, taking) = (self.publisher.clone(), letter.taking);
        self.under_way.spawn(async move {
            let confirmed = publisher.try_publish(job).await.map_err(Missed::Unpublished)?;
            taking.replaced(confirmed).await.map_err(|_| Missed::Unacked)?;
            Ok(line)
        });
        Ok(Next::Take)
    }

    async fn finish(&mut self, bar: &ProgressBar) -> Result<(), Failure> {
        while let Some(done) = self.under_way.join_next().await {
            self.record(bar, done)?;
        }
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Replay<'_> {
    fn record(&mut self, bar: &ProgressBar, done: Result<Result<String, Missed>, JoinError>) -> Result<(), Failure> {
        match done {
            Ok(Ok(line)) => {
                self.replayed += 1;
                bar.suspend(|| print(line))?;
            }
            Ok(Err(missed)) => self.miss(missed),
            // It was ended with the command, or panicked.
            Err(_) => self.unsure += 1,
        }
        Ok(())
    }

    fn miss(&mut self, missed: Missed) {
        let Missed::Unpublished(error) = missed else {
            self.unsure += 1;
            return;
        };
        let failure = match error {
            PublishError::Broken(error) => {
                self.unsure += 1;
                Failure::Unreachable(format!("the connection to RabbitMQ is lost: {error}"))
            }
            PublishError::Unconfirmed { .. } => {
                self.unsure += 1;
                Failure::Unreachable(error.to_string())
            }
            PublishError::Forbidden { ref source, .. } if broker::is_access_refused(source) => {
                Failure::Usage(format!("{error}; the user needs permission to write there"))
            }
            error => Failure::Other(error.into()),
        };
        self.failure.get_or_insert(failure);
    }

    fn report(self, look: Look, config: &Config) -> Result<ExitCode, Failure> {
        let Look { letters, end } = look;
        let would = if self.is_dry { "would be " } else { "" };
        let nothing_matched = self.replayed == 0 && self.unsure == 0 && self.refused.is_empty();
        if nothing_matched && matches!(end, End::Done) {
            tell(format_args!(
                "no letter matches, of {}{}; nothing was replayed",
                count(letters),
                self.chosen.doubts(config)
            ));
        } else {
            tell(format_args!("{} {would}replayed, of {letters}", count(self.replayed)));
        }
        for (refusal, (refused, first)) in &self.refused {
            let example = first.as_ref().map(|id| format!(", {} for one", shown(Some(id)))).unwrap_or_default();
            let not = if self.is_dry { "would not be" } else { "not" };
            tell(format_args!("{}{example}, {not} replayed: {}", count(*refused), refusal.told()));
        }
        let unsure = self.unsure + self.under_way.len();
        if unsure > 0 {
            // A deadline that counts from now would be another one the next time, and so another job.
            let same = self.deadline.map(|deadline| format!(", with --deadline {deadline}")).unwrap_or_default();
            tell(format_args!(
                "{} may have been submitted, and are still among the dead letters: the same command{same} replays them under \
                 the same ids, which the daemon takes for copies",
                count(unsure)
            ));
        }
        match end {
            End::Done if self.refused.is_empty() => Ok(ExitCode::SUCCESS),
            End::Done => Ok(ExitCode::FAILURE),
            End::Interrupted(code) => {
                tell(format_args!("left after {}: those that were not replayed stay", count(letters)));
                Ok(ExitCode::from(code))
            }
            End::Failed(failure) => Err(failure),
        }
    }
}
