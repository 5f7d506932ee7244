//! `reveille run`: the daemon, wired together.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::Failure;
use crate::broker::{self, Connection, Names, Reader, Replies, Topology};
use crate::config::{self, Config};
use crate::lane::{self, Balance, Lane, LaneError, Stop};
use crate::retry::full_jitter;
use crate::tasks;
use crate::telemetry::{self, CONNECTED, Metrics, Readiness};

pub(super) async fn run(config: Config) -> Result<ExitCode, Failure> {
    telemetry::init_logs().map_err(Failure::Usage)?;
    let metrics = Metrics::new();
    let readiness = Arc::new(Readiness::new(config.lanes.iter().map(|lane| lane.name.as_str())));
    let listen = config.http.listen;
    let listener = telemetry::bind(listen).await.map_err(|error| {
        anyhow::anyhow!("cannot listen on {listen} for metrics and health: {error}; set http.listen")
    })?;
    info!(version = env!("CARGO_PKG_VERSION"), http = %listener.local_addr().unwrap_or(listen), "reveille runs");
    tokio::spawn(telemetry::serve(listener, metrics.clone(), readiness.clone()));

    let (request, stop) = Stop::new(config.shutdown.grace);
    let signals = Signals::open().map_err(|error| anyhow::anyhow!("cannot listen to signals: {error}"))?;
    tokio::spawn(signals.obey(request));

    let names = Names::new(&config.broker.prefix);
    let lanes = lanes(&config, &names, &metrics)?;
    for lane in &lanes {
        tokio::spawn(lane.clone().follow_keys());
    }
    let daemon = Daemon { config, names, lanes, metrics, readiness, stop };
    daemon.run().await.map(|()| ExitCode::SUCCESS)
}

fn lanes(config: &Config, names: &Names, metrics: &Metrics) -> Result<Vec<Arc<Lane>>, Failure> {
    let reader = Arc::new(Reader::new(config.broker.clone()));
    let lane = |lane: &config::Lane| {
        if let Some(proxy) = lane.endpoint.proxy() {
            let (name, variable, address) = (&lane.name, proxy.variable(), proxy.address());
            info!(lane = %name, proxy = address, "calls go through the proxy of {variable}");
        }
        let metrics = metrics.lane(lane.name.as_str());
        let replies = Arc::new(Replies::new(config.broker.clone()));
        let built = Lane::new(lane, config.retry, names, replies, reader.clone(), metrics);
        built.map(Arc::new).map_err(|error| Failure::Usage(format!("lane {}: {error:#}", lane.name)))
    };
    config.lanes.iter().map(lane).collect()
}

/// A connection that lasted this long was a good one: the next failure is the first of its kind.
const GOOD_WHILE: Duration = Duration::from_secs(60);
/// Ceilings of the delay before the next connection.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Lanes that are told to stop are given back within the grace and the broker's answers. How long those may take.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// What lasts while connections come and go.
struct Daemon {
    config: Config,
    names: Names,
    lanes: Vec<Arc<Lane>>,
    metrics: Metrics,
    readiness: Arc<Readiness>,
    stop: Stop,
}

impl Daemon {
    /// Connects, serves, and connects again whenever the connection is lost, until a stop is requested.
    async fn run(&self) -> Result<(), Failure> {
        let topology = Topology::new(&self.names, self.config.lanes.iter().map(|lane| &lane.name));
        let mut losses = 0;
        loop {
            let opening = broker::open(&self.config.broker, &topology, |error| {
                self.readiness.broker(&error.to_string());
            });
            let mut connection = tokio::select! {
                () = self.stop.requested() => return Ok(()),
                opened = opening => opened.map_err(|error| Failure::Usage(error.to_string()))?,
            };
            self.divide_channels(&mut connection)?;
            let connection = Arc::new(connection);
            let since = Instant::now();
            self.set_connected(CONNECTED, true);
            let Err(error) = self.serve(&connection, &topology).await else {
                let replies = async {
                    for lane in &self.lanes {
                        lane.replies_sent().await;
                    }
                };
                // They have given up by then.
                let _ = timeout(self.stop.grace, replies).await;
                if let Some(connection) = Arc::into_inner(connection) {
                    connection.close().await;
                }
                return Ok(());
            };
            // What was in flight is dropped: the broker gives it to whoever holds the baton next.
            error!("the connection to RabbitMQ is lost, connecting again: {error}");
            self.set_connected(&format!("lost: {error}"), false);
            for lane in &self.lanes {
                lane.dropped(&self.readiness);
            }
            drop(connection);
            losses = if since.elapsed() > GOOD_WHILE { 1 } else { losses + 1 };
            tokio::select! {
                () = self.stop.requested() => return Ok(()),
                () = sleep(full_jitter(FIRST_RETRY, LONGEST_RETRY, losses, rand::random())) => {}
            }
        }
    }

    fn divide_channels(&self, connection: &mut Connection) -> Result<(), Failure> {
        // And one to declare with, and one to count the replicas.
        let (lanes, needed, max) = (self.lanes.len(), self.lanes.len() * lane::CHANNELS + 2, connection.channel_max());
        if needed <= max {
            // A lane's baton needs no more than one. Half of the rest is left alone, since a channel that is given up
            // takes a moment to be closed.
            connection.set_alone(1 + (max - needed) / 2 / (2 * lanes));
            connection.set_lanes(lanes);
            return Ok(());
        }
        Err(Failure::Usage(format!(
            "{lanes} lanes need {needed} channels, and RabbitMQ lets a connection have {max}: raise its channel_max, or give \
             some lanes to another daemon"
        )))
    }

    fn set_connected(&self, state: &str, connected: bool) {
        self.readiness.broker(state);
        self.metrics.broker_connected.set(connected.into());
        self.metrics.broker_blocked.set(0);
        if !connected {
            self.metrics.replicas.set(0);
        }
    }

    /// Runs every lane, until all are given back, a stop has had its time, or the connection is lost.
    async fn serve(&self, connection: &Arc<Connection>, topology: &Topology) -> Result<(), LaneError> {
        let mut lanes: JoinSet<Result<(), LaneError>> = JoinSet::new();
        let balance = Balance::new(&self.names, self.lanes.len(), &self.metrics);
        for lane in self.lanes.iter().cloned() {
            let (connection, readiness, stop) = (connection.clone(), self.readiness.clone(), self.stop.clone());
            let balance = balance.clone();
            lanes.spawn(async move { lane.run(&connection, &readiness, &balance, &stop).await });
        }
        let blocked = |reason: Option<String>| match reason {
            Some(reason) => {
                warn!("RabbitMQ takes no messages, waiting: {reason}");
                self.readiness.broker(&format!("blocked: {reason}"));
                self.metrics.broker_blocked.set(1);
            }
            None => {
                info!("RabbitMQ takes messages again");
                self.set_connected(CONNECTED, true);
            }
        };
        let served = tokio::select! {
            ended = tasks::all(&mut lanes) => ended,
            error = connection.lost(blocked) => Err(error.into()),
            never = connection.keep_declared(topology) => match never {},
            never = balance.keep_even(connection, &self.stop) => match never {},
            () = self.stop_is_overdue(connection) => {
                warn!("not all lanes could be given back in time: what is in flight goes back to its queue");
                Ok(())
            }
        };
        // Aborted and waited for, so that no two generations of a lane's tasks ever run at once.
        lanes.shutdown().await;
        served
    }

    /// Waits until a stop is requested and has had its time. While the broker takes no messages lapin sends nothing at
    /// all, so no lane could be given back however long that is waited for.
    async fn stop_is_overdue(&self, connection: &Connection) {
        self.stop.requested().await;
        sleep(self.stop.grace).await;
        if !connection.is_blocked() {
            sleep(GIVING_BACK).await;
        }
    }
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn open() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// The first one asks for a graceful stop, the second stops at once.
    async fn obey(mut self, request: watch::Sender<bool>) {
        self.next().await;
        info!("stopping: jobs in flight are finished; a second signal stops at once");
        request.send_replace(true);
        let signal = self.next().await;
        warn!("stopping at once: what is in flight goes back to its queue");
        // As a shell reports a process that a signal ended.
        std::process::exit(128 + signal.as_raw_value());
    }
}
