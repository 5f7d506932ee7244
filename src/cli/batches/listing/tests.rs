use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;
use crate::events;

/// So many seconds after the first event.
fn at(seconds: i64) -> Timestamp {
    "2026-11-25T07:30:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
}

fn announcement(batch: &str, lane: &str, size: usize, time: Timestamp) -> Event {
    let batch = events::Batch::new(batch.to_owned(), size, lane.to_owned());
    Event::new(lane, Data::BatchSubmitted(batch), time)
}

fn job(batch: &str, id: &str, more: Value, time: Timestamp) -> Event {
    let mut job = json!({"job_id": id, "lane": "prod", "instance_id": "i-0000", "batch_id": batch, "outcome": "started",
        "final": true, "attempts": 1, "ambiguous": false, "received_at": time, "finished_at": time, "duration_ms": 0});
    job.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
    let job = serde_json::from_value(job).unwrap();
    Event::new("prod", Data::Job(Box::new(job)), time)
}

fn listing(lane: Option<&str>, events: impl IntoIterator<Item = Event>) -> Listing {
    let mut listing = Listing::new(lane.map(|lane| LaneName::parse(lane).unwrap()), at(10_000));
    for event in events {
        listing.take(event);
    }
    listing
}

fn lines(listing: &Listing) -> Vec<String> {
    table(&listing.rows(20)).to_string().lines().skip(1).map(str::to_owned).collect()
}

#[test]
fn batches_are_listed_with_the_latest_first_and_each_job_counts_once() {
    let listing = listing(
        None,
        [
            announcement("morning", "prod", 3, at(0)),
            job("morning", "1", json!({"final": false}), at(1)),
            job("evening", "9", json!({"outcome": "expired"}), at(2)),
            job("morning", "1", json!({"outcome": "running"}), at(3)),
            job("morning", "1", json!({"outcome": "running"}), at(4)),
            job("morning", "2", json!({"outcome": "failed", "reason": "not_found"}), at(5)),
            job("morning", "3", json!({"final": false}), at(6)),
            announcement("morning", "dev", 2, at(7)),
        ],
    );
    let told = [
        "morning  dev,prod  2 of 5            1 failed, 1 running, 1 accepted  2026-11-25T07:30:00Z  2026-11-25T07:30:07Z",
        "evening  prod      1, not announced  1 expired                        2026-11-25T07:30:02Z  2026-11-25T07:30:02Z",
    ];
    assert_eq!(lines(&listing), told);
    let row = json!(listing.rows(1));
    let outcomes = json!({"failed": 1, "running": 1});
    let told = json!([{"batch": "morning", "lanes": ["dev", "prod"], "announced": 5, "ended": 2, "accepted": 1, "done": false,
        "outcomes": outcomes, "first_event": at(0), "last_event": at(7)}]);
    assert_eq!(row, told);
}

#[test]
fn of_one_lane_only_its_jobs_count() {
    let events = || {
        [
            announcement("morning", "prod", 1, at(0)),
            announcement("morning", "dev", 2, at(0)),
            job("morning", "1", json!({"lane": "dev"}), at(1)),
            job("evening", "2", json!({}), at(1)),
        ]
    };
    let of_dev = listing(Some("dev"), events());
    assert_eq!(of_dev.rows(20).iter().map(|row| (row.announced, row.ended)).collect::<Vec<_>>(), [(Some(2), 1)]);
    let lanes: Vec<&str> = of_dev.lanes().map(LaneName::as_str).collect();
    assert_eq!(lanes, ["dev", "prod"]);
    assert!(listing(Some("other"), events()).rows(20).is_empty());
}

#[test]
fn what_no_daemon_writes_is_left_out_and_names_are_escaped() {
    let evil = "\u{1b}[2J\r\nmorning";
    let listing = listing(
        None,
        [
            job(evil, "1", json!({"outcome": "\u{9b}", "reason": "\n"}), at(0)),
            job(&"b".repeat(129), "2", json!({}), at(0)),
            job("long", "3", json!({"outcome": "x".repeat(65)}), at(0)),
            job("long", "4", json!({"outcome": "failed", "reason": "x".repeat(65)}), at(0)),
            job("long", &"4".repeat(256), json!({}), at(0)),
            job("long", "5", json!({"lane": "../prod"}), at(0)),
        ],
    );
    let told = r"\u{1b}[2J\r\nmorning  prod  1, not announced  1 \u{9b}  2026-11-25T07:30:00Z  2026-11-25T07:30:00Z";
    assert_eq!(lines(&listing), [told]);
}

#[test]
fn however_many_batches_there_are_the_latest_are_kept() {
    let name = |number: usize| format!("b-{number}");
    let many = 3 * CROWD;
    let long_one = || announcement("long", "prod", many, at(0));
    let each = (0..many).flat_map(|number| {
        [job("long", &name(number), json!({}), at(1)), announcement(&name(number), "prod", 1, at(1))]
    });
    let listing = listing(None, std::iter::once(long_one()).chain(each));
    assert!(listing.batches.len() <= CROWD, "{}", listing.batches.len());
    let rows = listing.rows(MOST as usize);
    assert_eq!((rows.len(), rows[0].batch.as_str()), (MOST as usize, name(many - 1).as_str()));
    let long = rows.iter().find(|row| row.batch == "long").unwrap();
    assert_eq!((long.announced, long.ended, long.done), (Some(many), many, true), "it is heard of all the time");
}
