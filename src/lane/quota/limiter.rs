//! The rate limiter of a lane: a token bucket with evenly spaced tokens, at the [`AdaptiveRate`] that the API bears.
//!
//! When the rate changes, the bucket keeps its tokens and waiting calls compute their time anew: after a cut none goes
//! early, and none sleeps through the recovery.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::adaptive::AdaptiveRate;

/// How often a lane below its configured rate checks its recovery.
const STEP: Duration = Duration::from_secs(1);

/// Two ticks of tokio's timer, which may be one tick late.
const TICKS: Duration = Duration::from_millis(2);
/// Calls per second above which a tick is a large part of the interval.
const FAST: f64 = 250.0;

/// Lets `rate` calls a second through, fewer where the API throttles, and up to `burst` at once after a pause.
#[derive(Debug)]
pub struct Limiter {
    /// Held by the call that is first in line, until its token is due. If all calls got their times before they wait, a
    /// process that is suspended for a while would let them all through at once on waking.
    turn: tokio::sync::Mutex<()>,
    state: std::sync::Mutex<State>,
    /// Notifies waiting calls that the rate has changed.
    changed: Notify,
    is_fast: bool,
}

impl Limiter {
    /// A limiter whose bucket is full. `rate` is per second and above zero; `burst` is 1 or more.
    pub fn new(rate: f64, burst: u32) -> Self {
        let now = Instant::now();
        let state = State { adaptive: AdaptiveRate::new(rate), bucket: Bucket::new(rate, burst, now), resume: now };
        Self {
            turn: tokio::sync::Mutex::new(()),
            state: std::sync::Mutex::new(state),
            changed: Notify::new(),
            is_fast: rate > FAST,
        }
    }

    /// Empties the bucket: no burst is saved up, and the next token is an interval away, or `pause` if that is longer.
    ///
    /// For a take-over: the previous replica may have just used up its burst, or not know yet that it has lost the
    /// lane.
    pub fn empty(&self, pause: Duration) {
        let now = Instant::now();
        self.change(|state| state.empty(now + pause, now));
    }

    /// Slow start, for a lane that was idle or paused: its API may not bear the whole rate at once. Unless throttled,
    /// the lane is back at its configured rate within ten seconds.
    pub fn gently(&self) {
        let now = Instant::now();
        self.change(|state| {
            state.adaptive.gently(state.resume.max(now));
            state.empty(now, now);
        });
    }

    /// Waits for a token. Returns how long that took.
    ///
    /// Tokens are given in the order of asking. Dropping the wait uses none up.
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

    /// Takes a token if one is free now and no call waits for one.
    pub fn try_acquire(&self) -> bool {
        let Ok(_turn) = self.turn.try_lock() else { return false };
        let now = Instant::now();
        self.state().take(now, now).is_none()
    }

    /// Whether a token is free now and no call waits for one. Takes none.
    pub fn is_free(&self) -> bool {
        let Ok(_turn) = self.turn.try_lock() else { return false };
        self.state().is_free(Instant::now())
    }

    /// A call made at `made` was let through, whatever was answered.
    pub fn passed(&self, made: Instant) {
        self.state().adaptive.passed(made);
    }

    /// A call made at `made` was throttled: too many of those slow the lane down.
    pub fn throttled(&self, made: Instant, retry_after: Option<Duration>) {
        let now = Instant::now();
        self.change(|state| state.throttled(made, retry_after, now));
    }

    /// The present rate, in calls per second.
    pub fn rate(&self) -> f64 {
        self.state().adaptive.rate(Instant::now())
    }

    /// Whether the lane is below its configured rate because the API throttles.
    pub fn is_throttled(&self) -> bool {
        self.state().adaptive.is_throttled(Instant::now())
    }

    /// Whether the lane is below its configured rate, for whatever reason.
    pub fn is_slowed(&self) -> bool {
        self.state().adaptive.is_slowed(Instant::now())
    }

    /// Waits until the rate may have changed.
    pub async fn changed(&self) {
        if self.is_slowed() {
            sleep(STEP).await;
        } else {
            self.changed.notified().await;
        }
    }

    /// Sleeps until `moment`, or a little less. With the ticks of tokio's timer the calls of a fast lane would go out
    /// in bursts: a thread sleeps the last ticks, on the kernel's timer.
    async fn wake_at(&self, moment: Instant) {
        let rest = move || moment.saturating_duration_since(Instant::now());
        if self.is_fast && rest() > TICKS {
            return sleep_until(moment - TICKS).await;
        }
        if self.is_fast && spawn_blocking(move || std::thread::sleep(rest())).await.is_ok() {
            return;
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
    adaptive: AdaptiveRate,
    bucket: Bucket,
    /// No token before this: a `Retry-After` for the whole lane, or the pause of a take-over.
    resume: Instant,
}

impl State {
    /// Takes a token for the call first in line since `since`, if one is due by `now`; else returns when to look again.
    fn take(&mut self, since: Instant, now: Instant) -> Option<Instant> {
        self.tune(now);
        let slot = self.bucket.slot(since);
        if slot <= now {
            self.bucket.take(since);
            return None;
        }
        // While the rate climbs, the next token comes closer.
        Some(if self.adaptive.is_slowed(now) { slot.min(now + STEP) } else { slot })
    }

    fn is_free(&mut self, now: Instant) -> bool {
        self.tune(now);
        self.bucket.slot(now) <= now
    }

    fn throttled(&mut self, made: Instant, retry_after: Option<Duration>, now: Instant) {
        if let Some(resume) = self.adaptive.throttled(made, retry_after, now) {
            self.empty(resume, now);
        }
    }

    /// Nothing is saved up, and no token is due before `resume`, nor before an earlier wait is over.
    fn empty(&mut self, resume: Instant, now: Instant) {
        self.resume = self.resume.max(resume);
        self.tune(now);
        self.bucket.empty(self.resume.max(now + self.bucket.interval));
    }

    fn tune(&mut self, now: Instant) {
        // A wait keeps its length, whatever the rate.
        self.bucket.tune(self.adaptive.rate(now), now.max(self.resume));
    }
}

/// The generic cell rate algorithm: instead of counting tokens it keeps the time at which the bucket would have
/// refilled, so it needs no timer.
#[derive(Debug)]
struct Bucket {
    burst: u32,
    /// Between two tokens.
    interval: Duration,
    /// The regular time of the next token. It may be used up to [`Bucket::slack`] earlier.
    next: Instant,
}

impl Bucket {
    fn new(rate: f64, burst: u32, now: Instant) -> Self {
        Self { burst, interval: interval(rate), next: now }
    }

    /// How far ahead of its regular time a token may be used: `burst − 1` intervals.
    fn slack(&self) -> Duration {
        self.interval * (self.burst - 1)
    }

    /// The earliest time for a call that asks at `asked`.
    fn slot(&self, asked: Instant) -> Instant {
        self.next.checked_sub(self.slack()).unwrap_or(asked).max(asked)
    }

    /// Takes the token of a call that asked at `asked`. If that call is late, the next one is not delayed, within the
    /// depth of the bucket: else a timer that is always late would slow the lane down.
    fn take(&mut self, asked: Instant) {
        self.next = self.next.max(asked) + self.interval;
    }

    /// Nothing is saved up: the next token is due at `slot`.
    fn empty(&mut self, slot: Instant) {
        self.next = slot + self.slack();
    }

    /// Changes the rate. The bucket keeps its fill, so the next token is as many intervals away as before.
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
mod tests;
