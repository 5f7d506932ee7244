//! A lane: one account in one region. [`job`] handles one job from delivery to ack, [`verdict`] decides what an answer
//! means, [`quota`] keeps the lane to its rate, and [`LaneRole`] is the role that one replica at a time holds.

mod breaker;
mod calls;
mod descents;
mod history;
mod intake;
mod job;
mod one_at_a_time;
mod outbox;
mod parts;
mod prefetch;
mod quarantine;
pub mod quota;
mod serve;
mod status;
pub mod verdict;

use std::sync::Arc;

use jiff::Timestamp;
use lapin::BasicProperties;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use self::parts::Session;
pub use self::parts::{Lane, Settings};
pub use self::status::statuses;
use crate::broker::Outgoing;
use crate::events::{CONTENT_TYPE, Data, Event, LaneHeld};
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
        let before = async {
            let announced = announce(&session).await?;
            history::replay(&lane.history, lane.reader.read_back(lane.name()), &announced).await;
            // No delivery is in hand before calls are allowed: it would be suspected if the process ended now.
            sleep_until(first_call).await;
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
            never = lane.gate.show_rate() => match never {},
            never = lane.calls.polls.make() => match never {},
            never = lane.metrics.log() => match never {},
        }
    }
}

/// Publishes that the lane is held: commands learn the names of lanes from it. Returns the event's id.
async fn announce(session: &Session) -> Result<String, lapin::Error> {
    let lane = &session.lane;
    let held = LaneHeld { lane: lane.name().to_owned(), replica: Some(Replica::this()) };
    let event = Event::new(lane.name(), Data::LaneHeld(held), Timestamp::now());
    let properties =
        BasicProperties::default().with_content_type(CONTENT_TYPE.into()).with_message_id(event.id.as_str().into());
    let (exchange, key) = (lane.settings.names.outcomes(), format!("{}.held", lane.name()));
    let body = event.to_bytes();
    session.outbox.event(Outgoing { exchange, key, properties, body }).await.map(|_confirmed| event.id)
}
