//! The rate of a lane: a token bucket that hands out evenly spaced slots.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

/// Lets `rate` calls a second through, and up to `burst` at once after a pause.
#[derive(Debug)]
pub struct Limiter {
    /// Locked by whoever is next, until its slot has come. If all had theirs before they wait, a process that stands
    /// still for a while would let them all through at once as it wakes.
    bucket: Mutex<Bucket>,
}

impl Limiter {
    /// A limiter whose bucket is full. `rate` is per second and above zero; `burst` is 1 or more.
    pub fn new(rate: f64, burst: u32) -> Self {
        let interval = Duration::from_secs_f64(1.0 / rate);
        Self { bucket: Mutex::new(Bucket { interval, slack: interval * (burst - 1), next: Instant::now() }) }
    }

    /// Empties the bucket: what is saved up for a burst is gone, and the next slot is an interval away.
    ///
    /// Whoever takes a lane over begins so, since the replica before may have just used the last of its burst.
    pub async fn empty(&self) {
        let now = Instant::now();
        let mut bucket = self.bucket.lock().await;
        bucket.next = bucket.next.max(now + bucket.slack + bucket.interval);
    }

    /// Waits for a slot, and tells how long it took.
    ///
    /// Slots are given in the order of asking. Dropping the wait may give a slot up that nobody else gets.
    pub async fn acquire(&self) -> Duration {
        let asked = Instant::now();
        let mut bucket = self.bucket.lock().await;
        let now = Instant::now();
        let slot = bucket.take(now);
        if slot > now {
            sleep_until(slot).await;
        }
        asked.elapsed()
    }
}

/// The arithmetic (the "generic cell rate algorithm"): instead of counting tokens it keeps the time at which the
/// bucket would have refilled, so no timer has to run.
#[derive(Debug)]
struct Bucket {
    /// Between two slots.
    interval: Duration,
    /// How far ahead of its regular time a slot may be used: `burst − 1` intervals.
    slack: Duration,
    /// The regular time of the next slot.
    next: Instant,
}

impl Bucket {
    /// When the next slot may be used: `now` or later.
    fn take(&mut self, now: Instant) -> Instant {
        let regular = self.next.max(now);
        self.next = regular + self.interval;
        (regular.checked_sub(self.slack).unwrap_or(now)).max(now)
    }
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
        limiter.empty().await;
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
        let mut bucket = Bucket { interval: Duration::from_millis(2), slack: Duration::from_millis(18), next: start };
        let slots: Vec<Instant> = (0..3000).map(|_| bucket.take(start)).collect();
        for (index, slot) in slots.iter().enumerate() {
            let window = slots[index..].iter().take_while(|other| **other < *slot + Duration::from_secs(1)).count();
            assert!(window <= 510, "{window} from slot {index} on");
        }
    }
}
