//! `reveille watch` and `submit --wait`: how far a batch is, and what came of its jobs, by the log of outcomes. So a watch can
//! begin at any time, on any machine, and after the batch too.

mod failures;
mod follow;
mod lanes;
pub(super) mod progress;
mod rate;
mod screen;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{interval, sleep};

use self::failures::FailuresFile;
use self::follow::{Following, News, follow, follow_from_end};
use self::lanes::Lanes;
pub(super) use self::lanes::{is_paused, not_run};
pub(super) use self::progress::Submission;
use self::progress::{End, Heard, Progress, Reading};
use self::screen::Screen;
use super::signals::Signals;
use super::times::{length, told};
use super::{Failure, print, tell};
use crate::config::{Config, LaneName};
use crate::events::Event;
use crate::text::Shown;

/// How often the screen is drawn.
const TICK: Duration = Duration::from_millis(250);
/// How long a batch that is not announced is waited for, unless `--timeout` says for how long.
const PATIENCE: Duration = Duration::from_secs(30);
/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;
/// What is said of RabbitMQ's memory and disk.
pub(super) const TAKES_NOTHING: &str =
    "RabbitMQ takes no messages at present, as its memory or disk is short: it is waited for";
pub(super) const TAKES_AGAIN: &str = "RabbitMQ takes messages again";
/// Batches of a submission that are named at its end.
const MOST_NAMED: usize = 5;

const EXAMPLES: &str = "\
Examples:
  reveille watch morning
  reveille watch morning --since 1h --timeout 30m --failures-file down.jsonl";

/// What `reveille watch` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = super::after_help(EXAMPLES))]
pub(super) struct Arguments {
    /// The batch, as `submit --batch` named it.
    batch: String,
    /// How far back in the log to begin: before the batch was submitted.
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = length)]
    since: Duration,
    /// How long to watch at most; then exit with 124.
    #[arg(long, value_name = "TIME", value_parser = length)]
    timeout: Option<Duration>,
    /// Write every machine that did not come up to this file, one JSON object on each line.
    #[arg(long, value_name = "FILE")]
    failures_file: Option<PathBuf>,
}

pub(super) async fn run(arguments: &Arguments, config: &Config) -> Result<ExitCode, Failure> {
    let file = arguments.failures_file.as_deref().map(FailuresFile::create).transpose()?;
    let mut signals = Signals::open()?;
    let now = Timestamp::now();
    let watch = Watch {
        progress: Progress::new(&arguments.batch, now),
        batches: vec![arguments.batch.clone()],
        since: Some(arguments.since),
        // A time-out says how long to wait for an announcement, too.
        patience: if arguments.timeout.is_none() { SignedDuration::try_from(PATIENCE).ok() } else { None },
        lanes: Lanes::of_batch(&arguments.batch),
        is_live: false,
        is_blocked: false,
        screen: Screen::new(),
        file,
    };
    let mut stopped = pin!(stopped(arguments.timeout, &mut signals));
    let since = SignedDuration::try_from(arguments.since).unwrap_or(SignedDuration::MAX);
    let from = now.checked_sub(since).unwrap_or(Timestamp::MIN);
    let log = tokio::select! {
        log = follow(config, from) => log?,
        over = &mut stopped => return watch.close(over),
    };
    watch.until(stopped, log).await
}

/// What a submission needs to be waited for, before anything is submitted.
pub(super) struct Ready {
    log: Following,
    file: Option<FailuresFile>,
    timeout: Option<Duration>,
}

/// What was submitted.
pub(super) struct Submitted {
    pub(super) jobs: Submission,
    /// The batch that is shown, and all that the jobs are of.
    pub(super) batch: String,
    pub(super) batches: Vec<String>,
    pub(super) lane: LaneName,
    /// Why the lane was paused before.
    pub(super) paused: Option<String>,
}

impl Ready {
    /// Opens the log, and the file for failures.
    ///
    /// # Errors
    /// Either cannot be opened.
    pub(super) async fn open(
        config: &Config,
        timeout: Option<Duration>,
        failures_file: Option<&Path>,
    ) -> Result<Self, Failure> {
        let file = failures_file.map(FailuresFile::create).transpose()?;
        Ok(Self { log: follow_from_end(config).await?, file, timeout })
    }

    /// Waits until all jobs that were submitted have ended, and prints what came of them.
    ///
    /// # Errors
    /// The file for failures cannot be written.
    pub(super) async fn wait(self, submitted: Submitted, signals: &mut Signals) -> Result<ExitCode, Failure> {
        let Self { log, file, timeout } = self;
        let Submitted { jobs, batch, batches, lane, paused } = submitted;
        let watch = Watch {
            progress: Progress::of_submission(&batch, jobs, Timestamp::now()),
            batches,
            since: None,
            patience: None,
            lanes: Lanes::of_submission(lane.as_str(), paused),
            is_live: false,
            is_blocked: false,
            screen: Screen::new(),
            file,
        };
        watch.until(pin!(stopped(timeout, signals)), log).await
    }
}

/// Why a watch is over.
enum Over {
    Ended(End),
    TimedOut,
    /// By a signal, with this exit code.
    Stopped(u8),
}

/// Waits for a signal, or for the time-out.
async fn stopped(timeout: Option<Duration>, signals: &mut Signals) -> Over {
    tokio::select! {
        () = passed(timeout) => Over::TimedOut,
        code = signals.next() => Over::Stopped(code),
    }
}

struct Watch {
    progress: Progress,
    /// Which the jobs are of.
    batches: Vec<String>,
    /// How far back in the log the watch begins. `None`: with the submission.
    since: Option<Duration>,
    /// How long to wait for an announcement.
    patience: Option<SignedDuration>,
    lanes: Lanes,
    /// What was in the log at the beginning has come.
    is_live: bool,
    /// RabbitMQ takes no messages.
    is_blocked: bool,
    screen: Screen,
    file: Option<FailuresFile>,
}

impl Watch {
    /// Watches until the batch is done or given up, or `stopped` is over.
    async fn until(mut self, stopped: impl Future<Output = Over>, mut log: Following) -> Result<ExitCode, Failure> {
        log.look_for(self.lanes.ours());
        let over = tokio::select! {
            over = self.follow(&mut log) => over,
            over = stopped => Ok(over),
        };
        let done = match over {
            Ok(over) => self.close(over),
            Err(failure) => {
                self.screen.close();
                Err(failure)
            }
        };
        log.close().await;
        done
    }

    async fn follow(&mut self, log: &mut Following) -> Result<Over, Failure> {
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                news = log.next() => {
                    let news = news.ok_or_else(|| anyhow::anyhow!("the log is read no further"))?;
                    self.take(news)?;
                    log.look_for(self.lanes.ours());
                }
                _ = tick.tick() => {
                    self.screen.show(&self.progress, self.trouble().as_deref(), Timestamp::now());
                }
            }
            if let Some(end) = self.progress.end(Timestamp::now(), self.patience) {
                return Ok(Over::Ended(end));
            }
        }
    }

    /// Why jobs wait, in a few words.
    fn trouble(&self) -> Option<String> {
        if self.is_blocked { Some("RabbitMQ takes no messages".to_owned()) } else { self.lanes.trouble() }
    }

    fn take(&mut self, news: News) -> Result<(), Failure> {
        let now = Timestamp::now();
        match news {
            News::Event(event) => {
                let change = self.lanes.hear(&event.data);
                if let Some(change) = change.filter(|_| self.is_live) {
                    self.screen.say(change);
                }
                self.hear(*event, now)?;
            }
            News::Replayed => {
                self.progress.reads(Reading::Live, now);
                self.is_live = true;
                // A submission has said so before.
                if let Some(since) = self.since {
                    self.lanes.pauses().for_each(|pause| self.screen.say(pause));
                    if self.progress.announced().is_none() {
                        let (batch, since) = (Shown(self.progress.batch()), told(since));
                        self.screen.say(format_args!(
                            "batch {batch} was not announced within the last {since}: waiting for it"
                        ));
                    }
                }
            }
            News::Lost(error) => {
                self.is_blocked = false;
                self.progress.reads(Reading::Away, now);
                self.screen.say(format_args!("RabbitMQ is away, and tried again: {}", Shown(error)));
            }
            News::Back => {
                self.progress.reads(Reading::Replay, now);
                self.is_live = false;
                self.screen.say("RabbitMQ is there again: the log is read on");
            }
            News::Takes(takes) => {
                self.is_blocked = !takes;
                self.screen.say(if takes { TAKES_AGAIN } else { TAKES_NOTHING });
            }
            News::IsRun(lane, is_run) => {
                if let Some(change) = self.lanes.is_run(lane.as_str(), is_run) {
                    self.screen.say(change);
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: Event, now: Timestamp) -> Result<(), Failure> {
        match self.progress.hear(event, now) {
            Heard::Nothing | Heard::Announced { forgotten: 0 } => {}
            Heard::Announced { forgotten } => self.screen.say(format_args!(
                "{forgotten} jobs of an earlier batch {} are not counted: they ended before this one was announced",
                Shown(self.progress.batch())
            )),
            Heard::Down(instance, ended) => {
                self.screen.down(&instance, &ended);
                if let Some(file) = &mut self.file {
                    file.add(&ended)?;
                }
            }
        }
        Ok(())
    }

    /// Prints what came of the jobs, and says how it ended.
    fn close(self, over: Over) -> Result<ExitCode, Failure> {
        let Self { progress, screen, batches, since, .. } = self;
        screen.close();
        if progress.ended() > 0 || matches!(over, Over::Ended(End::Done)) {
            print(progress.report())?;
        }
        let ended = progress.ended();
        match over {
            Over::Ended(End::Done) if progress.report().all_up() => Ok(ExitCode::SUCCESS),
            Over::Ended(End::Done) => Ok(ExitCode::FAILURE),
            Over::Ended(End::NotAnnounced) => Err(Failure::Usage(format!(
                "batch {} was not announced within the last {}, and {ended} jobs of it have ended since then: check its name, \
                 begin earlier with --since, or wait for it with --timeout",
                Shown(progress.batch()),
                told(since.unwrap_or_default())
            ))),
            Over::TimedOut | Over::Stopped(_) => {
                let of = progress.announced().map(|jobs| format!(" of {jobs}")).unwrap_or_default();
                tell(format_args!("{ended}{of} jobs of {}", go_on(&batches, since)));
                Ok(ExitCode::from(if let Over::Stopped(code) = over { code } else { TIMED_OUT }))
            }
        }
    }
}

/// What is to be said of jobs that have not ended yet, behind how many have.
fn go_on(batches: &[String], since: Option<Duration>) -> String {
    let some = &batches[..batches.len().min(MOST_NAMED)];
    let each = |tell: &dyn Fn(&String) -> String| some.iter().map(tell).collect::<Vec<_>>().join(", ");
    let (noun, more) = match batches.len() {
        1 => ("batch", String::new()),
        count if count > MOST_NAMED => ("batches", format!(" and {} more", count - MOST_NAMED)),
        _ => ("batches", String::new()),
    };
    format!(
        "{noun} {}{more} have ended, and the others go on; to end those that wait: {}; to watch {}: {}",
        each(&|batch| Shown(batch).to_string()),
        each(&|batch| format!("reveille cancel {}", Shown(quoted(batch)))),
        if since.is_some() { "it again" } else { "them" },
        each(&|batch| again(batch, since))
    )
}

/// The command that watches the batch again.
fn again(batch: &str, since: Option<Duration>) -> String {
    let since = since.map(|since| format!("--since {} ", told(since).replace(' ', ""))).unwrap_or_default();
    Shown(format_args!("reveille watch {since}{}", quoted(batch))).to_string()
}

/// A batch as an argument of a command in a shell.
fn quoted(batch: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_.:/@+,".contains(character);
    if !batch.is_empty() && batch.chars().all(is_plain) && !batch.starts_with('-') {
        batch.to_owned()
    } else {
        format!("-- '{}'", batch.replace('\'', r"'\''"))
    }
}

async fn passed(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => sleep(timeout).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        watch: Arguments,
    }

    fn read(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Line::try_parse_from([&["watch"], arguments].concat()).map(|line| line.watch)
    }

    #[test]
    fn the_command_that_is_told_reads_as_the_same_watch() {
        for (batch, command) in [
            ("morning-2026-11-25", "reveille watch --since 24h morning-2026-11-25"),
            ("it's morning", r"reveille watch --since 24h -- 'it'\''s morning'"),
            ("", "reveille watch --since 24h -- ''"),
            ("-v", "reveille watch --since 24h -- '-v'"),
            ("\u{1b}[2J\n", r"reveille watch --since 24h -- '\u{1b}[2J\n'"),
        ] {
            let watch = read(&["--", batch]).unwrap();
            assert_eq!(again(&watch.batch, Some(watch.since)), command);
        }
        let once = read(&["morning", "--since", "1h30m"]).unwrap();
        let told = again(&once.batch, Some(once.since));
        let twice = read(&told.split(' ').skip(2).collect::<Vec<_>>()).unwrap();
        assert_eq!((&twice.batch, twice.since), (&once.batch, once.since), "{told}");
    }

    #[test]
    fn each_batch_of_a_submission_is_named_with_its_commands_unless_there_are_many() {
        let batches: Vec<String> = (1..=7).map(|number| format!("b{number}")).collect();
        let expected = "batch b1 have ended, and the others go on; to end those that wait: reveille cancel b1; to watch them: \
                        reveille watch b1";
        assert_eq!(go_on(&batches[..1], None), expected);
        let told = go_on(&batches[..2], None);
        assert!(
            told.starts_with("batches b1, b2 have ended") && told.ends_with("reveille watch b1, reveille watch b2")
        );
        let told = go_on(&batches, None);
        assert!(told.starts_with("batches b1, b2, b3, b4, b5 and 2 more have") && !told.contains("b6"), "{told}");
    }
}
