//! The official Python SDK against the simulator.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::python::python;
use crate::support::sim::{KEY, SECRET, Sim};

/// Makes these calls with the SDK, and returns each result.
fn sdk(sim: &Sim, key: &str, secret: &str, calls: &[Value]) -> Vec<Value> {
    let mut child = Command::new(python())
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/bce_sdk.py"))
        .args([&sim.address, key, secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("Python starts");
    let mut stdin = child.stdin.take().unwrap();
    for call in calls {
        writeln!(stdin, "{call}").unwrap();
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = String::from_utf8(output.stdout).unwrap();
    results.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(list: &Value) -> Vec<&str> {
    list["answer"]["instances"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_official_sdk_starts_stops_describes_and_lists() {
    let sim = Sim::start(&["--fleet", "Stopped=4,Running=1,Creating=1,Expired=1", "--boot-time", "1h"]);
    let results = sdk(
        &sim,
        KEY,
        SECRET,
        &[
            json!(["get_instance", "i-sim00001"]),
            json!(["start_instance", "i-sim00001"]),
            json!(["get_instance", "i-sim00001", true]),
            json!(["start_instance", "i-sim00001"]),
            json!(["start_instance", "i-sim00006"]),
            json!(["start_instance", "i-sim00007"]),
            json!(["start_instance", "i-sim99999"]),
            json!(["batch_start_instance", ["i-sim00001", "i-sim00002"]]),
            json!(["batch_start_instance", ["i-sim00002", "i-sim00003"]]),
            json!(["stop_instance", "i-sim00005", true]),
            json!(["batch_stop_instance", ["i-sim00005"]]),
            json!(["list_instances", null, 3]),
            json!(["list_instances", "i-sim00004", 1000]),
            json!(["list_instance_by_instance_ids", ["i-sim00007", "i-sim00002"], null, 100]),
        ],
    );
    assert_eq!(results[0]["answer"]["instance"]["status"], "Stopped");
    assert!(results[1]["answer"].is_object(), "{}", results[1]);
    assert_eq!(results[2]["answer"]["instance"]["status"], "Starting");
    for (result, status, code) in [
        (&results[3], 409, "Instance.StartInstanceOperationForbidden"),
        (&results[4], 409, "Instance.StartInstanceWhenCreating"),
        (&results[5], 409, "Instance.StartExpiredInstance"),
        (&results[6], 404, "NoSuchObject"),
        (&results[7], 409, "Instance.StartInstanceOperationForbidden"),
        (&results[10], 409, "Instance.StopInstanceOperationForbidden"),
    ] {
        assert_eq!((&result["status"], &result["code"]), (&json!(status), &json!(code)));
        assert!(result["request_id"].is_string(), "{result}");
    }
    assert!(results[8]["answer"].is_object(), "{}", results[8]);
    assert!(results[9]["answer"].is_object(), "{}", results[9]);
    assert_eq!(ids(&results[11]), ["i-sim00001", "i-sim00002", "i-sim00003"]);
    assert_eq!(ids(&results[12]), ["i-sim00004", "i-sim00005", "i-sim00006", "i-sim00007"]);
    assert_eq!(ids(&results[13]), ["i-sim00002", "i-sim00007"]);
    assert_eq!(sim.instance("i-sim00003").await["starts"], 1);
    assert_eq!(sim.calls().await.len(), 14);
}

#[tokio::test]
async fn the_official_sdk_is_refused_with_a_wrong_secret_or_key() {
    let sim = Sim::start(&["--fleet", "Stopped=1"]);
    for (key, secret, status, code) in
        [(KEY, "wrong", 400, "SignatureDoesNotMatch"), ("unknown", SECRET, 403, "InvalidAccessKeyId")]
    {
        let results = sdk(&sim, key, secret, &[json!(["start_instance", "i-sim00001"])]);
        assert_eq!((&results[0]["status"], &results[0]["code"]), (&json!(status), &json!(code)));
    }
    assert_eq!(sim.instance("i-sim00001").await["starts"], 0);
}
