//! The scheduler: what one replica at a time does for all lanes. It follows the log of outcomes, keeps account of announced batches
//! ([`batches`]), publishes that a batch is done, starts its waves, and has the rest of one cancelled of which too many jobs
//! have failed ([`duty`]). It fires schedules ([`appointments`]), by the clock ([`agenda`]), some of them early, by what earlier ones
//! took ([`past`]), and by hand ([`orders`]). Beside that it counts the dead letters, and discards the oldest
//! where a setting bounds them ([`trim`]).
//!
//! It is a role as a lane is ([`crate::ownership`]), with a baton of its own; but it counts as no lane where lanes are shared, and it
//! is held over a channel that lanes have to spare. Where RabbitMQ allows no replica one, no completion is published, no dead letter
//! discarded and no schedule fired, waves after the first wait, and lanes run as ever.
//!
//! **Once.** A completion has an id that follows from the batch's announcement, and says nothing but what follows from the log. So one
//! that is published twice, by a holder that was killed and the next one, or by two holders at a time, is a copy that consumers know
//! by its id. None is left out: a holder reads the log from the first announcement of any batch on whose completion may be missing,
//! and publishes those that it does not find in the log.
//!
//! **Trust.** An event counts under the routing key that it should have, so RabbitMQ's topic permissions decide which events a user can
//! make up. Anybody who may publish all outcomes can announce batches and end jobs of them, and so have a completion published that is
//! wrong, or keep one back. Nothing is started or ended by a completion: it is information. By what the log says, jobs are cancelled and
//! waves are started, but only of a batch whose announcement says how many jobs may fail, or how many each wave has. Memory is bounded
//! whatever is in the log.

mod agenda;
mod appointments;
mod batches;
mod boots;
mod duty;
mod fire;
mod orders;
mod past;
mod trim;

use std::sync::Arc;

use tracing::info;

use self::duty::{Duty, Outbox};
pub use self::past::{Past, due_of};
use self::trim::Trim;
use crate::broker::{Connections, Names, Place};
use crate::config::{Broker, Config, Schedule};
use crate::control::Control;
use crate::ownership::{Interrupted, Lease, Role, Standing, Term};
use crate::telemetry::{Metrics, SchedulerMetrics};

/// The routing key of what a holder writes down. No lane's begins like this.
const HELD_KEY: &str = "_scheduler.held";

/// The scheduler as a role that one replica at a time holds.
#[derive(Debug)]
pub struct Scheduler {
    broker: Arc<Broker>,
    names: Names,
    schedules: Arc<[Schedule]>,
    control: Arc<Control>,
    lease: Lease,
    metrics: SchedulerMetrics,
    most_letters: Option<u32>,
}

impl Scheduler {
    /// Nothing is connected yet.
    pub fn new(config: &Config, names: &Names, control: &Arc<Control>, metrics: &Metrics) -> Self {
        Self {
            broker: config.broker.clone(),
            names: names.clone(),
            schedules: config.schedules.clone().into(),
            control: control.clone(),
            lease: Lease::default(),
            metrics: metrics.scheduler.clone(),
            most_letters: config.dead_letters.max_length,
        }
    }
}

impl Role for Scheduler {
    fn name(&self) -> &'static str {
        "_scheduler"
    }

    fn kind(&self) -> &'static str {
        "scheduler"
    }

    async fn place(&self, connections: &Connections) -> Place {
        connections.spare_place().await
    }

    fn batons(&self) -> String {
        self.names.scheduler_baton()
    }

    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn stands(&self, standing: Standing) {
        self.metrics.held.set((standing == Standing::Held).into());
        if standing != Standing::Held {
            self.metrics.open.set(0);
            self.metrics.schedules.forget();
            self.metrics.dead_letters.set(0);
        }
    }

    async fn serve(&self, term: &Term<'_>) -> Result<(), Interrupted> {
        info!("scheduler held");
        let outbox = Outbox::new(term.connection, &self.names);
        let (schedules, control) = (self.schedules.clone(), self.control.clone());
        let mut duty = Duty::new(&self.broker, outbox, schedules, control, &self.lease, &self.metrics);
        let trim = Trim::new(&self.broker, &self.names, &self.metrics, self.most_letters);
        tokio::select! {
            biased;
            () = term.stop.requested() => Ok(()),
            // What was not published before a stop, the next holder publishes.
            done = duty.run() => match done? {},
            done = trim.run(term.connection) => match done? {},
        }
    }
}
