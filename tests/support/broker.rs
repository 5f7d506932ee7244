//! Private RabbitMQ nodes, and a vhost for each test.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::Instant;

use super::{GLANCE, PATIENCE};

/// Vhosts of a shared node, created as it boots: adding one later takes a whole `rabbitmqctl`. A node with many is busy
/// with queues of past tests.
const VHOSTS: usize = 24;

/// An empty vhost that no other test uses.
pub struct Vhost {
    /// `amqp://guest:guest@127.0.0.1:PORT/t7`
    pub url: String,
    /// `t7`
    pub name: String,
    /// Other tests may have vhosts on it too.
    pub node: Arc<Node>,
}

impl Vhost {
    fn of(node: Arc<Node>, number: usize) -> Self {
        let name = format!("t{number}");
        Self { url: format!("{}/{name}", node.url), name, node }
    }

    /// A vhost on a node that no other test uses.
    pub fn alone() -> Self {
        Self::alone_with(&[])
    }

    /// The same with arguments for the node.
    pub fn alone_with(arguments: &[&str]) -> Self {
        Self::of(Arc::new(Node::start(arguments)), 1)
    }
}

/// Returns the next vhost; if that boots a node, it blocks for some seconds.
pub fn vhost() -> Vhost {
    /// The node whose vhosts are given out, and the last one's number. The previous one ends with its last test; a
    /// static is never dropped, so the last node ends when this process does.
    static SHARED: Mutex<Option<(Arc<Node>, usize)>> = Mutex::new(None);
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let (node, number) = match shared.take() {
        Some((node, last)) if last < VHOSTS => (node, last + 1),
        _ => (Arc::new(Node::start(&["--vhosts", &VHOSTS.to_string()])), 1),
    };
    *shared = Some((node.clone(), number));
    Vhost::of(node, number)
}

/// A separate node, for tests that kill it. It ends, without a trace, when dropped.
pub struct Node {
    /// `amqp://guest:guest@127.0.0.1:PORT`, without a vhost.
    pub url: String,
    /// Data, logs, and `env`, from which `rabbitmqctl` learns where the node is.
    pub folder: PathBuf,
    /// The Erlang VM.
    pub pid: u32,
    /// `tests/support/rabbitmq-node`; its own documentation has its promises.
    script: Child,
    /// Closing it ends the node. Taken on drop, before the wait for the script.
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Node {
    /// Takes the arguments of `tests/support/rabbitmq-node`; returns once the node accepts clients.
    pub fn start(arguments: &[&str]) -> Self {
        let mut script = Command::new(SCRIPT)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{SCRIPT}: {error}"));
        let commands = script.stdin.take();
        let mut answers = BufReader::new(script.stdout.take().expect("stdout is piped"));
        let Ready { url, folder, pid } = Ready::read(&mut answers);
        Self { url, folder, pid, script, commands, answers }
    }

    /// The value of `TLS_PORT` in a line of its configuration.
    pub fn tls_port(&self) -> u16 {
        port(&self.url).parse::<u16>().expect("a port") + 3
    }

    /// SIGKILL, as by the kernel's OOM killer.
    pub fn kill(&mut self) {
        self.command("kill");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the node's script answers");
        assert_eq!(answer, "killed\n");
    }

    /// Starts the node again on the same port and data, after stopping it if it runs.
    pub fn restart(&mut self) {
        self.command("restart");
        self.pid = Ready::read(&mut self.answers).pid;
    }

    /// Runs `rabbitmqctl` on this node and returns what it prints. It takes a second or two.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        ctl(&self.folder, arguments)
    }

    /// Prepares this node to evaluate an expression at once: on a busy machine `rabbitmqctl` alone has taken twenty
    /// seconds, as long as a test's load lasts.
    pub fn prepare(&self, expression: &str) -> Prepared {
        let [order, done] = ["order", "done"].map(|name| self.folder.join(name));
        let obey = format!("{expression}, file:write_file({done:?}, [])");
        let query = format!(
            "spawn(fun Wait() -> case file:delete({order:?}) of ok -> {obey}; _ -> timer:sleep(20), Wait() end end)."
        );
        self.ctl(&["eval", &query]);
        Prepared { order, done }
    }

    fn command(&mut self, line: &str) {
        let commands = self.commands.as_mut().expect("stdin is open until drop");
        writeln!(commands, "{line}").expect("the node's script runs");
    }
}

/// An expression that a node evaluates as soon as it is told.
#[must_use = "nothing is done before it is told"]
pub struct Prepared {
    order: PathBuf,
    done: PathBuf,
}

impl Prepared {
    /// Tells it, and waits until it is done.
    pub fn now(self) {
        std::fs::write(self.order, "").expect("the node's folder is ours");
        let told = Instant::now();
        while std::fs::remove_file(&self.done).is_err() {
            assert!(told.elapsed() < PATIENCE, "the node does not do what it was prepared for");
            sleep(GLANCE);
        }
    }
}

/// Runs `rabbitmqctl` on the node whose folder this is.
fn ctl(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("sh")
        .args(["-c", r#". "$0/env" && exec rabbitmqctl --quiet "$@""#])
        .arg(folder)
        .args(arguments)
        .output()
        .expect("sh runs");
    assert!(
        output.status.success(),
        "rabbitmqctl {arguments:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).expect("rabbitmqctl speaks UTF-8")
}

fn port(node: &str) -> &str {
    node.rsplit_once(':').expect("a private node's URL names its port").1
}

/// Jobs in the queues of a private node's vhost, ready or unacked, by queue; queues without any are left out.
///
/// The queues' leaders are asked: a passive declare counts ready messages alone, `list_queues` is seconds behind.
pub fn jobs_left(url: &str) -> BTreeMap<String, u32> {
    let (node, vhost) = url.rsplit_once('/').filter(|(node, _)| !node.ends_with('/')).unwrap_or((url, "/"));
    // As the node's script names it.
    let folder = std::env::temp_dir().join(format!("rabbitmq-node.{}", port(node)));
    let query = format!(
        r#"[io:format("~s ~b~n", [Name, Count]) || Q <- rabbit_amqqueue:list(<<"{vhost}">>),
            amqqueue:get_type(Q) =:= rabbit_quorum_queue, {{resource, _, queue, Name}} <- [amqqueue:get_name(Q)],
            {{ok, {{_, Count}}, _}} <- [ra:leader_query(amqqueue:get_pid(Q), {{rabbit_fifo, query_messages_total, []}})]],
           done."#
    );
    let answer = ctl(&folder, &["eval", &query]);
    assert!(answer.contains("reveille.jobs."), "no lane's queue in vhost {vhost}: {answer}");
    let counts = answer.lines().filter_map(|line| line.split_once(' '));
    counts
        .map(|(name, count)| (name.to_owned(), count.parse().expect("a count")))
        .filter(|(name, count)| {
            *count > 0
                && ["urgent.", "jobs.", "due.", "delay."]
                    .iter()
                    .any(|kind| name.starts_with(&format!("reveille.{kind}")))
        })
        .collect()
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.script.wait();
    }
}

pub const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/rabbitmq-node");

/// The script's line `ready URL FOLDER PID`.
pub struct Ready {
    pub url: String,
    pub folder: PathBuf,
    pub pid: u32,
}

impl Ready {
    pub fn read(answers: &mut impl BufRead) -> Self {
        let mut line = String::new();
        answers.read_line(&mut line).expect("the node's script speaks UTF-8");
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["ready", url, folder, pid] = words[..] else {
            panic!("the private RabbitMQ node does not start (its script says why above; its last line: {line:?})");
        };
        Self { url: url.into(), folder: Path::new(folder).into(), pid: pid.parse().expect("a pid") }
    }
}
