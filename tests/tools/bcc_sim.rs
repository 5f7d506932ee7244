//! The simulator, judged by the official SDK, and by requests the SDK cannot make.

mod faults;
mod sdk;

use std::process::Command;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use reveille::bce::sign::SignedHeaders;
use serde_json::{Value, json};

use crate::support::sim::{Signing, Sim};
use crate::support::{PATIENCE, eventually, instance};

const EVERY_STATUS: [&str; 20] = [
    "Starting",
    "Running",
    "Stopping",
    "Stopped",
    "Recycled",
    "Deleted",
    "Scaling",
    "Expired",
    "Error",
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
    "Creating",
];

#[tokio::test]
async fn an_instance_goes_from_stopped_to_running_and_back() {
    let sim = Sim::start(&["--fleet", "Stopped=1", "--boot-time", "1s", "--stop-time", "1s"]);
    // The transient state is seen at once, the final one when its time has come: not before, and soon after.
    let passes = async |asked: Instant, through: &str, into: &str| {
        loop {
            let shown = sim.call("GET", "/v2/instance/i-sim00001", "").await.json();
            let status = shown["instance"]["status"].as_str().unwrap();
            if status == into {
                assert!(asked.elapsed() >= Duration::from_secs(1), "{into} after {:?}", asked.elapsed());
                break;
            }
            assert_eq!(status, through);
            assert!(asked.elapsed() < Duration::from_secs(10), "still {through}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let asked = Instant::now();
    let started = sim.start_instance("i-sim00001").await;
    assert_eq!((started.status, started.body.as_str()), (200, ""));
    assert_eq!(sim.start_instance("i-sim00001").await.verdict().0, 409);
    passes(asked, "Starting", "Running").await;

    let asked = Instant::now();
    assert_eq!(sim.call("PUT", "/v2/instance/i-sim00001?stop", "{}").await.status, 200);
    passes(asked, "Stopping", "Stopped").await;
    assert_eq!(sim.instance("i-sim00001").await["starts"], 1);
}

#[tokio::test]
async fn every_status_can_be_put_on_an_instance_and_answers_as_documented() {
    let sim = Sim::start(&["--boot-time", "1h", "--stop-time", "1h"]);
    let many: Vec<Value> =
        EVERY_STATUS.iter().map(|status| json!({"id": format!("i-{status}"), "status": status})).collect();
    sim.control("PUT", "instances", json!(many)).await;
    for status in EVERY_STATUS {
        let shown = sim.call("GET", &format!("/v2/instance/i-{status}"), "").await;
        let started = sim.start_instance(&format!("i-{status}")).await;
        let expected = match status {
            "Stopped" => (200, ""),
            "Deleted" => (404, "NoSuchObject"),
            "Creating" => (409, "Instance.StartInstanceWhenCreating"),
            "Expired" => (409, "Instance.StartExpiredInstance"),
            _ => (409, "Instance.StartInstanceOperationForbidden"),
        };
        assert_eq!(started.verdict(), (expected.0, expected.1.to_owned()), "{status}");
        match status {
            "Deleted" => assert_eq!(shown.verdict(), (404, "NoSuchObject".to_owned())),
            "Creating" => assert_eq!(shown.json()["instance"]["status"], "Starting"),
            _ => assert_eq!(shown.json()["instance"]["status"], status),
        }
    }
    assert_eq!(sim.start_instance("i-nobody").await.verdict(), (404, "NoSuchObject".to_owned()));
}

#[tokio::test]
async fn answers_carry_a_request_id_and_a_date_and_errors_have_three_fields() {
    let sim = Sim::start(&["--fleet", "Running=1"]);
    for answer in [
        sim.call("GET", "/v2/instance/i-sim00001", "").await,
        sim.start_instance("i-sim00001").await,
        sim.send("GET", "/v2/instance", "", &[]).await,
        sim.send("GET", "/nowhere", "", &[]).await,
        sim.send("GET", "/v9/instance", "", &[]).await,
        sim.send("GET", "/v2/%zz", "", &[]).await,
        sim.send("PUT", "/v2/instance/i-a?start", &"x".repeat(1024 * 1024 + 1), &[]).await,
    ] {
        let id: uuid::Uuid = answer.header("x-bce-request-id").unwrap().parse().unwrap();
        assert_eq!(id.get_version_num(), 4);
        assert!(jiff::fmt::rfc2822::parse(answer.header("date").unwrap()).is_ok());
        if answer.status != 200 {
            let body = answer.json();
            assert_eq!(body["requestId"], id.to_string());
            assert!(body["code"].is_string() && body["message"].is_string(), "{body}");
        }
    }
}

#[tokio::test]
async fn requests_as_the_go_sdk_makes_them_pass() {
    let sim = Sim::start(&["--fleet", "Stopped=2"]);
    // An unsigned request id of its own, and only these three headers signed.
    let go = || Signing {
        signed: SignedHeaders::Listed(&["content-type", "host", "x-bce-date"]),
        headers: vec![
            ("content-type", "application/json;charset=utf-8"),
            ("x-bce-request-id", "5d1fd0f6-5f0d-4c9e-8a2e-6b8e2a7f6b11"),
            ("accept-encoding", "gzip"),
        ],
        ..Signing::default()
    };
    assert_eq!(sim.call_signed("PUT", "/v2/instance/i-sim00001?start", "", go()).await.status, 200);
    let other_body = Signing { signed: SignedHeaders::Listed(&["host"]), ..Signing::default() };
    let token = "/v2/instance/i-sim00002?clientToken=8a6b&start=";
    assert_eq!(sim.call_signed("PUT", token, "", other_body).await.status, 200);
}

#[tokio::test]
async fn what_is_signed_wrongly_is_refused_with_the_documented_code() {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let target = "/v2/instance/i-sim00001?start";
    let usual = Signing::default;
    for (signing, expected) in [
        (Signing { secret: "wrong", ..usual() }, (400, "SignatureDoesNotMatch")),
        (Signing { key: "unknown", ..usual() }, (403, "InvalidAccessKeyId")),
        (Signing { skew: SignedDuration::from_mins(31), ..usual() }, (400, "RequestExpired")),
        (Signing { skew: SignedDuration::from_mins(-31), ..usual() }, (400, "RequestExpired")),
        (Signing { headers: vec![("x-bce-date", "2020-01-01T00:00:00Z")], ..usual() }, (400, "RequestExpired")),
        (Signing { signed: SignedHeaders::Listed(&["x-bce-date"]), ..usual() }, (400, "InvalidHTTPAuthHeader")),
        (Signing { signed: SignedHeaders::Listed(&["content-md5", "host"]), ..usual() }, (400, "IamSignatureInvalid")),
    ] {
        let answer = sim.call_signed("PUT", target, "", signing).await;
        assert_eq!(answer.verdict(), (expected.0, expected.1.to_owned()));
    }
    // Signed for another instance, sent to this one.
    let headers = sim.signed_headers("PUT", "/v2/instance/i-other?start", "", &usual());
    assert_eq!(sim.send("PUT", target, "", &headers).await.verdict(), (400, "SignatureDoesNotMatch".to_owned()));
    let bare = sim.send("PUT", target, "", &[]).await;
    assert_eq!(bare.verdict(), (400, "InvalidHTTPAuthHeader".to_owned()));
    assert_eq!(sim.instance("i-sim00001").await["status"], "Stopped");
}

#[tokio::test]
async fn a_shifted_clock_is_told_by_date_and_forgives_a_client_that_follows_it() {
    let sim = Sim::start(&["--fleet", "Stopped=1", "--clock-offset", "-2h"]);
    let refused = sim.start_instance("i-sim00001").await;
    assert_eq!(refused.verdict(), (400, "RequestExpired".to_owned()));
    let told = jiff::fmt::rfc2822::parse(refused.header("date").unwrap()).unwrap().timestamp();
    let skew = SignedDuration::from_secs(told.as_second() - jiff::Timestamp::now().as_second());
    let signing = Signing { skew, ..Signing::default() };
    assert_eq!(sim.call_signed("PUT", "/v2/instance/i-sim00001?start", "", signing).await.status, 200);
}

#[tokio::test]
async fn the_clock_and_its_tolerance_can_be_changed_while_it_runs() {
    let sim = Sim::start(&["--clock-tolerance", "10m"]);
    let describe = async || sim.call("GET", "/v2/instance/i-sim00001", "").await.verdict();
    let expired = (400, "RequestExpired".to_owned());
    assert_eq!(describe().await, (200, String::new()));
    for (offset, tolerance, expected) in [
        ("20m", "10m", &expired),
        ("-20m", "10m", &expired),
        ("20m", "30m", &(200, String::new())),
        ("0s", "10m", &(200, String::new())),
    ] {
        let clock = json!({"offset": offset, "tolerance": tolerance});
        sim.control("PUT", "clock", clock.clone()).await;
        assert_eq!(sim.control("GET", "clock", Value::Null).await, clock);
        assert_eq!(describe().await, *expected, "{clock}");
    }
}

#[tokio::test]
async fn several_keys_can_be_good_at_once() {
    let sim = Sim::start(&["--fleet", "Running=1"]);
    let keys = json!([
        {"access_key_id": "old", "secret_access_key": "older"},
        {"access_key_id": "new", "secret_access_key": "newer"},
    ]);
    sim.control("PUT", "credentials", keys).await;
    for (key, secret, expected) in
        [("old", "older", 200), ("new", "newer", 200), ("new", "older", 400), ("sim-access-key", "sim-secret-key", 403)]
    {
        let signing = Signing { key, secret, ..Signing::default() };
        let answer = sim.call_signed("GET", "/v2/instance/i-sim00001", "", signing).await;
        assert_eq!(answer.status, expected, "{key} {secret}");
    }
}

#[tokio::test]
async fn a_temporary_key_passes_only_with_its_token_and_keys_can_be_changed() {
    let sim = Sim::start(&["--fleet", "Stopped=1", "--session-token", "the token"]);
    let target = "/v2/instance/i-sim00001?start";
    assert_eq!(sim.start_instance("i-sim00001").await.verdict(), (403, "InvalidAccessKeyId".to_owned()));
    let token = || Signing {
        signed: SignedHeaders::Listed(&["host", "x-bce-date", "x-bce-security-token"]),
        headers: vec![("x-bce-security-token", "the token")],
        ..Signing::default()
    };
    assert_eq!(sim.call_signed("PUT", target, "", token()).await.status, 200);
    let account = json!({"access_key_id": "new", "secret_access_key": "newer"});
    sim.control("PUT", "credentials", account).await;
    assert_eq!(sim.call_signed("PUT", target, "", token()).await.verdict().0, 403);
    let new = Signing { key: "new", secret: "newer", ..Signing::default() };
    assert_eq!(sim.call_signed("PUT", target, "", new).await.verdict().0, 409);
}

#[tokio::test]
async fn calls_over_the_rate_are_answered_429_and_do_nothing() {
    let sim = Sim::start(&["--fleet", "Stopped=10", "--rate", "0.001", "--burst", "3"]);
    for number in 1..=5 {
        let answer = sim.start_instance(&instance(number)).await;
        if number <= 3 {
            assert_eq!(answer.status, 200);
        } else {
            assert_eq!(answer.verdict(), (429, "RequestLimitExceeded".to_owned()));
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
    assert_eq!(sim.instance("i-sim00004").await["starts"], 0);
    sim.control("PUT", "limit", json!({"rate": null})).await;
    assert_eq!(sim.start_instance("i-sim00004").await.status, 200);
    assert_eq!(sim.control("GET", "limit", Value::Null).await, json!({"rate": null, "burst": null}));
}

#[tokio::test]
async fn the_log_tells_every_call_in_order_and_what_it_did() {
    let sim = Sim::start(&["--fleet", "Stopped=3"]);
    let both = r#"{"instanceIds":["i-sim00002","i-sim00003"]}"#;
    sim.start_instance("i-sim00001").await;
    sim.start_instance("i-sim00001").await;
    sim.call("PUT", "/v2/instance/batchAction?start", both).await;
    sim.call("GET", "/v2/instance", "").await;
    sim.call("POST", "/v2/instance/listByInstanceId", both).await;
    sim.call("DELETE", "/v2/instance/i-sim00001", "").await;
    let mut calls = sim.calls().await;
    assert!(calls.is_sorted_by_key(|call| call["at"].as_str().unwrap().to_owned()));
    for call in &mut calls {
        let call = call.as_object_mut().unwrap();
        let at: jiff::Timestamp = call.remove("at").unwrap().as_str().unwrap().parse().unwrap();
        assert_eq!(call.remove("unix_micros").unwrap().as_i64(), Some(at.as_microsecond()));
    }
    let call = |method: &str, operation: &str, id: Option<&str>, status: u16, code: Option<&str>, took_effect: bool| {
        json!({"method": method, "operation": operation, "instance_id": id, "status": status, "code": code,
            "fault": null, "took_effect": took_effect})
    };
    let with_ids = |mut call: Value| {
        call["instance_ids"] = json!(["i-sim00002", "i-sim00003"]);
        call
    };
    let (one, forbidden) = (Some("i-sim00001"), Some("Instance.StartInstanceOperationForbidden"));
    assert_eq!(
        calls,
        [
            call("PUT", "start", one, 200, None, true),
            call("PUT", "start", one, 409, forbidden, false),
            with_ids(call("PUT", "batch_start", None, 200, None, true)),
            call("GET", "list", None, 200, None, false),
            with_ids(call("POST", "list_by_ids", None, 200, None, false)),
            call("DELETE", "other", None, 400, Some("InvalidHTTPRequest"), false),
        ]
    );
    sim.control("DELETE", "calls", Value::Null).await;
    assert_eq!(sim.control("GET", "health", Value::Null).await["calls"], 0);
}

#[tokio::test]
async fn control_requests_that_make_no_sense_change_nothing_and_say_why() {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    for (path, body, part) in [
        ("instances/i-a", r#"{"status":"Sleeping"}"#, "Sleeping"),
        ("instances", r#"[{"id":"i-ok","status":"Running"},{"id":"i-b","status":"Running","holds":true}]"#, "holds"),
        ("instances", r#"[{"status":"Running"}]"#, "id"),
        ("instances/i%2fa", r#"{"status":"Running"}"#, "i%2fa"),
        ("faults", r#"{"rules":[{"fault":"bang"}]}"#, "bang"),
        ("faults", r#"{"rules":[{"fault":"cut","share":2}]}"#, "share 2"),
        ("script/i-a", r#"["normal",{"status":1}]"#, "status 1"),
        ("limit", r#"{"rate":0}"#, "more than 0"),
        ("limit", "", "EOF"),
        ("clock", r#"{"offset":"9000h"}"#, "a year"),
        ("credentials", r#"[{"access_key_id":"a"}]"#, "secret_access_key"),
    ] {
        let answer = sim.send("PUT", &format!("/_sim/{path}"), body, &[]).await;
        assert_eq!(answer.status, 400, "{path} {body}");
        assert!(answer.json()["error"].as_str().unwrap().contains(part), "{path}: {}", answer.body);
    }
    assert_eq!(sim.send("GET", "/_sim/nothing", "", &[]).await.status, 404);
    assert_eq!(sim.control("GET", "health", Value::Null).await["instances"], 1);
}

#[tokio::test]
async fn signals_end_it_at_once_and_wrong_flags_with_2() {
    for signal in ["-TERM", "-INT"] {
        let mut sim = Sim::start(&["--fleet", "Stopped=1", "--fault", "hang-before=1"]);
        // It does not wait for hanging calls.
        let hangs = sim.raw("PUT", "/v2/instance/i-sim00001?start");
        eventually("the call is taken up", async || (!sim.calls().await.is_empty()).then_some(())).await;
        assert!(Command::new("kill").args([signal, &sim.pid().to_string()]).status().unwrap().success());
        assert_eq!(sim.ended().await.code(), Some(0));
        assert_eq!(hangs.answer(PATIENCE).0, "");
    }
    for (flags, part) in
        [(["--rate", "-1"], "rate -1"), (["--fleet", "Asleep=3"], "Asleep"), (["--what", "1"], "--what")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_bcc-sim")).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{flags:?}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains(part), "{flags:?}: {message}");
    }
}
