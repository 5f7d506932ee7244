//! The rate of a lane: a token bucket that hands out evenly spaced slots, at the [`Pace`] that the API bears.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::pace::Pace;

/// How often a lane below its configured rate looks how far it has climbed.
const STEP: Duration = Duration::from_secs(1);

/// Of tokio's timer.
const TICK: Duration = Duration::from_millis(1);
/// Calls per second above which a tick is a good part of the time between two.
const FAST: f64 = 250.0;

/// Lets `rate` calls a second through, fewer where the API throttles, and up to `burst` at once after a pause.
#[derive(Debug)]
pub struct Limiter {
    /// Held by whoever is next, until its slot has come. If all had theirs before they wait, a process that stands
    /// still for a while would let them all through at once as it wakes.
    turn: tokio::sync::Mutex<()>,
    state: std::sync::Mutex<State>,
    /// Tells whoever waits that the pace has changed.
    changed: Notify,
    is_fast: bool,
}

impl Limiter {
    /// A limiter whose bucket is full. `rate` is per second and above zero; `burst` is 1 or more.
    pub fn new(rate: f64, burst: u32) -> Self {
        let now = Instant::now();
        let state = State { pace: Pace::new(rate), bucket: Bucket::new(rate, burst, now), resume: now };
        Self {
            turn: tokio::sync::Mutex::new(()),
            state: std::sync::Mutex::new(state),
            changed: Notify::new(),
            is_fast: rate > FAST,
        }
    }

    /// Empties the bucket: what is saved up for a burst is gone, and the next slot is an interval away.
    ///
    /// Whoever takes a lane over begins so, since the replica before may have just used the last of its burst.
    pub fn empty(&self) {
        let now = Instant::now();
        self.change(|state| state.empty(now));
    }

    /// Begins anew, slowly: for a lane that stood still, whose API may not bear the whole rate at once. Unless it
    /// throttles, the lane is back at its configured rate within ten seconds.
    pub fn gently(&self) {
        let now = Instant::now();
        self.change(|state| {
            state.pace.gently(state.resume.max(now));
            state.empty(now);
        });
    }

    /// Waits for a slot, and tells how long it took.
    ///
    /// Slots are given in the order of asking. Dropping the wait uses none up.
    pub async fn acquire(&self) -> Duration {
        let asked = Instant::now();
        let _turn = self.turn.lock().await;
        let first_in_line = Instant::now();
        loop {
            let changed = self.changed.notified();
            let Some(look_again) = self.state().take(first_in_line, Instant::now()) else { return asked.elapsed() };
            tokio::select! {
                () = self.wake_at(look_again) => {}
                () = changed => {}
            }
        }
    }

    /// A call made at `made` was let through, whatever was answered.
    pub fn passed(&self, made: Instant) {
        self.state().pace.passed(made);
    }

    /// A call made at `made` was throttled: too many of those, and the lane slows down.
    pub fn throttled(&self, made: Instant, retry_after: Option<Duration>) {
        let now = Instant::now();
        self.change(|state| state.throttled(made, retry_after, now));
    }

    /// The present rate, in calls per second.
    pub fn rate(&self) -> f64 {
        self.state().pace.rate(Instant::now())
    }

    /// Whether the lane is below its configured rate because the API throttles.
    pub fn is_throttled(&self) -> bool {
        self.state().pace.is_throttled(Instant::now())
    }

    /// Whether the lane is below its configured rate, for whatever reason.
    pub fn is_slowed(&self) -> bool {
        self.state().pace.is_slowed(Instant::now())
    }

    /// Waits until the rate may have changed.
    pub async fn changed(&self) {
        if self.is_slowed() {
            sleep(STEP).await;
        } else {
            self.changed.notified().await;
        }
    }

    /// Sleeps until `moment`. tokio's timer, tick by tick, would let the calls of a fast lane out in volleys: its last tick
    /// is slept by a thread, whose timer is the kernel's.
    async fn wake_at(&self, moment: Instant) {
        if self.is_fast && moment.saturating_duration_since(Instant::now()) <= TICK {
            let sleep = move || std::thread::sleep(moment.saturating_duration_since(Instant::now()));
            if spawn_blocking(sleep).await.is_ok() {
                return;
            }
        }
        sleep_until(moment).await;
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_waiters();
    }

    /// Never held across an await.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct State {
    pace: Pace,
    bucket: Bucket,
    /// No slot before this: a `Retry-After` that the whole lane keeps to.
    resume: Instant,
}

impl State {
    /// Takes a slot for one that is first in line since `since`, if it has come by `now`; else says when to look again.
    fn take(&mut self, since: Instant, now: Instant) -> Option<Instant> {
        self.tune(now);
        let slot = self.bucket.slot(since);
        if slot <= now {
            self.bucket.take(since);
            return None;
        }
        // While the pace climbs, a slot comes closer.
        Some(if self.pace.is_slowed(now) { slot.min(now + STEP) } else { slot })
    }

    fn throttled(&mut self, made: Instant, retry_after: Option<Duration>, now: Instant) {
        if let Some(resume) = self.pace.throttled(made, retry_after, now) {
            self.resume = resume;
            self.empty(now);
        }
    }

    fn empty(&mut self, now: Instant) {
        self.tune(now);
        self.bucket.empty(self.resume.max(now + self.bucket.interval));
    }

    fn tune(&mut self, now: Instant) {
        self.bucket.tune(self.pace.rate(now), now);
    }
}

/// The arithmetic (the "generic cell rate algorithm"): instead of counting tokens it keeps the time at which the
/// bucket would have refilled, so no timer has to run.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    /// Between two slots.
    interval: Duration,
    /// The regular time of the next slot. It may be used [`Bucket::slack`] ahead of that.
    next: Instant,
}

impl Bucket {
    fn new(rate: f64, burst: u32, now: Instant) -> Self {
        Self { burst, interval: interval(rate), next: now }
    }

    /// How far ahead of its regular time a slot may be used: `burst − 1` intervals.
    fn slack(&self) -> Duration {
        self.interval * (self.burst - 1)
    }

    /// When one that asks at `asked` may go: then or later.
    fn slot(&self, asked: Instant) -> Instant {
        self.next.checked_sub(self.slack()).unwrap_or(asked).max(asked)
    }

    /// Takes the slot of one that asked at `asked`. That it goes later than it could have does not cost the next one
    /// anything, as far as the bucket is deep: else a timer that is always late would slow the lane down.
    fn take(&mut self, asked: Instant) {
        self.next = self.next.max(asked) + self.interval;
    }

    /// Nothing is saved up: the next slot is at `slot`.
    fn empty(&mut self, slot: Instant) {
        self.next = slot + self.slack();
    }

    /// Changes the rate. What is in the bucket stays in it, so the next slot is as many tokens away as before.
    fn tune(&mut self, rate: f64, now: Instant) {
        let new = interval(rate);
        if new != self.interval {
            let ahead = self.next.saturating_duration_since(now);
            self.next = self.next.min(now) + ahead.mul_f64(new.as_secs_f64() / self.interval.as_secs_f64());
            self.interval = new;
        }
    }
}

fn interval(rate: f64) -> Duration {
    Duration::from_secs_f64(1.0 / rate)
}

#[cfg(test)]
mod tests {
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
        limiter.empty();
        let start = Instant::now();
        for _ in 0..4 {
            limiter.acquire().await;
        }
        assert_eq!(start.elapsed().as_millis(), 400);
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
        // The clock jumps, and nobody runs meanwhile.
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

    /// Throttled until the rate is cut, by calls that were all made a moment ago.
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
        let limiter = Limiter::new(2000.0, 1);
        // A busy machine is late and crowds calls too, but not all the time; a timer that ticks once a millisecond lets
        // every other call follow at once.
        for _ in 0..500 {
            let mut at = Vec::new();
            for _ in 0..41 {
                limiter.acquire().await;
                at.push(Instant::now());
            }
            let crowded = at.windows(2).filter(|pair| pair[1] - pair[0] < Duration::from_micros(200)).count();
            if crowded < 10 {
                return;
            }
        }
        panic!("no forty calls in a row are evenly spaced");
    }
}
