//! RabbitMQ goes and comes back; so does the lane, and no job is lost.

mod support;

use lapin::BasicProperties;
use serde_json::json;
use support::broker::Node;
use support::daemon::Daemon;
use support::eventually;
use support::queues::Queues;
use support::sim::Sim;
use support::stage::{Wishes, config};

/// A queue that RabbitMQ 3.10 has known for less than about a second does not survive a kill with its messages.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(3);

#[tokio::test]
async fn a_killed_broker_is_waited_for_and_no_job_is_lost() {
    let mut node = Node::start(&[]);
    let sim = Sim::start(&["--fleet", "Stopped=100"]);
    let lane = "rate = 20\nburst = 1";
    let mut daemon = Daemon::start(&config(&node.url, &sim.url(), &Wishes { lane, ..Wishes::default() }));
    daemon.ready().await;
    tokio::time::sleep(SETTLED).await;
    let queues = Queues::connect(&node.url).await;
    for number in 1..=100 {
        let instance = format!("i-sim{number:05}");
        let properties = BasicProperties::default().with_message_id(instance.as_str().into());
        let body = json!({ "instance_id": instance }).to_string();
        queues.publish("reveille.jobs", "prod", properties, body.as_bytes()).await;
    }
    node.kill();
    eventually("readiness says so", async || {
        let (status, body) = daemon.get("/readyz").await;
        (status == 503 && body.contains(r#""prod":"waiting""#)).then_some(())
    })
    .await;
    assert_eq!(daemon.metric("reveille_broker_connected").await, 0.0);
    assert!(daemon.child.is_running());

    node.restart();
    daemon.ready().await;
    eventually("every machine is started", async || {
        let instances = sim.control("GET", "instances", json!(null)).await;
        instances.as_array().unwrap().iter().all(|instance| instance["starts"] == 1).then_some(())
    })
    .await;
    let queues = Queues::connect(&node.url).await;
    eventually("every job is acked", async || (queues.count("reveille.jobs.prod").await.0 == 0).then_some(())).await;
    assert!(queues.take_all("reveille.dead").await.is_empty());
    assert_eq!(daemon.metric(r#"reveille_lane_held{lane="prod"}"#).await, 1.0);
    daemon.child.signal("TERM");
    assert_eq!(daemon.child.ended().await.code(), Some(0));
}
