//! Text from outside is shown, but neither obeyed by a terminal nor taken for our own lines.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::child::{Child, Ran, run};
use crate::support::eventually;
use crate::support::python::on_a_terminal;
use crate::support::queues::header;
use crate::support::stage::Stage;

/// For a clipboard, a title, a cursor, and readers of lines.
const EVIL: &str = "\u{1b}[2J\u{1b}]52;c;aGk=\u{7}\u{1b}]0;t\u{9c}\u{9b}2J\r\nforged\t\u{202e}\u{2028}\u{7f}";
const SHOWN: &str = r"\u{1b}[2J\u{1b}]52;c;aGk=\u{7}\u{1b}]0;t\u{9c}\u{9b}2J\r\nforged\t\u{202e}\u{2028}\u{7f}";

/// Only we set colours and draw a progress bar, nothing else, and only on a terminal.
fn without_our_own(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut left = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let parameters = part.len() - part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').len();
        let (ours, rest) = part.split_at(parameters + 1);
        assert!(ours.ends_with('m') || matches!(ours, "2K" | "K" | "1A" | "1B"), "{ours:?} in {text:?}");
        left += rest;
    }
    left.replace("\r\n", "\n").replace('\r', "")
}

fn assert_harmless(text: &str, on_terminal: bool) {
    let text = if on_terminal { without_our_own(text) } else { text.to_owned() };
    let harmless = |c: char| c == '\n' || !c.is_control() && !"\u{202e}\u{2028}".contains(c);
    assert!(text.chars().all(harmless), "{text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("forged")), "{text}");
}

/// Gives hostile input to the daemon, `submit` and `watch`, each on a terminal or not.
async fn meet(mut stage: Stage, on_terminal: bool) {
    let here = |command| if on_terminal { on_a_terminal(&command) } else { command };
    stage.daemon.stop().await;
    stage.daemon.child = Child::start(here(stage.daemon.config.command(&["run"])));
    eventually("it takes jobs", async || (stage.queues.count("reveille.jobs.prod").await.1 == 1).then_some(())).await;

    let hostile = |status: u16| json!({"status": status, "code": EVIL, "message": EVIL});
    stage.sim.script("i-sim00001", json!([hostile(400)])).await;
    stage.sim.script("i-sim00002", json!([hostile(401)])).await;
    let asked = BasicProperties::default().with_message_id(EVIL.into()).with_reply_to(EVIL.into());
    stage.message(asked, br#"{"instance_id":"i-sim00001"}"#).await;
    stage.wake("i-sim00002").await;
    stage.job("unread", json!({"instance_id": "i-sim00001", "conflict": EVIL})).await;
    let outcomes = stage.outcomes(3).await;
    assert_eq!((&outcomes[EVIL]["error_code"], &outcomes[EVIL]["error_message"]), (&json!(EVIL), &json!(EVIL)));
    assert!(outcomes["unread"]["error_message"].as_str().unwrap().contains(EVIL), "programs read what was there");
    let letters = eventually("dead letters", async || {
        let letters = stage.dead().await;
        letters.iter().any(|letter| header(&letter.properties, "x-reveille-error-message") == EVIL).then_some(())
    });
    letters.await;

    stage.sim.script("i-sim00003", json!([hostile(400)])).await;
    let bare = json!({ "message": EVIL }).to_string();
    stage.sim.script("i-sim00004", json!([{"status": 400, "body": bare}])).await;
    let submit = |more: &[&'static str]| {
        here(stage.daemon.config.command(&[&["submit", "--lane", "prod", "--batch", EVIL], more].concat()))
    };
    let Ran { code, output, errors } = run(submit(&["--wait", "i-sim00003", "i-sim00004"]), "").await;
    assert_eq!(code, Some(1), "{output}{errors}");
    let said = output + &errors;
    assert_harmless(&said, on_terminal);
    for part in ["as batch ", "i-sim00003  refused, HTTP 400 ", "i-sim00004  refused, HTTP 400: "] {
        assert!(said.contains(&format!("{part}{SHOWN}")), "{part}: {said}");
    }
    let watch = here(stage.daemon.config.command(&["watch", EVIL]));
    let Ran { code, output, errors } = run(watch, "").await;
    assert_eq!(code, Some(1), "{output}{errors}");
    let said = output + &errors;
    assert_harmless(&said, on_terminal);
    for part in ["not up: i-sim00003  refused, HTTP 400 ", "not up: i-sim00004  refused, HTTP 400: "] {
        assert!(said.contains(&format!("{part}{SHOWN}")), "{part}: {said}");
    }
    for wrong in
        [&["--file", EVIL][..], &[EVIL], &["i-sim00001", "--confirm", EVIL], &[r#"{"instance_id":"i-sim00001""#]]
    {
        let Ran { code, output, errors } = run(submit(wrong), "").await;
        assert_eq!(code, Some(2), "{output}{errors}");
        assert_harmless(&(output + &errors), on_terminal);
    }

    let log = eventually("all of it is logged", async || {
        let log = stage.daemon.child.output();
        ["no reply given", "lane paused", "delivery"].iter().all(|part| log.contains(part)).then_some(log)
    })
    .await;
    assert_harmless(&log, on_terminal);
    assert!(log.matches(SHOWN).count() > 5, "{log}");
    assert_eq!(log.contains("\u{1b}[2m"), on_terminal, "in colour on a terminal: {log:?}");
}

#[tokio::test]
async fn in_a_file_no_control_character_is_left_and_no_line_is_forged() {
    meet(Stage::set().await, false).await;
}

#[tokio::test]
async fn on_a_terminal_nothing_is_obeyed_but_what_is_ours() {
    meet(Stage::set().await, true).await;
}

#[tokio::test]
async fn no_id_forges_a_field_of_a_line() {
    const ID: &str = r#"x" lane="other" attempt=9}: reveille: forged"#;
    const BATCH: &str = "b\"} INFO job{job=\"y\"\n";
    let mut stage = Stage::set().await;
    stage.job(ID, json!({"instance_id": "i-unknown1", "batch_id": BATCH})).await;
    stage.outcome().await;
    let log = eventually("its end is logged", async || {
        let log = stage.daemon.child.output();
        log.contains("job failed").then_some(log)
    })
    .await;
    let span = r#"job{lane="prod" job="x\" lane=\"other\" attempt=9}: reveille: forged" instance="i-unknown1" batch="b\"} INFO job{job=\"y\"\n" attempt=1}: "#;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("forged")).collect();
    assert!(lines.len() >= 3, "one for each step: {log}");
    assert!(lines.iter().all(|line| line.matches(span).count() == 1), "{lines:#?}");
}
