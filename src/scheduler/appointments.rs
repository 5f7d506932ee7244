//! Keeps the due times of the configured schedules, and does the commands to run them: publishes what is known of them, and has
//! their jobs submitted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::agenda::{Agenda, Step};
use super::duty::Outbox;
use super::fire::{FireError, fire};
use super::orders::Orders;
use crate::broker::Names;
use crate::config::{Broker, Schedule};
use crate::control::Control;
use crate::events::{ByHand, Data, Event, ScheduleFired, ScheduleKnown, ScheduleMissed, ScheduleState};
use crate::telemetry::ScheduleMetrics;

/// Between two tries to fire a due time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Schedules that are fired at a time, each over a connection: machines that are needed wait no longer for it.
const FIRING: usize = 16;

/// A due time of a schedule that is to be fired.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Errand {
    schedule: String,
    due: Timestamp,
    by_hand: Option<ByHand>,
}

/// What came of an errand.
pub(super) struct Fired(Errand, Result<ScheduleFired, FireError>);

/// The schedules of this replica, and how far they are.
#[derive(Debug)]
pub(super) struct Appointments {
    broker: Arc<Broker>,
    names: Names,
    schedules: Arc<[Schedule]>,
    metrics: ScheduleMetrics,
    pub(super) control: Arc<Control>,
    agenda: Agenda,
    orders: Orders,
    looked: Option<Instant>,
    /// Under way.
    firing: JoinSet<Fired>,
    /// No further try before then; `None`: it is under way.
    not_before: HashMap<Errand, Option<Instant>>,
}

impl Appointments {
    pub(super) fn new(
        broker: Arc<Broker>,
        names: &Names,
        schedules: Arc<[Schedule]>,
        control: Arc<Control>,
        metrics: &ScheduleMetrics,
    ) -> Self {
        let (agenda, orders, looked, firing, not_before) = Default::default();
        let (names, metrics) = (names.clone(), metrics.clone());
        Self { broker, names, schedules, metrics, control, agenda, orders, looked, firing, not_before }
    }

    /// What the next holder has to know: of schedules, and the commands that are done.
    pub(super) fn states(&self) -> (Vec<ScheduleState>, Vec<String>) {
        (self.agenda.states(&self.schedules), self.orders.states(Timestamp::now()))
    }

    /// Takes an event of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, key: &str, data: &Data, time: Timestamp) {
        self.agenda.hear(key, data, time);
        self.orders.hear(key, data, time);
    }

    /// Looks what is due, publishes what follows from that, and begins to submit jobs.
    ///
    /// # Errors
    /// The connection of the outbox broke.
    pub(super) async fn look(&mut self, outbox: &Outbox<'_>) -> Result<(), lapin::Error> {
        let (now, schedules) = (Timestamp::now(), self.schedules.clone());
        let elapsed = self.looked.replace(Instant::now()).map_or(Duration::ZERO, |looked| looked.elapsed());
        let control = self.control.clone();
        let pause = |schedule: &Schedule, at| {
            let (name, pause) = (&schedule.name, control.schedule_pause(&schedule.name, at)?);
            Some(pause.describe(format_args!("schedules resume {name}")))
        };
        let mut steps = self.agenda.look(&schedules, now, elapsed, pause);
        steps.extend(self.orders.look(&schedules, &control.runs(), now));
        let is_wanted = |errand: &Errand| {
            let is_it = |step: &Step<'_>| matches!(step, Step::Fire(schedule, due, by_hand) if schedule.name == errand.schedule && *due == errand.due && *by_hand == errand.by_hand);
            steps.iter().any(is_it)
        };
        self.not_before.retain(|errand, until| until.is_none() || is_wanted(errand));
        for step in steps {
            match step {
                // Whether it is missed shows when that is over.
                Step::Publish(_, Data::ScheduleMissed(missed))
                    if self.is_under_way(&missed.schedule, missed.by_hand.as_ref()) => {}
                Step::Publish(schedule, data) => self.publish(outbox, schedule, data, now).await?,
                Step::Fire(schedule, due, by_hand) => self.fire(schedule, due, by_hand),
            }
        }
        for schedule in &*schedules {
            self.metrics.shows(&schedule.name, self.agenda.next(schedule));
        }
        Ok(())
    }

    async fn publish(
        &mut self,
        outbox: &Outbox<'_>,
        schedule: &Schedule,
        data: Data,
        now: Timestamp,
    ) -> Result<(), lapin::Error> {
        let Schedule { name, lane, .. } = schedule;
        let (word, until, by_hand) = match &data {
            Data::ScheduleMissed(ScheduleMissed { last_due, by_hand, .. }) => ("missed", *last_due, by_hand.clone()),
            Data::ScheduleFired(ScheduleFired { due, by_hand, .. }) => ("fired", *due, by_hand.clone()),
            _ => ("scheduled", now, None),
        };
        let command = by_hand.as_ref().map_or_else(String::new, |by_hand| format!("/{}", by_hand.command_id));
        let id = format!("{name}/{until}/{word}{command}");
        outbox.event(format!("{lane}.{word}"), &Event { id, ..Event::of_scheduler(data.clone(), now) }).await?;
        match data {
            Data::ScheduleKnown(ScheduleKnown { line, .. }) => {
                info!(schedule = name, line, "a schedule is new, or changed")
            }
            Data::ScheduleMissed(ScheduleMissed { reason, text, count, first_due, last_due, .. }) => {
                let reason_word = reason.as_str();
                warn!(schedule = name, reason = reason_word, count, %first_due, %last_due, "schedule missed: {text}");
                self.metrics.missed(name, reason, count);
            }
            Data::ScheduleFired(ScheduleFired { due, size, batch_id, .. }) => {
                let by = by_hand.as_ref().map(|by_hand| by_hand.by.as_str());
                info!(schedule = name, %due, size, batch = batch_id, by, "schedule fired");
                self.metrics.fired(name, due, size);
            }
            _ => {}
        }
        match by_hand {
            Some(by_hand) => self.orders.done(&by_hand.command_id, now),
            None => self.agenda.done(name, until),
        }
        Ok(())
    }

    /// Whether jobs of the schedule are being submitted, by the clock or by this command.
    fn is_under_way(&self, schedule: &str, by_hand: Option<&ByHand>) -> bool {
        let is_it = |errand: &Errand| errand.schedule == schedule && errand.by_hand.as_ref() == by_hand;
        self.not_before.iter().any(|(errand, until)| until.is_none() && is_it(errand))
    }

    /// Begins to fire a due time, unless one is under way, or this one has just failed.
    fn fire(&mut self, schedule: &Schedule, due: Timestamp, by_hand: Option<ByHand>) {
        let errand = Errand { schedule: schedule.name.clone(), due, by_hand };
        let has_just_failed =
            self.not_before.get(&errand).copied().flatten().is_some_and(|instant| Instant::now() < instant);
        if has_just_failed
            || self.firing.len() >= FIRING
            || self.is_under_way(&errand.schedule, errand.by_hand.as_ref())
        {
            return;
        }
        self.not_before.insert(errand.clone(), None);
        let (broker, names, schedule) = (self.broker.clone(), self.names.clone(), schedule.clone());
        self.firing.spawn(async move {
            let fired = fire(&broker, &names, &schedule, due).await;
            Fired(errand, fired)
        });
    }

    /// Waits for the next due time that was fired, or failed, and publishes it. Waits for ever if none is under way.
    ///
    /// # Errors
    /// The connection of the outbox broke.
    pub(super) async fn next(&mut self) -> Fired {
        loop {
            match self.firing.join_next().await {
                Some(Ok(fired)) => return fired,
                Some(Err(error)) => warn!("a schedule was not fired: {error}"),
                None => std::future::pending().await,
            }
        }
    }

    /// Publishes that a due time was fired, or remembers why not.
    ///
    /// # Errors
    /// The connection of the outbox broke.
    pub(super) async fn took(&mut self, outbox: &Outbox<'_>, Fired(errand, fired): Fired) -> Result<(), lapin::Error> {
        let Errand { schedule: name, due, by_hand } = errand.clone();
        match fired {
            Ok(fired) => {
                self.not_before.remove(&errand);
                let schedules = self.schedules.clone();
                if let Some(schedule) = schedules.iter().find(|schedule| schedule.name == name) {
                    self.publish(
                        outbox,
                        schedule,
                        Data::ScheduleFired(ScheduleFired { by_hand, ..fired }),
                        Timestamp::now(),
                    )
                    .await?;
                }
            }
            Err(error) => {
                let error = error.to_string();
                let is_news = match &by_hand {
                    Some(by_hand) => self.orders.failed(&by_hand.command_id, error.clone()),
                    None => self.agenda.failed(&name, due, error.clone()),
                };
                if is_news {
                    warn!(schedule = name, %due, "the schedule could not be fired; trying again: {error}");
                }
                self.metrics.fails(&name);
                self.not_before.insert(errand, Some(Instant::now() + RETRY_AFTER));
            }
        }
        Ok(())
    }
}
