//! The queue of dead letters, which one command reads at a time.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, sleep};

use super::letter::Letter;
use crate::broker::{self, Connection, ConnectionKind, Names, Walk, WalkError, walk};
use crate::cli::signals::Signals;
use crate::cli::{Failure, tell};
use crate::config::Config;
use crate::text::Shown;

/// How long to wait for the lock, and how often to try: the daemon has it for a moment where it discards letters.
const LOCKED_FOR: Duration = Duration::from_secs(5);
const LOCK_AGAIN: Duration = Duration::from_millis(200);
/// How long what a command held that was killed may take to be back.
const BACK_WITHIN: Duration = Duration::from_secs(5);
/// How long, after the connection is lost, what was begun may take to fail.
const CLOSING: Duration = Duration::from_secs(5);

/// The queue, locked.
pub(super) struct DeadQueue {
    pub(super) connection: Connection,
    pub(super) names: Names,
    name: String,
    address: String,
}

/// What becomes of a letter.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It stays in the queue, and the next one is looked at.
    Keep,
    /// It is taken out, now or later, and the next one is looked at.
    Take,
    /// It stays, and no further one is looked at.
    Stop,
}

/// What a command does with the letters.
pub(super) trait Judge {
    /// Decides about the next letter.
    ///
    /// # Errors
    /// Ends the command. The letter stays.
    async fn judge(&mut self, queue: &DeadQueue, bar: &ProgressBar, letter: Letter) -> Result<Next, Failure>;

    /// Waits for all that was begun, before the other letters go back into the queue.
    ///
    /// # Errors
    /// Ends the command.
    async fn finish(&mut self, _bar: &ProgressBar) -> Result<(), Failure> {
        Ok(())
    }
}

/// Why no further letter is looked at.
pub(super) enum End {
    /// All were, or all that are wanted.
    Done,
    /// By a signal, with this exit code.
    Interrupted(u8),
    /// By this failure.
    Failed(Failure),
}

/// A look through the queue.
pub(super) struct Look {
    /// How many letters were looked at.
    pub(super) letters: usize,
    pub(super) end: End,
}

impl DeadQueue {
    /// Connects, and locks the queue until the connection ends.
    pub(super) async fn open(config: &Config) -> Result<Self, Failure> {
        let connection = broker::connect(&config.broker, ConnectionKind::Dead).await?;
        let names = Names::new(&config.broker.prefix);
        let queue = Self { connection, name: names.dead(), names, address: config.broker.address() };
        let until = Instant::now() + LOCKED_FOR;
        while !queue.lock().await? {
            if Instant::now() >= until {
                return Err(anyhow::anyhow!(
                    "the dead letters at {} are being read by another `reveille dead` just now, so that each would miss \
                     what the other holds; nothing was done: try again once that has ended",
                    queue.address
                )
                .into());
            }
            sleep(LOCK_AGAIN).await;
        }
        Ok(queue)
    }

    async fn lock(&self) -> Result<bool, Failure> {
        walk::lock(&self.connection, &self.names.dead_lock()).await.map_err(|error| self.failure(&error))
    }

    /// How many letters are in the queue.
    pub(super) async fn letters(&self) -> Result<usize, Failure> {
        let ready = walk::ready_once_back(&self.connection, &self.name, BACK_WITHIN).await;
        ready.map_err(|error| self.failure(&error))
    }

    /// Has the first `letters` letters judged, one after the other, until that is ended. Those that were not taken are in the queue
    /// again then.
    pub(super) async fn look(&self, signals: &mut Signals, letters: usize, judge: &mut impl Judge) -> Look {
        let bar = progress_bar(letters);
        let (mut walk, mut seen) = (Walk::new(&self.connection, &self.name, letters), 0);
        let end = tokio::select! {
            end = self.judge_all(&mut walk, &bar, &mut seen, judge) => end.unwrap_or_else(End::Failed),
            code = signals.next() => End::Interrupted(code),
            error = self.lost(&bar) => End::Failed(self.failure(&error)),
        };
        let finishing = async {
            let finished = judge.finish(&bar).await;
            let is_back = walk.end().await.map_err(|error| self.walk_failure(&error));
            finished.and(is_back)
        };
        // Once the connection is lost, what waits for RabbitMQ would wait without end.
        let lost = async {
            let error = self.lost(&bar).await;
            sleep(CLOSING).await;
            Err(self.failure(&error))
        };
        // RabbitMQ puts the letters back when the connection is gone.
        let finished = tokio::select! {
            finished = finishing => finished.map_err(End::Failed),
            failed = lost => failed.map_err(End::Failed),
            code = signals.next() => Err(End::Interrupted(code)),
        };
        let end = match (end, finished) {
            (_, Err(interrupted @ End::Interrupted(_))) => interrupted,
            (failed @ End::Failed(_), _) | (_, Err(failed)) => failed,
            (end, Ok(is_back)) => {
                if !is_back {
                    tell("RabbitMQ has not put all letters back into the queue within a minute: look again later");
                }
                end
            }
        };
        bar.finish_and_clear();
        Look { letters: seen, end }
    }

    async fn judge_all(
        &self,
        walk: &mut Walk<'_>,
        bar: &ProgressBar,
        seen: &mut usize,
        judge: &mut impl Judge,
    ) -> Result<End, Failure> {
        while let Some(found) = walk.next().await.map_err(|error| self.walk_failure(&error))? {
            *seen += 1;
            bar.inc(1);
            let next = judge.judge(self, bar, Letter::read(found)).await?;
            if next != Next::Take {
                walk.keep();
            }
            if next == Next::Stop {
                break;
            }
        }
        Ok(End::Done)
    }

    /// Waits until the connection is lost, and says meanwhile when RabbitMQ takes no messages.
    async fn lost(&self, bar: &ProgressBar) -> lapin::Error {
        let say = |blocked: Option<String>| match blocked {
            Some(why) => tell(format_args!("RabbitMQ takes no messages just now ({}): waiting", Shown(why))),
            None => tell("RabbitMQ takes messages again"),
        };
        self.connection.lost(|blocked| bar.suspend(|| say(blocked))).await
    }

    /// The queue could not be read on.
    fn walk_failure(&self, error: &WalkError) -> Failure {
        match error {
            WalkError::Broken(error) => self.failure(error),
            WalkError::Ended => Failure::Unreachable(error.to_string()),
        }
    }

    /// What an error of the broker's means for the command.
    pub(super) fn failure(&self, error: &lapin::Error) -> Failure {
        let Self { name, address, names, .. } = self;
        if broker::is_access_refused(error) {
            let lock = names.dead_lock();
            Failure::Usage(format!(
                "cannot read the dead letters: {error}; the user needs permission to configure {lock} and to read {name}, \
                 and to replay them to write {}",
                names.jobs()
            ))
        } else if broker::is_not_found(error) {
            Failure::Usage(format!(
                "there is no queue of dead letters at {address}: {error}; it exists once `reveille run` has run there"
            ))
        } else if error.is_amqp_soft_error() {
            Failure::Other(anyhow::Error::new(error.clone()).context("cannot read the dead letters on"))
        } else {
            Failure::Unreachable(format!("the connection to RabbitMQ is lost, which puts back all letters: {error}"))
        }
    }
}

/// On a terminal only: indicatif draws nothing elsewhere.
fn progress_bar(letters: usize) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("dead letters [{bar:40}] {pos}/{len} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::with_draw_target(Some(letters as u64), target).with_style(style)
}
