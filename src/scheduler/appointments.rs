//! Keeps the due times of the configured schedules: publishes what is known of them, and has their jobs submitted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{info, warn};

use super::agenda::{Agenda, Step};
use super::duty::Outbox;
use super::fire::{FireError, fire};
use super::past::{Past, has_its_key};
use crate::broker::Names;
use crate::config::{Broker, Schedule};
use crate::events::{Data, Event, LaneBoots, ScheduleFired, ScheduleKnown, ScheduleMissed, ScheduleState};
use crate::telemetry::ScheduleMetrics;

/// Between two tries to fire a due time.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What came of firing a due time.
type Fired = (String, Timestamp, Result<ScheduleFired, FireError>);

/// The schedules of this replica, and how far they are.
#[derive(Debug)]
pub(super) struct Appointments {
    broker: Arc<Broker>,
    names: Names,
    schedules: Arc<[Schedule]>,
    metrics: ScheduleMetrics,
    agenda: Agenda,
    past: Past,
    looked: Option<Instant>,
    /// Under way.
    firing: JoinSet<Fired>,
    /// By schedule: no further try before then. Those under way are among them.
    not_before: BTreeMap<String, Option<Instant>>,
}

impl Appointments {
    pub(super) fn new(
        broker: Arc<Broker>,
        names: &Names,
        schedules: Arc<[Schedule]>,
        metrics: &ScheduleMetrics,
    ) -> Self {
        let (agenda, looked, firing, not_before) = Default::default();
        let past = Past::new(&schedules);
        let (names, metrics) = (names.clone(), metrics.clone());
        Self { broker, names, schedules, metrics, agenda, past, looked, firing, not_before }
    }

    /// What the next holder has to know.
    pub(super) fn states(&self) -> (Vec<ScheduleState>, Vec<LaneBoots>) {
        let states = self.agenda.states(&self.schedules).into_iter();
        (states.map(|state| self.past.complete(state)).collect(), self.past.boots())
    }

    /// Takes an event of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, key: &str, data: &Data, time: Timestamp) {
        self.agenda.hear(key, data, time);
        if has_its_key(key, data) {
            self.past.hear(data, time);
        }
    }

    /// Looks what is due, publishes what follows from that, and begins to submit jobs.
    ///
    /// # Errors
    /// The connection of the outbox broke.
    pub(super) async fn look(&mut self, outbox: &Outbox<'_>) -> Result<(), lapin::Error> {
        let (now, schedules) = (Timestamp::now(), self.schedules.clone());
        let elapsed = self.looked.replace(Instant::now()).map_or(Duration::ZERO, |looked| looked.elapsed());
        for step in self.agenda.look(&schedules, now, elapsed, |_| false) {
            match step {
                Step::Publish(schedule, data) => self.publish(outbox, schedule, data, now).await?,
                Step::Fire(schedule, due) => self.fire(schedule, due),
            }
        }
        for schedule in &*schedules {
            let plan = self.past.plan(schedule);
            let lead = plan.map(|plan| Duration::from_secs(plan.lead_seconds.into()));
            if let Some(due) = lead.and_then(|lead| self.agenda.early(schedule, now, lead)) {
                self.fire(schedule, due);
            }
            self.metrics.shows(&schedule.name, schedule.timetable.after(now));
            self.metrics.tells(&schedule.name, self.past.story(&schedule.name), plan);
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
        let (word, until) = match &data {
            Data::ScheduleMissed(ScheduleMissed { last_due, .. }) => ("missed", *last_due),
            Data::ScheduleFired(ScheduleFired { due, .. }) => ("fired", *due),
            _ => ("scheduled", now),
        };
        let id = format!("{name}/{until}/{word}");
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
            Data::ScheduleFired(ScheduleFired { due, size, batch_id, plan, previous_size, small, .. }) => {
                let (lead_seconds, boot_seconds) = plan.map(|plan| (plan.lead_seconds, plan.boot_seconds)).unzip();
                info!(schedule = name, %due, size, batch = batch_id, lead_seconds, boot_seconds, "schedule fired");
                if small {
                    let least = schedule.least;
                    warn!(schedule = name, %due, size, previous_size, "the schedule has fewer jobs than {least}% of the last time's");
                }
                self.metrics.fired(name);
            }
            _ => {}
        }
        self.agenda.done(name, until);
        Ok(())
    }

    /// Begins to fire a due time, unless that is under way, or has just failed.
    fn fire(&mut self, schedule: &Schedule, due: Timestamp) {
        match self.not_before.get(&schedule.name) {
            Some(None) => return,
            Some(Some(instant)) if Instant::now() < *instant => return,
            _ => {}
        }
        self.not_before.insert(schedule.name.clone(), None);
        let (broker, names, schedule) = (self.broker.clone(), self.names.clone(), schedule.clone());
        let plan = self.past.plan(&schedule);
        self.firing.spawn(async move {
            let fired = fire(&broker, &names, &schedule, due, plan).await;
            (schedule.name, due, fired)
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
    pub(super) async fn took(&mut self, outbox: &Outbox<'_>, (name, due, fired): Fired) -> Result<(), lapin::Error> {
        match fired {
            Ok(fired) => {
                self.not_before.remove(&name);
                let schedules = self.schedules.clone();
                if let Some(schedule) = schedules.iter().find(|schedule| schedule.name == name) {
                    let fired = self.past.fired(schedule, fired);
                    self.publish(outbox, schedule, Data::ScheduleFired(fired), Timestamp::now()).await?;
                }
            }
            Err(error) => {
                let error = error.to_string();
                if self.agenda.failed(&name, due, error.clone()) {
                    warn!(schedule = name, %due, "the schedule could not be fired; trying again: {error}");
                }
                self.metrics.fails(&name);
                self.not_before.insert(name, Some(Instant::now() + RETRY_AFTER));
            }
        }
        Ok(())
    }
}
