//! `reveille run`: the daemon, wired together.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use super::Failure;
use crate::broker::{self, Connection, Names, Replies, Topology};
use crate::config::Config;
use crate::lane::{Lane, LaneError, Stop};
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

    let connecting =
        broker::connect_patiently(&config.broker, "reveille", |error| readiness.broker(&error.to_string()));
    let connection = tokio::select! {
        () = stop.requested() => return Ok(ExitCode::SUCCESS),
        connection = connecting => Arc::new(connection),
    };
    metrics.broker_connected.set(1);
    readiness.broker(CONNECTED);

    let served = serve(&config, &connection, &metrics, &readiness, &stop).await;
    metrics.broker_connected.set(0);
    if let Err(failure) = &served {
        readiness.broker(&failure.to_string());
        // For a supervisor to start us again. Whatever was not acked is with the broker still, so nothing is lost.
        error!("stopping: {failure}");
    }
    if let Some(connection) = Arc::into_inner(connection) {
        connection.close().await;
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// Declares the topology and runs every lane, until all are given back or the connection is lost.
async fn serve(
    config: &Config,
    connection: &Arc<Connection>,
    metrics: &Metrics,
    readiness: &Arc<Readiness>,
    stop: &Stop,
) -> Result<(), Failure> {
    let names = Names::new(&config.broker.prefix);
    let unreachable =
        |error: &dyn std::fmt::Display| Failure::Unreachable(format!("the connection to RabbitMQ is lost: {error}"));
    let channel = connection.channel().await.map_err(|error| unreachable(&error))?;
    let declared = Topology::new(&names, config.lanes.iter().map(|lane| &lane.name)).declare(&channel).await;
    declared.map_err(
        |error| {
            if error.is_refusal() { Failure::Usage(error.to_string()) } else { unreachable(&error) }
        },
    )?;

    let publisher = connection.publisher();
    let replies = Arc::new(Replies::new(config.broker.clone()));
    let mut lanes: JoinSet<Result<(), LaneError>> = JoinSet::new();
    for lane in &config.lanes {
        let (connection, readiness, stop) = (connection.clone(), readiness.clone(), stop.clone());
        let metrics = metrics.lane(lane.name.as_str());
        let lane = Lane::new(lane, config.retry, &names, publisher.clone(), replies.clone(), metrics)
            .map_err(|error| Failure::Usage(format!("lane {}: {error:#}", lane.name)))?;
        lanes.spawn(async move { Arc::new(lane).run(&connection, &readiness, &stop).await });
    }
    tokio::select! {
        ended = all(lanes) => ended.map_err(|error| unreachable(&error)),
        reason = connection.lost() => Err(unreachable(&reason)),
    }
    // What is in flight is dropped here with its tasks: the broker gives it to whoever holds the baton next.
}

async fn all(mut lanes: JoinSet<Result<(), LaneError>>) -> Result<(), LaneError> {
    while let Some(ended) = lanes.join_next().await {
        match ended {
            Ok(ended) => ended?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }
    Ok(())
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
