//! Looks for everything that is shown.

use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use tokio::time::timeout;

use super::minute::{self, Minute};
use super::picture::{Facts, Queues, ScheduleRow};
use crate::broker::names::LEVELS;
use crate::broker::{self, Connection, ConnectionKind, Counts, Look, Names, is_access_refused, is_not_found, look};
use crate::cli::Failure;
use crate::cli::log::Log;
use crate::cli::schedules::told;
use crate::config::{Config, LaneName, Schedule};
use crate::query::{AskError, Statuses, ask_statuses};

/// How long replicas have to answer.
const ANSWERS: Duration = Duration::from_secs(2);
/// How long it may take to look for queues, and to read the log: RabbitMQ waits for leaders that are gone.
const LOOKING: Duration = Duration::from_secs(10);
/// Queues that are looked for at a time, each over a channel.
const AT_A_TIME: usize = 4;

/// Gathers what can be seen. The failure is that of the connection, without which nothing can be.
pub(super) async fn gather(config: &Config) -> (Facts, Option<Failure>) {
    let configured = config.lanes.iter().map(|lane| lane.name.clone()).collect();
    let schedules = next_due(&config.schedules, Timestamp::now());
    let mut facts = Facts { broker: config.broker.address(), configured, schedules, ..Facts::default() };
    let connection = match broker::connect(&config.broker, ConnectionKind::Status).await {
        Ok(connection) => connection,
        Err(error) => {
            facts.problems.push(error.to_string());
            return (facts, Some(error.into()));
        }
    };
    facts.is_reachable = true;
    let lost = match facts.gather(&connection, config).await {
        Ok(()) => None,
        Err(error) => {
            let lost = format!("the connection to RabbitMQ was lost meanwhile: {error}");
            facts.is_reachable = false;
            facts.problems.push(lost.clone());
            Some(Failure::Unreachable(lost))
        }
    };
    connection.close().await;
    (facts, lost)
}

/// When each schedule is due next, by the configuration alone.
fn next_due(schedules: &[Schedule], now: Timestamp) -> Vec<ScheduleRow> {
    let row = |schedule: &Schedule| {
        let next = schedule.timetable.after(now);
        let there = next.map(|next| told(next, schedule.timetable.zone()));
        ScheduleRow { schedule: schedule.name.clone(), lane: schedule.lane.to_string(), next, there }
    };
    let mut rows: Vec<ScheduleRow> = schedules.iter().map(row).collect();
    // Those that are never due come last.
    rows.sort_by_key(|row| (row.next.is_none(), row.next));
    rows
}

impl Facts {
    async fn gather(&mut self, connection: &Connection, config: &Config) -> Result<(), lapin::Error> {
        let (minute, here) = tokio::join!(last_minute(config), self.look_and_ask(connection, config));
        match minute {
            Ok(minute) => self.minute = Some(minute),
            Err(problem) => self.problems.push(problem),
        }
        here
    }

    /// Looks for queues first: RabbitMQ answers nothing over a connection that has published while memory or disk are short.
    async fn look_and_ask(&mut self, connection: &Connection, config: &Config) -> Result<(), lapin::Error> {
        let names = Names::new(&config.broker.prefix);
        let looking = async {
            self.look_for_shared(connection, &names).await?;
            self.look_for_lanes(connection, &names).await
        };
        let mut in_time = timeout(LOOKING, looking).await;
        self.ask(connection, &names).await;
        if matches!(in_time, Ok(Ok(()))) {
            // Those that only replicas told of.
            in_time = timeout(LOOKING, self.look_for_lanes(connection, &names)).await;
        }
        match in_time {
            Ok(looked) => looked?,
            Err(_) => self.problems.push(format!("RabbitMQ did not tell of all queues within {LOOKING:?}")),
        }
        let of_lanes = self.queues.values().flat_map(|queues| [queues.baton, queues.new, queues.urgent, queues.due]);
        if self.may_not_look || of_lanes.into_iter().any(|look| look == Look::Refused) {
            self.problems.push(format!(
                "the user may not see all queues: RabbitMQ wants some permission on them, such as to write to \
                 {}.(dead|replicas|(baton|jobs|urgent|due).*)",
                names.prefix()
            ));
        }
        Ok(())
    }

    /// Asks all replicas, until as many have answered as RabbitMQ counts.
    async fn ask(&mut self, connection: &Connection, names: &Names) {
        let wanted = self.counted.filter(|counted| *counted > 0);
        let enough = |statuses: &Statuses| wanted.is_some_and(|wanted| statuses.complete() >= wanted);
        let (statuses, asked) = ask_statuses(connection, names, ANSWERS, enough).await;
        let problem = match asked {
            Ok(true) => None,
            Err(AskError::Broken(error)) if is_access_refused(&error) => Some(format!(
                "the user may not ask replicas: {error}; it needs permission to write {}",
                names.control()
            )),
            Err(AskError::Broken(error)) if is_not_found(&error) => {
                Some(format!("replicas cannot be asked: {error}; `reveille run` declares what is missing"))
            }
            Err(error) => Some(format!("replicas cannot be asked: {error}")),
            Ok(false) if connection.is_blocked() => {
                Some("RabbitMQ takes no messages, for want of memory or disk: replicas cannot be asked".to_owned())
            }
            Ok(false) => {
                let (answered, counted) = (statuses.complete(), wanted.unwrap_or(0));
                (answered < counted).then(|| {
                    format!(
                        "{answered} of {counted} replicas answered within {ANSWERS:?}: the others are of a version that \
                         cannot, lack a permission for a queue of their own, or hang; their logs say which"
                    )
                })
            }
        };
        self.problems.extend(problem);
        self.told = statuses.into_replicas();
    }

    /// Looks for the queues that all lanes share. The ladder's names are those of exchanges, too, so that a user who may only
    /// look cannot have a permission on them.
    async fn look_for_shared(&mut self, connection: &Connection, names: &Names) -> Result<(), lapin::Error> {
        let (replicas, dead) = (look(connection, &names.replicas()).await?, look(connection, &names.dead()).await?);
        let levels = stream::iter((0..LEVELS).map(async |level| look(connection, &names.delay(level)).await));
        let levels: Vec<Look> = levels.buffered(AT_A_TIME).try_collect().await?;
        let counts = |look: Look| match look {
            Look::There(counts) => Some(counts),
            Look::Missing => Some(Counts { messages: 0, consumers: 0 }),
            Look::Refused => None,
        };
        let messages = |look: Look| counts(look).map(|counts| u64::from(counts.messages));
        self.counted = counts(replicas).map(|counts| counts.consumers as usize);
        self.dead_letters = messages(dead);
        self.parked = levels.into_iter().map(messages).sum();
        self.may_not_look = [replicas, dead].contains(&Look::Refused);
        Ok(())
    }

    /// Looks for the queues of lanes that were not looked for yet.
    async fn look_for_lanes(&mut self, connection: &Connection, names: &Names) -> Result<(), lapin::Error> {
        let lanes = self.lanes().into_iter().filter(|lane| !self.queues.contains_key(lane));
        let looks = stream::iter(lanes.collect::<Vec<_>>()).map(async |lane| {
            let queues = queues(connection, names, &lane).await?;
            Ok::<_, lapin::Error>((lane, queues))
        });
        let looked: Vec<_> = looks.buffered(AT_A_TIME).try_collect().await?;
        self.queues.extend(looked);
        Ok(())
    }
}

/// Looks for the queues of a lane; the others only where there is a baton's, which is declared last.
async fn queues(connection: &Connection, names: &Names, lane: &LaneName) -> Result<Queues, lapin::Error> {
    let baton = look(connection, &names.baton_of(lane)).await?;
    if baton == Look::Missing {
        return Ok(Queues { baton, new: baton, urgent: baton, due: baton });
    }
    Ok(Queues {
        baton,
        new: look(connection, &names.jobs_of(lane)).await?,
        urgent: look(connection, &names.urgent_of(lane)).await?,
        due: look(connection, &names.due_of(lane)).await?,
    })
}

/// What ended in the last minute, or why that cannot be told.
async fn last_minute(config: &Config) -> Result<Minute, String> {
    let log = Log::new(config, ConnectionKind::Status);
    let mut minute = Minute::default();
    let from = Timestamp::now() - minute::LENGTH;
    match timeout(LOOKING, log.replay(from, |event| minute.take(event))).await {
        Ok(Ok(())) => Ok(minute),
        Ok(Err(error)) => Err(format!("the last minute is not known: {}", log.failure(error))),
        Err(_) => Err(format!("the last minute is not known: the log was not read within {LOOKING:?}")),
    }
}
