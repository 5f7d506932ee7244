use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::time::advance;

use super::*;

#[tokio::test(start_paused = true)]
async fn after_the_burst_the_slots_are_evenly_spaced() {
    let limiter = Limiter::new(10.0, 3);
    let start = Instant::now();
    let mut at = Vec::new();
    for _ in 0..6 {
        limiter.acquire().await;
        at.push(start.elapsed().as_millis());
    }
    assert_eq!(at, [0, 0, 0, 100, 200, 300]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_saves_up_one_burst_and_no_more() {
    let limiter = Limiter::new(10.0, 2);
    limiter.acquire().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let start = Instant::now();
    for _ in 0..4 {
        limiter.acquire().await;
    }
    assert_eq!(start.elapsed().as_millis(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_empty_bucket_has_no_burst() {
    let limiter = Limiter::new(10.0, 3);
    limiter.empty(Duration::ZERO);
    let start = Instant::now();
    for _ in 0..4 {
        limiter.acquire().await;
    }
    assert_eq!(start.elapsed().as_millis(), 400);
}

#[tokio::test(start_paused = true)]
async fn after_a_pause_there_is_no_burst_either() {
    let limiter = Limiter::new(10.0, 3);
    limiter.empty(Duration::from_millis(500));
    let start = Instant::now();
    for _ in 0..4 {
        limiter.acquire().await;
    }
    assert_eq!(start.elapsed().as_millis(), 800);
}

#[tokio::test(start_paused = true)]
async fn a_throttled_call_of_before_does_not_shorten_a_pause() {
    let limiter = Limiter::new(1.0, 1);
    let start = Instant::now();
    limiter.empty(Duration::from_secs(60));
    limiter.throttled(start, None);
    limiter.acquire().await;
    assert_eq!(start.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_while_the_process_stands_still_are_not_let_through_together() {
    let limiter = Arc::new(Limiter::new(10.0, 2));
    let acquired = Arc::new(AtomicUsize::new(0));
    for _ in 0..30 {
        let (limiter, acquired) = (limiter.clone(), acquired.clone());
        tokio::spawn(async move {
            limiter.acquire().await;
            acquired.fetch_add(1, Ordering::Relaxed);
        });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(acquired.load(Ordering::Relaxed), 2);
    // The clock jumps while no task runs.
    advance(Duration::from_secs(60)).await;
    tokio::time::sleep(Duration::from_millis(990)).await;
    let within_a_second = acquired.load(Ordering::Relaxed) - 2;
    assert!(within_a_second <= 12, "{within_a_second} where 10 and a burst of 2 are allowed");
}

#[test]
fn no_second_sees_more_than_the_rate_and_a_burst() {
    let start = Instant::now();
    let mut bucket = Bucket::new(500.0, 10, start);
    let slots: Vec<Instant> = (0..3000)
        .map(|_| {
            let slot = bucket.slot(start);
            bucket.take(start);
            slot
        })
        .collect();
    for (index, slot) in slots.iter().enumerate() {
        let window = slots[index..].iter().take_while(|other| **other < *slot + Duration::from_secs(1)).count();
        assert!(window <= 510, "{window} from slot {index} on");
    }
}

/// Throttles until the rate is cut, by calls that were all made a moment ago.
async fn throttle(limiter: &Limiter, retry_after: Option<Duration>) {
    let before = limiter.rate();
    tokio::time::sleep(Duration::from_secs(2)).await;
    while limiter.rate() >= before {
        limiter.throttled(Instant::now(), retry_after);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_when_the_rate_is_cut_is_not_let_through_early() {
    let limiter = Arc::new(Limiter::new(10.0, 1));
    limiter.acquire().await;
    let start = Instant::now();
    let waiting = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire().await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    while !limiter.is_throttled() {
        limiter.throttled(Instant::now(), None);
    }
    waiting.await.unwrap();
    assert_eq!(start.elapsed().as_millis(), 50 + 200);
}

#[tokio::test(start_paused = true)]
async fn who_waits_at_a_low_rate_does_not_sleep_through_its_recovery() {
    let limiter = Limiter::new(0.5, 1);
    for _ in 0..10 {
        throttle(&limiter, None).await;
        if limiter.rate() < 0.05 {
            break;
        }
    }
    let start = Instant::now();
    for _ in 0..3 {
        limiter.acquire().await;
    }
    // At the floor, 0.025/s, three calls would take two minutes.
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    assert!(limiter.rate() > 0.1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_holds_the_lane_and_no_longer_than_a_minute() {
    for (asked, held) in [(7, 7), (3600, 60)] {
        let limiter = Limiter::new(20.0, 5);
        throttle(&limiter, Some(Duration::from_secs(asked))).await;
        let start = Instant::now();
        limiter.acquire().await;
        assert_eq!(start.elapsed().as_secs(), held);
        // Nothing was saved up meanwhile.
        limiter.acquire().await;
        assert!(start.elapsed() >= Duration::from_secs(held) + Duration::from_millis(90));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gentle_start_saves_nothing_up_and_keeps_to_a_retry_after() {
    let limiter = Limiter::new(100.0, 50);
    limiter.gently();
    let start = Instant::now();
    limiter.acquire().await;
    limiter.acquire().await;
    assert_eq!(start.elapsed().as_millis(), 200);

    throttle(&limiter, Some(Duration::from_secs(30))).await;
    let start = Instant::now();
    limiter.gently();
    limiter.acquire().await;
    assert_eq!(start.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_is_dropped_uses_no_slot_up() {
    let limiter = Limiter::new(10.0, 1);
    limiter.acquire().await;
    let start = Instant::now();
    for _ in 0..5 {
        let impatient = tokio::time::timeout(Duration::from_millis(10), limiter.acquire());
        assert!(impatient.await.is_err());
    }
    limiter.acquire().await;
    assert_eq!(start.elapsed().as_millis(), 100);
}

#[test]
fn a_timer_that_is_always_late_does_not_slow_the_lane_down() {
    let start = Instant::now();
    let mut bucket = Bucket::new(2000.0, 5, start);
    bucket.empty(start);
    let (mut now, mut calls) = (start, 0);
    while now < start + Duration::from_secs(10) {
        // Woken at the next whole millisecond, and a little late.
        let asked = now;
        let slot = bucket.slot(asked);
        if slot > now {
            let tick = (slot - start).as_micros().div_ceil(1000) * 1000 + 300;
            now = start + Duration::from_micros(u64::try_from(tick).unwrap());
        }
        bucket.take(asked);
        calls += 1;
        now += Duration::from_micros(10);
    }
    assert!((19_900..=20_005).contains(&calls), "{calls} in ten seconds");
}

#[tokio::test]
async fn the_calls_of_a_fast_lane_are_not_let_out_in_volleys() {
    for rate in [300.0, 500.0, 1000.0, 2000.0] {
        let limiter = Limiter::new(rate, 1);
        let close = Duration::from_secs_f64(0.75 / rate);
        // A busy machine is late and crowds calls too, but not all the time; a timer that ticks once a millisecond lets
        // every other call follow the one before too soon.
        let mut evenly = false;
        for _ in 0..100 {
            let mut at = Vec::new();
            for _ in 0..41 {
                limiter.acquire().await;
                at.push(Instant::now());
            }
            evenly = at.windows(2).filter(|pair| pair[1] - pair[0] < close).count() < 10;
            if evenly {
                break;
            }
        }
        assert!(evenly, "no forty calls in a row are evenly spaced at {rate} a second");
    }
}
