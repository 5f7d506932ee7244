//! A child process that does not outlive its test.

use std::fs::File;
use std::io::{ErrorKind, PipeWriter, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::{GLANCE, PATIENCE};

/// A running process whose output goes to a file, which a failing test shows.
pub struct Child {
    process: std::process::Child,
    log: PathBuf,
}

/// A pipe without a reader.
pub fn unread() -> PipeWriter {
    std::io::pipe().expect("a pipe").1
}

/// The output and exit status of a command.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub output: String,
    pub errors: String,
}

/// Runs a command while its daemon runs.
pub async fn run(mut command: Command, input: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("it runs");
        // A command that refuses its options ends without a look at its input.
        match child.stdin.take().expect("a pipe").write_all(input.as_bytes()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("it reads: {error}"),
            Ok(()) | Err(_) => {}
        }
        child.wait_with_output().expect("it ends")
    });
    let ran = ran.await.expect("no panic");
    let text = |bytes| String::from_utf8(bytes).expect("it speaks UTF-8");
    Ran { code: ran.status.code(), output: text(ran.stdout), errors: text(ran.stderr) }
}

impl Child {
    pub fn start(mut command: Command) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().expect("a program has a name").display();
        let log =
            PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}.log", std::process::id()));
        let file = File::create(&log).expect("the folder for test files is there");
        let process = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be shared"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Self { process, log }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// All output so far.
    pub fn output(&self) -> String {
        std::fs::read_to_string(&self.log).expect("the log is there")
    }

    /// `TERM`, `KILL`, `STOP`, …
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").args([format!("-{signal}"), self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    /// A line of the kernel's account of its memory, such as `VmRSS`, in KiB.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs, on Linux");
        let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).expect("Linux tells it");
        value.trim().trim_end_matches(" kB").parse().expect("a number of KiB")
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().expect("it is our child").is_none()
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("it is our child") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "still running after {PATIENCE:?}:\n{}", self.output());
            tokio::time::sleep(GLANCE).await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}", self.log.display(), self.output());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
