//! `reveille submit --wait`.

use serde_json::{Value, json};

use crate::support::child::{Child, run};
use crate::support::eventually;
use crate::support::files::Folder;
use crate::support::scene::Scene;
use crate::support::stage::{Stage, Wishes};

/// Never called, in a batch that has other jobs too.
const NEVER: &str = r#"{"instance_id":"i-sim00001","not_before":"9999-12-31T23:59:59Z"}"#;

/// Whether the table of `output` has a row of these words.
fn has_row(output: &str, row: &str) -> bool {
    output.lines().any(|line| line.split_whitespace().eq(row.split(' ')))
}

#[tokio::test]
async fn a_broker_that_is_lost_is_waited_for_and_all_jobs_are_accounted_for() {
    let slow = Wishes { lane: "rate = 10\nburst = 1", ..Wishes::default() };
    let mut scene = Scene::set(100, slow).await;
    let folder = Folder::new();
    let fleet = folder.put("fleet", &(1..=100).map(|number| format!("i-sim{number:05}\n")).collect::<String>());
    let command = ["submit", "--batch", "morning", "--wait", "--file", &fleet];
    let mut waiting = Child::start(scene.daemon.config.command(&command));
    let says = async |child: &Child, text: &str| {
        eventually(text, async || child.output().contains(text).then_some(())).await;
    };
    says(&waiting, " of 100 ended: ").await;
    scene.node.kill();
    says(&waiting, "RabbitMQ is away, and tried again").await;
    scene.node.restart();
    let code = waiting.ended().await.code();
    let output = waiting.output();
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("RabbitMQ is there again") && has_row(&output, "started 100"), "{output}");
}

#[tokio::test]
async fn only_what_the_command_has_submitted_is_waited_for() {
    let stage = Stage::set().await;
    let submit = async |more: &[&str], input: &str| {
        let command = stage.daemon.config.command(&[&["submit", "--batch", "morning", "--file", "-"], more].concat());
        run(command, input).await
    };
    // Of the same batch: one that has ended, one that never does.
    let before = submit(&["--wait"], "i-gone0001").await;
    assert!(before.code == Some(1) && has_row(&before.output, "failed not_found 1"), "{}", before.errors);
    assert_eq!(submit(&[], NEVER).await.code, Some(0));
    let own = r#"{"instance_id":"i-sim00003","batch_id":"own"}"#;
    let ran = submit(&["--wait"], &format!("i-sim00002\n{own}")).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(has_row(&ran.output, "started 2") && !ran.output.contains("failed"), "{}", ran.output);
    assert!(!ran.errors.contains("are not counted"), "{}", ran.errors);
    // What has ended before ends again, as it did, and only the end after the submission counts.
    let again = submit(&["--wait"], "i-gone0001").await;
    assert!(again.code == Some(1) && has_row(&again.output, "failed not_found 1"), "{}", again.errors);
    stage.sim.set_instance("i-gone0001", json!({"status": "Stopped"})).await;
    let moving = submit(&["--wait", "--deadline", "30m"], "i-gone0001").await;
    assert!(moving.code == Some(0) && has_row(&moving.output, "started 1"), "{}{}", moving.output, moving.errors);
}

#[tokio::test]
async fn a_wait_that_is_left_says_that_the_jobs_go_on_and_how_to_watch_or_cancel_them() {
    let stage = Stage::set().await;
    let folder = Folder::new();
    let fleet = folder.put("fleet", &format!("{NEVER}\ni-gone0001\ni-sim00002\n"));
    let path = folder.path("down.jsonl");
    let submit = |batch: &'static str, more: &[&str]| {
        let command = ["submit", "--batch", batch, "--wait", "--file", &fleet];
        stage.daemon.config.command(&[&command, more].concat())
    };
    let left = |output: &str, batch: &str| {
        let told = format!(
            "2 of 3 jobs of batch {batch} have ended, and the others go on; to end those that wait: reveille cancel {batch}; to \
             watch them: reveille watch {batch}\n"
        );
        assert!(output.contains(&told), "{output}");
        assert!(has_row(output, "failed not_found 1") && output.contains("OUTCOME"), "{output}");
    };
    let never = ["submit", "--batch", "first", "--wait", "--timeout", "1s", "--file", "-"];
    let ran = run(stage.daemon.config.command(&never), NEVER).await;
    assert_eq!(ran.code, Some(124), "{}", ran.errors);
    assert!(ran.errors.contains("0 of 1 jobs of batch first have ended, and the others go on; "), "{}", ran.errors);
    for (batch, signal, code) in [("second", "INT", 130), ("third", "TERM", 143)] {
        let mut waiting = Child::start(submit(batch, &["--failures-file", &path]));
        eventually("it waits", async || waiting.output().contains("2 of 3 ended").then_some(())).await;
        waiting.signal(signal);
        assert_eq!(waiting.ended().await.code(), Some(code), "{}", waiting.output());
        left(&waiting.output(), batch);
        let failure: Value = serde_json::from_str(std::fs::read_to_string(&path).unwrap().trim_end()).unwrap();
        assert_eq!((&failure["instance_id"], &failure["reason"]), (&json!("i-gone0001"), &json!("not_found")));
    }
    let ran = run(stage.daemon.config.command(&["submit", "i-sim00003", "--timeout", "4s"]), "").await;
    assert!(ran.code == Some(2) && ran.errors.contains("--wait"), "{}", ran.errors);
    let nowhere = folder.path("no/file");
    let ran = run(submit("fourth", &["--failures-file", &nowhere]), "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    let told = ran.errors.contains("cannot write --failures-file") && ran.errors.contains("no job was submitted");
    assert!(told, "{}", ran.errors);
}

#[tokio::test]
async fn a_lane_that_no_daemon_runs_any_more_is_told_while_it_is_waited_for_and_so_is_its_return() {
    let mut stage = Stage::set().await;
    let folder = Folder::new();
    let fleet = folder.put("fleet", &format!("{NEVER}\ni-sim00002\n"));
    let command = ["submit", "--batch", "morning", "--wait", "--file", &fleet];
    let waiting = Child::start(stage.daemon.config.command(&command));
    let says = async |child: &Child, text: &str| {
        eventually(text, async || child.output().contains(text).then_some(())).await;
    };
    says(&waiting, "1 of 2 ended").await;
    let watching = Child::start(stage.daemon.config.command(&["watch", "morning"]));
    says(&watching, "1 of 2 ended").await;
    stage.daemon.kill().await;
    for child in [&waiting, &watching] {
        says(child, "no daemon runs lane prod: its jobs wait in RabbitMQ until `reveille run` runs with it\n").await;
        says(child, "; no daemon runs lane prod; ").await;
    }
    stage.daemon.start_again();
    for child in [&waiting, &watching] {
        says(child, "a daemon runs lane prod again\n").await;
    }
}

#[tokio::test]
async fn a_broker_that_takes_no_messages_is_told_while_it_is_waited_for() {
    let scene = Scene::set(2, Wishes::default()).await;
    let folder = Folder::new();
    let fleet = folder.put("fleet", &format!("{NEVER}\ni-sim00002\n"));
    let command = ["submit", "--batch", "morning", "--wait", "--file", &fleet];
    let waiting = Child::start(scene.daemon.config.command(&command));
    let says = async |child: &Child, text: &str| {
        eventually(text, async || child.output().contains(text).then_some(())).await;
    };
    says(&waiting, "1 of 2 ended").await;
    let watching = Child::start(scene.daemon.config.command(&["watch", "morning"]));
    says(&watching, "1 of 2 ended").await;
    scene.node.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    for child in [&waiting, &watching] {
        says(child, "RabbitMQ takes no messages at present, as its memory or disk is short: it is waited for\n").await;
        says(child, "; RabbitMQ takes no messages; ").await;
    }
    scene.node.ctl(&["set_vm_memory_high_watermark", "0.8"]);
    for mut child in [waiting, watching] {
        says(&child, "RabbitMQ takes messages again\n").await;
        child.signal("INT");
        assert_eq!(child.ended().await.code(), Some(130), "{}", child.output());
    }
}
