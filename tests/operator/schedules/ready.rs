//! Machines that are to be up when a schedule is due, and schedules with far fewer machines than the last time.

use futures_util::{StreamExt, stream};
use lapin::BasicProperties;
use serde_json::json;

use super::*;

const LEAD: &str = r#"reveille_schedule_lead_seconds{schedule="morning"}"#;
const SMALL: &str = r#"reveille_schedule_small{schedule="morning"}"#;

#[tokio::test]
#[ignore = "it goes by real times, which a busy machine does not keep: make punctual"]
async fn machines_are_up_when_a_schedule_is_due_and_none_is_started_far_too_early() {
    const MACHINES: usize = 100;
    const OTHERS: usize = 100;
    // Its starts take twenty seconds, and are so few that a busy machine keeps up with them. The first poll, 5 to 10 s after a start,
    // sees no machine running, and the second one all of them, also where answers come seconds late.
    let wishes = Wishes { lane: "rate = 5\nburst = 1\nbatch = 1", sim: &["--boot-time", "12s"], ..Wishes::default() };
    let machines = format!("ready_by = true\n{}", listed(MACHINES));
    let vhost = broker::vhost();
    let mut morning = Morning::with(&vhost.url, 2, MACHINES + OTHERS, &machines, wishes).await;
    let first = morning.holder().await;
    let lead = async |morning: &Morning, replica: usize| morning.daemons[replica].metric(LEAD).await;
    let guess = lead(&morning, first).await;
    assert!((180.0..210.0).contains(&guess), "three minutes and twenty seconds at most: {guess}");
    let shown = morning.reveille(&["schedules", "next", "-n", "1"]).await;
    assert!(shown.output.contains("100 machines, boots of 3m, a guess"), "{}{}", shown.output, shown.errors);

    // How long machines take shows by others of the lane, and is known to the next holder.
    let queues = &morning._queues;
    let waking = (MACHINES + 1..=MACHINES + OTHERS).map(async |number| {
        let body = json!({"instance_id": instance(number), "confirm": "running"}).to_string();
        queues.publish("reveille.jobs", "prod", BasicProperties::default(), body.as_bytes()).await;
    });
    stream::iter(waking).buffer_unordered(100).collect::<()>().await;
    for _ in 0..OTHERS {
        morning.event("instance.running").await;
    }
    eventually("boots are known", async || (lead(&morning, first).await < 100.0).then_some(())).await;
    morning.daemons[first].kill().await;
    let next = 1 - first;
    let known = eventually("the next holder knows them", async || {
        let lead = lead(&morning, next).await;
        (0.0 < lead && lead < 100.0).then_some(lead)
    })
    .await;

    // From here on they are of the schedule.
    morning.heard.clear();
    morning.set_clock(-SECOND * (known as i32 + 3));
    let (mut started, mut running) = (Vec::new(), Vec::new());
    let (mut fired, mut completed) = (json!(null), json!(null));
    while completed.is_null() {
        let (kind, data) = morning.next().await;
        let time = || data["finished_at"].as_str().unwrap().parse::<Timestamp>().unwrap();
        match &*kind {
            "io.reveille.instance.started.v1" => started.push(time()),
            "io.reveille.instance.running.v1" => running.push(time()),
            "io.reveille.schedule.fired.v1" => fired = data,
            "io.reveille.batch.completed.v1" => completed = data,
            _ => {}
        }
    }
    let (began, due) = (*started.iter().min().unwrap(), morning.due);
    running.sort();
    let up = running[MACHINES * 95 / 100 - 1];
    let in_time = completed["up_in_time"].as_u64().unwrap();
    println!("due {due}, begun {began}, 95 % up {up}, {in_time} in time: {fired} {completed}");
    assert_eq!((&completed["up"], &completed["ready_by"]), (&json!(MACHINES), &json!(due)));
    assert_eq!((&fired["plan"]["lead_seconds"], &fired["plan"]["is_measured"]), (&json!(known as u32), &json!(true)));
    assert!(in_time as usize * 100 >= MACHINES * 95, "{in_time} in time");
    // What is seen between two beats of polls counts at the next: it is due at one.
    let needed = up.duration_since(began) + SECOND * 5;
    assert!(due.duration_since(began) * 5 <= needed * 6, "begun {began}, 95 % up {up}, due {due}");
    morning.sim.every_machine_started_once(MACHINES + OTHERS).await;

    let list = morning.reveille(&["schedules", "list"]).await;
    assert!(list.output.contains(&format!("100 of 100 up, {in_time} in time")), "{}{}", list.output, list.errors);
    let shown = morning.reveille(&["schedules", "next", "-n", "1", "--output", "json"]).await;
    let shown: Value = serde_json::from_str(&shown.output).expect("JSON");
    assert_eq!(shown[0]["plan"]["is_measured"], json!(true), "{shown}");
    eventually("metrics tell how it went", async || {
        let success = r#"reveille_schedule_last_success_timestamp_seconds{schedule="morning"}"#;
        let told = morning.daemons[next].metric(success).await == due.as_second() as f64;
        let up = morning.daemons[next].metric(r#"reveille_schedule_last_in_time_jobs{schedule="morning"}"#).await;
        (told && up == in_time as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_is_fired_ahead_can_be_cancelled_before_it_is_due() {
    const MACHINES: usize = 60;
    let wishes = Wishes { lane: "rate = 1\nburst = 1\nbatch = 1", ..Wishes::default() };
    let machines = format!("ready_by = true\n{}", listed(MACHINES));
    let vhost = broker::vhost();
    let mut morning = Morning::with(&vhost.url, 1, MACHINES, &machines, wishes).await;
    // No boot is known: it is fired three minutes before, and more.
    morning.set_clock(-SignedDuration::from_mins(2));
    let fired = morning.event("schedule.fired").await;
    let ran = morning.reveille(&["cancel", fired["batch_id"].as_str().unwrap()]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.errors);
    let completed = morning.event("batch.completed").await;
    assert!(completed["outcomes"]["cancelled"].as_u64() > Some(0), "{completed}");
}

#[tokio::test]
async fn a_schedule_with_far_fewer_machines_than_the_last_time_fires_and_says_so() {
    let (vhost, folder) = (broker::vhost(), Folder::new());
    let all: Vec<String> = (1..=5).map(instance).collect();
    let file = folder.put("fleet.txt", &all.join("\n"));
    let mut morning = Morning::before(&vhost.url, 1, 5, &format!("file = {file:?}")).await;
    morning.set_clock(-SECOND);
    let fired = morning.event("schedule.fired").await;
    assert_eq!((&fired["size"], &fired["previous_size"], &fired["small"]), (&json!(5), &json!(null), &json!(false)));
    morning.started_once(5).await;
    assert_eq!(morning.daemons[0].metric(SMALL).await, 0.0);

    folder.put("fleet.txt", &all[..2].join("\n"));
    morning.set_clock(SignedDuration::from_hours(24) - SECOND);
    let fired = morning.event("schedule.fired").await;
    assert_eq!((&fired["size"], &fired["previous_size"], &fired["small"]), (&json!(2), &json!(5), &json!(true)));
    morning.says(&["WARN", "fewer jobs than 50% of the last time's", "previous_size=5"]).await;
    eventually("it is counted", async || (morning.daemons[0].metric(SMALL).await == 1.0).then_some(())).await;

    // As many as the time before.
    morning.set_clock(SignedDuration::from_hours(48) - SECOND);
    assert_eq!(morning.event("schedule.fired").await["small"], json!(false));
    eventually("it is over", async || (morning.daemons[0].metric(SMALL).await == 0.0).then_some(())).await;
}
