//! `reveille watch`: how far a batch is, and what came of its jobs, by the log of outcomes. So it can begin at any time, on
//! any machine, and after the batch too.

mod failures;
mod follow;
mod lanes;
pub(super) mod progress;
mod rate;
mod screen;

use std::future::pending;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::{interval, sleep};

use self::failures::FailuresFile;
use self::follow::{Following, News, follow};
use self::lanes::Lanes;
use self::progress::{End, Heard, Progress, Reading};
use self::screen::Screen;
use super::signals::Signals;
use super::times::{length, told};
use super::{Failure, print, tell};
use crate::config::Config;
use crate::events::Event;
use crate::text::Shown;

/// How often the screen is drawn.
const TICK: Duration = Duration::from_millis(250);
/// How long a batch that is not announced is waited for, unless `--timeout` says for how long.
const PATIENCE: Duration = Duration::from_secs(30);
/// As timeout(1) has it.
const TIMED_OUT: u8 = 124;

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
    let progress = Progress::new(&arguments.batch, Timestamp::now());
    let mut watch = Watch { progress, lanes: Lanes::default(), is_live: false, screen: Screen::new(), file };
    let mut stopped = pin!(async {
        tokio::select! {
            () = passed(arguments.timeout) => Over::TimedOut,
            code = signals.next() => Over::Stopped(code),
        }
    });
    let since = SignedDuration::try_from(arguments.since).unwrap_or(SignedDuration::MAX);
    let from = Timestamp::now().checked_sub(since).unwrap_or(Timestamp::MIN);
    let mut log = tokio::select! {
        log = follow(config, from) => log?,
        over = &mut stopped => return watch.close(over, arguments),
    };
    let over = tokio::select! {
        over = watch.follow(&mut log, arguments) => over,
        over = &mut stopped => Ok(over),
    };
    let done = match over {
        Ok(over) => watch.close(over, arguments),
        Err(failure) => {
            watch.screen.close();
            Err(failure)
        }
    };
    log.close().await;
    done
}

/// Why a watch is over.
enum Over {
    Ended(End),
    TimedOut,
    /// By a signal, with this exit code.
    Stopped(u8),
}

struct Watch {
    progress: Progress,
    lanes: Lanes,
    /// What was in the log at the beginning has come.
    is_live: bool,
    screen: Screen,
    file: Option<FailuresFile>,
}

impl Watch {
    /// Watches until the batch is done, or given up.
    async fn follow(&mut self, log: &mut Following, arguments: &Arguments) -> Result<Over, Failure> {
        // A time-out says how long to wait for an announcement, too.
        let patience = if arguments.timeout.is_none() { SignedDuration::try_from(PATIENCE).ok() } else { None };
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                news = log.next() => {
                    let news = news.ok_or_else(|| anyhow::anyhow!("the log is read no further"))?;
                    self.take(news, arguments)?;
                }
                _ = tick.tick() => self.screen.show(&self.progress, Timestamp::now()),
            }
            if let Some(end) = self.progress.end(Timestamp::now(), patience) {
                return Ok(Over::Ended(end));
            }
        }
    }

    fn take(&mut self, news: News, arguments: &Arguments) -> Result<(), Failure> {
        let now = Timestamp::now();
        match news {
            News::Event(event) => {
                let change = self.lanes.hear(&event.data, &arguments.batch);
                if let Some(change) = change.filter(|_| self.is_live) {
                    self.screen.say(change);
                }
                self.hear(*event, arguments, now)?;
            }
            News::Replayed => {
                self.progress.reads(Reading::Live, now);
                self.is_live = true;
                self.lanes.pauses().for_each(|pause| self.screen.say(pause));
                if self.progress.announced().is_none() {
                    let (batch, since) = (Shown(&arguments.batch), told(arguments.since));
                    self.screen
                        .say(format_args!("batch {batch} was not announced within the last {since}: waiting for it"));
                }
            }
            News::Lost(error) => {
                self.progress.reads(Reading::Away, now);
                self.screen.say(format_args!("RabbitMQ is away, and tried again: {}", Shown(error)));
            }
            News::Back => {
                self.progress.reads(Reading::Replay, now);
                self.is_live = false;
                self.screen.say("RabbitMQ is there again: the log is read on");
            }
        }
        Ok(())
    }

    fn hear(&mut self, event: Event, arguments: &Arguments, now: Timestamp) -> Result<(), Failure> {
        match self.progress.hear(event, now) {
            Heard::Nothing | Heard::Announced { forgotten: 0 } => {}
            Heard::Announced { forgotten } => self.screen.say(format_args!(
                "{forgotten} jobs of an earlier batch {} are not counted: they ended before this one was announced",
                Shown(&arguments.batch)
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
    fn close(self, over: Over, arguments: &Arguments) -> Result<ExitCode, Failure> {
        let Self { progress, screen, .. } = self;
        screen.close();
        if progress.ended() > 0 || matches!(over, Over::Ended(End::Done)) {
            print(progress.report())?;
        }
        let (batch, ended) = (Shown(&arguments.batch), progress.ended());
        match over {
            Over::Ended(End::Done) if progress.report().all_up() => Ok(ExitCode::SUCCESS),
            Over::Ended(End::Done) => Ok(ExitCode::FAILURE),
            Over::Ended(End::NotAnnounced) => Err(Failure::Usage(format!(
                "batch {batch} was not announced within the last {}, and {ended} jobs of it have ended since then: check its \
                 name, begin earlier with --since, or wait for it with --timeout",
                told(arguments.since)
            ))),
            Over::TimedOut | Over::Stopped(_) => {
                let of = progress.announced().map(|jobs| format!(" of {jobs}")).unwrap_or_default();
                tell(format_args!(
                    "{ended}{of} jobs of batch {batch} have ended, and the others go on; to end those that wait: reveille cancel \
                     {}; to watch it again: {}",
                    Shown(quoted(&arguments.batch)),
                    again(arguments)
                ));
                Ok(ExitCode::from(if let Over::Stopped(code) = over { code } else { TIMED_OUT }))
            }
        }
    }
}

/// The command that watches the batch again.
fn again(arguments: &Arguments) -> String {
    let since = told(arguments.since).replace(' ', "");
    Shown(format_args!("reveille watch --since {since} {}", quoted(&arguments.batch))).to_string()
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
            assert_eq!(again(&read(&["--", batch]).unwrap()), command);
        }
        let once = read(&["morning", "--since", "1h30m"]).unwrap();
        let told = again(&once);
        let twice = read(&told.split(' ').skip(2).collect::<Vec<_>>()).unwrap();
        assert_eq!((&twice.batch, twice.since), (&once.batch, once.since), "{told}");
    }
}
