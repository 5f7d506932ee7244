//! From standing by to a term, and back.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info};

use super::{Baton, FIRST_RETRY, Interrupted, LONGEST_RETRY, Lease, SUBSCRIBE_TIMEOUT, Sharing};
use crate::broker::{Connection, Connections, Place};
use crate::retry::full_jitter;
use crate::stop::Stop;

/// How long the previous holder may still act once the baton has come to us. If the cluster loses a node, the other
/// nodes give its baton away at once, but it has to stop itself before it drops its clients: up to 0.7 s, as measured
/// on a busy machine. The lease covers a replica that is not dropped at all.
pub const OVERLAP: Duration = Duration::from_secs(1);

/// Pause before using a queue again whose subscription has ended. RabbitMQ reports a deleted quorum queue a moment
/// before it forgets the queue, and may close the connection of a client that subscribes or first publishes to it then.
const SETTLE: Duration = Duration::from_millis(500);

/// Longest wait until a lost connection is recorded as such, before another one is requested.
const LOSS_TOLD: Duration = Duration::from_secs(1);

/// The relation of this replica to a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// There is no connection, or no subscription yet.
    Waiting,
    /// Another replica may hold it.
    StandingBy,
    /// This replica holds it.
    Held,
}

/// What one replica at a time does.
pub trait Role: Send + Sync {
    /// Its name, unique among roles.
    fn name(&self) -> &str;
    /// What it is, such as `lane`, for the log.
    fn kind(&self) -> &'static str;
    /// Waits for a place on a connection.
    fn place(&self, connections: &Connections) -> impl Future<Output = Place> + Send;
    /// The queue of its batons.
    fn batons(&self) -> String;
    /// The lease, renewed during a term.
    fn lease(&self) -> &Lease;
    /// Records this replica's standing.
    fn stands(&self, standing: Standing);
    /// Does the role's work until the term ends. It is dropped if the term ends at once.
    ///
    /// # Errors
    /// [`Interrupted`]: all unacked messages go back to their queues with the channels.
    fn serve(&self, term: &Term<'_>) -> impl Future<Output = Result<(), Interrupted>> + Send;
}

/// A role while this replica holds it.
#[derive(Debug)]
pub struct Term<'a> {
    /// The connection over which it is held.
    pub connection: &'a Connection,
    /// Requested when the process stops, or when the role has to go to another replica.
    pub stop: Stop,
}

/// Why a role is no longer held over a connection.
enum Ended {
    Stopped,
    Lost,
}

/// Stands by for `role`, and holds it whenever this replica gets it, until `stop` is requested, over one connection
/// after the other.
pub async fn hold(role: &impl Role, connections: &Connections, sharing: &Arc<Sharing>, stop: &Stop) {
    loop {
        let placed = async {
            sharing.stagger().await;
            role.place(connections).await
        };
        let place = tokio::select! {
            () = stop.requested() => return,
            place = placed => place,
        };
        tokio::select! {
            ended = hold_over(role, place.connection(), sharing, stop) => match ended {
                Ended::Stopped => return,
                Ended::Lost => drop(timeout(LOSS_TOLD, place.lost()).await),
            },
            () = place.lost() => {}
        }
        role.stands(Standing::Waiting);
    }
}

/// The same over one connection: again if only a channel broke, which does not affect other roles, or if another
/// replica got the role, since that one may go. If the connection is lost, all unacked messages are requeued.
async fn hold_over(role: &impl Role, connection: &Connection, sharing: &Arc<Sharing>, stop: &Stop) -> Ended {
    let mut failures = 0;
    loop {
        let since = Instant::now();
        let (baton, error) = match stand_by(role, connection, sharing, stop).await {
            Ok(()) if stop.is_requested() => return Ended::Stopped,
            Ok(()) => continue,
            Err(Broken { baton, error }) => (baton, error),
        };
        if !connection.is_open() {
            return Ended::Lost;
        }
        failures = if since.elapsed() > LONGEST_RETRY { 1 } else { failures + 1 };
        error!("the {} is run anew: {error}", role.kind());
        role.stands(Standing::Waiting);
        let anew = async {
            sleep(SETTLE).await;
            // Not earlier: another replica would subscribe to the role's queues at once.
            drop(baton);
            connection.something_is_missing();
            sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
        };
        tokio::select! {
            () = stop.requested() => return Ended::Stopped,
            () = anew => {}
        }
    }
}

/// An interrupted term, or wait for one. The baton is still held, if there was one.
struct Broken {
    baton: Option<Baton>,
    error: Interrupted,
}

/// Stands by for the baton, holds the role with it, and gives it back when `stop` or `sharing` asks for that.
async fn stand_by(
    role: &impl Role,
    connection: &Connection,
    sharing: &Arc<Sharing>,
    stop: &Stop,
) -> Result<(), Broken> {
    let subscribed = tokio::select! {
        () = stop.requested() => return Ok(()),
        subscribed = subscribe(role, connection) => subscribed,
    };
    let mut baton = subscribed.map_err(|error| Broken { baton: None, error })?;
    let _in_line = sharing.in_line(role.name());
    role.stands(Standing::StandingBy);
    match take_and_serve(role, &mut baton, connection, sharing, stop).await {
        Ok(()) => baton.give_back().await,
        Err(error) => return Err(Broken { baton: Some(baton), error }),
    }
    Ok(())
}

async fn take_and_serve(
    role: &impl Role,
    baton: &mut Baton,
    connection: &Connection,
    sharing: &Arc<Sharing>,
    stop: &Stop,
) -> Result<(), Interrupted> {
    let taken = async {
        baton.held(connection).await?;
        Ok::<_, Interrupted>(sharing.accept(role.name(), connection).await)
    };
    let taken = tokio::select! {
        biased;
        () = stop.requested() => return Ok(()),
        taken = taken => taken?,
    };
    // Otherwise it is passed on.
    let Some(hold) = taken else { return Ok(()) };
    let term = Term { connection, stop: stop.or(hold.asked_back()) };
    role.stands(Standing::Held);
    tokio::select! {
        served = role.serve(&term) => served?,
        lost = baton.keep(role.lease(), connection.heartbeat()) => lost?,
    }
    role.stands(Standing::StandingBy);
    info!("{} given back", role.kind());
    Ok(())
}

async fn subscribe(role: &impl Role, connection: &Connection) -> Result<Baton, Interrupted> {
    let queue = role.batons();
    let mut subscribing = std::pin::pin!(Baton::subscribe(connection, queue.clone()));
    loop {
        match timeout(SUBSCRIBE_TIMEOUT, &mut subscribing).await {
            Ok(subscribed) => return subscribed,
            // A broker that blocks publishers would block them on another connection too, and would keep the
            // connections that were given up meanwhile.
            Err(_) if connection.is_blocked() => {}
            Err(_) => return Err(Interrupted::NoBaton(queue)),
        }
    }
}
