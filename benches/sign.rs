//! The cost of one signature of the start call. The aim, under 5 µs, makes signing irrelevant for throughput: at 10,000
//! jobs a second it is at most a twentieth of a core.

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::Criterion;
use jiff::Timestamp;
use reveille::bce::sign::{EXPIRATION, Request, SignedHeaders, authorization, date};

const AIM: Duration = Duration::from_micros(5);

fn sign_start(timestamp: Timestamp) -> String {
    // The date is made here because every call needs a new one: it is part of the cost.
    let date = date(timestamp);
    authorization(
        black_box("ALTAKexampleexampleexample"),
        black_box("0123456789abcdef0123456789abcdef"),
        timestamp,
        EXPIRATION,
        Request {
            method: "PUT",
            path: black_box("/v2/instance/i-Ab3dEf9h"),
            query: &[("start", "")],
            headers: &[("host", "bcc.bj.baidubce.com"), ("x-bce-date", &date)],
        },
        SignedHeaders::Listed(&["host", "x-bce-date"]),
    )
}

/// The median of short batches: a batch that another process disturbs does not count.
fn median_cost(timestamp: Timestamp) -> Duration {
    const BATCH: u32 = 1_000;
    let mut costs: Vec<Duration> = (0..51)
        .map(|_| {
            let started = Instant::now();
            for _ in 0..BATCH {
                black_box(sign_start(black_box(timestamp)));
            }
            started.elapsed() / BATCH
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}

fn main() -> ExitCode {
    let timestamp = Timestamp::now();
    let mut criterion = Criterion::default().configure_from_args();
    criterion.bench_function("sign the start call", |bencher| bencher.iter(|| sign_start(black_box(timestamp))));
    criterion.final_summary();

    // Criterion reports and compares, but does not judge. `cargo test` builds without optimisation: nothing to judge.
    let has = |flag: &str| std::env::args().any(|argument| argument == flag);
    if has("--bench") && !has("--test") {
        let cost = median_cost(timestamp);
        println!("one signature: {cost:?} (aim: under {AIM:?})");
        if cost >= AIM {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
