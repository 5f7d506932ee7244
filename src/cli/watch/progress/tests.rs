use serde_json::json;

use super::*;
use crate::events::Batch;

/// So many milliseconds after the watch began.
fn at(milliseconds: i64) -> Timestamp {
    "2026-11-25T07:30:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_millis(milliseconds)
}

fn begin() -> Progress {
    Progress::new("morning", at(0))
}

fn announcement(id: &str, batch: &str, size: usize, time: Timestamp) -> Event {
    let batch = Batch::new(batch.to_owned(), size, "prod".to_owned());
    Event { id: id.to_owned(), ..Event::new("prod", Data::BatchSubmitted(batch), time) }
}

/// An event of a job of the batch.
fn job(id: &str, outcome: &str, is_final: bool, time: Timestamp) -> Event {
    let reason = (outcome == "failed").then_some("not_found");
    let job = json!({"job_id": id, "lane": "prod", "instance_id": format!("i-{}0000", id.replace('-', "")), "batch_id": "morning",
        "outcome": outcome, "reason": reason, "final": is_final, "attempts": 1, "ambiguous": false,
        "received_at": time, "finished_at": time, "duration_ms": 0});
    Event::new("prod", Data::Job(Box::new(serde_json::from_value(job).unwrap())), time)
}

#[test]
fn sizes_add_up_and_each_job_and_announcement_counts_once() {
    let mut progress = begin();
    let hear = |progress: &mut Progress, event| progress.hear(event, at(0));
    assert_eq!(hear(&mut progress, announcement("a", "morning", 2, at(0))), Heard::Announced { forgotten: 0 });
    for event in [
        announcement("a", "morning", 2, at(0)),
        announcement("x", "evening", 7, at(0)),
        job("1", "started", true, at(0)),
        job("1", "started", true, at(0)),
        job("1", "failed", true, at(0)),
    ] {
        assert_eq!(hear(&mut progress, event), Heard::Nothing);
    }
    assert_eq!(hear(&mut progress, announcement("b", "morning", 1, at(0))), Heard::Announced { forgotten: 0 });
    let Heard::Down(instance, ended) = hear(&mut progress, job("2", "failed", true, at(0))) else { panic!() };
    assert_eq!((instance.as_str(), ended.reason.as_deref()), ("i-20000", Some("not_found")));
    assert_eq!((progress.announced(), progress.ended()), (Some(3), 2));
    assert!(!progress.report().all_up());
}

#[test]
fn a_replay_takes_the_place_of_the_job_that_failed() {
    let mut progress = begin();
    let replay = |id: &str, old: &str, outcome: &str| {
        let mut event = job(id, outcome, true, at(0));
        if let Data::Job(job) = &mut event.data {
            job.replay_of = Some(old.to_owned());
        }
        event
    };
    progress.hear(announcement("a", "morning", 3, at(0)), at(0));
    progress.hear(job("1", "started", true, at(0)), at(0));
    progress.hear(job("2", "failed", true, at(0)), at(0));
    assert!(matches!(progress.hear(replay("r", "2", "failed"), at(0)), Heard::Down(..)), "it failed again");
    assert_eq!((progress.ended(), progress.report().outcomes()), (2, [("failed", 1), ("started", 1)].into()));
    for event in [replay("s", "r", "started"), replay("s", "r", "started"), replay("t", "0", "started")] {
        assert_eq!(progress.hear(event, at(0)), Heard::Nothing);
    }
    assert_eq!((progress.ended(), progress.report().outcomes()), (2, [("started", 2)].into()), "one is still to end");
    assert!(progress.report().all_up() && !progress.report().to_string().contains("not up"));
}

#[test]
fn the_wave_that_runs_is_named() {
    let mut progress = begin();
    let mut announced = announcement("a", "morning", 3, at(0));
    let second = Wave::new(20).unwrap();
    if let Data::BatchSubmitted(batch) = &mut announced.data {
        batch.waves = [(Wave::new(10).unwrap(), 1), (second, 2)].into();
    }
    let of = |id: &str, wave| {
        let mut event = job(id, "started", true, at(0));
        if let Data::Job(job) = &mut event.data {
            job.wave = Wave::new(wave);
        }
        event
    };
    progress.hear(announced, at(0));
    progress.reads(Reading::Live, at(0));
    assert_eq!(progress.line(None, at(0)), "0 of 3 ended; wave 1 of 2; 0s");
    progress.hear(of("1", 10), at(0));
    assert!(
        progress.line(None, at(0)).contains("1 of 3 ended: 1 started; wave 2 of 2; "),
        "{}",
        progress.line(None, at(0))
    );
    progress.hear(of("2", 20), at(0));
    progress.hear(of("3", 20), at(0));
    assert!(!progress.line(None, at(0)).contains("wave"), "{}", progress.line(None, at(0)));
}

#[test]
fn of_a_submission_only_its_jobs_count_from_its_announcement_on() {
    let [ours, other] = [1, 2].map(|number| uuid::Uuid::from_u128(number).to_string());
    let announced = ("a".to_owned(), at(100));
    let submission = Submission { jobs: vec![1, 7], announced, is_heard: false };
    let mut progress = Progress::of_submission("morning", submission, at(0));
    let mut hear = |event| progress.hear(event, at(0));
    // Of an earlier submission of the same jobs: it ended otherwise.
    for event in [announcement("a", "morning", 2, at(0)), job(&ours, "failed", true, at(0))] {
        assert_eq!(hear(event), Heard::Nothing);
    }
    hear(announcement("a", "morning", 2, at(100)));
    for event in [job(&other, "failed", true, at(200)), job("noise", "failed", true, at(200))] {
        assert_eq!(hear(event), Heard::Nothing, "of the batch, and not ours");
    }
    hear(announcement("b", "morning", 5, at(200)));
    hear(job(&ours, "started", true, at(200)));
    progress.reads(Reading::Live, at(200));
    assert_eq!((progress.announced(), progress.ended(), progress.end(at(90_000), None)), (Some(2), 1, None));
    let last = uuid::Uuid::from_u128(7).to_string();
    assert!(matches!(progress.hear(job(&last, "failed", true, at(300)), at(300)), Heard::Down(..)));
    assert_eq!(progress.end(at(300), None), Some(End::Done), "at once: nothing is added to a submission");
}

#[test]
fn an_accepted_start_is_progress_and_not_the_end() {
    let mut progress = begin();
    progress.hear(announcement("a", "morning", 1, at(0)), at(0));
    progress.hear(job("1", "started", false, at(0)), at(0));
    progress.reads(Reading::Live, at(0));
    assert_eq!((progress.ended(), progress.end(at(60_000), None)), (0, None));
    assert!(progress.line(None, at(0)).contains("1 accepted, not seen running yet"), "{}", progress.line(None, at(0)));
    progress.hear(job("1", "running", true, at(0)), at(60_000));
    // A copy of its first event.
    progress.hear(job("1", "started", false, at(0)), at(60_000));
    assert_eq!(progress.line(None, at(60_000)), "1 of 1 ended: 1 running; 1.0/s; 1m");
}

#[test]
fn a_batch_is_done_once_the_log_is_replayed_and_quiet_about_it() {
    let mut progress = begin();
    progress.hear(announcement("a", "morning", 1, at(0)), at(0));
    progress.hear(job("1", "started", true, at(0)), at(100));
    assert_eq!(progress.end(at(60_000), None), None, "another announcement may follow");
    progress.reads(Reading::Live, at(60_000));
    assert_eq!(progress.end(at(60_999), None), None);
    assert_eq!(progress.end(at(61_000), None), Some(End::Done));
    progress.reads(Reading::Away, at(61_000));
    assert_eq!(progress.end(at(90_000), None), None);
    progress.reads(Reading::Live, at(90_000));
    progress.hear(announcement("b", "morning", 1, at(0)), at(90_500));
    assert_eq!(progress.end(at(99_000), None), None);
}

#[test]
fn a_batch_that_is_not_announced_is_given_up_after_the_patience() {
    let patience = Some(SignedDuration::from_secs(30));
    let mut progress = begin();
    assert_eq!(progress.end(at(99_000), patience), None, "the log is read yet");
    progress.reads(Reading::Live, at(99_000));
    assert_eq!(progress.end(at(128_999), patience), None);
    // A job of it: there may be more.
    assert_eq!(progress.hear(job("1", "failed", true, at(0)), at(128_999)), Heard::Nothing);
    assert_eq!(progress.end(at(129_000), patience), None);
    assert_eq!(progress.end(at(159_000), patience), Some(End::NotAnnounced));
    assert_eq!(progress.end(at(159_000), None), None, "for ever");
    assert!(progress.line(None, at(159_000)).starts_with("not announced yet, 1 ended: 1 failed; "));
}

#[test]
fn jobs_of_an_earlier_batch_of_the_name_end_no_batch() {
    let mut progress = begin();
    for id in ["1", "2"] {
        progress.hear(job(id, "failed", true, at(0)), at(0));
    }
    progress.hear(job("3", "started", false, at(0)), at(0));
    assert_eq!(progress.hear(announcement("a", "morning", 1, at(0)), at(0)), Heard::Announced { forgotten: 2 });
    assert_eq!(progress.hear(announcement("a", "morning", 1, at(0)), at(0)), Heard::Nothing);
    progress.reads(Reading::Live, at(0));
    assert_eq!((progress.end(at(60_000), None), progress.report().all_up()), (None, true));
    assert_eq!(progress.line(None, at(0)), "0 of 1 ended; 0s");
}

#[test]
fn a_part_that_is_submitted_again_counts_once_and_with_what_was_sent() {
    let mut progress = begin();
    progress.hear(announcement("a", "morning", 3, at(0)), at(0));
    progress.hear(job("1", "started", true, at(0)), at(0));
    for (time, size) in [(1, 2), (2, 3), (3, 2)] {
        let again = announcement("a", "morning", size, at(time));
        assert_eq!(progress.hear(again, at(time)), Heard::Announced { forgotten: 0 });
        assert_eq!((progress.announced(), progress.ended()), (Some(size), 1));
    }
    assert_eq!(progress.hear(job("1", "started", true, at(3)), at(3)), Heard::Nothing, "a copy tells it again");
    progress.hear(job("2", "started", true, at(3)), at(3));
    progress.reads(Reading::Live, at(3));
    assert_eq!(progress.end(at(60_000), None), Some(End::Done));
    assert_eq!(progress.hear(announcement("a", "morning", 2, at(3)), at(4)), Heard::Nothing, "a copy");

    let anew = announcement("a", "morning", 3, at(60_000));
    assert_eq!(progress.hear(anew, at(60_000)), Heard::Announced { forgotten: 2 });
    assert_eq!((progress.ended(), progress.end(at(90_000), None)), (0, None));
    for id in ["1", "2", "3"] {
        progress.hear(job(id, "started", true, at(90_000)), at(90_000));
    }
    assert_eq!(progress.end(at(95_000), None), Some(End::Done));
}

#[test]
fn the_rate_of_a_replay_is_that_of_then_and_the_time_left_goes_by_it() {
    let mut progress = begin();
    let now = at(600_000);
    progress.hear(announcement("a", "morning", 1000, at(500_000)), now);
    for number in 0..400 {
        // Twenty a second, up to now.
        progress.hear(job(&number.to_string(), "started", true, at(580_050 + number * 50)), now);
    }
    assert_eq!(progress.line(None, now), "400 of 1000 ended: 400 started; reading the log; 1m 40s");
    progress.reads(Reading::Live, now);
    assert_eq!(progress.line(None, now), "400 of 1000 ended: 400 started; 19/s, 32s left; 1m 40s");
    // None ends any more.
    assert_eq!(progress.line(None, at(700_000)), "400 of 1000 ended: 400 started; 3m 20s");
    // Live, the time is ours, whatever the daemon's clock says.
    progress.hear(job("x", "started", true, at(0)), at(700_000));
    assert!(progress.line(None, at(700_000)).contains("; 2/min, "), "{}", progress.line(None, at(700_000)));
}

#[test]
fn clocks_that_differ_and_absurd_sizes_make_odd_lines_and_no_more() {
    let mut progress = begin();
    progress.hear(announcement("a", "morning", usize::MAX, Timestamp::MAX), at(0));
    progress.hear(announcement("b", "morning", usize::MAX, Timestamp::MIN), at(0));
    progress.hear(job("1", "started", true, Timestamp::MIN), at(0));
    progress.hear(job("2", "started\u{1b}[2J\n", true, Timestamp::MAX), at(0));
    progress.reads(Reading::Live, at(0));
    let line = progress.line(None, at(0));
    assert!(line.starts_with(&format!("2 of {} ended: 1 started, 1 started\\u{{1b}}[2J\\n; ", usize::MAX)), "{line}");
    assert!(line.ends_with(" left; 0s"), "{line}");
    assert_eq!(progress.line(None, Timestamp::MIN).lines().count(), 1);
}
