//! The programs in `examples/`, as a user runs them.

use std::path::{Path, PathBuf};
use std::process::Command;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;

use crate::support::broker::Vhost;
use crate::support::child::{Child, Ran, run};
use crate::support::python::python;
use crate::support::queues::Queues;
use crate::support::stage::{Stage, Wishes};
use crate::support::{eventually, instance};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
/// Where Debian has the sources of Go's libraries.
const GOPATH: &str = "/usr/share/gocode";

/// The programs of a language.
struct Language {
    name: &'static str,
    send: Vec<PathBuf>,
    react: Vec<PathBuf>,
}

impl Language {
    fn python() -> Self {
        let script = |name: &str| vec![python(), PathBuf::from(format!("{EXAMPLES}/python/{name}.py"))];
        Self { name: "python", send: script("send"), react: script("react") }
    }

    fn go() -> Self {
        Self { name: "go", send: vec![build("send")], react: vec![build("react")] }
    }

    fn react(&self, url: &str, queue: &str, key: &str) -> Child {
        Child::start(command(&self.react, url, &[queue, key]))
    }

    /// Sends a job. Returns its id.
    async fn send(&self, url: &str, instance: &str) -> String {
        let ran = run(command(&self.send, url, &["prod", instance]), "").await;
        assert_eq!(ran.code, Some(0), "{}: {}", self.name, ran.errors);
        ran.output.trim().to_owned()
    }
}

fn command(program: &[PathBuf], url: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).args(arguments).env("AMQP_URL", url);
    command
}

/// Runs a script of the shell, with `reveille` in its path.
async fn shell(script: &str, url: &str, arguments: &[&str]) -> Ran {
    let ours = Path::new(env!("CARGO_BIN_EXE_reveille")).parent().expect("a folder");
    let mut command = command(&[format!("{EXAMPLES}/shell/{script}").into()], url, arguments);
    command.env("PATH", format!("{}:{}", ours.display(), std::env::var("PATH").expect("a path")));
    run(command, "").await
}

/// A program in Go, vetted.
fn build(program: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, built) = (format!("{EXAMPLES}/go/{program}/main.go"), folder.join(format!("example-go-{program}")));
    let unformatted =
        Command::new("gofmt").args(["-l", &source]).output().expect("Go is installed: `make test-go` sees to it");
    assert!(unformatted.status.success() && unformatted.stdout.is_empty(), "gofmt -d {source}");
    for arguments in [&["vet", &source][..], &["build", "-o", built.to_str().unwrap(), &source]] {
        let mut go = Command::new("go");
        go.args(arguments).env("GO111MODULE", "off").env("GOPATH", GOPATH).env("GOCACHE", folder.join("go-cache"));
        assert!(go.status().expect("Go runs").success(), "{arguments:?}");
    }
    built
}

/// Whether a queue is there, and has a consumer.
async fn is_consumed(url: &str, queue: &str) -> bool {
    let queues = Queues::connect(url).await;
    let channel = queues.connection.create_channel().await.expect("a channel");
    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
    declared.is_ok_and(|queue| queue.consumer_count() == 1)
}

/// Waits for a line about this instance, and returns it.
async fn line(child: &Child, instance: &str) -> String {
    eventually(&format!("it reacts to {instance}"), async || {
        child.output().lines().find(|line| line.contains(instance)).map(str::to_owned)
    })
    .await
}

#[tokio::test]
async fn the_examples_in_python_send_jobs_and_react_to_their_outcomes_also_after_a_lost_connection() {
    send_and_react(&[Language::python()]).await;
}

#[tokio::test]
#[ignore = "installing Go and building its libraries takes minutes: `make test-go`"]
async fn the_examples_in_go_send_jobs_and_react_to_their_outcomes_also_after_a_lost_connection() {
    let go = tokio::task::spawn_blocking(Language::go).await.unwrap();
    send_and_react(&[go]).await;
}

async fn send_and_react(languages: &[Language]) {
    let stage = Stage::on(Vhost::alone(), Wishes::default()).await;
    let url = &stage.vhost.url;
    let mut reactions = Vec::new();
    for language in languages {
        let [all, failed] = ["all", "failed"].map(|queue| format!("{}-{queue}", language.name));
        reactions.push((language, language.react(url, &all, "prod.*"), language.react(url, &failed, "*.failed")));
        for queue in [all, failed] {
            eventually(&format!("{queue} is consumed"), async || is_consumed(url, &queue).await.then_some(())).await;
        }
    }
    for (number, (language, all, failed)) in (1..).zip(&reactions) {
        let (good, bad) = (instance(number), format!("i-unknown{number}"));
        for (instance, outcome) in [(&good, "started -"), (&bad, "failed not_found")] {
            let id = language.send(url, instance).await;
            assert_eq!(line(all, instance).await, format!("{id} {instance} {outcome}"), "{}", language.name);
        }
        assert_eq!(line(failed, &bad).await, line(all, &bad).await);
        assert!(!failed.output().contains(&good), "{}: {}", language.name, failed.output());
    }

    stage.vhost.node.ctl(&["close_all_connections", "for the test"]);
    for (number, (language, all, _)) in (11..).zip(&reactions) {
        let id = language.send(url, &instance(number)).await;
        let started = format!("{id} {} started -", instance(number));
        assert_eq!(line(all, &instance(number)).await, started, "{}", language.name);
        let queue = format!("{}-all", language.name);
        let acked = format!("{queue}\t0");
        let left = ["list_queues", "--quiet", "--vhost", &stage.vhost.name, "name", "messages"];
        eventually("each outcome is acked", async || {
            stage.vhost.node.ctl(&left).lines().any(|line| line == acked).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_examples_in_shell_send_a_batch_and_react_to_its_failures() {
    let stage = Stage::set().await;
    let url = &stage.vhost.url;
    for (batch, instances, code, told) in [
        ("good", vec!["i-sim00001", "i-sim00002"], 0, "all are up\n"),
        ("mixed", vec!["i-sim00003", "i-unknown1"], 1, " i-unknown1 failed not_found\n"),
    ] {
        let sent = shell("send.sh", url, &[&["prod", batch], &instances[..]].concat()).await;
        assert_eq!(sent.code, Some(0), "{}", sent.errors);
        let reaction = shell("react.sh", url, &[batch]).await;
        assert_eq!(reaction.code, Some(code), "{}", reaction.errors);
        assert!(reaction.output.ends_with(told) && reaction.output.lines().count() == 1, "{}", reaction.output);
    }
}
