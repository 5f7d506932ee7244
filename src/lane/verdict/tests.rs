//! A test for every row of the table of verdicts.

use super::*;
use crate::bce::{AtFault, Codes};

const POLICIES: [Conflict; 3] = [Conflict::Fail, Conflict::Accept, Conflict::Verify];

fn clean(policy: Conflict) -> Circumstances {
    Circumstances { policy, first_touch: true }
}

fn touched(policy: Conflict) -> Circumstances {
    Circumstances { policy, first_touch: false }
}

fn answer(status: u16, code: &str) -> Answer {
    let meaning = Codes::default().meaning(status, code);
    Answer { status, code: (!code.is_empty()).then(|| code.to_owned()), meaning, ..Answer::default() }
}

/// What is not the API's has no code that means anything.
fn from_proxy(status: u16, code: &str) -> Answer {
    Answer { from_proxy: true, meaning: None, ..answer(status, code) }
}

/// The verdict on a start answered so, which must be the same under every policy and past.
fn start(status: u16, code: &str) -> Verdict {
    let result = Ok(answer(status, code));
    let verdict = of_start(&result, clean(Conflict::Fail));
    for policy in POLICIES {
        assert_eq!(of_start(&result, clean(policy)), verdict);
        assert_eq!(of_start(&result, touched(policy)), verdict);
    }
    verdict
}

fn described(state: &str, circumstances: Circumstances) -> Verdict {
    of_describe(&Ok((answer(200, ""), Some(InstanceState::parse(state)))), circumstances)
}

#[test]
fn a_2xx_is_accepted() {
    for status in [200, 202, 204] {
        assert_eq!(start(status, ""), Verdict::Started { ambiguous: false });
    }
}

#[test]
fn a_409_while_creating_is_transient_whatever_the_policy() {
    assert_eq!(start(409, "Instance.StartInstanceWhenCreating"), Verdict::Transient);
}

#[test]
fn a_409_of_an_expired_instance_fails_whatever_the_policy() {
    assert_eq!(start(409, "Instance.StartExpiredInstance"), Verdict::Failed(Reason::InstanceExpired));
}

#[test]
fn a_409_whose_code_was_lost_decides_nothing() {
    let result = Ok(answer(409, ""));
    assert_eq!(of_start(&result, clean(Conflict::Fail)), Verdict::Transient);
    assert_eq!(of_start(&result, clean(Conflict::Accept)), Verdict::Transient);
    assert_eq!(of_start(&result, clean(Conflict::Verify)), Verdict::Verify);
}

#[test]
fn a_proxys_page_decides_nothing_about_a_job() {
    for status in [200, 204, 400, 401, 403, 404, 407, 408, 409, 413, 418, 500, 502] {
        let page = from_proxy(status, "");
        for circumstances in POLICIES.into_iter().flat_map(|policy| [clean(policy), touched(policy)]) {
            assert_eq!(of_start(&Ok(page.clone()), circumstances), Verdict::Transient, "{status}");
            let described = Ok((page.clone(), Some(InstanceState::Running)));
            assert_eq!(of_describe(&described, circumstances), Verdict::Transient, "{status}");
        }
        assert_eq!(general(&Ok(page)), Verdict::Transient, "and nothing about a lane: {status}");
    }
    // Whoever redirects or throttles is heeded.
    for (status, verdict) in [(302, Verdict::LaneFault), (429, Verdict::Throttled { retry_after: None })] {
        let page = Ok(from_proxy(status, ""));
        assert_eq!((of_start(&page, clean(Conflict::Fail)), general(&page)), (verdict.clone(), verdict));
    }
    // A code of the API's in another one's answer is no code of the API's.
    for code in ["InvalidAccessKeyId", "RequestExpired", "RequestLimitExceeded", "Instance.StartExpiredInstance"] {
        for status in [400, 403, 409] {
            let page = Ok(from_proxy(status, code));
            assert_eq!(of_start(&page, clean(Conflict::Fail)), Verdict::Transient, "{status} {code}");
            let gone = page.as_ref().is_ok_and(|page| is_throttling(page) || is_clock_skew(page));
            assert!(!gone, "{status} {code}");
        }
    }
}

#[test]
fn any_other_409_on_a_clean_first_touch_is_read_by_policy() {
    for code in ["Instance.StartInstanceOperationForbidden", "Something.New", "SignatureDoesNotMatch"] {
        let result = Ok(answer(409, code));
        assert_eq!(of_start(&result, clean(Conflict::Fail)), Verdict::Failed(Reason::Conflict));
        assert_eq!(of_start(&result, clean(Conflict::Accept)), Verdict::AlreadyDone { runs: false });
        assert_eq!(of_start(&result, clean(Conflict::Verify)), Verdict::Verify);
    }
}

#[test]
fn a_409_on_anything_but_a_clean_first_touch_is_verified_whatever_the_policy() {
    let result = Ok(answer(409, "Instance.StartInstanceOperationForbidden"));
    for policy in POLICIES {
        assert_eq!(of_start(&result, touched(policy)), Verdict::Verify);
        for state in ["Running", "Starting"] {
            assert_eq!(described(state, touched(policy)), Verdict::Started { ambiguous: true });
        }
    }
    // What is seen counts for more than what the policy would make of the 409 alone.
    for policy in POLICIES {
        assert_eq!(described("Stopped", touched(policy)), Verdict::Transient, "reads lag the start");
        assert_eq!(described("Stopping", touched(policy)), Verdict::Transient);
    }
    assert_eq!(described("Expired", touched(Conflict::Fail)), Verdict::Failed(Reason::Conflict));
    assert_eq!(described("Expired", touched(Conflict::Accept)), Verdict::Failed(Reason::WrongState));
    assert_eq!(described("Expired", touched(Conflict::Verify)), Verdict::Failed(Reason::WrongState));
}

#[test]
fn a_verified_409_is_read_by_the_state() {
    let verify = clean(Conflict::Verify);
    for state in ["Running", "Starting"] {
        assert_eq!(described(state, verify), Verdict::AlreadyDone { runs: state == "Running" });
    }
    let passing = [
        "Stopping",
        "Scaling",
        "SnapshotProcessing",
        "ImageProcessing",
        "Recharging",
        "VolumeResizing",
        "BillingChanging",
        "ChangeSubnet",
        "ChangeVpc",
        "AttachingPort",
        "DetachingPort",
        "Moving",
        "NotKnownYet",
    ];
    for state in ["Stopped"].iter().chain(&passing) {
        assert_eq!(described(state, verify), Verdict::Transient, "{state}");
    }
    for state in ["Deleted", "Expired", "Recycled", "Error"] {
        assert_eq!(described(state, verify), Verdict::Failed(Reason::WrongState), "{state}");
    }
}

#[test]
fn a_verification_that_is_itself_refused_says_so() {
    let describe = |status, code: &str, circumstances| of_describe(&Ok((answer(status, code), None)), circumstances);
    let verify = clean(Conflict::Verify);
    assert_eq!(describe(403, "AccessDenied", verify), Verdict::Failed(Reason::ConflictUnverified));
    assert_eq!(describe(403, "AccessDenied", touched(Conflict::Fail)), Verdict::Failed(Reason::Conflict));
    assert_eq!(describe(404, "NoSuchObject", verify), Verdict::Failed(Reason::NotFound));
    assert_eq!(describe(429, "", verify), Verdict::Throttled { retry_after: None });
    assert_eq!(describe(503, "", verify), Verdict::Transient);
    assert_eq!(describe(200, "", verify), Verdict::Transient);
    assert_eq!(describe(403, "InvalidAccessKeyId", verify), Verdict::LaneFault);
    assert_eq!(of_describe(&Err(NoAnswer::TimedOut), verify), Verdict::Transient);
    assert_eq!(of_describe(&Err(NoAnswer::Tls("expired".to_owned())), verify), Verdict::LaneFault);
}

#[test]
fn throttling_is_known_by_status_or_by_code() {
    assert_eq!(start(429, ""), Verdict::Throttled { retry_after: None });
    assert_eq!(start(429, "AccessDenied"), Verdict::Throttled { retry_after: None });
    assert_eq!(start(403, "RequestLimitExceeded"), Verdict::Throttled { retry_after: None });
    assert_eq!(start(409, "Throttling"), Verdict::Throttled { retry_after: None });
    assert_eq!(start(503, "SlowDown"), Verdict::Throttled { retry_after: None });
    let retry_after = Some(Duration::from_secs(7));
    let result = Ok(Answer { retry_after, ..answer(429, "") });
    assert_eq!(of_start(&result, clean(Conflict::Fail)), Verdict::Throttled { retry_after });
}

#[test]
fn server_errors_and_missing_answers_are_transient() {
    for status in [500, 501, 502, 503, 504] {
        assert_eq!(start(status, "InternalError"), Verdict::Transient);
    }
    for error in [NoAnswer::TimedOut, NoAnswer::Unreachable("refused".to_owned()), NoAnswer::Broken("reset".to_owned())]
    {
        assert_eq!(of_start(&Err(error), clean(Conflict::Fail)), Verdict::Transient);
    }
}

#[test]
fn a_request_that_came_too_slowly_or_too_early_is_transient() {
    for status in [408, 425] {
        for code in ["", "RequestTimeout", "Unheard"] {
            assert_eq!(start(status, code), Verdict::Transient, "{status} {code}");
            for circumstances in POLICIES.into_iter().flat_map(|policy| [clean(policy), touched(policy)]) {
                let described = of_describe(&Ok((answer(status, code), None)), circumstances);
                assert_eq!(described, Verdict::Transient, "{status} {code}");
            }
        }
        assert_eq!(start(status, "Throttling"), Verdict::Throttled { retry_after: None });
        assert_eq!(start(status, "InvalidAccessKeyId"), Verdict::LaneFault);
    }
}

#[test]
fn an_expired_signature_is_a_matter_of_clocks() {
    assert_eq!(start(400, "RequestExpired"), Verdict::ClockSkew { server_time: None });
    let server_time = Some("2026-11-25T07:30:00Z".parse().unwrap());
    let message = Some("Fail to check timestamp: time expired".to_owned());
    let result = Ok(Answer { date: server_time, message, ..answer(400, "InvalidRequest") });
    assert_eq!(of_start(&result, clean(Conflict::Fail)), Verdict::ClockSkew { server_time });
    assert_eq!(start(400, "InvalidRequest"), Verdict::Failed(Reason::Refused));
    assert_eq!(start(500, "RequestExpired"), Verdict::Transient);
}

#[test]
fn keys_endpoint_and_account_are_faults_of_the_lane() {
    for (status, code) in [
        (401, ""),
        (401, "AuthError"),
        (403, "InvalidAccessKeyId"),
        (400, "SignatureDoesNotMatch"),
        (400, "IamSignatureInvalid"),
        (400, "InvalidHTTPAuthHeader"),
        (403, "OptInRequired"),
        (404, "InvalidVersion"),
        (301, ""),
        (302, ""),
        (307, ""),
    ] {
        assert_eq!(start(status, code), Verdict::LaneFault, "{status} {code}");
    }
    for error in [NoAnswer::Tls("expired".to_owned()), NoAnswer::NoKeys("expired".to_owned())] {
        assert_eq!(of_start(&Err(error.clone()), clean(Conflict::Fail)), Verdict::LaneFault);
        assert_eq!(of_describe(&Err(error), clean(Conflict::Verify)), Verdict::LaneFault);
    }
}

#[test]
fn what_the_api_refuses_for_good_fails() {
    assert_eq!(start(403, "AccessDenied"), Verdict::Failed(Reason::AccessDenied));
    assert_eq!(start(403, ""), Verdict::Failed(Reason::AccessDenied));
    assert_eq!(start(404, "NoSuchObject"), Verdict::Failed(Reason::NotFound));
    assert_eq!(start(404, ""), Verdict::Failed(Reason::NotFound));
    for status in [400, 405, 412, 413, 418, 451] {
        assert_eq!(start(status, "InvalidHTTPRequest"), Verdict::Failed(Reason::Refused), "{status}");
    }
}

#[test]
fn an_unknown_code_is_its_jobs_own_and_only_access_denied_is_a_denial() {
    for status in [400, 402, 403, 405, 412, 413, 418, 422, 451] {
        for code in ["Bcc.ZoneClosed", "Instance.Overdue", "IdempotentParameterMismatch", "AccessDeniedByNobody"] {
            assert_eq!(start(status, code), Verdict::Failed(Reason::Refused), "{status} {code}");
        }
    }
    assert_eq!(start(404, "Bcc.ZoneClosed"), Verdict::Failed(Reason::NotFound));
    assert_eq!(start(500, "Bcc.ZoneClosed"), Verdict::Transient);
}

#[test]
fn a_code_that_means_something_is_read_by_its_meaning_whatever_the_status_and_the_policy() {
    let word = |text| crate::bce::Word::parse(text).unwrap();
    let own = Reason::Configured(word("no_stock"));
    for (meaning, verdict) in [
        (Meaning::Retry, Verdict::Transient),
        (Meaning::NoCapacity(word("no_stock")), Verdict::NoCapacity { reason: own }),
        (Meaning::NoCapacity(word("no_capacity")), Verdict::NoCapacity { reason: Reason::NoCapacity }),
        (Meaning::Throttled, Verdict::Throttled { retry_after: None }),
        (Meaning::Failed(word("no_stock")), Verdict::Failed(own)),
        (Meaning::Failed(word("access_denied")), Verdict::Failed(Reason::AccessDenied)),
        (Meaning::LaneFault(AtFault::Account), Verdict::LaneFault),
    ] {
        for status in [400, 401, 403, 404, 409, 429, 500, 503] {
            let result = Ok(Answer { meaning: Some(meaning), ..answer(status, "Own.Code") });
            for circumstances in POLICIES.into_iter().flat_map(|policy| [clean(policy), touched(policy)]) {
                assert_eq!(of_start(&result, circumstances), verdict, "{status} {meaning:?}");
            }
            assert_eq!(general(&result), verdict, "{status} {meaning:?}");
        }
    }
    // A code with a meaning of its own keeps it, whatever a rule says.
    let lost = |status, code: &str| Answer { meaning: Some(Meaning::Retry), ..answer(status, code) };
    let expired = Ok(lost(409, "Instance.StartExpiredInstance"));
    assert_eq!(of_start(&expired, clean(Conflict::Verify)), Verdict::Failed(Reason::InstanceExpired));
    assert_eq!(general(&Ok(lost(400, "RequestExpired"))), Verdict::ClockSkew { server_time: None });
}

#[test]
fn that_no_machine_is_to_be_had_says_nothing_of_a_state() {
    let result = Ok((answer(403, "Instance.NoStock"), None));
    for circumstances in POLICIES.into_iter().flat_map(|policy| [clean(policy), touched(policy)]) {
        assert_eq!(of_describe(&result, circumstances), Verdict::Transient);
    }
    assert_eq!(start(403, "Instance.NoStock"), Verdict::NoCapacity { reason: Reason::NoCapacity });
    assert_eq!(start(403, "InsufficientBalance"), Verdict::LaneFault);
}

#[test]
fn a_5xx_whose_code_means_something_is_judged_and_any_other_is_none_nor_is_a_101() {
    for (status, code, judged) in [
        (503, "", false),
        (500, "InternalError", false),
        (101, "", false),
        (204, "", true),
        (503, "Instance.NoStock", true),
        (403, "Bcc.ZoneClosed", true),
        (409, "Instance.StartInstanceWhenCreating", true),
    ] {
        let answer = answer(status, code);
        assert_eq!(
            is_judged(&of_start(&Ok(answer.clone()), clean(Conflict::Fail)), &answer),
            judged,
            "{status} {code}"
        );
    }
    assert!(!is_judged(&Verdict::Transient, &from_proxy(404, "")));
}
