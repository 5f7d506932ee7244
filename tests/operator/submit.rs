//! `reveille submit`.

mod again;
mod holder;
mod lanes;
mod lost;
mod select;
mod wait;

use std::process::Stdio;

use lapin::options::QueueDeleteOptions;
use serde_json::json;

use crate::support::child::{run, unread};
use crate::support::daemon::{Config, Daemon};
use crate::support::eventually;
use crate::support::files::Folder;
use crate::support::lossy::Lossy;
use crate::support::stage::{Stage, Wishes, config};

#[tokio::test]
async fn a_batch_is_announced_submitted_and_waited_for() {
    let mut stage = Stage::with(Wishes { fleet: "Stopped=3,Running=1", ..Wishes::default() }).await;
    let arguments = ["submit", "--lane", "prod", "--batch", "morning", "--wait", "i-sim00001", "--file", "-"];
    let lines = "i-sim00002\n\n# a comment\n  i-sim00004  \n{\"instance_id\":\"i-sim00003\",\"labels\":{\"team\":\"ops\"},\"batch_id\":\"own\"}\ni-sim00001\n";
    let ran = run(stage.daemon.config.command(&arguments), lines).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("4 jobs submitted to lane prod as batch morning"), "{}", ran.errors);
    assert!(ran.errors.contains("i-sim00001: standard input, line 6, and before at argument 1"), "{}", ran.errors);
    let table: Vec<Vec<&str>> = ran.output.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(table, [vec!["OUTCOME", "REASON", "JOBS"], vec!["already_done", "1"], vec!["started", "3"]]);

    for (batch, size) in [("morning", 3), ("own", 1)] {
        let announced = stage.event().await;
        assert_eq!(announced["type"], "io.reveille.batch.submitted.v1");
        assert_eq!(announced["data"], json!({"batch_id": batch, "size": size, "lane": "prod"}));
    }
    for outcome in stage.outcomes(4).await.into_values() {
        let own = outcome["instance_id"] == "i-sim00003";
        assert_eq!(outcome["batch_id"], if own { "own" } else { "morning" });
        assert_eq!(outcome["labels"], if own { json!({"team": "ops"}) } else { json!({}) });
    }
}

#[tokio::test]
async fn a_machine_that_stayed_down_is_named_and_the_exit_code_is_1() {
    let stage = Stage::set().await;
    let ran =
        run(stage.daemon.config.command(&["submit", "--lane", "prod", "--wait", "i-sim00001", "i-gone00001"]), "")
            .await;
    assert_eq!(ran.code, Some(1), "{}", ran.errors);
    assert!(ran.output.contains("i-gone00001  not_found, HTTP 404 NoSuchObject"), "{}", ran.output);
}

#[tokio::test]
async fn it_waits_and_judges_also_where_nobody_reads_what_it_says() {
    let stage = Stage::set().await;
    for (instance, code) in [("i-sim00001", 0), ("i-gone00001", 1)] {
        let mut command = stage.daemon.config.command(&["submit", "--lane", "prod", "--wait", instance, instance]);
        command.stdin(Stdio::null()).stdout(unread()).stderr(unread());
        let status = tokio::task::spawn_blocking(move || command.status().expect("it runs")).await.expect("no panic");
        assert_eq!(status.code(), Some(code), "{instance}");
    }
}

#[tokio::test]
async fn nothing_is_submitted_where_anything_is_wrong() {
    let stage = Stage::set().await;
    let ran = run(
        stage.daemon.config.command(&["submit", "--lane", "prod", "i-sim00001", "i-../x", "--file", "-"]),
        "no id\n",
    )
    .await;
    assert_eq!(ran.code, Some(2));
    assert!(ran.errors.contains("2 wrong") && ran.errors.contains("standard input, line 1:"), "{}", ran.errors);
    let ran = run(stage.daemon.config.command(&["submit", "--lane", "other", "i-sim00001"]), "").await;
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.errors.contains("there is no lane other at ")
            && ran.errors.contains("; there are prod\n")
            && ran.errors.contains("reveille.jobs.other"),
        "{}",
        ran.errors
    );
    assert!(stage.sim.log().await.is_empty() && stage.dead().await.is_empty());
}

#[tokio::test]
async fn a_misspelt_field_is_refused_where_the_daemon_would_start_the_instance_at_once() {
    let stage = Stage::set().await;
    let line = r#"{"instance_id":"i-sim00001","not_befor":"2026-11-25T07:30:00+08:00"}"#;
    let ran = run(stage.daemon.config.command(&["submit", "--lane", "prod", "--file", "-", "i-sim00002"]), line).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    let told = "standard input, line 1: \"not_befor\" is no field of a job; did you mean not_before?";
    assert!(ran.errors.contains(told), "{}", ran.errors);
    assert!(stage.sim.log().await.is_empty() && stage.dead().await.is_empty());
}

#[tokio::test]
async fn several_files_are_one_batch_in_which_different_jobs_of_an_instance_are_all_submitted() {
    let mut stage = Stage::set().await;
    let folder = Folder::new();
    let first = folder.put("first", "i-sim00001  # web-1\ni-sim00002\n");
    let second = folder.put("second", "{\"instance_id\":\"i-sim00001\",\"labels\":{\"try\":\"2\"}}\ni-sim00002\n");
    let arguments = ["submit", "--lane", "prod", "--wait", "--file", &first, "--file", &second];
    let ran = run(stage.daemon.config.command(&arguments), "").await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    assert!(ran.errors.contains("3 jobs submitted to lane prod"), "{}", ran.errors);
    let repeated = format!("i-sim00002: {second}, line 2, and before at {first}, line 2");
    assert!(ran.errors.contains(&repeated), "{}", ran.errors);
    assert_eq!(stage.event().await["data"]["size"], 3);
    let outcomes = stage.outcomes(3).await.into_values();
    let labelled: Vec<_> = outcomes.filter(|outcome| outcome["labels"] == json!({"try": "2"})).collect();
    assert_eq!(labelled.len(), 1);
    assert_eq!(labelled[0]["instance_id"], "i-sim00001");
}

#[tokio::test]
async fn a_table_has_a_job_in_each_row_and_labels_in_its_further_columns() {
    let mut stage = Stage::set().await;
    let folder = Folder::new();
    let table = folder.put(
        "fleet.csv",
        "\u{feff}name,instance_id,deadline\r\n\"web, 1\",i-sim00001,\r\n,i-sim00002,9999-12-31T23:59:59Z\r\n",
    );
    let submit = |file: &str| stage.daemon.config.command(&["submit", "--lane", "prod", "--wait", "--file", file]);
    let (wrong, rows) = (folder.put("wrong.csv", "instance_id,not_befor\ni-sim00001,x\n"), "name\tid\nx\n");
    let misspelt = run(submit(&wrong), "").await;
    let mut of_tabs = submit("-");
    of_tabs.args(["--format", "tsv"]);
    let short = run(of_tabs, rows).await;
    let whole = run(submit(&table), "").await;
    assert_eq!((misspelt.code, short.code, whole.code), (Some(2), Some(2), Some(0)), "{}", whole.errors);
    assert!(misspelt.errors.contains("wrong.csv, line 1: column 2 is \"not_befor\""), "{}", misspelt.errors);
    assert!(
        short.errors.contains("standard input, line 2: the header has 2 columns and the row 1"),
        "{}",
        short.errors
    );
    assert_eq!(stage.event().await["data"]["size"], 2);
    for outcome in stage.outcomes(2).await.into_values() {
        let first = outcome["instance_id"] == "i-sim00001";
        assert_eq!(outcome["labels"], if first { json!({"name": "web, 1"}) } else { json!({}) });
    }
}

#[tokio::test]
async fn options_hold_for_all_jobs_and_times_that_cannot_be_meant_are_refused() {
    let mut stage = Stage::set().await;
    let submit = async |more: &[&str]| {
        let command = stage.daemon.config.command(&[&["submit", "--lane", "prod", "i-sim00001"], more].concat());
        run(command, r#"{"instance_id":"i-sim00002","labels":{"team":"ops"}}"#).await
    };
    for (options, told) in [
        (&["--batch", ""][..], "--batch has 0 bytes"),
        (&["--at", "07:30"], "add --tz, as in --tz Asia/Shanghai"),
        (&["--at", "2025-11-25T07:30:00+08:00"], "not_before 2025-11-24T23:30:00Z is past"),
        (&["--deadline", "2025-11-25T07:30:00+08:00"], "deadline 2025-11-24T23:30:00Z is past"),
        (&["--at", "9000h"], "more than a year ahead"),
        (&["--label", "team"], "expected NAME=VALUE"),
        (&["--conflict", "maybe"], "[possible values: fail, accept, verify]"),
    ] {
        let ran = submit(options).await;
        assert_eq!(ran.code, Some(2), "{options:?}: {}", ran.errors);
        assert!(ran.errors.contains(told), "{options:?}: {}", ran.errors);
    }
    let later = submit(&["--at", "07:30", "--tz", "Asia/Shanghai", "--batch", "later"]).await;
    assert_eq!(later.code, Some(0), "{}", later.errors);
    assert!(later.errors.contains("as batch later, not to start before 2"), "{}", later.errors);
    assert!(later.errors.trim_end().ends_with("T23:30:00Z"), "{}", later.errors);
    let now =
        submit(&["--wait", "--file", "-", "--deadline", "+30m", "--label", "team=search", "--label", "a=b"]).await;
    assert_eq!(now.code, Some(0), "{}", now.errors);
    for outcome in stage.outcomes(2).await.into_values() {
        let team = if outcome["instance_id"] == "i-sim00002" { "ops" } else { "search" };
        assert_eq!(outcome["labels"], json!({"team": team, "a": "b"}));
    }
}

/// The lane's queues exist a moment before they are bound, and jobs published in between would be dead-lettered.
#[tokio::test]
async fn a_lane_that_is_only_being_set_up_is_given_no_jobs() {
    let stage = Stage::set().await;
    let lanes = (1..=20).map(|number| format!("[[lane]]\nname = \"new{number}\"\nendpoint = {:?}\n", stage.sim.url()));
    let more = config(&stage.vhost.url, &stage.sim.url(), &Wishes::default()) + &lanes.collect::<String>();
    let daemon = Daemon::start(&more);
    let submitted = eventually("the last lane takes a job", async || {
        let ran = run(daemon.config.command(&["submit", "--lane", "new20", "i-sim00001"]), "").await;
        (ran.code == Some(0)).then_some(ran)
    })
    .await;
    stage.queues.has("reveille.dead", 0, 0).await;
    eventually("it is called", async || (!stage.sim.log().await.is_empty()).then_some(())).await;
    assert!(stage.dead().await.is_empty(), "{}", submitted.errors);
}

#[tokio::test]
async fn urgent_jobs_that_no_queue_waits_for_are_not_submitted() {
    let mut stage = Stage::set().await;
    // A running daemon would declare the queue again.
    stage.daemon.stop().await;
    let channel = stage.queues.connection.create_channel().await.unwrap();
    channel.queue_delete("reveille.urgent.prod".into(), QueueDeleteOptions::default()).await.unwrap();
    let submit = |more: &[&'static str]| stage.daemon.config.command(&[&["submit", "--lane", "prod"], more].concat());
    let own = r#"{"instance_id":"i-sim00003","priority":"normal"}"#;
    let ran = run(submit(&["--urgent", "i-sim00001", "--file", "-"]), own).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(
        ran.errors.contains("lane prod takes no urgent jobs") && ran.errors.contains("'reveille.urgent.prod'"),
        "{}",
        ran.errors
    );
    assert!(stage.dead().await.is_empty());
    assert!(stage.queues.take_all("reveille.jobs.prod").await.is_empty());
    // Jobs that need no such queue are accepted.
    let ran = run(submit(&["--urgent", "--file", "-"]), own).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    stage.queues.has("reveille.jobs.prod", 1, 0).await;
}

#[tokio::test]
async fn a_broker_that_cannot_be_reached_has_the_exit_code_69() {
    let config = Config::write("[broker]\nurl = \"amqp://guest:hush@127.0.0.1:9\"");
    let ran = run(config.command(&["submit", "i-sim00001"]), "").await;
    assert_eq!(ran.code, Some(69));
    assert!(ran.errors.contains("127.0.0.1:9") && !ran.errors.contains("hush"), "{}", ran.errors);
}

#[tokio::test]
async fn a_connection_that_is_lost_before_any_job_is_submitted_has_the_exit_code_69() {
    let stage = Stage::set().await;
    let lossy = Lossy::before(&stage.vhost.url).await;
    let config = Config::write(&config(&lossy.url, &stage.sim.url(), &Wishes::default()));
    // Whether the lane is paused is no reason to wait, nor is a log that may be empty: the reading of it is.
    for (lost, count) in [(&lossy.opens, 1), (&lossy.subscriptions, 3)] {
        lost.begin();
        let cut = async {
            eventually("it waits for what is lost", async || (lost.count() >= count).then_some(())).await;
            lossy.cut();
        };
        let submit = run(config.command(&["submit", "--lane", "prod", "--wait", "i-sim00001"]), "");
        let (ran, ()) = tokio::join!(submit, cut);
        assert_eq!(ran.code, Some(69), "{}", ran.errors);
        lost.end();
    }
    assert!(stage.sim.log().await.is_empty());
}

#[tokio::test]
async fn a_permission_that_is_missing_has_the_exit_code_2_and_is_named() {
    const JOBS: &str = "^reveille\\.jobs$";
    const OUTCOMES: &str = "^reveille\\.outcomes$";
    const BOTH: &str = "^reveille\\.(jobs|outcomes)$";
    const LOG: &str = "^reveille\\.outcomes\\.log$";
    let stage = Stage::set().await;
    let (node, vhost) = (&stage.vhost.node, stage.vhost.name.as_str());
    let user = format!("producer-{vhost}");
    node.ctl(&["add_user", &user, "hush"]);
    let url = stage.vhost.url.replace("guest:guest", &format!("{user}:hush"));
    let config = Config::write(&config(&url, &stage.sim.url(), &Wishes::default()));
    let submit = async |more: &[&'static str]| {
        run(config.command(&[&["submit", "--lane", "prod", "i-sim00001"], more].concat()), "").await
    };
    let ran = submit(&[]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains(&format!("vhost '{vhost}' refused for user '{user}'")), "{}", ran.errors);
    let mut wrong = config.command(&["submit", "--lane", "prod", "i-sim00001"]);
    wrong.env("REVEILLE_BROKER__PASSWORD", "husky");
    let ran = run(wrong, "").await;
    assert_eq!(ran.code, Some(2), "{}", ran.errors);
    assert!(ran.errors.contains("check the user, its password") && !ran.errors.contains("husky"), "{}", ran.errors);
    for (permissions, more, named) in [
        (["", JOBS, ""], &[][..], "'reveille.outcomes'"),
        (["", OUTCOMES, ""], &[], "'reveille.jobs'"),
        (["", BOTH, OUTCOMES], &["--wait"], "needs permission to read reveille.outcomes.log; no job was submitted"),
    ] {
        node.ctl(&[&["set_permissions", "-p", vhost, &user], &permissions[..]].concat());
        let ran = submit(more).await;
        assert_eq!(ran.code, Some(2), "{permissions:?}: {}", ran.errors);
        assert!(ran.errors.contains(named) && ran.errors.contains("needs permission to"), "{}", ran.errors);
        assert!(!ran.errors.contains("hush"), "{}", ran.errors);
    }
    assert!(stage.sim.log().await.is_empty());
    // With the permissions it asks for, it works.
    node.ctl(&["set_permissions", "-p", vhost, &user, "", BOTH, LOG]);
    let ran = submit(&["--wait"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
}
