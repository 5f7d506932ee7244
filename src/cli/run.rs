//! `reveille run`: the daemon, wired together.

use std::convert::Infallible;
use std::future::pending;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{Instrument, Span, error_span, info, warn};

use super::answers::Answers;
use super::{Failure, descriptors};
use crate::broker::{BrokerState, Connections, Names, Reader, Replies, Topology};
use crate::config::{self, Config};
use crate::control::Control;
use crate::control::follow::Follower;
use crate::lane::{Lane, LaneRole, Settings};
use crate::ownership::{self, Role, Sharing};
use crate::query::Responder;
use crate::scheduler::Scheduler;
use crate::stop::Stop;
use crate::tasks;
use crate::telemetry::{self, CONNECTED, Metrics, Readiness};

pub(super) const AFTER_HELP: &str = "\
Examples:
  reveille run --config /etc/reveille/reveille.toml
  REVEILLE_LANE__0__NAME=prod-bj REVEILLE_LANE__0__BATCH=20 reveille run

Environment:
  BCE_ACCESS_KEY_ID, BCE_SECRET_ACCESS_KEY, BCE_SESSION_TOKEN
          The keys of lanes that have no credentials_file.
  REVEILLE_BROKER__URL, REVEILLE_BROKER__PASSWORD, REVEILLE_LANE__0__RATE, …
          Any setting, as REVEILLE_TABLE__KEY. It takes precedence over the file.
  RUST_LOG
          What is logged: reveille=debug, for instance, adds a line for each step of each job.
  HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE
          Proxies on the way to the API, and the certificates that are trusted in place of the system's.";

pub(super) async fn run(config: Config) -> Result<ExitCode, Failure> {
    telemetry::init_logs().map_err(Failure::Usage)?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    descriptors::reserve(&config.lanes)?;
    let metrics = Metrics::new();
    let readiness = Arc::new(Readiness::new(config.lanes.iter().map(|lane| lane.name.as_str())));
    let listen = config.http.listen;
    let listener = telemetry::bind(listen).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {listen} for metrics and health: {error}; set http.listen")
    })?;
    info!(version = env!("CARGO_PKG_VERSION"), http = %listener.local_addr().unwrap_or(listen), "reveille runs");

    let (request, stop) = Stop::new(config.shutdown.grace);
    let signals = Signals::open().map_err(|error| anyhow::anyhow!("cannot listen to signals: {error}"))?;
    tokio::spawn(signals.obey(request));

    let names = Names::new(&config.broker.prefix);
    let control = Arc::new(Control::default());
    let lanes = lanes(&config, &names, &control, &metrics)?;
    // Only now, so that the first scrape sees every lane.
    tokio::spawn(telemetry::serve(listener, metrics.clone(), readiness.clone()));
    for lane in &lanes {
        let (span, lane) = (lane.span(), lane.clone());
        tokio::spawn(async move { lane.follow_keys().await }.instrument(span));
    }
    let daemon = Daemon { config, names, control, lanes, metrics, readiness, stop };
    daemon.run().await.map(|()| ExitCode::SUCCESS)
}

/// Events of the log that a take-over of a lane reads back: far more than the lane can have had in hand, and read in a
/// tenth of a second …
const EVENTS: u32 = 4_000;
/// … and more of them for each further lane, whose events are among them.
const EVENTS_OF_ANOTHER: u32 = 100;

fn lanes(config: &Config, names: &Names, control: &Arc<Control>, metrics: &Metrics) -> Result<Vec<Arc<Lane>>, Failure> {
    let others = u32::try_from(config.lanes.len() - 1).unwrap_or(u32::MAX);
    let events = EVENTS.saturating_add(others.saturating_mul(EVENTS_OF_ANOTHER));
    let reader = Arc::new(Reader::new(config.broker.clone(), names.outcomes_log(), events));
    let lane = |lane: &config::Lane| {
        if let Some(proxy) = lane.endpoint.proxy() {
            let (name, variable, address) = (&lane.name, proxy.variable(), proxy.address());
            info!(lane = name.as_str(), proxy = address, "calls go through the proxy of {variable}");
        }
        let metrics = metrics.lane(lane.name.as_str(), &lane.reading.codes.reasons());
        let replies = Arc::new(Replies::new(config.broker.clone()));
        let settings = Settings { lane: lane.clone(), retry: config.retry, names: names.clone() };
        let built = Lane::new(settings, replies, reader.clone(), control.clone(), metrics);
        built.map(Arc::new).map_err(|error| Failure::Usage(format!("lane {}: {error:#}", lane.name)))
    };
    config.lanes.iter().map(lane).collect()
}

/// On a stop, lanes are given back within the grace period plus the broker's answers: time for the latter.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// The parts that outlive connections.
struct Daemon {
    config: Config,
    names: Names,
    control: Arc<Control>,
    lanes: Vec<Arc<Lane>>,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    stop: Stop,
}

impl Daemon {
    /// Connects, and runs every lane until a stop is requested.
    async fn run(&self) -> Result<(), Failure> {
        let lost = self.metrics.queues_lost.clone();
        let topology = Topology::new(&self.names, self.config.lanes.iter().map(|lane| &lane.name))
            .telling_losses(move |queues| lost.inc_by(queues as u64));
        let show = show_broker(self.readiness.clone(), self.metrics.clone());
        let connections = Connections::new(self.config.broker.clone(), topology, self.lanes.len(), show);
        tokio::select! {
            () = self.stop.requested() => return Ok(()),
            opened = connections.open_first() => opened.map_err(|error| Failure::Usage(error.to_string()))?,
        }
        self.serve(&connections).await;
        let replies = join_all(self.lanes.iter().map(|lane| lane.replies_sent()));
        // All replies have timed out by then.
        let _ = timeout(self.stop.grace, replies).await;
        connections.close().await;
        Ok(())
    }

    /// Runs every lane and the scheduler, until all are given back or the time of a stop is over.
    async fn serve(&self, connections: &Connections) {
        let mut roles: JoinSet<Result<(), Infallible>> = JoinSet::new();
        let sharing = Sharing::new(&self.names, self.lanes.len(), &self.metrics);
        for lane in self.lanes.iter().cloned() {
            let span = lane.span();
            let role = LaneRole { lane, readiness: self.readiness.clone() };
            self.hold(role, connections, &sharing, span, &mut roles);
        }
        let commands = self.commands();
        let scheduler = Scheduler::new(&self.config, &self.names, &self.control, &self.metrics);
        let alone = Sharing::of_one(&self.names, &self.metrics);
        self.hold(scheduler, connections, &alone, error_span!(parent: None, "scheduler"), &mut roles);
        let responder = Responder::new(self.config.broker.clone(), self.names.clone());
        let answers = Answers::new(self.lanes.clone(), self.readiness.clone());
        tokio::select! {
            Ok(()) = tasks::all(&mut roles) => {}
            never = connections.keep_declared() => match never {},
            never = sharing.keep_even(connections, &self.stop) => match never {},
            never = commands.follow(connections) => match never {},
            never = responder.run(connections, |query, body| answers.to(query, body)) => match never {},
            () = self.stop_is_overdue(connections) => {
                warn!("not all lanes could be given back in time: what is in flight goes back to its queue");
            }
        }
        // Aborted and awaited, so that no lane's task acks anything after the connections are closed.
        roles.shutdown().await;
    }

    /// Holds `role` in a task of its own whenever this replica gets it.
    fn hold(
        &self,
        role: impl Role + 'static,
        connections: &Connections,
        sharing: &Arc<Sharing>,
        span: Span,
        tasks: &mut JoinSet<Result<(), Infallible>>,
    ) {
        let (connections, sharing, stop) = (connections.clone(), sharing.clone(), self.stop.clone());
        let held = async move {
            ownership::hold(&role, &connections, &sharing, &stop).await;
            Ok(())
        };
        tasks.spawn(held.instrument(span));
    }

    /// Follows the commands, for all lanes.
    fn commands(&self) -> Follower {
        let (lanes, held, metrics) = (self.lanes.clone(), self.lanes.clone(), self.metrics.clone());
        let name = |lane: &Arc<Lane>| lane.name().to_owned();
        Follower {
            broker: self.config.broker.clone(),
            names: self.names.clone(),
            control: self.control.clone(),
            changed: Box::new(move || lanes.iter().for_each(|lane| lane.obey())),
            held: Box::new(move || held.iter().filter(|lane| lane.is_held()).map(name).collect()),
            show: Box::new(move |is_followed| metrics.control_followed.set(is_followed.into())),
        }
    }

    /// Waits until a stop is requested and its time is over. While the broker blocks publishers lapin sends nothing at
    /// all, so waiting longer would not give back any lane.
    async fn stop_is_overdue(&self, connections: &Connections) {
        self.stop.requested().await;
        sleep(self.stop.grace).await;
        if !connections.is_blocked() {
            sleep(GIVING_BACK).await;
        }
    }
}

/// Shows the state of the broker's connections in `/readyz` and in the metrics.
fn show_broker(readiness: Arc<Readiness>, metrics: Metrics) -> impl Fn(&BrokerState) {
    move |state| {
        let (shown, connected, blocked) = match state {
            BrokerState::Connected => (CONNECTED.to_owned(), true, false),
            BrokerState::Blocked(reason) => (format!("blocked: {reason}"), true, true),
            BrokerState::Disconnected(reason) => (reason.clone(), false, false),
        };
        readiness.broker(&shown);
        metrics.broker_connected.set(connected.into());
        metrics.broker_blocked.set(blocked.into());
        if !connected {
            metrics.replicas.set(0);
        }
    }
}

/// SIGTERM, SIGINT and SIGHUP.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` if it is ignored.
    hangup: Option<Signal>,
}

impl Signals {
    fn open() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The first one requests a graceful stop. The second exits at once, unless it is SIGHUP: closing a terminal sends
    /// that twice, and systemd (`SendSIGHUP=`) sends it right after SIGTERM.
    async fn obey(mut self, request: watch::Sender<bool>) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = hung_up(&mut self.hangup) => {}
        }
        info!("stopping: jobs in flight are finished; a second signal, SIGTERM or SIGINT, stops at once");
        request.send_replace(true);
        let signal = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        warn!("stopping at once: what is in flight goes back to its queue");
        // The exit code that a shell shows for a process ended by a signal.
        std::process::exit(128 + signal.as_raw_value());
    }
}

/// Never returns if the signal is ignored.
async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => pending().await,
    }
}

/// Whether the process was started with SIGHUP ignored, as `nohup` does: a handler would undo that. Read from Linux'
/// /proc; elsewhere it counts as not ignored.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // One bit per signal, beginning with the first.
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (SignalKind::hangup().as_raw_value() - 1)) != 0)
}
