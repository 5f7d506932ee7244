//! What a person reads in the log of a lane's jobs.

use lapin::BasicProperties;
use serde_json::json;

use crate::support::child::Child;
use crate::support::eventually;
use crate::support::stage::{Stage, Wishes};

/// The daemon starts again, and logs what it does by default.
async fn as_by_default(stage: &mut Stage) {
    stage.daemon.stop().await;
    let mut command = stage.daemon.config.command(&["run"]);
    command.env_remove("RUST_LOG");
    stage.daemon.child = Child::start(command);
    stage.daemon.is_held().await;
}

fn lines<'a>(log: &'a str, part: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(part)).collect()
}

/// What the lines of counts have under `name`, taken together: a machine that is busy may be idle in between.
fn counted(log: &str, name: &str) -> u32 {
    let lines = lines(log, "jobs within ");
    let words = lines.iter().flat_map(|line| line.split(' '));
    words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse::<u32>().ok()).sum()
}

#[tokio::test]
async fn a_job_that_fails_has_one_line_which_says_which_it_is_and_why() {
    let retry = "initial = \"1ms\"\nmax = \"2ms\"";
    let mut stage = Stage::with(Wishes { retry, ..Wishes::default() }).await;
    as_by_default(&mut stage).await;
    let message = "Sold \"out\" reason=none";
    let refused = json!({"status": 400, "code": "Weird", "message": message});
    stage.sim.script("i-sim00001", json!([{"status": 500}, {"status": 500}, refused])).await;
    stage.job("job-1", json!({"instance_id": "i-sim00001", "batch_id": "morning"})).await;
    stage.message(BasicProperties::default().with_message_id("job-2".into()), b"hello").await;
    stage.job("job-3", json!({"instance_id": "i-sim00003"})).await;
    let outcomes = stage.outcomes(3).await;
    stage.daemon.stop().await;

    let log = stage.daemon.child.output();
    let id = outcomes["job-1"]["bce_request_id"].as_str().unwrap();
    let [failed] = lines(&log, "job-1")[..] else { panic!("one line: {log}") };
    let span = r#" INFO job{lane="prod" job="job-1" instance="i-sim00001" batch="morning" attempt=3}: reveille::"#;
    let end = format!(
        r#": job failed reason="refused" http_status=400 error_code="Weird" error_message="Sold \"out\" reason=none" bce_request_id="{id}""#
    );
    assert!(failed.contains(span) && failed.ends_with(&end), "{failed}");
    let [rejected] = lines(&log, "job-2")[..] else { panic!("one line: {log}") };
    let span = r#" INFO job{lane="prod" job="job-2" attempt=1}: reveille::"#;
    assert!(
        rejected.contains(span) && rejected.contains(r#": job rejected reason="unreadable" error_message=""#),
        "{log}"
    );
    assert!(!log.contains("job-3"), "none of a job that went well: {log}");
    assert!(
        lines(&log, "jobs within ").iter().all(|line| line.contains(r#" INFO lane{lane="prod"}: reveille::"#)),
        "{log}"
    );
    let counts = ["started", "running", "failed", "rejected", "parked"].map(|name| counted(&log, name));
    assert_eq!(counts, [1, 0, 1, 1, 2], "{log}");
}

#[tokio::test]
async fn thirty_jobs_that_fail_for_one_reason_have_ten_lines_and_a_summary() {
    let mut stage = Stage::set().await;
    as_by_default(&mut stage).await;
    for number in 1..=30 {
        stage.job(&format!("job-{number}"), json!({"instance_id": format!("i-unknown{number}")})).await;
    }
    stage.job("another", json!({"instance_id": "i-sim00001", "conflict": "maybe"})).await;
    stage.outcomes(31).await;
    stage.all_acked().await;
    stage.daemon.stop().await;

    let log = stage.daemon.child.output();
    assert_eq!(lines(&log, "job failed").len(), 10, "{log}");
    assert_eq!(lines(&log, "job rejected").len(), 1, "a reason of its own: {log}");
    let [summary] = lines(&log, "more jobs")[..] else { panic!("one summary: {log}") };
    assert!(summary.contains(r#" INFO lane{lane="prod"}: "#), "{summary}");
    let told = r#"20 more jobs failed as not_found within a minute, without a line each reason="not_found" jobs=20"#;
    assert!(summary.ends_with(told), "{summary}");
    assert_eq!(["failed", "rejected", "calls"].map(|name| counted(&log, name)), [30, 1, 30], "{log}");
}

/// What `{:?}` makes of a struct or an enum: `Some(…`, `InstanceId("…`, `Started { …`.
fn debug_trace(line: &str) -> Option<&str> {
    line.match_indices(['(', '{']).find_map(|(end, bracket)| {
        let before = line[..end].strip_suffix(' ').filter(|_| bracket == "{").unwrap_or(&line[..end]);
        let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next()?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then_some(name)
    })
}

#[tokio::test]
async fn no_line_of_a_mixed_run_has_a_debug_format_or_says_its_lane_or_job_twice() {
    for line in
        ["x verdict=Failed(NotFound)", "of=Some(3)", "Started { ambiguous: true }", r#"Call(InstanceId("i-1"))"#]
    {
        assert!(debug_trace(line).is_some(), "{line}");
    }
    let lane = "batch = 3\ntimeout = \"2s\"\nconfirm_timeout = \"20s\"";
    let wishes =
        Wishes { lane, sim: &["--boot-time", "1s"], retry: "max_attempts = 2\ninitial = \"1ms\"", ..Wishes::default() };
    let mut stage = Stage::with(wishes).await;
    let scripts = [
        ("i-sim00001", json!([{"status": 500}])),
        ("i-sim00002", json!([{"status": 429}])),
        ("i-sim00003", json!([{"status": 500}, {"status": 500}, {"status": 500}, {"status": 500}])),
        ("i-sim00004", json!([{"status": 409, "code": "Odd"}])),
        ("i-sim00005", json!([{"status": 403, "code": "AccessDenied"}, {"status": 403, "code": "AccessDenied"}])),
        ("i-sim00006", json!(["hang-after"])),
        ("i-sim00007", json!(["reset-after"])),
    ];
    for (instance, script) in scripts {
        stage.sim.script(instance, script).await;
    }
    stage.wake_all(1..=9).await;
    for (number, more) in [
        json!({"confirm": "running"}),
        json!({"deadline": "2020-01-01T00:00:00Z"}),
        json!({"not_before": (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2)).to_string()}),
        json!({"conflict": "maybe"}),
        json!({"labels": {"a": "b"}, "batch_id": "b"}),
    ]
    .into_iter()
    .enumerate()
    {
        let mut body = json!({"instance_id": format!("i-sim000{}", 10 + number)});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        stage.job(&format!("more-{number}"), body).await;
    }
    stage.wake("i-unknown1").await;
    stage.outcomes(15).await;
    stage.sim.script("i-sim00020", json!([{"status": 401, "code": "InvalidAccessKeyId"}])).await;
    stage.wake("i-sim00020").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
    eventually("the lane works again", async || {
        stage.daemon.child.output().contains("the lane works again").then_some(())
    })
    .await;
    stage.all_acked().await;
    stage.daemon.stop().await;

    let log = stage.daemon.child.output();
    let steps =
        ["delivery", "called", "called together", "polled", "parked", "probed", "lane paused", "lane given back"];
    for step in steps {
        assert!(log.lines().any(|line| line.contains(&format!(": {step}"))), "{step}: {log}");
    }
    for line in log.lines() {
        assert_eq!(debug_trace(line), None, "{line}");
        for field in ["lane=", " job=", "instance="] {
            assert!(line.matches(field).count() <= 1, "{line}");
        }
        let is_of_a_term = line.contains("reveille::ownership::term") && !line.contains(" scheduler: ");
        let is_of_a_lane = line.contains("reveille::lane") || is_of_a_term;
        assert!(!is_of_a_lane || line.contains(r#"lane="prod""#), "{line}");
        // A job's call is what caused them, but they are about more than that job.
        let is_about_all =
            ["lane paused", "the lane works again", "called together"].iter().any(|part| line.contains(part));
        assert!(!is_about_all || !line.contains("job{"), "{line}");
    }
}
