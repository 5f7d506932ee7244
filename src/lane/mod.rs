//! A lane: one account in one region. [`run`] is the way of a job, [`verdict`] decides what an answer means, and the
//! rest keeps the lane to its rate and to one replica at a time.

mod balance;
mod baton;
mod breaker;
mod call;
mod company;
mod confirm;
mod descents;
mod gathering;
mod intake;
mod keys;
mod lease;
mod limiter;
mod memory;
mod pace;
mod plan;
mod polls;
mod recall;
mod roll_call;
mod run;
mod seal;
mod serve;
mod share;
mod slots;
mod spare;
mod stop;
mod survived;
pub mod verdict;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{error, info, warn};

pub use self::balance::Balance;
use self::baton::Baton;
use self::breaker::{Attribution, Breaker, Cause, CauseKind, Change, Evidence, Recorded};
use self::descents::Descents;
use self::intake::{left_to_starts, prefetch};
use self::lease::Lease;
use self::limiter::Limiter;
use self::memory::Memory;
use self::plan::{Plan, Way};
use self::polls::Polls;
use self::seal::Seals;
use self::spare::Spare;
pub use self::stop::Stop;
use self::survived::Survived;
use self::verdict::Verdict;
use crate::bce::{Answer, Client, CredentialSource, Endpoint, InstanceId, NoAnswer};
use crate::broker::{Connection, Connections, Delivery, Names, Outgoing, Publisher, Reader, Replies, Room, Traffic};
use crate::config;
use crate::job::{Confirm, Conflict};
use crate::outcome;
use crate::retry::full_jitter;
use crate::telemetry::{LaneMetrics, LaneState, Readiness};

/// What lasts of a lane while connections come and go.
#[derive(Debug)]
pub struct Lane {
    name: config::LaneName,
    conflict: Conflict,
    confirm: Confirm,
    confirm_timeout: Duration,
    retry: config::Retry,
    /// API calls in flight, at most.
    concurrency: u32,
    /// How long a call may take.
    call_timeout: Duration,
    /// Jobs that may be called together.
    batch: usize,
    /// API calls a second, as configured.
    rate: f64,
    names: Names,
    endpoint: Endpoint,
    credentials: CredentialSource,
    client: Client,
    /// The same, with a connection for each call.
    fresh: Client,
    limiter: Limiter,
    polls: Polls,
    spare: Spare,
    memory: Memory,
    seals: Seals,
    survived: Arc<Survived>,
    plan: Plan,
    lease: Lease,
    descents: Descents,
    replies: Arc<Replies>,
    /// Reads back what was said.
    reader: Arc<Reader>,
    metrics: LaneMetrics,
    breaker: Breaker,
    /// Held while a probe asks whether the API is there, for all calls that want to know.
    probing: Mutex<()>,
}

/// Groups of messages of each of a lane's two publishers that are on their way at a time, each over a channel.
const GROUPS: usize = 4;

/// Ceilings of the delay before a lane whose channel broke is run again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// How long a queue whose subscription has ended is left alone. RabbitMQ tells of a deleted quorum queue a moment before it
/// has forgotten the queue, and may end the connection of whoever subscribes to it or first publishes to it then.
const SETTLE: Duration = Duration::from_millis(500);

/// How long the replica before may call on once the baton has come to us. Where a node is lost sight of, the others give
/// its baton away at once, but it has first to stop itself before it drops its clients: up to 0.7 s, as measured on a busy
/// machine. The lease is for who is not dropped at all.
const OVERLAP: Duration = Duration::from_secs(1);

/// A pause of up to this long is no reason to begin slowly: an API that was away for a moment bears the whole rate.
const HICCUP: Duration = Duration::from_secs(5);

/// How long subscribing to the baton may take. Nothing is in hand then, so it costs nothing to begin anew.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest wait for what is known of a lost connection, before another one is asked for.
const LOSS_TOLD: Duration = Duration::from_secs(1);

/// Why a lane is no longer run over a connection.
enum Ended {
    Stopped,
    Lost,
}

/// Why a lane stopped before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The channel or the connection broke.
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    /// The broker ended a subscription: its queue was deleted, its node went, or, from RabbitMQ 4.3 on, a delivery was held
    /// for too long.
    #[error(
        "the broker ended the subscription to {0}: was the queue deleted, or a delivery held longer than its consumer_timeout?"
    )]
    Cancelled(String),
    /// The subscription to the baton has ended without a word of the broker's.
    #[error("the broker forgot the subscription to {0}: was the queue deleted?")]
    Forgotten(String),
    /// Subscribing to the baton took too long.
    #[error("the broker did not let us subscribe to {0} within {SUBSCRIBE_TIMEOUT:?}")]
    NoBaton(String),
}

impl Lane {
    /// The lane that `lane` describes.
    ///
    /// # Errors
    /// What keeps its client from being set up: its keys, or TLS.
    pub fn new(
        lane: &config::Lane,
        retry: config::Retry,
        names: &Names,
        replies: Arc<Replies>,
        reader: Arc<Reader>,
        metrics: LaneMetrics,
    ) -> anyhow::Result<Self> {
        let credentials = lane.credentials.load()?;
        let seals = Seals::new(lane.name.as_str(), credentials.secret_access_key.expose_secret());
        let concurrency = lane.concurrency as usize;
        let client = Client::new(lane.endpoint.clone(), credentials, lane.timeouts, concurrency)?
            .with_reading(lane.reading.clone());
        let starts = left_to_starts(lane.rate, lane.confirm_share);
        metrics.paused(None, &CauseKind::ALL.map(CauseKind::as_str));
        Ok(Self {
            name: lane.name.clone(),
            conflict: lane.conflict,
            confirm: lane.confirm,
            confirm_timeout: lane.confirm_timeout,
            retry,
            concurrency: lane.concurrency,
            call_timeout: lane.timeouts.total,
            batch: lane.batch as usize,
            rate: lane.rate,
            names: names.clone(),
            endpoint: lane.endpoint.clone(),
            credentials: lane.credentials.clone(),
            fresh: client.fresh(),
            client,
            limiter: Limiter::new(lane.rate, lane.burst),
            polls: Polls::new(lane.confirm_share, lane.concurrency, prefetch(starts, starts, lane.concurrency, 1)),
            spare: Spare::new(lane.concurrency),
            memory: Memory::new(),
            seals,
            survived: Arc::default(),
            plan: Plan::default(),
            lease: Lease::new(),
            descents: Descents::default(),
            replies,
            reader,
            metrics,
            breaker: Breaker::new(lane.rate, concurrency),
            probing: Mutex::default(),
        })
    }

    /// Waits until the replies that were to be sent are, or cannot be: ten seconds at most.
    pub async fn replies_sent(&self) {
        self.replies.sent().await;
    }

    /// The lane's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Runs the lane until `stop` says so, over one connection after the other.
    pub async fn run(
        self: Arc<Self>,
        connections: &Connections,
        readiness: &Readiness,
        balance: &Arc<Balance>,
        stop: &Stop,
    ) {
        loop {
            let placed = async {
                balance.turn().await;
                connections.place().await
            };
            let place = tokio::select! {
                () = stop.requested() => return,
                place = placed => place,
            };
            tokio::select! {
                ended = self.clone().run_over(place.connection(), readiness, balance, stop) => match ended {
                    Ended::Stopped => return,
                    Ended::Lost => drop(timeout(LOSS_TOLD, place.lost()).await),
                },
                () = place.lost() => {}
            }
            self.dropped(readiness);
        }
    }

    /// Runs the lane until `stop` says so; again where only a channel broke, which is nothing to the other lanes, and
    /// where the lane was given to another replica, since that one may go. Where the connection is lost, everything unacked
    /// goes back to its queue.
    async fn run_over(
        self: Arc<Self>,
        connection: &Connection,
        readiness: &Readiness,
        balance: &Arc<Balance>,
        stop: &Stop,
    ) -> Ended {
        let mut failures = 0;
        loop {
            let since = Instant::now();
            let mut baton = None;
            let error = match self.clone().stand_by_and_run(&mut baton, connection, readiness, balance, stop).await {
                Ok(()) if stop.is_requested() => return Ended::Stopped,
                Ok(()) => continue,
                Err(error) => error,
            };
            if !connection.is_open() {
                return Ended::Lost;
            }
            failures = if since.elapsed() > LONGEST_RETRY { 1 } else { failures + 1 };
            error!(lane = %self.name, "the lane is run anew: {error}");
            self.dropped(readiness);
            let anew = async {
                sleep(SETTLE).await;
                // Given back no earlier: another replica would subscribe to the lane's queues at once.
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

    /// Stands by for the baton, runs the lane while holding it, and gives it back when `stop` or `balance` says so.
    ///
    /// # Errors
    /// [`LaneError`]: everything unacked goes back to its queue with the channels, but for what is left in `baton`.
    async fn stand_by_and_run(
        self: Arc<Self>,
        baton: &mut Option<Baton>,
        connection: &Connection,
        readiness: &Readiness,
        balance: &Arc<Balance>,
        stop: &Stop,
    ) -> Result<(), LaneError> {
        let subscribed = tokio::select! {
            () = stop.requested() => return Ok(()),
            subscribed = self.subscribe(connection) => subscribed?,
        };
        let in_line = baton.insert(subscribed);
        let _in_line = balance.in_line(self.name());
        readiness.lane(self.name(), LaneState::StandingBy);
        let taken = async {
            in_line.held(connection).await?;
            Ok::<_, LaneError>(balance.take(self.name(), connection).await)
        };
        tokio::select! {
            biased;
            () = stop.requested() => {}
            taken = taken => if let Some(hold) = taken? {
                let stop = &stop.or(hold.asked_back());
                self.metrics.held.set(1);
                readiness.lane(self.name(), LaneState::Held);
                info!(lane = %self.name, endpoint = %self.endpoint, "lane held");
                let first_call = Instant::now() + OVERLAP;
                self.limiter.empty(OVERLAP);
                let tenure = Arc::new(Tenure::new(self.clone(), connection));
                let before = async {
                    recall::recall(&tenure, &tenure.announce().await?).await;
                    // A message in hand that cannot be called yet would be blamed for it, should this process end now.
                    sleep_until(first_call).await;
                    Ok::<_, LaneError>(())
                };
                let serving = async {
                    // Where no queue takes events nothing can be acked either, but a stop need not wait for that.
                    tokio::select! {
                        () = stop.requested() => {}
                        ready = before => ready?,
                    }
                    serve::serve(&tenure, connection, readiness, stop).await
                };
                tokio::select! {
                    served = serving => served?,
                    lost = in_line.keep(&self.lease, connection.heartbeat()) => lost?,
                    never = self.show_rate() => match never {},
                    never = self.make_polls() => match never {},
                }
                self.left(readiness, LaneState::StandingBy);
                info!(lane = %self.name, "lane given back");
            }
        }
        if let Some(baton) = baton.take() {
            baton.give_back().await;
        }
        Ok(())
    }

    async fn subscribe(&self, connection: &Connection) -> Result<Baton, LaneError> {
        let queue = self.names.baton_of(&self.name);
        let mut subscribing = std::pin::pin!(Baton::subscribe(connection, queue.clone()));
        loop {
            match timeout(SUBSCRIBE_TIMEOUT, &mut subscribing).await {
                Ok(subscribed) => return subscribed,
                // A broker that takes no messages would not take one over another connection either, and would keep
                // the connections that were given up until it does.
                Err(_) if connection.is_blocked() => {}
                Err(_) => return Err(LaneError::NoBaton(queue)),
            }
        }
    }

    /// Notes that the lane is not run here any more, since there is no connection.
    pub fn dropped(&self, readiness: &Readiness) {
        self.left(readiness, LaneState::Waiting);
    }

    fn left(&self, readiness: &Readiness, state: LaneState) {
        self.metrics.held.set(0);
        self.show_paused(None);
        self.metrics.rate.set(0.0);
        readiness.lane(self.name(), state);
    }

    /// How many returns of a message may be because of the message itself.
    fn suspicion(&self, delivery: &Delivery) -> i64 {
        if delivery.returns == 0 {
            // As nearly all are: no name is worked out for them.
            return 0;
        }
        delivery.returns.saturating_sub(self.survived.of(&delivery.message)).max(0)
    }

    /// How many jobs are to be called together just now, at most.
    fn company_size(&self) -> usize {
        if self.plan.way(self.batch) == Way::Singly { 1 } else { self.batch }
    }

    /// Deliveries that each of the lane's queues is to have with us just now, unacked, where they are small.
    fn prefetch(&self) -> u16 {
        let starts = |rate| left_to_starts(rate, self.polls.share.part);
        prefetch(starts(self.rate), starts(self.limiter.rate()), self.concurrency, self.company_size())
    }

    /// Waits for the right to make a call: the lane must be ours and not paused, and the limiter have a slot.
    async fn limited(&self) -> Result<(), Paused> {
        tokio::select! {
            biased;
            () = self.breaker.opened() => Err(Paused),
            () = self.slot() => Ok(()),
        }
    }

    /// Waits for a slot of the limiter while the lane is ours.
    async fn slot(&self) {
        loop {
            self.lease.valid().await;
            self.metrics.waited(self.limiter.acquire().await);
            if self.lease.is_valid() {
                return;
            }
        }
    }

    /// Shows the present rate for as long as the lane is held. It is logged when throttling slows the lane down, and
    /// when the lane is back at its configured rate, not in between.
    async fn show_rate(&self) -> Infallible {
        let mut throttled = false;
        loop {
            let rate = self.limiter.rate();
            self.metrics.rate.set(rate);
            if self.limiter.is_throttled() && !throttled {
                throttled = true;
                warn!(lane = %self.name, rate, "the API throttles: the lane slows down");
            } else if !self.limiter.is_slowed() && throttled {
                throttled = false;
                info!(lane = %self.name, rate, "the lane is back at its configured rate");
            }
            self.limiter.changed().await;
        }
    }

    /// Records what a job's start call says of the lane itself.
    fn record(&self, instance: &InstanceId, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Evidence {
        self.recorded(self.breaker.record(instance, verdict, result))
    }

    /// The same of a call that asked for states.
    fn record_poll(&self, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Evidence {
        self.recorded(self.breaker.record_poll(verdict, result))
    }

    fn recorded(&self, Recorded { change, evidence }: Recorded) -> Evidence {
        self.changed(change);
        evidence
    }

    /// Whether a job is not to pay for how its call ended, since others end so too. Where others do not show it, a probe tells
    /// whether the API is out.
    async fn is_lane_outage(&self, instance: &InstanceId, call: Evidence) -> bool {
        match self.breaker.attribute(call).await {
            Some(Attribution::Lane) => return true,
            Some(Attribution::NotFailed) => return false,
            Some(Attribution::Job) => {}
            None => {
                self.probe_once().await;
                if self.breaker.is_open() {
                    return true;
                }
            }
        }
        self.breaker.remember_failing(instance);
        false
    }

    /// Asks whether the API is there, once for all calls that want to know.
    async fn probe_once(&self) {
        let answers = self.breaker.answers();
        let _probing = self.probing.lock().await;
        if self.breaker.answers() == answers && !self.breaker.is_open() {
            self.changed(self.breaker.record_look(&self.probe().await));
        }
    }

    /// Ends a trial without a verdict, where no job is left to be tried.
    fn end_trial(&self) {
        self.changed(self.breaker.end_trial());
    }

    fn changed(&self, change: Option<Change>) {
        match change {
            Some(Change::Paused(cause)) => {
                error!(lane = %self.name, endpoint = %self.endpoint, "lane paused, its jobs wait unharmed: {}", cause.text);
            }
            Some(Change::Works(after)) => {
                if after > HICCUP {
                    self.limiter.gently();
                }
                self.show_paused(None);
                info!(lane = %self.name, "the lane works again");
            }
            None => {}
        }
    }

    fn show_paused(&self, cause: Option<&Cause>) {
        self.metrics.paused(cause.map(|cause| cause.kind.as_str()), &CauseKind::ALL.map(CauseKind::as_str));
    }
}

/// No call is to be made: the lane is paused.
#[derive(Debug)]
struct Paused;

/// A lane while it is run here, over one connection.
#[derive(Debug)]
struct Tenure {
    lane: Arc<Lane>,
    /// For outcome events. Apart from the next one, since each can be held up by queues of its own.
    outcomes: Publisher,
    /// For parked jobs and dead letters.
    jobs: Publisher,
    /// What is published has to fit into: bytes.
    frame_max: usize,
    room: Room,
}

impl Tenure {
    fn new(lane: Arc<Lane>, connection: &Connection) -> Self {
        let publisher = |traffic| connection.publisher(traffic, GROUPS);
        Self {
            lane,
            outcomes: publisher(Traffic::Outcomes),
            jobs: publisher(Traffic::Jobs),
            frame_max: connection.frame_max(),
            room: connection.room(),
        }
    }

    /// Tells that the lane is run, which is how commands learn the names of lanes. Returns the event's id.
    async fn announce(&self) -> Result<String, lapin::Error> {
        let lane = &self.lane;
        let event = outcome::lane_held(lane.name(), Timestamp::now());
        let properties = BasicProperties::default()
            .with_content_type(outcome::CONTENT_TYPE.into())
            .with_message_id(event.id.as_str().into());
        let (exchange, key) = (lane.names.outcomes(), format!("{}.held", lane.name));
        let body = event.to_bytes();
        self.outcomes.publish(Outgoing { exchange, key, properties, body }).await.map(|_confirmed| event.id)
    }
}
