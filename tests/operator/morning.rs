//! A scheduled morning: a fleet in three waves, with replicas and the broker dying on the way.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::schedules::{Morning, SECOND};
use crate::support::broker::Node;
use crate::support::files::Folder;
use crate::support::stage::Wishes;
use crate::support::{GLANCE, PATIENCE, eventually_within, instance};

/// Machines of each wave.
const WAVES: [usize; 3] = [500, 1_500, 3_000];

#[tokio::test]
async fn five_thousand_machines_in_three_waves_are_up_whatever_dies() {
    let machines: usize = WAVES.iter().sum();
    let mut wave_of = BTreeMap::new();
    let mut table = "instance_id,wave\n".to_owned();
    for (number, wave) in (1..).zip((1..).zip(WAVES).flat_map(|(wave, size)| std::iter::repeat_n(wave, size))) {
        table += &format!("{},{wave}\n", instance(number));
        wave_of.insert(instance(number), wave);
    }
    let folder = Folder::new();
    let file = folder.put("fleet.csv", &table);
    let mut node = Node::start(&[]);
    let schedule = format!("file = {file:?}\nconfirm = \"running\"\n");
    let wishes = Wishes { lane: "batch = 100\nrate = 20", ..Wishes::default() };
    let mut morning = Morning::with(&node.url, 2, machines, &schedule, wishes).await;
    morning.set_clock(-SECOND);
    for wave in 1..=WAVES.len() {
        let first = wave_of.iter().find(|(_, other)| **other == wave).expect("each wave has machines").0;
        eventually_within(PATIENCE * 4, "the wave has begun", async || {
            (morning.sim.instance(first).await["starts"].as_u64() > Some(0)).then_some(())
        })
        .await;
        let killed = morning.holder().await;
        morning.daemons[killed].kill().await;
        if wave == 2 {
            node.restart();
        }
        morning.start_again(killed);
    }
    // A minute for each wave, on however busy a machine.
    let patience = PATIENCE * 4;
    eventually_within(patience, "all machines are up, and it is said so", async || {
        tokio::time::sleep(GLANCE * 40).await;
        let ran = morning.reveille(&["schedules", "list", "--output", "json"]).await;
        let listed: Value = serde_json::from_str(&ran.output).ok()?;
        (listed[0]["last"]["completed"]["up"] == json!(machines)).then_some(())
    })
    .await;
    morning.sim.every_machine_started_once(machines).await;
    let calls = morning.sim.log().await;
    let order: Vec<usize> = calls
        .iter()
        .filter(|call| call.operation == "start" && call.took_effect)
        .map(|call| wave_of[&call.instance])
        .collect();
    assert!(order.is_sorted(), "no machine is started before those of the waves before");
}
