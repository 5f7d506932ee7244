//! One run: fill, start, wait for the last job, read its usage, stop, check that nothing was requeued.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::broker::Broker;
use crate::client::{self, Client, Kind, Surroundings};
use crate::floor;
use crate::usage;

/// How often the queue is counted: the error of a measured time.
const POLL: Duration = Duration::from_millis(20);
/// After its outcome a job has yet to be acked: waited for, not measured.
const LAST_ACKS: Duration = Duration::from_millis(300);
/// A client slower than this is broken, and the run is given up.
const SLOWEST_JOBS_PER_SECOND: u32 = 400;

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    pub jobs_per_second: f64,
    /// Seconds of all cores together for 10,000 jobs.
    pub cpu_per_10_000: f64,
    /// The same of the broker: what the client asks of it, which decides jobs/s once cores are short.
    pub broker_cpu_per_10_000: f64,
    pub peak_rss_mib: f64,
}

pub async fn measure(kind: Kind, jobs: u32, broker: &Broker, surroundings: &Surroundings) -> Result<Figures> {
    let queue = kind.queue();
    let (exchange, routing_key) = kind.address();
    broker.purge(&queue).await?;
    broker.purge(floor::OUTCOMES).await?;
    broker.fill(exchange, routing_key, jobs).await?;
    let filled = broker.ready(&queue).await?;
    ensure!(filled == jobs, "{queue} holds {filled} jobs instead of {jobs}");

    let mut client = Client::start(kind, surroundings)?;
    let pid = client.process.id();
    let api = client::http()?;
    let limit = Duration::from_secs(30) + Duration::from_secs(1) * (jobs / SLOWEST_JOBS_PER_SECOND);
    let launched = Instant::now();
    let cpu = || Ok::<_, anyhow::Error>((usage::cpu(pid)?, usage::cpu(surroundings.broker_pid)?));
    // Time and CPU count from the last check before the first job was consumed: connecting is not measured.
    let (mut began, mut cpu_before) = (Instant::now(), cpu()?);
    let elapsed = loop {
        client.process.check()?;
        let waiting = broker.ready(&queue).await?;
        if waiting == jobs {
            (began, cpu_before) = (Instant::now(), cpu()?);
        } else if waiting == 0 && client.finished(broker, &api).await? >= jobs {
            break began.elapsed();
        }
        ensure!(launched.elapsed() < limit, "{waiting} of {jobs} jobs still wait in {queue} after {limit:?}");
        tokio::time::sleep(POLL).await;
    };
    tokio::time::sleep(LAST_ACKS).await;
    let cpu_after = cpu()?;
    let peak_rss_mib = usage::peak_rss_mib(pid)?;
    let finished = client.finished(broker, &api).await?;
    ensure!(finished == jobs, "{finished} outcomes for {jobs} jobs");
    drop(client);
    // Unacked jobs are back in the queue now.
    let returned = broker.ready(&queue).await?;
    ensure!(returned == 0, "{returned} of {jobs} jobs were never acked");

    let jobs = f64::from(jobs);
    let per_10_000 = |before: Duration, after: Duration| (after - before).as_secs_f64() * 10_000.0 / jobs;
    Ok(Figures {
        jobs_per_second: jobs / elapsed.as_secs_f64(),
        cpu_per_10_000: per_10_000(cpu_before.0, cpu_after.0),
        broker_cpu_per_10_000: per_10_000(cpu_before.1, cpu_after.1),
        peak_rss_mib,
    })
}
