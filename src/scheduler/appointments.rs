//! Keeps the due times of the configured schedules, and does the commands to run them: publishes what is known of them, and has
//! their jobs submitted.
//!
//! Both are done in the background, one thing at a time for each schedule: a queue that refuses what is said of schedules holds up no
//! completion of a batch, and no other schedule.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::agenda::{Agenda, Step};
use super::duty::Outbox;
use super::fire::{FireError, fire};
use super::orders::{Orders, TRY_FOR};
use super::past::{Past, has_its_key};
use crate::bce::answer::shorten;
use crate::broker::Names;
use crate::config::{Broker, Schedule};
use crate::control::Control;
use crate::events::{ByHand, Data, Event, ScheduleFired, ScheduleKnown, ScheduleMissed, SchedulerHeld};
use crate::ownership::Moment;
use crate::replica::Replica;
use crate::telemetry::ScheduleMetrics;

/// Between two tries to fire a due time.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Schedules that are fired at a time, each over a connection of its own.
const FIRING: usize = 4;
/// Longest reason why a due time could not be fired, in characters.
const REASON_LIMIT: usize = 500;

/// A due time of a schedule that is to be fired.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Errand {
    schedule: String,
    due: Timestamp,
    by_hand: Option<ByHand>,
}

/// What is done in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Task {
    Fire,
    Publish,
}

/// Something that was done in the background.
#[derive(Debug)]
enum Done {
    /// A due time was fired, or not.
    Fired(Errand, Result<ScheduleFired, FireError>),
    /// An event of the schedule is published.
    Said(String, Data, Result<(), lapin::Error>),
}

/// What came of a task: its failure has no more than its id.
#[derive(Debug)]
pub(super) struct Ended(Result<(Id, Done), tokio::task::JoinError>);

/// The schedules of this replica, and how far they are.
#[derive(Debug)]
pub(super) struct Appointments {
    broker: Arc<Broker>,
    names: Names,
    schedules: Arc<[Schedule]>,
    metrics: ScheduleMetrics,
    pub(super) control: Arc<Control>,
    agenda: Agenda,
    past: Past,
    orders: Orders,
    looked: Option<Moment>,
    /// For lists of instances.
    turn: Arc<Semaphore>,
    tasks: JoinSet<Done>,
    /// What the tasks are for.
    under_way: HashMap<Id, (Task, Errand)>,
    /// No further try before then.
    not_before: HashMap<Errand, Instant>,
}

impl Appointments {
    pub(super) fn new(
        broker: Arc<Broker>,
        names: &Names,
        schedules: Arc<[Schedule]>,
        control: Arc<Control>,
        metrics: &ScheduleMetrics,
    ) -> Self {
        let (agenda, orders, looked, tasks, under_way, not_before) = Default::default();
        let (names, metrics) = (names.clone(), metrics.clone());
        let past = Past::new(&schedules);
        let turn = Arc::new(Semaphore::new(1));
        Self {
            broker,
            names,
            schedules,
            metrics,
            control,
            agenda,
            past,
            orders,
            looked,
            turn,
            tasks,
            under_way,
            not_before,
        }
    }

    /// What the next holder has to know of schedules, and from where on it has to read the log.
    pub(super) fn state(&self, resume_from: Option<u64>) -> SchedulerHeld {
        let schedules = self.agenda.states().into_iter().map(|state| self.past.complete(state)).collect();
        let (boots, done) = (self.past.boots(), self.orders.states(Timestamp::now()));
        SchedulerHeld { replica: Replica::this(), resume_from, schedules, boots, done }
    }

    /// Takes an event of the log, which was published under the routing key `key`.
    pub(super) fn hear(&mut self, key: &str, data: &Data, time: Timestamp) {
        let now = Timestamp::now();
        self.agenda.hear(&self.schedules, key, data, time, now);
        if has_its_key(key, data) {
            self.past.hear(data, time, now);
        }
        self.orders.hear(key, data, time);
    }

    /// Looks what is due, and begins to publish what follows from that and to submit jobs.
    pub(super) fn look(&mut self, outbox: &Outbox<'_>) {
        let (now, schedules) = (Timestamp::now(), self.schedules.clone());
        let elapsed = self.looked.replace(Moment::now()).map_or(Duration::ZERO, |looked| looked.elapsed());
        let control = self.control.clone();
        let pause = |schedule: &Schedule, at| {
            let (name, pause) = (&schedule.name, control.schedule_pause(&schedule.name, at)?);
            Some(pause.describe(format_args!("schedules resume {name}")))
        };
        let mut steps = self.agenda.look(&schedules, now, elapsed, pause);
        for schedule in &*schedules {
            let plan = self.past.plan(schedule);
            let lead = plan.map(|plan| Duration::from_secs(plan.lead_seconds.into()));
            let due = lead.and_then(|lead| self.agenda.early(schedule, now, lead, pause));
            steps.extend(due.map(|due| Step::Fire(schedule, due, None)));
            self.metrics.shows(&schedule.name, self.agenda.next(schedule));
            self.metrics.tells(&schedule.name, self.past.story(&schedule.name), plan);
        }
        steps.extend(self.orders.look(&schedules, &control.runs(), now));
        self.not_before.retain(|_, instant| Instant::now() < *instant);
        for step in steps {
            match step {
                Step::Publish(schedule, data) => self.publish(outbox, schedule, data, now),
                Step::Fire(schedule, due, by_hand) => self.fire(schedule, due, by_hand),
            }
        }
    }

    /// Begins to publish an event of the schedule, unless something of it is under way. Whether a due time is missed shows once it was
    /// fired, or not.
    fn publish(&mut self, outbox: &Outbox<'_>, schedule: &Schedule, data: Data, now: Timestamp) {
        let Schedule { name, lane, .. } = schedule;
        let (word, until, by_hand) = said(&data, now);
        let errand = Errand { schedule: name.clone(), due: until, by_hand };
        if self.is_under_way(&errand) {
            return;
        }
        let command = errand.by_hand.as_ref().map_or_else(String::new, |by_hand| format!("/{}", by_hand.command_id));
        let id = format!("{name}/{until}/{word}{command}");
        let event = Event { id, ..Event::of_scheduler(data.clone(), now) };
        let (publishing, name) = (outbox.later(format!("{lane}.{word}"), &event), name.clone());
        let task = self.tasks.spawn(async move { Done::Said(name, data, publishing.await) });
        self.under_way.insert(task.id(), (Task::Publish, errand));
    }

    /// Whether jobs of the schedule are being submitted, or an event of it published: by the clock, or by the same command.
    fn is_under_way(&self, errand: &Errand) -> bool {
        self.under_way.values().any(|(_, other)| other.schedule == errand.schedule && other.by_hand == errand.by_hand)
    }

    /// Begins to fire a due time, unless something of the schedule is under way, or this one has just failed.
    fn fire(&mut self, schedule: &Schedule, due: Timestamp, by_hand: Option<ByHand>) {
        let longest = if by_hand.is_some() { TRY_FOR.unsigned_abs() } else { schedule.misfire_grace };
        let errand = Errand { schedule: schedule.name.clone(), due, by_hand };
        let firing = self.under_way.values().filter(|(task, _)| *task == Task::Fire).count();
        if self.not_before.contains_key(&errand) || firing >= FIRING || self.is_under_way(&errand) {
            return;
        }
        let (broker, names, schedule) = (self.broker.clone(), self.names.clone(), schedule.clone());
        // What is run by hand is to be up soon, and by no time.
        let plan = self.past.plan(&schedule).filter(|_| errand.by_hand.is_none());
        let (begun, turn) = (errand.clone(), self.turn.clone());
        let task = self.tasks.spawn(async move {
            let fired = timeout(longest, fire(&broker, &names, &schedule, due, plan, &turn)).await;
            Done::Fired(begun, fired.unwrap_or(Err(FireError::TooLong(longest))))
        });
        self.under_way.insert(task.id(), (Task::Fire, errand));
    }

    /// Waits until something was done in the background, for [`Appointments::took`]. Waits for ever if nothing is under way.
    /// Cancel-safe.
    pub(super) async fn next(&mut self) -> Ended {
        match self.tasks.join_next_with_id().await {
            Some(ended) => Ended(ended),
            None => std::future::pending().await,
        }
    }

    /// Begins to publish that a due time was fired, or remembers why not; and remembers what was published.
    ///
    /// # Errors
    /// The connection of the outbox broke.
    pub(super) fn took(&mut self, outbox: &Outbox<'_>, Ended(ended): Ended) -> Result<(), lapin::Error> {
        let (id, done) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let Some((_, errand)) = self.under_way.get(&error.id()).cloned() else { return Ok(()) };
                (error.id(), Done::Fired(errand, Err(FireError::Panicked(error.to_string()))))
            }
        };
        self.under_way.remove(&id);
        match done {
            Done::Said(name, data, published) => {
                published?;
                self.has_said(&name, data);
            }
            Done::Fired(errand, Ok(fired)) => {
                let schedules = self.schedules.clone();
                if let Some(schedule) = schedules.iter().find(|schedule| schedule.name == errand.schedule) {
                    let fired = ScheduleFired { by_hand: errand.by_hand, ..self.past.fired(schedule, fired) };
                    self.publish(outbox, schedule, Data::ScheduleFired(fired), Timestamp::now());
                }
            }
            Done::Fired(errand, Err(error)) => {
                let lines: Vec<String> = error.to_string().lines().map(|line| line.trim().to_owned()).collect();
                let (error, Errand { schedule, due, by_hand }) = (shorten(lines.join("; "), REASON_LIMIT), &errand);
                let is_news = match by_hand {
                    Some(by_hand) => self.orders.failed(&by_hand.command_id, error.clone()),
                    None => self.agenda.failed(schedule, *due, error.clone()),
                };
                if is_news {
                    warn!(schedule, %due, "the schedule could not be fired; trying again: {error}");
                }
                self.metrics.fails(schedule);
                self.not_before.insert(errand, Instant::now() + RETRY_AFTER);
            }
        }
        Ok(())
    }

    fn has_said(&mut self, name: &str, data: Data) {
        let now = Timestamp::now();
        let (_, until, by_hand) = said(&data, now);
        match data {
            Data::ScheduleKnown(ScheduleKnown { line, .. }) => {
                info!(schedule = name, line, "a schedule is new, or changed");
                return;
            }
            Data::ScheduleMissed(ScheduleMissed { reason, text, count, first_due, last_due, .. }) => {
                let reason_word = reason.as_str();
                warn!(schedule = name, reason = reason_word, count, %first_due, %last_due, "schedule missed: {text}");
                self.metrics.missed(name, reason, count);
            }
            Data::ScheduleFired(ScheduleFired { due, size, batch_id, plan, previous_size, small, .. }) => {
                let by = by_hand.as_ref().map(|by_hand| by_hand.by.as_str());
                let (lead_seconds, boot_seconds) = plan.map(|plan| (plan.lead_seconds, plan.boot_seconds)).unzip();
                info!(schedule = name, %due, size, batch = batch_id, by, lead_seconds, boot_seconds, "schedule fired");
                if small {
                    let schedule = self.schedules.iter().find(|schedule| schedule.name == name);
                    let least = schedule.map_or(0, |schedule| schedule.least);
                    warn!(schedule = name, %due, size, previous_size, "the schedule has fewer jobs than {least}% of the last time's");
                }
                self.metrics.fired(name);
            }
            _ => {}
        }
        match by_hand {
            Some(by_hand) => self.orders.done(&by_hand.command_id, now),
            None => self.agenda.done(name, until),
        }
    }
}

/// The last word of the routing key of an event of a schedule, until when it deals with due times, and the command that it is of.
fn said(data: &Data, now: Timestamp) -> (&'static str, Timestamp, Option<ByHand>) {
    match data {
        Data::ScheduleMissed(ScheduleMissed { last_due, by_hand, .. }) => ("missed", *last_due, by_hand.clone()),
        Data::ScheduleFired(ScheduleFired { due, by_hand, .. }) => ("fired", *due, by_hand.clone()),
        _ => ("scheduled", now, None),
    }
}
