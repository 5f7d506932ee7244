//! A child process that never outlives the benchmark.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longer than the daemon's default grace, so that it is never killed while it still stops gracefully.
const PATIENCE: Duration = Duration::from_secs(30);

/// Terminated on drop. Its standard input stays open until then, so that the node, the stub and the floor, which end
/// with it, end even if the benchmark itself is killed; the daemon then ends because its broker is gone.
pub struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).spawn().with_context(|| format!("starting the {name}"))?;
        Ok(Self { name, child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The text behind `ready ` in its first line of output: blocks until it prints that or ends.
    pub fn ready(&mut self) -> Result<String> {
        let output = self.child.stdout.as_mut().context("its output was not piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let said = line.strip_prefix("ready ").with_context(|| format!("the {} did not start", self.name))?;
        Ok(said.trim().to_owned())
    }

    /// An error once it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the {} ended too early: {status}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let asked = Instant::now();
        // A process that was not yet waited for keeps its id, so this can reach no other.
        let _ = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).stderr(Stdio::null()).status();
        while matches!(self.child.try_wait(), Ok(None)) {
            if asked.elapsed() > PATIENCE {
                eprintln!("the {} did not stop within {PATIENCE:?} and was killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}
