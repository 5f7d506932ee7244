//! Which answers pause a lane, and which end a pause.

use super::*;
use crate::bce::{AtFault, Codes, Meaning};
use crate::events::Reason;

fn id(number: usize) -> InstanceId {
    InstanceId::parse(&format!("i-{number:05}")).unwrap()
}

fn answered(status: u16, code: &str) -> Result<Answer, NoAnswer> {
    let meaning = Codes::default().meaning(status, code);
    let code = (!code.is_empty()).then(|| code.to_owned());
    Ok(Answer { status, code, meaning, ..Answer::default() })
}

const TIMED_OUT: Result<Answer, NoAnswer> = Err(NoAnswer::TimedOut);
const STARTED: Verdict = Verdict::Started { ambiguous: false };
const DENIED: Verdict = Verdict::Failed(Reason::AccessDenied);
/// Of the lane in these tests: twenty instances in a row are an outage, and one in flight more is allowed then.
const CONCURRENCY: usize = 16;
const ENOUGH: usize = 20;

fn breaker() -> Breaker {
    Breaker::new(100.0, CONCURRENCY)
}

fn word(change: Option<Change>) -> Option<&'static str> {
    match change {
        Some(Change::Paused(cause)) => Some(cause.kind.as_str()),
        Some(Change::Works(_)) => Some("works"),
        None => None,
    }
}

fn record(
    breaker: &Breaker,
    instance: &InstanceId,
    verdict: &Verdict,
    result: &Result<Answer, NoAnswer>,
) -> Option<Change> {
    breaker.record(instance, verdict, result).change
}

fn record_poll(breaker: &Breaker, verdict: &Verdict, result: &Result<Answer, NoAnswer>) -> Option<Change> {
    breaker.record_poll(verdict, result).change
}

/// Records a call for this instance without an answer.
fn failed(breaker: &Breaker, number: usize) -> Evidence {
    breaker.record(&id(number), &Verdict::Transient, &TIMED_OUT).evidence
}

/// Records calls for these instances without an answer. Returns the state changes.
fn fail(breaker: &Breaker, numbers: impl IntoIterator<Item = usize>) -> Vec<&'static str> {
    numbers
        .into_iter()
        .filter_map(|number| word(record(breaker, &id(number), &Verdict::Transient, &TIMED_OUT)))
        .collect()
}

/// They fail while the API answers others.
fn fail_alone(breaker: &Breaker, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        assert!(fail(breaker, [number]).is_empty());
        breaker.remember_failing(&id(number));
        succeed(breaker, 80_000);
    }
}

fn succeed(breaker: &Breaker, number: usize) -> Option<&'static str> {
    word(record(breaker, &id(number), &STARTED, &answered(200, "")))
}

/// A breaker that is open because of the keys.
fn paused() -> Breaker {
    let breaker = breaker();
    record(&breaker, &id(90_000), &Verdict::LaneFault, &answered(401, ""));
    assert!(breaker.is_open());
    breaker
}

/// Records an answered probe.
fn probe(breaker: &Breaker) {
    assert_eq!(breaker.record_probe(&answered(200, "")), None);
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
        let breaker = breaker();
        assert_eq!(word(record(&breaker, &id(1), &Verdict::LaneFault, &result)), Some(expected), "{result:?}");
        assert!(breaker.is_open());
        assert_eq!(record(&breaker, &id(2), &Verdict::LaneFault, &result), None, "it is known already");
    }
    let skew = Verdict::ClockSkew { server_time: None };
    assert_eq!(word(record(&breaker(), &id(1), &skew, &answered(403, "RequestExpired"))), Some("clock"));
}

#[test]
fn twenty_instances_in_a_row_that_get_no_answer_pause_and_those_that_failed_before_do_not() {
    let breaker = breaker();
    // One over and over, and thirty that are known.
    assert!(fail(&breaker, [1; 100]).is_empty());
    fail_alone(&breaker, 31..=60);
    assert!(fail(&breaker, (31..=60).cycle().take(1_000)).is_empty());
    // An answer, whichever: the API is there. Throttling is one, and so is a 409 that is to be tried again.
    let throttled = Verdict::Throttled { retry_after: None };
    assert_eq!(record(&breaker, &id(900), &throttled, &answered(429, "")), None);
    assert!(fail(&breaker, 101..100 + ENOUGH).is_empty());
    let creating = answered(409, "Instance.StartInstanceWhenCreating");
    assert_eq!(record(&breaker, &id(900), &Verdict::Transient, &creating), None);
    assert!(fail(&breaker, 201..200 + ENOUGH).is_empty());
    assert_eq!(fail(&breaker, [200 + ENOUGH]), ["outage"]);
}

#[test]
fn an_instance_that_was_started_is_news_when_it_fails_again() {
    let breaker = breaker();
    fail_alone(&breaker, 1..=ENOUGH);
    assert!(fail(&breaker, 1..=ENOUGH).is_empty());
    for number in 1..=ENOUGH {
        succeed(&breaker, number);
    }
    assert_eq!(fail(&breaker, 1..=ENOUGH), ["outage"]);
}

#[test]
fn a_lane_of_few_calls_at_a_time_pauses_within_those_and_five() {
    for concurrency in [1, 4, 14] {
        let breaker = Breaker::new(100.0, concurrency);
        let enough = concurrency + circuit::BEYOND;
        assert!(fail(&breaker, 1..enough).is_empty(), "{concurrency}");
        assert_eq!(fail(&breaker, [enough]), ["outage"], "{concurrency}");
        probe(&breaker);
        assert_eq!(breaker.withheld(), concurrency.saturating_sub(5), "on trial");
    }
}

#[test]
fn as_many_calls_are_withheld_as_fail_in_a_row_beyond_five() {
    let breaker = breaker();
    let withheld = |failures: usize| {
        // As if the same one failed over and over: that is no news, and still a row.
        fail(&breaker, std::iter::repeat_n(1, failures));
        breaker.withheld()
    };
    assert_eq!([5, 1, 1, 1].map(withheld), [0, 1, 2, 3]);
    assert_eq!(withheld(CONCURRENCY - 3), CONCURRENCY, "a probe has to tell now");
    assert_eq!(breaker.record_check(&answered(200, "")), None);
    assert!(breaker.withheld() == 0 && !breaker.is_open());
    assert_eq!(withheld(6), 1);
    succeed(&breaker, 2);
    assert_eq!(breaker.withheld(), 0);
}

#[test]
fn a_probe_that_fails_beside_failing_calls_pauses_and_one_that_is_answered_does_not() {
    for good in [answered(200, ""), answered(403, "AccessDenied"), answered(429, "")] {
        let breaker = breaker();
        fail(&breaker, [1]);
        assert_eq!(breaker.record_check(&good), None, "{good:?}");
        assert!(!breaker.is_open());
        assert_eq!(word(breaker.record_check(&answered(503, ""))), Some("outage"));
    }
}

#[test]
fn five_instances_in_a_row_that_are_denied_pause() {
    let breaker = breaker();
    let denied = answered(403, "AccessDenied");
    let deny = |number| word(record(&breaker, &id(number), &DENIED, &denied));
    for number in 1..=30 {
        assert_eq!(deny(number), None);
        breaker.remember_failing(&id(number));
        assert_eq!(succeed(&breaker, 900), None);
    }
    assert!((1..=30).filter_map(deny).next().is_none(), "a second look is no news");
    assert_eq!(succeed(&breaker, 900), None);
    for number in 31..35 {
        assert_eq!(deny(number), None);
        let throttled = Verdict::Throttled { retry_after: None };
        assert_eq!(record(&breaker, &id(8), &throttled, &answered(429, "")), None);
    }
    assert_eq!(deny(35), Some("access_denied"));
}

#[test]
fn after_a_good_probe_the_lane_is_on_trial_until_a_call_is_answered() {
    let breaker = paused();
    assert_eq!(breaker.record_probe(&TIMED_OUT), None);
    assert_eq!(breaker.cause().map(|cause| cause.kind), Some(CauseKind::Outage), "it is another one now");
    assert!(!breaker.is_half_open());
    probe(&breaker);
    assert!(!breaker.is_open() && breaker.is_half_open());
    assert_eq!((breaker.withheld(), breaker.probes()), (CONCURRENCY - 5, 2), "five calls at a time");
    // A key without permission to list may still start.
    let gone = record(&breaker, &id(2), &Verdict::Failed(Reason::NotFound), &answered(404, ""));
    assert_eq!(word(gone), Some("works"));
    assert!(!breaker.is_half_open() && breaker.probes() == 0 && breaker.withheld() == 0);
}

#[test]
fn a_trial_is_five_calls_and_fails_where_all_of_them_do() {
    let breaker = paused();
    breaker.record_probe(&TIMED_OUT);
    probe(&breaker);
    assert!(fail(&breaker, 1..=4).is_empty());
    assert!(breaker.is_half_open() && breaker.withheld() == CONCURRENCY - 1, "one is left");
    assert_eq!(succeed(&breaker, 5), Some("works"));

    let breaker = paused();
    breaker.record_probe(&TIMED_OUT);
    probe(&breaker);
    assert!(fail(&breaker, 1..=5).is_empty(), "it is nothing new that it is paused");
    assert!(breaker.is_open());
    probe(&breaker);
    assert!(breaker.is_half_open() && breaker.withheld() == CONCURRENCY - 5, "the next one has five again");
}

/// Else a lane with some such jobs and no other would never work again after its first outage, nor would the jobs ever end.
#[test]
fn instances_that_fail_one_trial_after_the_other_end_the_trial() {
    for count in [5, 7, 30] {
        let breaker = paused();
        breaker.record_probe(&TIMED_OUT);
        let mut numbers = (1..=count).cycle();
        let works = (1..20).find(|_| {
            probe(&breaker);
            fail(&breaker, numbers.by_ref().take(5)).contains(&"works")
        });
        assert_eq!(works, Some(usize::div_ceil(count, 5) + 1), "{count}");
    }
}

#[test]
fn a_trial_of_instances_that_were_failing_before_ends_the_trial() {
    let breaker = breaker();
    fail_alone(&breaker, 1..=30);
    assert_eq!(word(breaker.record_check(&TIMED_OUT)), Some("outage"));
    probe(&breaker);
    assert_eq!(fail(&breaker, 1..=5), ["works"]);
    assert!(fail(&breaker, 1..=30).is_empty());
    // One that was not is news.
    assert_eq!(word(breaker.record_check(&TIMED_OUT)), Some("outage"));
    probe(&breaker);
    assert!(fail(&breaker, [1, 2, 3, 31, 4]).is_empty());
    assert!(breaker.is_open());
}

#[test]
fn an_outage_of_starts_alone_lasts_as_long_as_new_instances_fail() {
    let breaker = breaker();
    fail(&breaker, 1..=ENOUGH);
    for trial in 1..100 {
        probe(&breaker);
        assert!(breaker.is_half_open());
        // One that was put back is tried with those that were not called yet.
        let new = ENOUGH + 4 * trial..ENOUGH + 4 * trial + 4;
        assert!(fail(&breaker, new.chain([1])).is_empty());
        assert!(breaker.is_open());
    }
}

/// A denial is no chance, so one call tells; but one denied instance is not all of them.
#[test]
fn one_instance_that_is_denied_on_every_trial_ends_it_and_five_do_not() {
    let denied = answered(403, "AccessDenied");
    let breaker = breaker();
    let deny = |number| word(record(&breaker, &id(number), &DENIED, &denied));
    assert_eq!([11, 12, 13, 14, 15].map(deny)[4], Some("access_denied"));
    let trial = |number| {
        probe(&breaker);
        assert_eq!(breaker.withheld(), CONCURRENCY - 1);
        deny(number)
    };
    // A denial before the pause does not make it a known one.
    breaker.remember_failing(&id(1));
    assert_eq!([1, 2, 3, 1].map(trial), [None, None, None, Some("works")]);
    assert_eq!([21, 22, 23, 24, 25].map(deny)[4], Some("access_denied"));
    for number in [1, 2, 3, 4, 5, 1, 2, 3, 4, 5] {
        assert_eq!(trial(number), None, "{number}: all of them are denied");
        assert!(breaker.is_open());
    }
}

#[test]
fn a_poll_shows_that_the_api_is_there_or_not_and_nothing_of_starts() {
    let refused = answered(403, "AccessDenied");
    let breaker = breaker();
    for _ in 1..20 {
        assert_eq!(record_poll(&breaker, &DENIED, &refused), None, "to list is not to start");
    }
    for number in 1..5 {
        assert_eq!(record(&breaker, &id(number), &DENIED, &refused), None);
        assert_eq!(record_poll(&breaker, &Verdict::Transient, &answered(200, "")), None);
    }
    assert_eq!(word(record(&breaker, &id(5), &DENIED, &refused)), Some("access_denied"), "good polls are no evidence");
    probe(&breaker);
    assert_eq!(record_poll(&breaker, &Verdict::Transient, &answered(200, "")), None);
    assert!(breaker.is_half_open(), "and no trial");
}

#[test]
fn five_polls_in_a_row_without_an_answer_pause_too_but_no_denied_ones_and_not_beside_starts_that_work() {
    let breaker = breaker();
    let failing = |count| {
        (0..count)
            .filter_map(|_| word(record_poll(&breaker, &Verdict::Transient, &answered(503, ""))))
            .collect::<Vec<_>>()
    };
    assert!(failing(4).is_empty());
    assert_eq!(succeed(&breaker, 1), None);
    assert!(failing(4).is_empty());
    assert_eq!(record_poll(&breaker, &verdict::general(&answered(200, "")), &answered(200, "")), None);
    for _ in 0..9 {
        assert_eq!(record_poll(&breaker, &DENIED, &answered(403, "AccessDenied")), None);
    }
    assert_eq!(failing(5), ["outage"]);
    assert_eq!(word(record_poll(&self::breaker(), &Verdict::LaneFault, &answered(401, ""))), Some("keys"));
}

#[tokio::test(start_paused = true)]
async fn whose_fault_a_failure_is_shows_by_the_next_ones() {
    let start = tokio::time::Instant::now();
    // The API answers others: it is the job's. Also where that was before the question.
    let breaker = breaker();
    let call = failed(&breaker, 1);
    succeed(&breaker, 2);
    assert_eq!(breaker.attribute(call).await, Some(Attribution::Job));
    let call = failed(&breaker, 1);
    let (whose, _) = tokio::join!(breaker.attribute(call), async { succeed(&breaker, 2) });
    assert_eq!(whose, Some(Attribution::Job));
    // It answers a probe.
    let call = failed(&breaker, 1);
    let look = async { breaker.record_check(&answered(200, "")) };
    assert_eq!(tokio::join!(breaker.attribute(call), look), (Some(Attribution::Job), None));
    // Others fail too: it is the lane's.
    let call = failed(&breaker, 1);
    let (whose, changes) = tokio::join!(breaker.attribute(call), async { fail(&breaker, 2..30) });
    assert_eq!((whose, changes), (Some(Attribution::Lane), vec!["outage"]));
    // Also where that is over again before the question.
    let call = failed(&breaker, 1);
    probe(&breaker);
    succeed(&breaker, 2);
    assert_eq!(breaker.attribute(call).await, Some(Attribution::Lane));
    // A good answer is a good answer, paused or not.
    let good = breaker.record(&id(3), &STARTED, &answered(200, "")).evidence;
    assert_eq!(breaker.attribute(good).await, Some(Attribution::NotFailed));
    assert_eq!(start.elapsed(), Duration::ZERO);
    // There are no others: a probe has to tell.
    let call = failed(&breaker, 1);
    assert_eq!(breaker.attribute(call).await, None);
    assert_eq!(start.elapsed(), EVIDENCE);
}

/// The API may have come back between the two.
#[tokio::test(start_paused = true)]
async fn a_call_that_failed_on_trial_is_not_charged_where_the_next_one_is_answered() {
    let breaker = paused();
    probe(&breaker);
    let call = failed(&breaker, 1);
    let next = async { succeed(&breaker, 2) };
    assert_eq!(tokio::join!(breaker.attribute(call), next), (Some(Attribution::Lane), Some("works")));
    // Nor where the trial is broken off, and the next one begins with a probe.
    breaker.record_check(&TIMED_OUT);
    probe(&breaker);
    let call = failed(&breaker, 1);
    breaker.interrupt();
    assert!(breaker.is_open());
    assert_eq!(breaker.attribute(call).await, Some(Attribution::Lane));
    // It waits for the others of its trial for longer than for any evidence.
    probe(&breaker);
    let (call, since) = (failed(&breaker, 1), tokio::time::Instant::now());
    assert_eq!(breaker.attribute(call).await, None);
    assert_eq!(since.elapsed(), LONGEST_TRIAL);
}

/// Lists may be all that fails.
#[test]
fn after_many_probes_in_vain_one_start_is_tried() {
    let breaker = breaker();
    fail(&breaker, 1..=ENOUGH);
    let in_vain = |answer: &Result<Answer, NoAnswer>| {
        (1..100).find(|_| breaker.record_probe(answer).is_some() || breaker.is_half_open())
    };
    assert_eq!(in_vain(&TIMED_OUT), Some(12));
    assert_eq!(breaker.withheld(), CONCURRENCY - 1);
    assert!(fail(&breaker, [1]).is_empty() && breaker.is_open(), "it was tried before, and that tells nothing");
    // A gateway's 429 to each probe is as good as none. With no job to be tried, the pause goes on.
    let gateways = Ok(Answer { status: 429, from_proxy: true, ..Answer::default() });
    assert_eq!(in_vain(&gateways), Some(12));
    assert_eq!(breaker.end_trial(), None);
    assert!(breaker.is_open());
    assert_eq!(in_vain(&TIMED_OUT), Some(12));
    assert_eq!(succeed(&breaker, 2), Some("works"));
    // Bad keys are no matter of lists.
    let breaker = paused();
    assert!((0..100).all(|_| breaker.record_probe(&answered(401, "")).is_none() && breaker.is_open()));
}

#[test]
fn five_instances_that_fail_with_no_good_answer_between_leave_a_doubt() {
    let breaker = breaker();
    fail(&breaker, [1, 2, 3, 4, 1, 2, 3, 4]);
    assert!(!breaker.is_doubtful());
    fail(&breaker, [5]);
    breaker.record_check(&answered(200, ""));
    assert!(breaker.is_doubtful(), "that a probe is answered takes no doubt away");
    succeed(&breaker, 6);
    assert!(!breaker.is_doubtful());
}

/// It may have been made before the lane was paused, and jobs are called only once the pause was ended in its place.
#[test]
fn a_probe_that_is_to_tell_whose_fault_a_failure_is_ends_no_pause() {
    let breaker = breaker();
    fail(&breaker, 1..=ENOUGH);
    assert_eq!(breaker.record_check(&answered(200, "")), None);
    assert!(breaker.is_open());
}

#[tokio::test(start_paused = true)]
async fn a_slow_lane_waits_longer_for_evidence_and_not_for_long() {
    for (rate, waits) in [(1_000.0, 1), (20.0, 1), (5.0, 4), (0.01, 5)] {
        let breaker = Breaker::new(rate, CONCURRENCY);
        let start = tokio::time::Instant::now();
        assert_eq!(breaker.attribute(failed(&breaker, 1)).await, None);
        assert_eq!(start.elapsed(), Duration::from_secs(waits), "{rate}");
    }
}

#[tokio::test(start_paused = true)]
async fn polls_that_work_do_not_hide_that_starts_fail_nor_charge_their_jobs() {
    let breaker = breaker();
    let (transient, good) = (answered(503, ""), answered(200, ""));
    let polled = verdict::general(&good);
    let mut last = None;
    for number in 1..ENOUGH {
        let recorded = breaker.record(&id(number), &Verdict::Transient, &transient);
        assert_eq!(recorded.change, None);
        last = Some(recorded.evidence);
        assert_eq!(record_poll(&breaker, &polled, &good), None);
    }
    // While it waits to learn whether others fail as well, a poll that works is no evidence against the job.
    let rest = async {
        tokio::task::yield_now().await;
        record_poll(&breaker, &polled, &good);
        tokio::time::sleep(EVIDENCE / 2).await;
        record(&breaker, &id(ENOUGH), &Verdict::Transient, &transient)
    };
    let (whose, change) = tokio::join!(breaker.attribute(last.unwrap()), rest);
    assert_eq!((whose, word(change)), (Some(Attribution::Lane), Some("outage")));
}

#[test]
fn requests_that_came_too_slowly_are_an_outage_as_server_errors_are() {
    for status in [408, 425, 500] {
        let breaker = breaker();
        let answer = answered(status, "");
        let record = |number| word(record(&breaker, &id(number), &verdict::general(&answer), &answer));
        assert_eq!((1..=ENOUGH).filter_map(record).collect::<Vec<_>>(), ["outage"], "{status}");
    }
}

#[test]
fn the_time_of_a_pause_that_had_reason_is_told_and_of_no_other() {
    let time = |second: i64| Timestamp::from_second(1_000 + second).unwrap();
    let cause = || Cause { kind: CauseKind::Outage, text: String::new() };
    let (no_answer, good) = (Signal::NoAnswer(cause()), Signal::Good);
    let mut circuit = Circuit::new(1);
    let fail = |circuit: &mut Circuit, numbers: std::ops::Range<usize>, now| {
        numbers.filter_map(|number| circuit.record(&id(number), &no_answer, time(now))).last()
    };
    // From 10 to 40: probes failed. It counts already while it lasts.
    assert!(fail(&mut circuit, 0..6, 10).is_some());
    circuit.record_probe(&no_answer, time(20));
    assert_eq!(time_in(circuit.pauses(time(25)), time(0), time(25)).as_secs(), 15);
    circuit.record_probe(&good, time(30));
    assert_eq!(circuit.record(&id(1), &good, time(40)), Some(Change::Works(Duration::from_secs(30))));
    // From 50 to 70: all were answered, and what failed on the second trial had failed on the first one.
    assert!(fail(&mut circuit, 100..106, 50).is_some());
    for now in [60, 70] {
        circuit.record_probe(&good, time(now));
        assert_eq!(fail(&mut circuit, 100..105, now).is_some(), now == 70);
    }
    for (from, to, paused) in [(0, 100, 30), (20, 100, 20), (20, 30, 10), (0, 5, 0), (45, 100, 0)] {
        let seconds = time_in(circuit.pauses(time(to)), time(from), time(to)).as_secs();
        assert_eq!(seconds, paused, "{from} to {to}");
    }
}

#[test]
fn a_row_of_answers_of_another_one_than_the_api_is_an_outage_and_no_probe_answered_so_ends_it() {
    let from_proxy = |status| Ok(Answer { status, from_proxy: true, ..Answer::default() });
    for status in [200, 400, 401, 404, 409, 413, 503] {
        let (breaker, answer) = (breaker(), from_proxy(status));
        let failing = (1..=ENOUGH).map(|number| record(&breaker, &id(number), &verdict::general(&answer), &answer));
        let Some(Some(Change::Paused(cause))) = failing.last() else { panic!("{status}") };
        assert_eq!(cause.kind, CauseKind::Outage);
        let said = format!("something else answers in the API's place (HTTP {status}, without x-bce-request-id)");
        assert!(cause.text.starts_with(&said) && cause.text.contains("request_id"), "{}", cause.text);
        for probe in [answer, from_proxy(429)] {
            assert_eq!(breaker.record_probe(&probe), None, "it tells nothing of the API");
            assert_eq!(breaker.cause().map(|cause| cause.kind), Some(CauseKind::Outage));
        }
    }
}

#[test]
fn another_ones_429_is_no_evidence_that_the_api_is_there() {
    let (breaker, throttled) = (breaker(), Verdict::Throttled { retry_after: None });
    let gateways = Ok(Answer { status: 429, from_proxy: true, ..Answer::default() });
    for number in 1..ENOUGH {
        assert!(fail(&breaker, [number]).is_empty());
        assert_eq!(record(&breaker, &id(900), &throttled, &gateways), None);
        assert_eq!(record_poll(&breaker, &throttled, &gateways), None);
    }
    assert_eq!(fail(&breaker, [ENOUGH]), ["outage"]);
    // Nor does a probe that is answered so let a lane call on whose calls fail, nor keep it waiting.
    let breaker = self::breaker();
    assert_eq!(breaker.record_check(&gateways), None, "nothing fails");
    fail(&breaker, [1; 30]);
    assert_eq!(breaker.withheld(), CONCURRENCY);
    assert_eq!(word(breaker.record_check(&gateways)), Some("outage"));
}

/// Only `AccessDenied` tells of a permission that is gone.
#[test]
fn any_number_of_jobs_with_codes_of_their_own_pause_nothing() {
    let breaker = breaker();
    for number in 1..50 {
        let answer = answered(403, "Bcc.ZoneClosed");
        assert_eq!(record(&breaker, &id(number), &verdict::general(&answer), &answer), None);
        let (none, answer) = (Verdict::NoCapacity { reason: Reason::NoCapacity }, answered(503, "Instance.NoStock"));
        assert_eq!(record(&breaker, &id(number), &none, &answer), None);
    }
}

#[test]
fn a_code_that_faults_the_lane_and_is_not_of_the_keys_is_the_accounts() {
    let cause = |result: &Result<Answer, NoAnswer>| match record(&breaker(), &id(1), &Verdict::LaneFault, result) {
        Some(Change::Paused(cause)) => cause,
        other => panic!("{other:?}"),
    };
    let meaning = Some(Meaning::LaneFault(AtFault::Account));
    let by_rule = Answer { status: 403, code: Some("Own.Code".to_owned()), meaning, ..Answer::default() };
    for (result, code) in [(answered(403, "InsufficientBalance"), "InsufficientBalance"), (Ok(by_rule), "Own.Code")] {
        let cause = cause(&result);
        assert_eq!(cause.kind, CauseKind::Account);
        assert!(cause.text.contains(code) && cause.text.contains("[[answer]]"), "{}", cause.text);
    }
    for (status, code) in [(400, "SignatureDoesNotMatch"), (400, "AuthError"), (401, ""), (401, "Own.Code")] {
        assert_eq!(cause(&answered(status, code)).kind, CauseKind::Keys, "{code}");
    }
}

#[test]
fn time_that_was_paused_twice_counts_once() {
    let time = |second: i64| Timestamp::from_second(second).unwrap();
    let pauses = [(10, 20), (15, 30), (40, 50), (42, 45)].map(|(from, to)| (time(from), time(to)));
    let within = |from, to| time_in(pauses.into_iter(), time(from), time(to)).as_secs();
    assert_eq!((within(0, 60), within(12, 18), within(25, 44), within(30, 40)), (30, 6, 9, 0));
}

#[tokio::test]
async fn a_pause_by_hand_is_one_whatever_the_circuit_says() {
    let breaker = Breaker::new(20.0, 20);
    let cause = |text: &str| Cause { kind: CauseKind::ByHand, text: text.to_owned() };
    // Ordered long before this process began.
    let since = Timestamp::now() - Duration::from_secs(3600);
    assert!(breaker.pause_by_hand(cause("first"), since) && !breaker.pause_by_hand(cause("first"), since));
    assert!(breaker.is_open() && breaker.withheld() == 0);
    breaker.opened().await;
    assert!(breaker.pause_by_hand(cause("second"), Timestamp::now()));
    breaker.is_by_hand_otherwise(&cause("first")).await;
    assert_eq!(breaker.trouble().map(|cause| cause.kind), Some(CauseKind::ByHand));
    // What goes on meanwhile is found again afterwards.
    let fault = Err(NoAnswer::Tls("unknown issuer".to_owned()));
    breaker.record_check(&fault);
    assert_eq!(breaker.cause(), Some(cause("second")));
    assert!(breaker.resume().is_some() && breaker.resume().is_none());
    assert_eq!(breaker.cause().map(|cause| cause.kind), Some(CauseKind::Endpoint));
    let paused = breaker.paused_between(Timestamp::UNIX_EPOCH, Timestamp::now());
    assert!(paused >= Duration::from_secs(3600), "{paused:?}");
}
