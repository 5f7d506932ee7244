//! Each fault, as a client sees it on the wire.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::sim::Sim;
use crate::support::{PATIENCE, eventually, instance};

const ID: &str = "i-sim00001";
const START: &str = "/v2/instance/i-sim00001?start";

/// Long enough to be sure that no answer comes.
const NO_ANSWER: Duration = Duration::from_millis(400);

async fn scripted(script: Value) -> Sim {
    let sim = Sim::start(&["--fleet", "Stopped=2", "--boot-time", "1h"]);
    sim.control("PUT", &format!("script/{ID}"), script).await;
    sim
}

/// Status, fault and effect of the calls so far.
async fn log(sim: &Sim) -> Vec<(Value, Value, bool)> {
    let calls = sim.calls().await;
    calls
        .iter()
        .map(|call| (call["status"].clone(), call["fault"].clone(), call["took_effect"].as_bool().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_script_gives_its_answers_in_order_to_its_instance_alone() {
    let script = json!([
        {"status": 500},
        {"status": 429, "retry_after": 2},
        {"status": 403, "code": "OptInRequired", "message": "Not activated."},
        "status-503-after",
        "normal"
    ]);
    let sim = scripted(script).await;
    assert_eq!(sim.start_instance(ID).await.verdict(), (500, "InternalError".to_owned()));
    assert_eq!(sim.start_instance("i-sim00002").await.status, 200);
    let throttled = sim.start_instance(ID).await;
    assert_eq!(throttled.verdict(), (429, "RequestLimitExceeded".to_owned()));
    assert_eq!(throttled.header("retry-after"), Some("2"));
    let refused = sim.start_instance(ID).await;
    assert_eq!((refused.status, &refused.json()["message"]), (403, &json!("Not activated.")));
    assert_eq!(refused.verdict().1, "OptInRequired");
    assert_eq!(sim.instance(ID).await["status"], "Stopped");
    // It failed, and took effect all the same.
    assert_eq!(sim.start_instance(ID).await.status, 503);
    assert_eq!(sim.instance(ID).await, json!({"id": ID, "status": "Starting", "starts": 1}));
    assert_eq!(sim.control("GET", &format!("script/{ID}"), Value::Null).await, json!([{}]));
    assert_eq!(sim.start_instance(ID).await.status, 409);
    assert_eq!(
        log(&sim).await,
        [
            (json!(500), json!("status-500"), false),
            (json!(200), json!(null), true),
            (json!(429), json!("status-429"), false),
            (json!(403), json!("status-403"), false),
            (json!(503), json!("status-503-after"), true),
            (json!(409), json!(null), false),
        ]
    );
}

#[tokio::test]
async fn a_script_for_any_call_comes_after_the_instances_own() {
    let sim = scripted(json!(["status-500"])).await;
    sim.control("PUT", "script/*", json!(["status-503", "status-503", "status-502"])).await;
    let ids = r#"{"instanceIds":["i-sim00001"]}"#;
    assert_eq!(sim.start_instance(ID).await.status, 500);
    assert_eq!(sim.start_instance(ID).await.status, 503);
    assert_eq!(sim.call("GET", "/v2/instance?maxKeys=1", "").await.status, 503);
    assert_eq!(sim.call("PUT", "/v2/instance/batchAction?start", ids).await.status, 502);
    assert_eq!(sim.start_instance(ID).await.status, 200);
}

#[tokio::test]
async fn hangs_give_no_answer_before_the_effect_or_after_it() {
    let sim = scripted(json!([{"hang": "before"}, {"hang": "after"}])).await;
    for (calls, (status, starts)) in (1..).zip([("Stopped", 0), ("Starting", 1)]) {
        let call = sim.raw("PUT", START);
        // A call whose client has gone is not received at all.
        eventually("it is taken up", async || (sim.calls().await.len() == calls).then_some(())).await;
        let (bytes, end) = call.answer(NO_ANSWER);
        assert_eq!(bytes, "");
        assert!(matches!(end.unwrap_err().kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut));
        assert_eq!(sim.instance(ID).await, json!({"id": ID, "status": status, "starts": starts}));
    }
    assert_eq!(log(&sim).await, [(json!(null), json!("hang-before"), false), (json!(null), json!("hang-after"), true)]);
}

#[tokio::test]
async fn resets_end_the_connection_with_rst() {
    let sim = scripted(json!(["reset-before", {"reset": "after"}])).await;
    for starts in [0, 1] {
        let (bytes, end) = sim.raw("PUT", START).answer(PATIENCE);
        assert_eq!(bytes, "");
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(sim.instance(ID).await["starts"], starts);
    }
}

#[tokio::test]
async fn a_cut_answer_ends_before_the_length_it_promised() {
    let sim = scripted(json!(["cut", {"status": 500, "cut": true}])).await;
    for status in ["HTTP/1.1 200 OK", "HTTP/1.1 500 Internal Server Error"] {
        let (text, end) = sim.raw("PUT", START).answer(PATIENCE);
        end.expect("the connection is closed, not reset");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(status), "{head}");
        let promised: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .and_then(|length| length.parse().ok())
            .unwrap();
        assert!(!body.is_empty() && body.len() < promised, "{} of {promised}", body.len());
    }
    assert_eq!(sim.instance(ID).await["starts"], 1);
}

#[tokio::test]
async fn slow_and_long_bodies_are_sent_to_the_end() {
    let sim = scripted(json!(["trickle-5ms", "pad-5000000", "delay-300ms"])).await;
    let asked = Instant::now();
    let slow = sim.call("GET", "/v2/instance/i-sim00001", "").await;
    assert_eq!(slow.json()["instance"]["id"], ID);
    let least = Duration::from_millis(5) * u32::try_from(slow.body.len() - 1).unwrap();
    assert!(asked.elapsed() >= least, "{:?} of {least:?}", asked.elapsed());

    let long = sim.call("GET", "/v2/instance/i-sim00001", "").await;
    assert_eq!((long.body.len(), &long.json()["instance"]["id"]), (5_000_000, &json!(ID)));

    let asked = Instant::now();
    assert_eq!(sim.start_instance(ID).await.status, 200);
    assert!(asked.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn pages_texts_and_redirects_stand_in_for_the_api() {
    let sim = scripted(json!([
        "html-502",
        {"status": 500, "body": ""},
        {"status": 200, "body": "{\"instance\": {\"status\": \"Dreaming\"}}"},
        "redirect-http://127.0.0.1:1/v2",
        "status-204",
        "status-304",
        "gateway-404",
        {"status": 413, "gateway": true, "body": "too large", "headers": {"server": "nginx", "date": "yesterday"}},
    ]))
    .await;
    let page = sim.start_instance(ID).await;
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html")));
    assert!(page.body.contains("502 Bad Gateway"), "{}", page.body);
    let empty = sim.start_instance(ID).await;
    assert_eq!((empty.status, empty.body.as_str()), (500, ""));
    let forged = sim.call("GET", "/v2/instance/i-sim00001", "").await;
    assert_eq!(forged.json()["instance"]["status"], "Dreaming");
    let redirect = sim.start_instance(ID).await;
    assert_eq!((redirect.status, redirect.header("location")), (302, Some("http://127.0.0.1:1/v2")));
    for bodiless in [204, 304] {
        let answer = sim.start_instance(ID).await;
        assert_eq!((answer.status, answer.body.as_str()), (bodiless, ""));
    }
    let nothing = sim.start_instance(ID).await;
    assert_eq!((nothing.status, nothing.body.as_str(), nothing.header("x-bce-request-id")), (404, "", None));
    let said = sim.start_instance(ID).await;
    assert_eq!((said.status, said.body.as_str(), said.header("x-bce-request-id")), (413, "too large", None));
    assert_eq!((said.header("server"), said.header("date")), (Some("nginx"), Some("yesterday")));
}

#[tokio::test]
async fn flags_and_the_control_endpoint_set_the_same_faults() {
    let flags = ["--fleet", "Stopped=100", "--fault", "access-denied@i-sim00007=1", "--fault", "throttled=0.25"];
    let sim = Sim::start(&[&flags[..], &["--seed", "7", "--latency", "1ms"]].concat());
    let faults = json!({"latency": "1ms", "rules": [
        {"fault": {"status": 403}, "share": 1.0, "instances": ["i-sim00007"]},
        {"fault": {"status": 429, "retry_after": 1}, "share": 0.25},
    ]});
    assert_eq!(sim.control("GET", "faults", Value::Null).await, faults);
    let other = Sim::start(&["--fleet", "Stopped=100", "--seed", "7"]);
    other.control("PUT", "faults", faults).await;

    let mut throttled = 0;
    for number in 1..=100 {
        let id = instance(number);
        let (first, second) = (sim.start_instance(&id).await, other.start_instance(&id).await);
        assert_eq!(first.verdict(), second.verdict(), "the same seed makes the same chance");
        throttled += usize::from(first.status == 429);
        if number == 7 {
            assert_eq!(first.verdict(), (403, "AccessDenied".to_owned()));
        }
    }
    assert!((10..=40).contains(&throttled), "{throttled} of 100 at a share of 0.25");
    sim.control("PUT", "faults", json!({})).await;
    assert_eq!(sim.start_instance("i-sim00007").await.status, 200);
}
