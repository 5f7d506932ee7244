//! What comes first for a job, and what follows from a verdict.

use super::admit::first;
use super::*;
use crate::config::Retry;

const RETRY: Retry = Retry {
    max_attempts: 3,
    initial: Duration::from_secs(1),
    max: Duration::from_secs(60),
    give_up_after: Duration::from_secs(600),
};

fn now() -> Timestamp {
    "2026-11-25T07:30:00Z".parse().unwrap()
}

fn job(body: &str) -> job::Job {
    job::Job::parse(body.as_bytes()).unwrap()
}

fn progress() -> Progress {
    Progress {
        job_id: "j".to_owned(),
        received_at: now(),
        attempts: 0,
        reschedules: 0,
        failing_since: None,
        touched: false,
        denied: false,
        no_capacity: false,
        once: false,
        order: None,
        put_back: None,
        boot: None,
    }
}

fn decided(verdict: Verdict, progress: &Progress) -> Next {
    decided_after(Duration::ZERO, verdict, progress)
}

/// What follows if the lane was paused for so long since the first failure.
fn decided_after(paused: Duration, verdict: Verdict, progress: &Progress) -> Next {
    let failing_for = progress.failing_since.map_or(Duration::ZERO, |since| elapsed(since, now()));
    let past = Past { progress, failing_for: failing_for.saturating_sub(paused), is_doubtful: false };
    decide(verdict, Err(NoAnswer::TimedOut), past, Confirm::Accepted, RETRY, now(), 0.5)
}

#[test]
fn a_job_waits_until_not_before() {
    assert_eq!(first(&job(r#"{"instance_id":"i-0000"}"#), &progress(), now()), First::Call);
    let early = job(r#"{"instance_id":"i-0000","not_before":"2026-11-25T07:30:02Z"}"#);
    assert_eq!(first(&early, &progress(), now()), First::Wait(Duration::from_secs(2), ParkCause::NotBefore));
    let due = job(r#"{"instance_id":"i-0000","not_before":"2026-11-25T07:30:00Z","deadline":"2026-11-25T07:30:00Z"}"#);
    assert_eq!(first(&due, &progress(), now()), First::Call);
    let (late, never) = (r#""deadline":"2026-11-25T07:29:59Z""#, r#""not_before":"2026-11-25T07:30:02Z""#);
    let never = job(&format!(r#"{{"instance_id":"i-0000",{late},{never}}}"#));
    assert_eq!(first(&never, &progress(), now()), First::Call, "it is late, and not to wait as well");
}

#[test]
fn a_job_that_is_done_when_its_instance_runs_goes_on_unless_it_was_seen_running() {
    let decided = |verdict, confirm| {
        let past = Past { progress: &progress(), failing_for: Duration::ZERO, is_doubtful: false };
        decide(verdict, Ok(Answer { status: 200, ..Answer::default() }), past, confirm, RETRY, now(), 0.5)
    };
    for ambiguous in [false, true] {
        let next = decided(Verdict::Started { ambiguous }, Confirm::Running);
        let Next::GoOn { started: Some(started), attempts: 1, boot } = next else { panic!("{next:?}") };
        assert_eq!((started.outcome, started.ambiguous, started.attempts), (Outcome::Started, ambiguous, 1));
        assert_eq!((boot.since, boot.ambiguous, boot.polls), (now(), ambiguous, 0));
    }
    let next = decided(Verdict::AlreadyDone { runs: false }, Confirm::Running);
    assert!(
        matches!(next, Next::GoOn { started: None, attempts: 1, .. }),
        "it is not our doing, so nothing is said: {next:?}"
    );
    for (verdict, confirm, outcome) in [
        (Verdict::AlreadyDone { runs: true }, Confirm::Running, Outcome::AlreadyDone),
        (Verdict::AlreadyDone { runs: false }, Confirm::Accepted, Outcome::AlreadyDone),
        (Verdict::Started { ambiguous: false }, Confirm::Accepted, Outcome::Started),
        (Verdict::Failed(Reason::Conflict), Confirm::Running, Outcome::Failed(Reason::Conflict)),
    ] {
        let next = decided(verdict, confirm);
        assert!(matches!(&next, Next::Conclude(end) if end.outcome == outcome), "{next:?}");
    }
}

#[test]
fn a_job_that_is_confirming_is_polled_whatever_its_times_say() {
    let begun = Boot::begun(now(), false);
    let polled = Progress { boot: Some(begun.clone()), ..progress() };
    let late = job(r#"{"instance_id":"i-0000","deadline":"2026-11-25T07:29:59Z","not_before":"2026-11-26T07:30:00Z"}"#);
    assert_eq!(first(&late, &polled, now()), First::Poll(begun));
}

#[test]
fn a_transient_failure_counts_and_the_last_one_exhausts() {
    let Next::Park { progress: one, delay, .. } = decided(Verdict::Transient, &progress()) else { panic!() };
    assert_eq!((one.attempts, one.reschedules, one.touched), (1, 1, true));
    assert_eq!((one.failing_since, delay), (Some(now()), Duration::from_millis(500)));
    let Next::Park { progress: two, delay, .. } = decided(Verdict::Transient, &one) else { panic!() };
    assert_eq!((two.attempts, delay), (2, Duration::from_secs(1)));
    let Next::Conclude(end) = decided(Verdict::Transient, &two) else { panic!() };
    assert_eq!((end.outcome, end.attempts), (Outcome::Failed(Reason::Exhausted), 3));
    assert_eq!(end.explanation.as_deref(), Some("the API did not answer in time"));
}

#[test]
fn a_call_for_several_that_failed_is_charged_to_nobody() {
    let Next::Park { progress: next, delay, cause } = retry_singly(&progress(), RETRY, now(), 0.5) else { panic!() };
    assert_eq!((next.attempts, next.reschedules, next.touched), (0, 1, true));
    assert_eq!((next.failing_since, delay, cause), (Some(now()), Duration::from_millis(500), ParkCause::Transient));
    // From then on it pays for itself.
    let Next::Park { progress: own, .. } = decided(Verdict::Transient, &next) else { panic!() };
    assert_eq!((own.attempts, own.reschedules), (1, 2));
}

#[test]
fn time_exhausts_too_but_only_from_the_first_failure_on() {
    let received_at = now() - Duration::from_secs(86_400);
    let waited = Progress { received_at, ..progress() };
    assert!(matches!(decided(Verdict::Transient, &waited), Next::Park { .. }));
    let failing = Progress { failing_since: Some(now() - RETRY.give_up_after), ..progress() };
    assert!(matches!(decided(Verdict::Transient, &failing), Next::Conclude(_)));
    // A pause of the lane is not time of failing, and the time of the first failure is kept.
    let paused = Duration::from_secs(1);
    let Next::Park { progress: own, .. } = decided_after(paused, Verdict::Transient, &failing) else { panic!() };
    assert_eq!(own.failing_since, failing.failing_since);
}

/// Eight attempts would otherwise be used up within a minute.
#[test]
fn where_no_start_succeeds_a_job_is_tried_again_slowly() {
    for (attempts, random, delay) in [(0, 0.0, 30), (0, 1.0, 60), (1, 0.5, 45)] {
        let progress = Progress { attempts, ..progress() };
        let past = Past { progress: &progress, failing_for: Duration::ZERO, is_doubtful: true };
        let next = decide(Verdict::Transient, Err(NoAnswer::TimedOut), past, Confirm::Accepted, RETRY, now(), random);
        let Next::Park { progress, delay: waits, .. } = next else { panic!("{next:?}") };
        assert_eq!((progress.attempts, waits), (attempts + 1, Duration::from_secs(delay)));
    }
}

#[test]
fn throttling_and_lane_faults_cost_no_attempt() {
    let asked_for = Duration::from_secs(7);
    let asked = Some(asked_for);
    let Next::Park { progress: throttled, delay, .. } = decided(Verdict::Throttled { retry_after: asked }, &progress())
    else {
        panic!()
    };
    assert_eq!((throttled.attempts, throttled.reschedules, throttled.touched), (0, 1, true));
    assert_eq!((throttled.failing_since, delay), (None, Duration::from_secs(7)));
    let Next::Park { delay, .. } = decided(Verdict::Throttled { retry_after: Some(Duration::ZERO) }, &progress())
    else {
        panic!()
    };
    assert_eq!(delay, Duration::from_secs(1), "0 is not at once, over and over");
    // The time that the API asked to wait is not time of failing either.
    let failing = Progress { failing_since: Some(now() - asked_for), ..progress() };
    let Next::Park { progress: waits, .. } = decided(Verdict::Throttled { retry_after: asked }, &failing) else {
        panic!()
    };
    assert_eq!(waits.failing_since, Some(now()));
    let tired = Progress { attempts: 2, reschedules: 9, ..progress() };
    for verdict in
        [Verdict::LaneFault, Verdict::ClockSkew { server_time: None }, Verdict::Throttled { retry_after: None }]
    {
        let Next::Park { progress, delay, .. } = decided(verdict, &tired) else { panic!() };
        assert_eq!((progress.attempts, progress.reschedules, delay), (2, 10, Duration::from_secs(30)));
    }
}

#[test]
fn a_job_whose_machine_is_not_to_be_had_is_tried_again_slowly_and_charged_nothing() {
    let none = || Verdict::NoCapacity { reason: Reason::NoCapacity };
    let retry = Retry { give_up_after: Duration::from_secs(3600), ..RETRY };
    let answer = || Ok(Answer { status: 403, ..Answer::default() });
    let at = |progress: &Progress, seconds, random| {
        let now = now() + Duration::from_secs(seconds);
        let past = Past { progress, failing_for: Duration::from_secs(seconds), is_doubtful: false };
        decide(none(), answer(), past, Confirm::Accepted, retry, now, random)
    };
    let mut last = progress();
    for (seconds, most) in [(0, 30), (30, 60), (90, 120), (210, 240), (450, 300), (750, 300)] {
        for random in [0.0, 1.0] {
            let Next::Park { progress, delay, cause } = at(&last, seconds, random) else { panic!() };
            let expected = if random == 0.0 { most / 2 } else { most };
            assert_eq!((delay, cause), (Duration::from_secs(expected), ParkCause::NoCapacity));
            assert_eq!((progress.attempts, progress.failing_since), (0, Some(now())), "from the first time on");
            assert!(progress.no_capacity && progress.touched);
        }
        let Next::Park { progress, .. } = at(&last, seconds, 0.5) else { panic!() };
        last = progress;
    }
    // It is back as its time is up, and then ends with the answer.
    let Next::Park { delay, .. } = at(&last, 3590, 0.5) else { panic!() };
    assert_eq!(delay, Duration::from_secs(10));
    let Next::Conclude(end) = at(&last, 3600, 0.5) else { panic!() };
    assert_eq!((end.outcome, end.ambiguous, end.attempts), (Outcome::Failed(Reason::NoCapacity), false, 1));
    assert_eq!(end.answer.map(|answer| answer.status), Some(403));
    // After any other result it goes before others again.
    let Next::Park { progress, .. } = decided(Verdict::Transient, &last) else { panic!() };
    assert!(!progress.no_capacity);
}

#[test]
fn no_job_waits_beyond_its_deadline() {
    assert_eq!(capacity::left(None, now()), Duration::MAX);
    assert_eq!(capacity::left(Some(now() + Duration::from_secs(7)), now()), Duration::from_secs(7));
    assert_eq!(capacity::left(Some(now() - Duration::from_secs(7)), now()), Duration::ZERO);
}

#[test]
fn a_job_that_ends_over_an_answer_of_another_one_than_the_api_says_so() {
    let tired = Progress { attempts: 2, ..progress() };
    let page = Ok(Answer { status: 404, from_proxy: true, ..Answer::default() });
    let past = Past { progress: &tired, failing_for: Duration::ZERO, is_doubtful: false };
    let next = decide(Verdict::Transient, page, past, Confirm::Accepted, RETRY, now(), 0.5);
    let Next::Conclude(end) = next else { panic!("{next:?}") };
    assert_eq!((end.outcome, end.ambiguous), (Outcome::Failed(Reason::Exhausted), true));
    assert_eq!(end.explanation.as_deref(), Some(NOT_THE_APIS));
}
