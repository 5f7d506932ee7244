//! A cluster of three RabbitMQ nodes on this machine.

use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, MutexGuard};
use tokio::task::block_in_place;

use super::broker::{Node, Prepared};

/// Created when the first node boots, one for each test.
const VHOSTS: usize = 8;

/// Timeout for a silent node: until then nothing can be declared anywhere. RabbitMQ's default is a minute.
const SILENCE: &str = "net_ticktime = 10";

/// The cluster that tests use one after the other, with all nodes running. A static is never dropped: the nodes end
/// when this process does.
pub async fn cluster() -> MutexGuard<'static, Cluster> {
    static CLUSTER: OnceLock<Mutex<Cluster>> = OnceLock::new();
    let mut cluster = block_in_place(|| CLUSTER.get_or_init(|| Mutex::new(Cluster::form()))).lock().await;
    if !cluster.running.iter().all(|running| *running) {
        // A test failed midway. Nodes that were frozen for long do not form a cluster any more.
        *cluster = block_in_place(Cluster::form);
    }
    cluster
}

/// RabbitMQ's handling of partitions: its default, and its recommendation.
pub const IGNORE: &str = "ignore";
pub const PAUSE: &str = "pause_minority";

pub struct Cluster {
    nodes: [Node; 3],
    running: [bool; 3],
}

impl Cluster {
    fn form() -> Self {
        let vhosts = VHOSTS.to_string();
        let arguments = ["--vhosts", &vhosts, "--conf", SILENCE];
        let first = Node::start(&arguments);
        let folder = first.folder.to_str().expect("a plain path").to_owned();
        // One after the other: nodes that join at the same time disturb each other.
        let joined = [(); 2].map(|()| Node::start(&[&arguments[..], &["--join", &folder]].concat()));
        let [second, third] = joined;
        Self { nodes: [first, second, third], running: [true; 3] }
    }

    /// A vhost, by name, that no other test uses.
    pub fn vhost(&self) -> String {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number <= VHOSTS, "more tests than vhosts: raise VHOSTS in {}", file!());
        format!("t{number}")
    }

    /// `amqp://guest:guest@127.0.0.1:PORT`, without a vhost, of each node in the order given.
    pub fn urls(&self, numbers: [usize; 3]) -> [&str; 3] {
        numbers.map(|number| self.nodes[number].url.as_str())
    }

    /// Which node leads a queue, according to a running one.
    pub fn leader(&self, vhost: &str, queue: &str) -> usize {
        self.find_leader(vhost, queue).unwrap_or_else(|| panic!("{queue} has no leader"))
    }

    /// The same, if it has a leader: a queue is not listed while that is down.
    pub fn find_leader(&self, vhost: &str, queue: &str) -> Option<usize> {
        let asked = self.running.iter().position(|running| *running).expect("one runs");
        let queues = block_in_place(|| {
            self.nodes[asked].ctl(&["list_queues", "-p", vhost, "--no-table-headers", "name", "leader"])
        });
        let leader = queues.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'))?;
        (0..3).find(|number| self.name(*number) == leader)
    }

    /// A node's Erlang name.
    fn name(&self, number: usize) -> String {
        let (_, port) = self.nodes[number].url.rsplit_once(':').expect("a port comes last");
        format!("node{port}@localhost")
    }

    /// SIGKILL.
    pub fn kill(&mut self, number: usize) {
        block_in_place(|| self.nodes[number].kill());
        self.running[number] = false;
    }

    /// Starts a killed node again.
    pub fn restart(&mut self, number: usize) {
        block_in_place(|| self.nodes[number].restart());
        self.running[number] = true;
    }

    /// SIGSTOP: it answers nothing, but its sockets stay open. After a while the others take it for dead, and it them
    /// if it resumes after that, so it has to be killed then.
    pub fn freeze(&mut self, number: usize) {
        let sent = Command::new("kill").args(["-STOP", &self.nodes[number].pid.to_string()]).status();
        assert!(sent.expect("kill runs").success());
        self.running[number] = false;
    }

    /// Prepares to cut a node off from the others while all of them live.
    pub fn prepare_split(&self, number: usize) -> Prepared {
        // With a wrong cookie neither side lets the other connect again.
        let split = self.for_each_other(number, "erlang:set_cookie(N, wrong), erlang:disconnect_node(N)");
        block_in_place(|| self.nodes[number].prepare(&split))
    }

    /// Cuts it off.
    pub fn split_off(&mut self, number: usize, prepared: Prepared) {
        block_in_place(|| prepared.now());
        self.running[number] = false;
    }

    /// Reconnects a node to the others, and waits until it accepts clients.
    pub fn join_again(&mut self, number: usize) {
        let join = self.for_each_other(number, "erlang:set_cookie(N, erlang:get_cookie()), net_adm:ping(N)");
        block_in_place(|| {
            self.nodes[number].ctl(&["eval", &format!("{join}.")]);
            self.nodes[number].ctl(&["await_startup"]);
        });
        self.running[number] = true;
    }

    /// An expression that does the same for each other node, N.
    fn for_each_other(&self, number: usize, expression: &str) -> String {
        let others: Vec<String> =
            (0..3).filter(|other| *other != number).map(|other| format!("'{}'", self.name(other))).collect();
        format!("[begin {expression} end || N <- [{}]]", others.join(", "))
    }

    /// Suspends (`suspend`) or resumes (`resume`) the members of a queue that do not lead it.
    pub fn elections(&self, vhost: &str, queue: &str, order: &str) {
        let member = format!(
            r#"{{ok, Q}} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"{vhost}">>, queue, <<"{queue}">>)),
               {{Name, Leader}} = amqqueue:get_pid(Q), Leader =:= node() orelse sys:{order}(Name)."#
        );
        for (node, _) in self.nodes.iter().zip(&self.running).filter(|(_, running)| **running) {
            block_in_place(|| node.ctl(&["eval", &member]));
        }
    }

    /// Whether a node that loses the others can be set to pause. Not since 4.3: a minority confirms nothing.
    pub fn can_pause(&self) -> bool {
        let version = block_in_place(|| self.nodes[0].ctl(&["eval", "rabbit_misc:version()."]));
        !version.contains("4.3.")
    }

    /// What nodes do that lose the others: [`IGNORE`], the default, or [`PAUSE`] in the minority.
    pub fn partitions_are(&self, handled: &str) {
        let setting = format!("application:set_env(rabbit, cluster_partition_handling, {handled}).");
        for node in &self.nodes {
            block_in_place(|| node.ctl(&["eval", &setting]));
        }
    }
}
