//! A lane: one account in one region. [`job`] handles one job from delivery to ack, [`verdict`] decides what an answer
//! means, [`quota`] keeps the lane to its rate, and [`LaneRole`] is the role that one replica at a time holds.

mod breaker;
mod calls;
mod descents;
mod history;
mod intake;
mod job;
mod key_check;
mod keys;
pub mod listing;
mod one_at_a_time;
mod outbox;
mod parts;
mod prefetch;
mod quarantine;
pub mod quota;
mod select;
mod serve;
mod status;
pub mod verdict;

use std::convert::Infallible;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;

use self::breaker::Cause;
pub use self::key_check::KeyCheck;
use self::parts::Session;
pub use self::parts::{Lane, Settings};
pub use self::select::select;
pub use self::status::statuses;
use crate::broker::{Connections, Outgoing, Place};
use crate::events::{Data, Event, LaneHeld, LanePaused, LaneResumed};
use crate::ownership::{Interrupted, Lease, OVERLAP, Role, Standing, Term};
use crate::replica::Replica;
use crate::telemetry::{LaneState, Readiness};

/// A lane as a role that one replica at a time holds.
#[derive(Debug)]
pub struct LaneRole {
    /// The lane.
    pub lane: Arc<Lane>,
    /// Where the lane's state is shown.
    pub readiness: Arc<Readiness>,
}

impl Role for LaneRole {
    fn name(&self) -> &str {
        self.lane.name()
    }

    fn kind(&self) -> &'static str {
        "lane"
    }

    async fn place(&self, connections: &Connections) -> Place {
        connections.place().await
    }

    fn batons(&self) -> String {
        self.lane.settings.names.baton_of(&self.lane.settings.lane.name)
    }

    fn lease(&self) -> &Lease {
        self.lane.gate.lease()
    }

    fn stands(&self, standing: Standing) {
        let metrics = &self.lane.metrics;
        metrics.held.set((standing == Standing::Held).into());
        if standing != Standing::Held {
            self.lane.gate.show_paused(None);
            key_check::show(metrics, None);
            metrics.rate.set(0.0);
        }
        let state = match standing {
            Standing::Waiting => LaneState::Waiting,
            Standing::StandingBy => LaneState::StandingBy,
            Standing::Held => LaneState::Held,
        };
        self.readiness.lane(self.name(), state);
    }

    async fn serve(&self, term: &Term<'_>) -> Result<(), Interrupted> {
        let lane = &self.lane;
        info!(endpoint = %lane.settings.lane.endpoint, "lane held");
        let first_call = Instant::now() + OVERLAP;
        lane.gate.begin(OVERLAP);
        let session = Arc::new(Session::new(lane.clone(), term.connection));
        let is_announced = Notify::new();
        let checked = watch::Sender::new(false);
        let mut was_checked = checked.subscribe();
        let before = async {
            let announced = announce(&session).await?;
            is_announced.notify_one();
            let replay = history::replay(&lane.history, lane.reader.read_back(lane.name()), &announced);
            tokio::join!(replay, lane.control.known());
            // No delivery is in hand before calls are allowed: it would be suspected if the process ended now.
            sleep_until(first_call).await;
            // The check of the keys is the first call. An API that hangs delays the first delivery no further.
            let _ = timeout(keys::PATIENCE, was_checked.wait_for(|checked| *checked)).await;
            Ok::<_, Interrupted>(())
        };
        let serving = async {
            // Without a queue for events nothing can be acked either, but a stop does not wait for that.
            tokio::select! {
                () = term.stop.requested() => {}
                ready = before => ready?,
            }
            serve::serve(&session, term.connection, &self.readiness, &term.stop).await
        };
        tokio::select! {
            served = serving => served,
            failed = tell_pauses(&session, &is_announced) => failed.map(|never| match never {}).map_err(Interrupted::from),
            never = lane.gate.show_rate() => match never {},
            never = lane.calls.polls.make() => match never {},
            never = keys::follow(lane, &checked) => match never {},
            never = lane.metrics.log() => match never {},
        }
    }
}

/// Publishes when the lane is paused, and when it works again, once it is announced.
async fn tell_pauses(session: &Session, is_announced: &Notify) -> Result<Infallible, lapin::Error> {
    is_announced.notified().await;
    let breaker = session.lane.gate.breaker();
    let mut told = None;
    loop {
        breaker.is_in_other_trouble(told).await;
        let (lane, trouble) = (session.lane.name().to_owned(), breaker.trouble());
        told = trouble.as_ref().map(|cause| cause.kind);
        let (data, key) = match trouble {
            Some(Cause { kind, text }) => {
                (Data::LanePaused(LanePaused { lane, cause: kind.as_str().to_owned(), text }), "paused")
            }
            None => (Data::LaneResumed(LaneResumed { lane }), "resumed"),
        };
        publish(session, data, key).await?;
    }
}

/// Publishes that the lane is held: commands learn the names of lanes from it. Returns the event's id.
async fn announce(session: &Session) -> Result<String, lapin::Error> {
    let held = LaneHeld { lane: session.lane.name().to_owned(), replica: Some(Replica::this()) };
    publish(session, Data::LaneHeld(held), "held").await
}

/// Publishes an event about the lane, under its name and `key`. Returns the event's id.
async fn publish(session: &Session, data: Data, key: &str) -> Result<String, lapin::Error> {
    let lane = &session.lane;
    let event = Event::new(lane.name(), data, Timestamp::now());
    let (exchange, key) = (lane.settings.names.outcomes(), format!("{}.{key}", lane.name()));
    session.outbox.event(Outgoing::event(&event, exchange, key)).await.map(|_confirmed| event.id)
}
