//! Which jobs an answer tells what became of their instance.

use super::*;
use crate::bce::Codes;

const KNOWN: Circumstances = Circumstances { policy: Conflict::Verify, first_touch: true };

fn reach(result: &Result<Answer, NoAnswer>, failed: Option<Vec<InstanceId>>) -> Reach {
    Reach::of(&verdict::of_start(result, KNOWN), result, failed)
}

fn answer(status: u16, code: &str) -> Result<Answer, NoAnswer> {
    let meaning = Codes::default().meaning(status, code);
    let code = (!code.is_empty()).then(|| code.to_owned());
    Ok(Answer { status, code, meaning, ..Answer::default() })
}

fn id(text: &str) -> InstanceId {
    InstanceId::parse(text).unwrap()
}

fn member(instance: &str, is_wanted: bool) -> Member {
    Member::for_tests(id(instance), is_wanted)
}

#[test]
fn a_success_is_for_all_but_those_it_names() {
    assert_eq!(reach(&answer(200, ""), Some(vec![])), Reach::AllBut(vec![]));
    assert_eq!(reach(&answer(200, ""), Some(vec![id("i-aaaa")])), Reach::AllBut(vec![id("i-aaaa")]));
    // Which it named could not be read: any of them may be up now, or not.
    assert_eq!(reach(&answer(200, ""), None), Reach::None { touched: true });
}

#[test]
fn a_refusal_may_be_for_one_only_and_touches_no_instance() {
    let codes = ["Instance.StartInstanceWhenCreating", "Instance.StartExpiredInstance", "", "Unheard"];
    let conflicts = codes.map(|code| answer(409, code));
    let others = [answer(400, ""), answer(403, "AccessDenied"), answer(404, "NoSuchObject"), answer(412, "")];
    // A code for one instance, with a meaning or without.
    let codes = ["Bcc.ZoneClosed", "Instance.NoStock", "OperationDenied"].map(|code| answer(403, code));
    let out_of_stock = [answer(409, "Instance.NoStock"), answer(503, "Instance.NoStock")];
    for result in conflicts.iter().chain(&others).chain(&codes).chain(&out_of_stock) {
        assert_eq!(reach(result, None), Reach::None { touched: false }, "{result:?}");
    }
}

#[test]
fn what_concerns_no_single_instance_is_for_all() {
    let page = |status| Ok(Answer { status, from_proxy: true, ..Answer::default() });
    let answers = [
        answer(429, ""),
        answer(409, "TooManyRequests"),
        answer(500, ""),
        answer(503, ""),
        answer(408, ""),
        answer(425, ""),
        answer(401, ""),
        answer(403, "InvalidAccessKeyId"),
        answer(403, "RequestExpired"),
        answer(302, ""),
        page(200),
        page(404),
        page(409),
        Err(NoAnswer::TimedOut),
        Err(NoAnswer::Tls("unknown issuer".to_owned())),
    ];
    for result in &answers {
        assert_eq!(reach(result, None), Reach::AllBut(vec![]), "{result:?}");
    }
}

#[test]
fn an_instance_is_named_once_however_many_jobs_there_are_for_it() {
    let members = [member("i-aaaa", true), member("i-bbbb", true), member("i-aaaa", true)];
    assert_eq!(distinct(&members), [id("i-aaaa"), id("i-bbbb")]);
    let members = [member("i-aaaa", false), member("i-bbbb", true)];
    assert_eq!(distinct(members.iter().filter(|member| member.wanted.now())), [id("i-bbbb")]);
}
