//! The two clients that are compared: how each is started, fed and watched.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::broker::Broker;
use crate::floor;
use crate::process::Process;

const LANE: &str = "bench";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Floor,
    Daemon,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Daemon => "daemon",
        }
    }

    /// The queue of its jobs.
    pub fn queue(self) -> String {
        match self {
            Self::Floor => floor::JOBS.to_owned(),
            Self::Daemon => format!("reveille.jobs.{LANE}"),
        }
    }

    /// Exchange and routing key of its jobs.
    pub fn address(self) -> (&'static str, &'static str) {
        match self {
            Self::Floor => ("", floor::JOBS),
            Self::Daemon => ("reveille.jobs", LANE),
        }
    }
}

/// The clients' environment.
pub struct Surroundings {
    pub broker: String,
    /// The broker's own process.
    pub broker_pid: u32,
    pub api: String,
    /// Removed with the node.
    pub folder: PathBuf,
}

/// A client at work.
pub struct Client {
    pub process: Process,
    kind: Kind,
    metrics: String,
}

impl Client {
    pub fn start(kind: Kind, surroundings: &Surroundings) -> Result<Self> {
        match kind {
            Kind::Floor => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["floor", &surroundings.broker, &surroundings.api]);
                Ok(Self { process: Process::start("floor", &mut command)?, kind, metrics: String::new() })
            }
            Kind::Daemon => Self::start_daemon(surroundings),
        }
    }

    fn start_daemon(surroundings: &Surroundings) -> Result<Self> {
        let listen = free_address()?;
        let config = surroundings.folder.join("reveille.toml");
        fs::write(&config, daemon_config(&surroundings.broker, &surroundings.api, &listen))?;
        let log = File::create(daemon_log(&surroundings.folder))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_reveille"));
        // The user's own settings should not affect the figures.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("REVEILLE_") || name == "RUST_LOG" {
                command.env_remove(name);
            }
        }
        command
            .args(["run", "--config"])
            .arg(config)
            .env("BCE_ACCESS_KEY_ID", "ALTAKbenchmark")
            .env("BCE_SECRET_ACCESS_KEY", "benchmark-benchmark-benchmark-00")
            .env_remove("BCE_SESSION_TOKEN")
            .env("NO_PROXY", "127.0.0.1")
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log));
        let process = Process::start("daemon", &mut command)?;
        Ok(Self { process, kind: Kind::Daemon, metrics: format!("http://{listen}/metrics") })
    }

    /// Jobs that have ended. Asked only once the queue of jobs is empty, so that the question costs the client, and the
    /// daemon's page of metrics, next to nothing.
    ///
    /// The floor's are counted in its queue of outcomes, exactly, by the broker. Nothing on the broker counts the
    /// daemon's as exactly and as cheaply (a stream does not know its length to the message, and a quorum queue bound
    /// beside it would be work that the floor's broker does not have), so its own counter is read.
    pub async fn finished(&self, broker: &Broker, api: &reqwest::Client) -> Result<u32> {
        match self.kind {
            Kind::Floor => broker.ready(floor::OUTCOMES).await,
            Kind::Daemon => {
                let page = api.get(&self.metrics).send().await?.error_for_status()?.text().await?;
                started_jobs(&page)
            }
        }
    }
}

/// The sum of `reveille_jobs_total`, which may have only `started`: the stub has no other answer.
fn started_jobs(page: &str) -> Result<u32> {
    let mut started = 0.0;
    for line in page.lines().filter(|line| line.starts_with("reveille_jobs_total{")) {
        let (series, value) = line.rsplit_once(' ').context("a metric without a value")?;
        let value: f64 = value.parse()?;
        ensure!(value == 0.0 || series.contains("outcome=\"started\""), "a job did not start: {line}");
        started += value;
    }
    Ok(started as u32)
}

fn daemon_config(broker: &str, api: &str, listen: &str) -> String {
    // Rate and burst are practically unlimited, all else is on and at its default.
    format!(
        r#"[broker]
url = "{broker}"
[[lane]]
name = "{LANE}"
endpoint = "{api}"
rate = 1000000
burst = 1000
concurrency = 64
[http]
listen = "{listen}"
"#
    )
}

/// The log of the daemon that was started last.
pub fn daemon_log(folder: &Path) -> PathBuf {
    folder.join("daemon.log")
}

/// Everything here is on loopback, so the user's proxy must not be used.
pub fn http() -> Result<reqwest::Client> {
    reqwest::Client::builder().no_proxy().build().context("setting up an HTTP client")
}

fn free_address() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port for the daemon's metrics")?;
    Ok(listener.local_addr()?.to_string())
}

/// Declares every queue: the floor's here, the daemon's by the daemon, which is started and stopped for it.
pub async fn declare_queues(kinds: &[Kind], surroundings: &Surroundings, broker: &Broker) -> Result<()> {
    broker.declare_quorum(floor::JOBS).await?;
    broker.declare_quorum(floor::OUTCOMES).await?;
    if !kinds.contains(&Kind::Daemon) {
        return Ok(());
    }
    let mut daemon = Client::start(Kind::Daemon, surroundings)?;
    let ready = daemon.metrics.replace("/metrics", "/readyz");
    let (api, asked) = (http()?, Instant::now());
    while !api.get(&ready).send().await.is_ok_and(|answer| answer.status().is_success()) {
        daemon.process.check()?;
        if asked.elapsed() > Duration::from_secs(30) {
            bail!("the daemon is not ready after 30 s");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
