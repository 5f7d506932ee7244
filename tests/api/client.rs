//! The client alone, against the simulator: its calls, and keys that change meanwhile.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use reveille::bce::{Client, Credentials, InstanceId, InstanceState, NoAnswer, Timeouts};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::support::instance;
use crate::support::sim::{KEY, SECRET, Sim};

fn keys(id: &str, secret: &str) -> Credentials {
    Credentials {
        access_key_id: id.to_owned(),
        secret_access_key: secret.to_owned().into(),
        session_token: None,
        expires_at: None,
    }
}

fn client(url: &str, credentials: Credentials) -> Client {
    let timeouts = Timeouts { connect: Duration::from_secs(10), total: Duration::from_secs(20) };
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(url.parse().unwrap(), credentials, timeouts, 8).unwrap()
}

fn ids(numbers: impl IntoIterator<Item = usize>) -> Vec<InstanceId> {
    numbers.into_iter().map(|number| InstanceId::parse(&instance(number)).unwrap()).collect()
}

/// The simulator's log: operation and status of each call.
async fn seen(sim: &Sim) -> Vec<(String, u64)> {
    sim.wire().await.into_iter().map(|call| (call.operation, call.status.unwrap_or_default())).collect()
}

#[tokio::test]
async fn a_probe_tells_good_keys_from_bad_ones_and_a_right_clock_from_a_wrong_one() {
    let sim = Sim::start(&["--fleet", "Stopped=3"]);
    let good = client(&sim.url(), keys(KEY, SECRET));
    assert_eq!(good.probe().await.unwrap().status, 200);
    let wrong = client(&sim.url(), keys(KEY, "another")).probe().await.unwrap();
    assert_eq!(wrong.code.as_deref(), Some("SignatureDoesNotMatch"));
    sim.control("PUT", "clock", json!({"offset": "2h"})).await;
    assert_eq!(good.probe().await.unwrap().code.as_deref(), Some("RequestExpired"));
    // That answer corrected the clock.
    assert_eq!(good.probe().await.unwrap().status, 200);
    assert_eq!(seen(&sim).await, [200, 400, 400, 200].map(|status| ("list".to_owned(), status)));
    let nobody = client("http://127.0.0.1:1", keys(KEY, SECRET));
    assert!(matches!(nobody.probe().await, Err(NoAnswer::Unreachable(_))));
}

#[tokio::test]
async fn the_states_of_a_hundred_instances_come_in_one_call() {
    let sim = Sim::start(&["--fleet", "Running=40,Stopped=30,Starting=20,Expired=5,Moving=4"]);
    let client = client(&sim.url(), keys(KEY, SECRET));
    // The last of them does not exist.
    let (answer, states) = client.states(&ids(1..=100)).await.unwrap();
    let states = states.unwrap();
    assert_eq!((answer.status, states.len()), (200, 99));
    let mut expected = HashMap::new();
    for (range, state) in [
        (1..=40, InstanceState::Running),
        (41..=70, InstanceState::Stopped),
        (71..=90, InstanceState::Starting),
        (91..=95, InstanceState::Ended),
        (96..=99, InstanceState::Passing),
    ] {
        expected.extend(ids(range).into_iter().map(|id| (id, state)));
    }
    assert_eq!(states, expected);
    assert_eq!(seen(&sim).await, [("list_by_ids".to_owned(), 200)]);
    // More than a hundred are refused as a whole.
    let (answer, states) = client.states(&ids(1..=101)).await.unwrap();
    assert_eq!((answer.status, states), (400, None));
}

/// Instances with many disks and tags: far more than the limit for an answer about one of them.
#[tokio::test]
async fn a_long_list_is_read_to_its_end_and_one_that_does_not_end_tells_nothing() {
    let sim = Sim::start(&[]);
    let client = client(&sim.url(), keys(KEY, SECRET));
    let list = |size: usize| {
        let of = |id: &InstanceId| json!({"id": id, "status": "Running", "tags": "x".repeat(size)});
        json!({"isTruncated": false, "instances": ids(1..=100).iter().map(of).collect::<Vec<_>>()}).to_string()
    };
    sim.script("*", json!([{"status": 200, "body": list(8_000)}])).await;
    let (_, states) = client.states(&ids(1..=100)).await.unwrap();
    assert_eq!(states.unwrap().len(), 100);
    sim.script("*", json!([{"status": 200, "body": list(40_000)}, {"cut": true}])).await;
    for _ in 0..2 {
        let (answer, states) = client.states(&ids(1..=100)).await.unwrap();
        assert_eq!((answer.status, states), (200, None), "half a list tells nothing of anybody");
    }
}

#[tokio::test]
async fn a_batch_starts_all_or_none_and_names_who_failed() {
    let sim = Sim::start(&["--fleet", "Stopped=5,Running=1", "--boot-time", "1h"]);
    let client = client(&sim.url(), keys(KEY, SECRET));
    let (answer, failed) = client.start_batch(&ids(4..=6)).await.unwrap();
    assert_eq!((answer.status, failed), (409, None));
    let (answer, failed) = client.start_batch(&ids(1..=3)).await.unwrap();
    assert_eq!((answer.status, failed), (200, Some(vec![])));
    let (_, states) = client.states(&ids(1..=4)).await.unwrap();
    let states = states.unwrap();
    for id in ids(1..=3) {
        assert_eq!(states[&id], InstanceState::Starting);
    }
    assert_eq!(states[&ids([4])[0]], InstanceState::Stopped);

    let named = json!({"requestId": "r", "failedInstanceIdList": ["i-sim00005"]}).to_string();
    sim.script("*", json!([{"status": 200, "body": named}, {"status": 200, "body": ""}, {"cut": true}])).await;
    let mut told = Vec::new();
    for _ in 0..3 {
        let (answer, failed) = client.start_batch(&ids(4..=5)).await.unwrap();
        assert_eq!(answer.status, 200);
        told.push(failed);
    }
    assert_eq!(told, [Some(ids([5])), Some(vec![]), None]);
}

/// One request as received, in lower case. It gets no answer.
async fn request(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut text = String::new();
    loop {
        let mut bytes = [0; 4096];
        let length = stream.read(&mut bytes).await.unwrap();
        text += std::str::from_utf8(&bytes[..length]).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if text.contains("\r\n\r\n") && body.len() >= length.unwrap_or(0) {
            return text.to_lowercase();
        }
    }
}

#[tokio::test]
async fn the_body_goes_with_the_content_type_of_the_sdks() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = client(&format!("http://{}", listener.local_addr().unwrap()), keys(KEY, SECRET));
    let instances = ids([1]);
    let (_, batch) = tokio::join!(client.start_batch(&instances), request(&listener));
    let (_, single) = tokio::join!(client.start(&instances[0]), request(&listener));
    assert!(batch.starts_with("put /v2/instance/batchaction?start http/1.1"), "{batch}");
    assert!(batch.contains("content-type: application/json;charset=utf-8"), "{batch}");
    assert!(batch.contains("/content-type;host;x-bce-date/"), "{batch}");
    assert!(batch.ends_with(r#"{"instanceids":["i-sim00001"]}"#), "{batch}");
    assert!(!single.contains("content-type"), "{single}");
}

/// Two valid keys, used alternately as fast as possible: a request with half of each would be refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_has_half_of_the_old_keys_and_half_of_the_new() {
    let sim = Sim::start(&[]);
    let accounts = json!([
        {"access_key_id": "old", "secret_access_key": "older", "session_token": "old-token"},
        {"access_key_id": "new", "secret_access_key": "newer", "session_token": "new-token"},
    ]);
    sim.control("PUT", "credentials", accounts).await;
    let temporary = |id: &str, secret: &str, token: &str| Credentials {
        session_token: Some(token.to_owned().into()),
        ..keys(id, secret)
    };
    let old = || temporary("old", "older", "old-token");
    let client = Arc::new(client(&sim.url(), old()));
    let mut changed = client.keys_changed();
    let calling = {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                let probes = (0..8).map(|_| client.probe());
                for answer in futures_util::future::join_all(probes).await {
                    assert_eq!(answer.unwrap().status, 200);
                }
            }
        })
    };
    let mut changes = 0_u32;
    while !calling.is_finished() {
        let keys = if changes.is_multiple_of(2) { temporary("new", "newer", "new-token") } else { old() };
        assert!(client.replace_credentials(keys));
        changes += 1;
        tokio::task::yield_now().await;
    }
    calling.await.unwrap();
    println!("{changes} changes under 400 calls");
    assert!(changes > 10 && changed.has_changed().unwrap());
    changed.mark_unchanged();
    let same = (*client.credentials()).clone();
    assert!(!client.replace_credentials(same) && !changed.has_changed().unwrap(), "the same keys are no change");
}

#[tokio::test]
async fn nothing_is_sent_with_keys_that_have_expired_by_the_apis_clock() {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    let until = |expires_at: Timestamp| Credentials { expires_at: Some(expires_at), ..keys(KEY, SECRET) };
    let client = client(&sim.url(), until(Timestamp::now() + 10.minutes()));
    assert_eq!(client.probe().await.unwrap().status, 200);
    // By the API's clock they have expired, but not by ours.
    sim.control("PUT", "clock", json!({"offset": "20m"})).await;
    client.probe().await.unwrap();
    assert!(client.keys_expired());
    let Err(NoAnswer::NoKeys(why)) = client.start(&ids([1])[0]).await else { panic!("a call with expired keys") };
    assert!(why.contains(KEY) && why.contains("expired at") && why.contains("credentials_file"), "{why}");
    assert!(!why.contains(SECRET));
    assert_eq!(seen(&sim).await.len(), 2);
    client.replace_credentials(until(Timestamp::now() + 1.hour()));
    assert_eq!(client.start(&ids([1])[0]).await.unwrap().status, 200);
    assert_eq!(sim.calls_made().await, 3);
}
