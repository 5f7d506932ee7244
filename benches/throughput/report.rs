//! The table, and whether the aims were met.

use crate::client::Kind;
use crate::measure::Figures;

/// Of the floor's jobs/s: what signing, limiting, events and metrics together may cost.
const LEAST_SPEED: f64 = 0.80;
/// Times the floor's CPU for the same jobs.
const MOST_CPU: f64 = 1.5;
const MOST_RSS_MIB: f64 = 40.0;

/// All runs of one number of jobs.
pub struct Series {
    pub jobs: u32,
    pub runs: Vec<(Kind, Figures)>,
}

impl Series {
    fn values(&self, kind: Kind, value: impl Fn(&Figures) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.runs.iter().filter(|run| run.0 == kind).map(|run| value(&run.1)).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, kind: Kind) -> Option<Figures> {
        let middle = |value: fn(&Figures) -> f64| {
            let values = self.values(kind, value);
            values.get(values.len() / 2).copied()
        };
        Some(Figures {
            jobs_per_second: middle(|figures| figures.jobs_per_second)?,
            cpu_per_10_000: middle(|figures| figures.cpu_per_10_000)?,
            broker_cpu_per_10_000: middle(|figures| figures.broker_cpu_per_10_000)?,
            peak_rss_mib: self.values(kind, |figures| figures.peak_rss_mib).pop()?,
        })
    }

    /// Prints the series; returns the aims it missed. RSS is judged by the worst run, all else by the medians.
    pub fn report(&self) -> Vec<String> {
        let title = format!("{} jobs", self.jobs);
        println!(
            "\n{title:<14}{:>8}{:>19}{:>15}{:>18}",
            "jobs/s", "CPU s per 10,000", "peak RSS MiB", "the broker's CPU"
        );
        for (kind, figures) in &self.runs {
            row(kind.name(), figures);
        }
        let (Some(floor), Some(daemon)) = (self.median(Kind::Floor), self.median(Kind::Daemon)) else {
            return Vec::new();
        };
        if self.runs.len() > 2 {
            println!("medians (of RSS, the most)");
            row("floor", &floor);
            row("daemon", &daemon);
        }
        let ratio = Figures {
            jobs_per_second: daemon.jobs_per_second / floor.jobs_per_second,
            cpu_per_10_000: daemon.cpu_per_10_000 / floor.cpu_per_10_000,
            broker_cpu_per_10_000: daemon.broker_cpu_per_10_000 / floor.broker_cpu_per_10_000,
            peak_rss_mib: daemon.peak_rss_mib / floor.peak_rss_mib,
        };
        println!(
            "{:<14}{:>8.2}{:>19.2}{:>15.2}{:>18.2}",
            "daemon / floor",
            ratio.jobs_per_second,
            ratio.cpu_per_10_000,
            ratio.peak_rss_mib,
            ratio.broker_cpu_per_10_000
        );
        missed(self.jobs, &ratio, daemon.peak_rss_mib)
    }
}

fn row(name: &str, figures: &Figures) {
    let Figures { jobs_per_second, cpu_per_10_000, broker_cpu_per_10_000, peak_rss_mib } = figures;
    println!("{name:<14}{jobs_per_second:>8.0}{cpu_per_10_000:>19.3}{peak_rss_mib:>15.1}{broker_cpu_per_10_000:>18.3}");
}

fn missed(jobs: u32, ratio: &Figures, rss: f64) -> Vec<String> {
    let speed = ratio.jobs_per_second;
    let cpu = ratio.cpu_per_10_000;
    [
        (speed < LEAST_SPEED).then(|| format!("{jobs} jobs: {speed:.2} of the floor's jobs/s, aim {LEAST_SPEED:.2}")),
        (cpu > MOST_CPU).then(|| format!("{jobs} jobs: {cpu:.2} times the floor's CPU, aim {MOST_CPU:.1}")),
        (rss > MOST_RSS_MIB).then(|| format!("{jobs} jobs: {rss:.1} MiB at the peak, aim {MOST_RSS_MIB:.0}")),
    ]
    .into_iter()
    .flatten()
    .collect()
}
