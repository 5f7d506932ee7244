//! The private node: vhosts are separate, and every way of ending leaves nothing behind.

use std::io::BufReader;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};

use crate::support::broker::{self, Node, Ready, SCRIPT};

#[tokio::test]
async fn vhosts_are_apart() {
    let (one, other) = (broker::vhost(), broker::vhost());
    declare(&one.url, false).await.expect("a quorum queue can be declared");
    declare(&one.url, true).await.expect("the queue is there");
    let absent = declare(&other.url, true).await.expect_err("the queue is on the first vhost alone");
    assert!(absent.to_string().contains("NOT_FOUND"), "{absent}");
}

#[test]
fn it_ends_with_its_stdin() {
    let (mut script, node) = start(Command::new(SCRIPT));
    drop(script.stdin.take());
    assert!(script.wait().expect("it ends").success());
    assert_no_trace(&node);
}

#[test]
fn it_ends_on_sigterm() {
    let (mut script, node) = start(Command::new(SCRIPT));
    signal("TERM", script.id());
    assert!(script.wait().expect("it ends").success());
    assert_no_trace(&node);
}

#[test]
fn it_ends_when_its_parent_is_killed() {
    // `mkfifo` instead of the pipe that a parent holds: only the shell has its writing end.
    let mut parent = Command::new("sh");
    parent.args(["-c", r#"f=$(mktemp -u) && mkfifo "$f" && { "$0" <"$f" & exec 3>"$f"; rm "$f"; wait; }"#, SCRIPT]);
    let (mut parent, node) = start(parent);
    parent.kill().expect("the parent runs");
    parent.wait().expect("the parent ends");
    assert_no_trace(&node);
}

#[test]
fn its_processes_end_with_the_script_however_it_dies() {
    let (mut script, node) = start(Command::new(SCRIPT));
    script.kill().expect("the script runs");
    script.wait().expect("the script ends");
    wait_until("its processes are gone", || processes_of(&node).is_empty());
    std::fs::remove_dir_all(&node.folder).expect("the folder is all that is left");
}

#[tokio::test]
async fn a_killed_node_comes_back_with_its_data() {
    let mut node = Node::start(&["--vhosts", "1"]);
    let (url, first_pid) = (format!("{}/t1", node.url), node.pid);
    declare(&url, false).await.expect("a quorum queue can be declared");
    node.kill();
    assert!(Connection::connect(&url, ConnectionProperties::default()).await.is_err());
    node.restart();
    assert_ne!(node.pid, first_pid);
    declare(&url, true).await.expect("the queue survived");
    assert!(node.ctl(&["list_queues", "-p", "t1", "name"]).contains("wanted"));
}

#[test]
fn a_configuration_it_cannot_start_with_is_said() {
    let output = Command::new(SCRIPT)
        .args(["--conf", "no.such.key = 1"])
        .stdin(Stdio::null())
        .output()
        .expect("the script starts");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no.such.key") && said.contains("does not start"), "{said}");
}

async fn declare(url: &str, passive: bool) -> lapin::Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, passive, ..Default::default() };
    channel.queue_declare("wanted".into(), options, arguments).await.map(drop)
}

fn start(mut command: Command) -> (Child, Ready) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the script is there and executable");
    let node = Ready::read(&mut BufReader::new(child.stdout.take().expect("stdout is piped")));
    assert!(processes_of(&node).len() >= 2, "the VM and its epmd run");
    (child, node)
}

fn signal(name: &str, pid: u32) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().expect("kill runs").success());
}

fn assert_no_trace(node: &Ready) {
    wait_until("its processes are gone", || processes_of(node).is_empty());
    wait_until("its folder is gone", || !node.folder.exists());
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        sleep(Duration::from_millis(20));
    }
}

/// The node's VM, its epmd and its script: every process in its folder or with its ports.
fn processes_of(node: &Ready) -> Vec<u32> {
    let port: u32 = node.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the URL ends in a port");
    let marks = [format!("{}/", node.folder.display()), format!("ERL_EPMD_PORT={}\0", port + 2)];
    let marked = |file: &Path| {
        let content = String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned();
        marks.iter().any(|mark| content.contains(mark))
    };
    let processes = std::fs::read_dir("/proc").expect("/proc is there");
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| marked(Path::new(&format!("/proc/{pid}/environ")))).collect()
}
