//! The real daemon.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::child::Child;
use super::stage::LANE;
use super::{eventually, http};

/// `reveille run` with a configuration of its own.
pub struct Daemon {
    pub child: Child,
    /// Used by other commands of the test too.
    pub config: Config,
}

/// A configuration file that is deleted after its test.
pub struct Config {
    pub path: PathBuf,
}

impl Config {
    pub fn write(text: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("reveille-{}-{}.toml", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&path, text).expect("the folder for test files is there");
        Self { path }
    }

    /// `reveille …` with this configuration and the simulator's keys, and nothing else from the environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reveille"));
        command
            .env_clear()
            .env("REVEILLE_CONFIG", &self.path)
            .env("BCE_ACCESS_KEY_ID", "sim-access-key")
            .env("BCE_SECRET_ACCESS_KEY", "sim-secret-key")
            .env("NO_PROXY", "127.0.0.1")
            .env("RUST_LOG", "reveille=debug")
            .args(arguments);
        command
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Daemon {
    /// Starts it, without waiting until it is ready.
    pub fn start(config: &str) -> Self {
        let config = Config::write(config);
        Self { child: Child::start(config.command(&["run"])), config }
    }

    /// Starts it with `RUST_LOG` as given.
    pub fn start_logging(config: &str, level: &str) -> Self {
        Self::start_with(config, "RUST_LOG", level)
    }

    /// Starts it with one more variable in its environment.
    pub fn start_with(config: &str, variable: &str, value: &str) -> Self {
        Self::start_in(config, &[(variable, value)])
    }

    /// Starts it with more variables in its environment.
    pub fn start_in(config: &str, environment: &[(&str, &str)]) -> Self {
        let config = Config::write(config);
        let mut command = config.command(&["run"]);
        command.envs(environment.iter().copied());
        Self { child: Child::start(command), config }
    }

    /// Starts it with these limits of open files, the soft and the hard one.
    pub fn start_limited(config: &str, soft: u64, hard: u64) -> Self {
        let config = Config::write(config);
        let reveille = config.command(&["run"]);
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -Sn "$1" && ulimit -Hn "$2" && shift 2 && exec "$@""#, "sh"]);
        command.args([soft.to_string(), hard.to_string()]).arg(reveille.get_program()).args(reveille.get_args());
        command.env_clear().envs(reveille.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self { child: Child::start(command), config }
    }

    /// SIGKILL, as by the kernel.
    pub async fn kill(&mut self) {
        self.child.signal("KILL");
        self.child.ended().await;
    }

    /// Stops it gracefully, and asserts that it exits with success.
    pub async fn stop(&mut self) {
        self.child.signal("TERM");
        assert_eq!(self.child.ended().await.code(), Some(0), "{}", self.child.output());
    }

    /// Starts it again, with the same configuration.
    pub fn start_again(&mut self) {
        self.child = Child::start(self.config.command(&["run"]));
    }

    /// The address of metrics and health: the configuration asks for a free port, which is in the log.
    pub async fn address(&self) -> String {
        eventually("the daemon's HTTP address", async || {
            let output = self.child.output();
            let (_, rest) = output.split_once("http=")?;
            rest.split_once('\n').map(|(address, _)| address.to_owned())
        })
        .await
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address().await);
        let response = http().get(&url).send().await.expect("the daemon answers");
        (response.status().as_u16(), response.text().await.expect("the daemon speaks UTF-8"))
    }

    /// Waits until it holds or stands by for every lane.
    pub async fn ready(&self) {
        eventually("the daemon is ready", async || (self.get("/readyz").await.0 == 200).then_some(())).await;
    }

    /// Whether it holds its lane.
    pub async fn holds_the_lane(&self) -> bool {
        self.metric(&format!(r#"reveille_lane_held{{lane="{LANE}"}}"#)).await == 1.0
    }

    /// Waits until it holds its lane. A ready daemon may still be about to take it.
    pub async fn takes_the_lane(&self) {
        eventually("it holds the lane", async || self.holds_the_lane().await.then_some(())).await;
    }

    /// One metric's value; 0 if it does not exist yet. `series` is its name and labels, as printed.
    pub async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.parse().expect("a metric is a number"))
    }

    /// Waits until its lane is paused for this reason and has nothing in hand, and readiness shows these words.
    pub async fn paused(&self, reason: &str, words: &[&str]) {
        let metric = format!(r#"reveille_lane_paused{{lane="{LANE}",reason="{reason}"}}"#);
        eventually("the lane is paused", async || (self.metric(&metric).await == 1.0).then_some(())).await;
        eventually("nothing is in flight", async || {
            (self.metric(&format!(r#"reveille_jobs_in_flight{{lane="{LANE}"}}"#)).await == 0.0).then_some(())
        })
        .await;
        let (status, body) = eventually("readiness says so", async || {
            let (status, body) = self.get("/readyz").await;
            body.contains(&format!(r#""{LANE}":"paused: "#)).then_some((status, body))
        })
        .await;
        assert_eq!(status, 200, "no other replica would fare better: {body}");
        for word in words {
            assert!(body.contains(word), "{word:?} is what a person needs: {body}");
        }
    }

    /// Asserts that its lane is not paused and never was: every pause puts back at least the job that caused it.
    pub async fn never_paused(&self) {
        let put_back = format!(r#"reveille_jobs_parked_total{{cause="paused",lane="{LANE}"}}"#);
        assert_eq!(self.metric(&put_back).await, 0.0, "a job was put back for a pause");
        self.is_not_paused().await;
    }

    async fn is_not_paused(&self) {
        let (_, metrics) = self.get("/metrics").await;
        let paused = |line: &&str| line.starts_with("reveille_lane_paused") && line.ends_with(" 1");
        assert_eq!(metrics.lines().find(paused), None);
    }

    /// Waits until `/readyz` shows its lane as held.
    pub async fn is_held(&self) {
        let held = format!(r#""{LANE}":"held""#);
        eventually("it is shown", async || self.get("/readyz").await.1.contains(&held).then_some(())).await;
    }

    /// The log of the lane's only pause, once that is over.
    pub async fn works_again(&self) {
        let output = self.child.output();
        assert_eq!(output.matches("lane paused").count(), 1, "{output}");
        assert_eq!(output.matches("the lane works again").count(), 1, "{output}");
        let held = format!(r#"{{"ready":true,"broker":"connected","lanes":{{"{LANE}":"held"}}}}"#);
        assert_eq!(self.get("/readyz").await.1, held);
        self.is_not_paused().await;
    }

    /// Jobs that lost an attempt.
    pub async fn charged(&self) -> f64 {
        self.metric(&format!(r#"reveille_jobs_parked_total{{cause="transient",lane="{LANE}"}}"#)).await
    }
}
