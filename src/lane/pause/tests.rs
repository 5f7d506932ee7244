//! Which answers pause a lane, and which end that.

use super::*;

fn id(number: usize) -> InstanceId {
    InstanceId::parse(&format!("i-{number:04}")).unwrap()
}

fn answered(status: u16, code: &str) -> Result<Answer, NoAnswer> {
    let code = (!code.is_empty()).then(|| code.to_owned());
    Ok(Answer { status, code, ..Answer::default() })
}

const TIMED_OUT: Result<Answer, NoAnswer> = Err(NoAnswer::TimedOut);

fn word(change: Option<Change>) -> Option<&'static str> {
    match change {
        Some(Change::Paused(cause)) => Some(cause.word),
        Some(Change::Works(_)) => Some("works"),
        None => None,
    }
}

#[test]
fn a_lane_fault_pauses_at_once_and_only_once() {
    let tls = || Err(NoAnswer::Tls("unknown issuer".to_owned()));
    let faults = [
        (answered(403, "InvalidAccessKeyId"), "keys"),
        (answered(401, ""), "keys"),
        (answered(403, "OptInRequired"), "account"),
        (answered(400, "InvalidVersion"), "endpoint"),
        (answered(302, ""), "endpoint"),
        (tls(), "endpoint"),
    ];
    for (result, expected) in faults {
        let pause = Pause::new();
        assert_eq!(word(pause.note(&id(1), &Verdict::LaneFault, &result)), Some(expected), "{result:?}");
        assert!(WORDS.contains(&expected) && pause.is_paused());
        assert_eq!(pause.note(&id(2), &Verdict::LaneFault, &result), None, "it is known already");
    }
    let pause = Pause::new();
    let skew = Verdict::ClockSkew { server_time: None };
    assert_eq!(word(pause.note(&id(1), &skew, &answered(403, "RequestExpired"))), Some("clock"));
}

#[test]
fn five_instances_in_a_row_that_get_no_answer_pause_and_one_over_and_over_does_not() {
    let pause = Pause::new();
    for _ in 0..20 {
        assert_eq!(pause.note(&id(1), &Verdict::Transient, &TIMED_OUT), None);
    }
    for number in 2..5 {
        assert_eq!(pause.note(&id(number), &Verdict::Transient, &answered(503, "")), None);
    }
    // An answer, whichever: the API is there. Throttling is one, and so is a 409 that is to be tried again.
    assert_eq!(pause.note(&id(9), &Verdict::Throttled { retry_after: None }, &answered(429, "")), None);
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &Verdict::Transient, &TIMED_OUT), None);
    }
    assert_eq!(pause.note(&id(9), &Verdict::Transient, &answered(409, "Instance.StartInstanceWhenCreating")), None);
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &Verdict::Transient, &TIMED_OUT), None);
    }
    assert_eq!(word(pause.note(&id(5), &Verdict::Transient, &TIMED_OUT)), Some("outage"));
}

#[test]
fn five_instances_in_a_row_that_are_denied_pause() {
    let (pause, denied) = (Pause::new(), Verdict::Failed(Reason::AccessDenied));
    let answer = answered(403, "AccessDenied");
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &denied, &answer), None);
    }
    assert_eq!(pause.note(&id(9), &Verdict::Started { ambiguous: false }, &answered(200, "")), None);
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &denied, &answer), None);
        assert_eq!(pause.note(&id(8), &Verdict::Throttled { retry_after: None }, &answered(429, "")), None);
    }
    assert_eq!(word(pause.note(&id(5), &denied, &answer)), Some("access_denied"));
}

#[test]
fn after_a_good_probe_the_lane_is_on_trial_until_a_call_is_answered() {
    let pause = Pause::new();
    pause.note(&id(1), &Verdict::LaneFault, &answered(401, ""));
    assert_eq!(pause.probed(&TIMED_OUT).map(|cause| cause.word), Some("outage"), "it is another one now");
    assert!(pause.is_paused() && !pause.is_on_trial());
    assert_eq!(pause.probed(&answered(200, "")), None);
    assert!(!pause.is_paused() && pause.is_on_trial());
    // The first that goes wrong then is enough, and it is nothing new.
    assert_eq!(pause.note(&id(2), &Verdict::Transient, &TIMED_OUT), None);
    assert_eq!((pause.cause().map(|cause| cause.word), pause.probes()), (Some("outage"), 2));
    // Who may not list may start all the same.
    assert_eq!(pause.probed(&answered(403, "AccessDenied")), None);
    assert_eq!(word(pause.note(&id(2), &Verdict::Failed(Reason::NotFound), &answered(404, ""))), Some("works"));
    assert!(!pause.is_on_trial() && pause.probes() == 0);
}

#[test]
fn a_poll_shows_that_the_api_is_there_or_not_and_nothing_of_starts() {
    let (denied, refused) = (Verdict::Failed(Reason::AccessDenied), answered(403, "AccessDenied"));
    let pause = Pause::new();
    for _ in 1..20 {
        assert_eq!(pause.note_poll(&denied, &refused), None, "to list is not to start");
    }
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &denied, &refused), None);
        assert_eq!(pause.note_poll(&Verdict::Transient, &answered(200, "")), None);
    }
    assert_eq!(word(pause.note(&id(5), &denied, &refused)), Some("access_denied"), "good polls are no evidence");
    assert_eq!(pause.probed(&answered(200, "")), None);
    assert_eq!(pause.note_poll(&Verdict::Transient, &answered(200, "")), None);
    assert!(pause.is_on_trial(), "and no trial");

    let pause = Pause::new();
    for _ in 1..5 {
        assert_eq!(pause.note_poll(&Verdict::Transient, &TIMED_OUT), None);
    }
    assert_eq!(word(pause.note_poll(&Verdict::Transient, &TIMED_OUT)), Some("outage"));
    let keys = answered(403, "InvalidAccessKeyId");
    assert_eq!(word(Pause::new().note_poll(&Verdict::LaneFault, &keys)), Some("keys"));
}

#[tokio::test(start_paused = true)]
async fn whose_fault_a_failure_is_shows_by_the_next_ones() {
    let start = tokio::time::Instant::now();
    let started = || Verdict::Started { ambiguous: false };
    // The API answers others: it is the job's.
    let pause = Pause::new();
    pause.note(&id(1), &Verdict::Transient, &TIMED_OUT);
    let (blame, _) = tokio::join!(pause.blame(&Verdict::Transient, &TIMED_OUT), async {
        pause.note(&id(2), &started(), &answered(200, ""))
    });
    assert!(blame == Blame::Job && start.elapsed() < EVIDENCE);
    // Others fail too: it is the lane's.
    pause.note(&id(1), &Verdict::Transient, &TIMED_OUT);
    let (blame, ()) = tokio::join!(pause.blame(&Verdict::Transient, &TIMED_OUT), async {
        for number in 2..6 {
            pause.note(&id(number), &Verdict::Transient, &TIMED_OUT);
        }
    });
    assert!(blame == Blame::Lane && start.elapsed() < EVIDENCE);
    // A good answer is a good answer, paused or not.
    assert_eq!(pause.blame(&started(), &answered(200, "")).await, Blame::Job);
    // There is nobody else: a probe has to tell.
    let pause = Pause::new();
    pause.note(&id(1), &Verdict::Transient, &TIMED_OUT);
    assert_eq!(pause.blame(&Verdict::Transient, &TIMED_OUT).await, Blame::Unknown);
    assert_eq!(start.elapsed(), EVIDENCE);
    for good in [answered(200, ""), answered(403, "AccessDenied"), answered(429, "")] {
        assert_eq!(pause.note_probe(&good), None, "{good:?}");
    }
    assert_eq!(word(pause.note_probe(&answered(503, ""))), Some("outage"));
    assert!(pause.is_paused());
}

#[test]
fn five_requests_in_a_row_that_came_too_slowly_are_an_outage_as_five_server_errors_are() {
    for status in [408, 425, 500] {
        let pause = Pause::new();
        let answer = answered(status, "");
        let failing = (1..=5).map(|number| word(pause.note(&id(number), &verdict::general(&answer), &answer)));
        assert_eq!(failing.collect::<Vec<_>>(), [None, None, None, None, Some("outage")], "{status}");
    }
}

/// Else a lane with one such job would never work again after its first outage, nor would the job ever end.
#[test]
fn one_instance_that_fails_every_trial_ends_the_trial_and_five_do_not() {
    let denied = (Verdict::Failed(Reason::AccessDenied), answered(403, "AccessDenied"));
    for (verdict, answer) in [(Verdict::Transient, answered(500, "")), denied] {
        let pause = Pause::new();
        pause.note(&id(9), &Verdict::LaneFault, &answered(401, ""));
        let trial = |number| {
            assert_eq!(pause.probed(&answered(200, "")), None);
            assert!(pause.is_on_trial());
            word(pause.note(&id(number), &verdict, &answer))
        };
        assert_eq!([trial(1), trial(2), trial(3), trial(1)], [None, None, None, Some("works")]);
        assert!(!pause.is_paused() && pause.resumed().is_some());
        // It begins anew with the next pause.
        pause.note(&id(9), &Verdict::LaneFault, &answered(401, ""));
        let trial = |number| {
            assert_eq!(pause.probed(&answered(200, "")), None);
            word(pause.note(&id(number), &verdict, &answer))
        };
        for number in [1, 2, 3, 4, 5, 1, 2, 3, 4, 5] {
            assert_eq!(trial(number), None, "{number}: all of them fail");
            assert!(pause.is_paused());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn polls_that_work_do_not_hide_that_starts_fail_nor_charge_their_jobs() {
    let pause = Pause::new();
    let polled = verdict::general(&answered(200, ""));
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &Verdict::Transient, &answered(503, "")), None);
        assert_eq!(pause.note_poll(&polled, &answered(200, "")), None);
    }
    // While it waits to learn whether others fail as well, a poll that works is no evidence against the job.
    let transient = answered(503, "");
    let judged = async {
        let judged = pause.blame(&Verdict::Transient, &transient);
        let rest = async {
            tokio::task::yield_now().await;
            pause.note_poll(&polled, &answered(200, ""));
            tokio::time::sleep(EVIDENCE / 2).await;
            pause.note(&id(5), &Verdict::Transient, &answered(503, ""))
        };
        tokio::join!(judged, rest)
    };
    let (blame, change) = judged.await;
    assert_eq!((blame, word(change)), (Blame::Lane, Some("outage")));
}

#[test]
fn five_polls_in_a_row_without_an_answer_pause_too_but_no_denied_ones_and_not_beside_starts_that_work() {
    let pause = Pause::new();
    let failing = |pause: &Pause, count| {
        (0..count).filter_map(|_| word(pause.note_poll(&Verdict::Transient, &answered(503, "")))).collect::<Vec<_>>()
    };
    assert!(failing(&pause, 4).is_empty());
    assert_eq!(pause.note(&id(1), &Verdict::Started { ambiguous: false }, &answered(200, "")), None);
    assert!(failing(&pause, 4).is_empty());
    assert_eq!(pause.note_poll(&verdict::general(&answered(200, "")), &answered(200, "")), None);
    for _ in 0..9 {
        let denied = Verdict::Failed(Reason::AccessDenied);
        assert_eq!(pause.note_poll(&denied, &answered(403, "AccessDenied")), None);
    }
    assert_eq!(failing(&pause, 5), ["outage"]);
    assert_eq!(word(Pause::new().note_poll(&Verdict::LaneFault, &answered(401, ""))), Some("keys"));
}

#[test]
fn five_answers_in_a_row_of_another_one_than_the_api_are_an_outage_and_no_probe_answered_so_ends_it() {
    let foreign = |status| Ok(Answer { status, foreign: true, ..Answer::default() });
    for status in [200, 400, 401, 404, 409, 413, 503] {
        let pause = Pause::new();
        let answer = foreign(status);
        let failing = (1..=5).map(|number| pause.note(&id(number), &verdict::general(&answer), &answer));
        let Some(Some(Change::Paused(cause))) = failing.last() else { panic!("{status}") };
        assert_eq!(cause.word, "outage");
        let said = format!("something else answers in the API's place (HTTP {status}, without x-bce-request-id)");
        assert!(cause.text.starts_with(&said) && cause.text.contains("request_id"), "{}", cause.text);
        assert_eq!(pause.probed(&answer).map(|cause| cause.word), Some("outage"));
        assert_eq!(pause.probed(&foreign(429)).map(|cause| cause.word), Some("outage"), "it tells nothing of the API");
        assert!(pause.is_paused() && !pause.is_on_trial());
    }
}

#[test]
fn another_ones_429_is_no_evidence_that_the_api_is_there() {
    let (pause, throttled) = (Pause::new(), Verdict::Throttled { retry_after: None });
    let gateways = Ok(Answer { status: 429, foreign: true, ..Answer::default() });
    for number in 1..5 {
        assert_eq!(pause.note(&id(number), &Verdict::Transient, &TIMED_OUT), None);
        assert_eq!(pause.note(&id(9), &throttled, &gateways), None);
        assert_eq!(pause.note_poll(&throttled, &gateways), None);
    }
    assert_eq!(word(pause.note(&id(5), &Verdict::Transient, &TIMED_OUT)), Some("outage"));
}

/// Only `AccessDenied` tells of a permission that is gone.
#[test]
fn any_number_of_jobs_with_codes_of_their_own_pause_nothing() {
    let pause = Pause::new();
    for number in 1..50 {
        let answer = answered(403, "Bcc.ZoneClosed");
        assert_eq!(pause.note(&id(number), &verdict::general(&answer), &answer), None);
        let (none, answer) = (Verdict::NoCapacity { reason: Reason::NoCapacity }, answered(503, "Instance.NoStock"));
        assert_eq!(pause.note(&id(number), &none, &answer), None);
    }
}

#[test]
fn a_code_that_faults_the_lane_and_is_not_of_the_keys_is_the_accounts() {
    let cause = |status, code| match Pause::new().note(&id(1), &Verdict::LaneFault, &answered(status, code)) {
        Some(Change::Paused(cause)) => cause,
        other => panic!("{other:?}"),
    };
    for code in ["InsufficientBalance", "Own.Code"] {
        let cause = cause(403, code);
        assert_eq!(cause.word, "account");
        assert!(cause.text.contains(code) && cause.text.contains("[[answer]]"), "{}", cause.text);
    }
    for code in ["SignatureDoesNotMatch", "AuthError", ""] {
        assert_eq!(cause(400, code).word, "keys", "{code}");
    }
    assert_eq!(cause(401, "Own.Code").word, "keys");
}
