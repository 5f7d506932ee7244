//! The rate of a lane: a token bucket that hands out evenly spaced slots, at the [`AdaptiveRate`] that the API bears.
//!
//! What the bucket holds is kept in tokens as the rate changes, and calls that wait look again: when the rate is cut none
//! goes early, and none sleeps through the recovery.

use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};

use super::adaptive::AdaptiveRate;

/// How often a lane below its configured rate looks how far it has climbed.
const STEP: Duration = Duration::from_secs(1);

/// Two ticks of tokio's timer, which may be late by one.
const TICKS: Duration = Duration::from_millis(2);
/// Calls per second above which a tick is a good part of the time between two.
const FAST: f64 = 250.0;

/// Lets `rate` calls a second through, fewer where the API throttles, and up to `burst` at once after a pause.
#[derive(Debug)]
pub struct Limiter {
    /// Held by the call that is next, until its slot has come. If all had theirs before they wait, a process that stands
    /// still for a while would let them all through at once as it wakes.
    turn: tokio::sync::Mutex<()>,
    state: std::sync::Mutex<State>,
    /// Tells calls that wait that the rate has changed.
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

    /// Empties the bucket: what is saved up for a burst is gone, and the next slot is an interval away, or `pause` if that is
    /// longer.
    ///
    /// A replica that takes a lane over begins so, since the replica before may have just used the last of its burst, or not know
    /// yet that the lane is no longer its own.
    pub fn empty(&self, pause: Duration) {
        let now = Instant::now();
        self.change(|state| state.empty(now + pause, now));
    }

    /// Begins anew, slowly: for a lane that stood still, whose API may not bear the whole rate at once. Unless it
    /// throttles, the lane is back at its configured rate within ten seconds.
    pub fn gently(&self) {
        let now = Instant::now();
        self.change(|state| {
            state.adaptive.gently(state.resume.max(now));
            state.empty(now, now);
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

    /// Takes a slot if one is free just now and no call waits for one.
    pub fn try_acquire(&self) -> bool {
        let Ok(_turn) = self.turn.try_lock() else { return false };
        let now = Instant::now();
        self.state().take(now, now).is_none()
    }

    /// Whether a slot is free just now and no call waits for one. It is not taken.
    pub fn is_free(&self) -> bool {
        let Ok(_turn) = self.turn.try_lock() else { return false };
        self.state().is_free(Instant::now())
    }

    /// A call made at `made` was let through, whatever was answered.
    pub fn passed(&self, made: Instant) {
        self.state().adaptive.passed(made);
    }

    /// A call made at `made` was throttled: too many of those, and the lane slows down.
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

    /// Sleeps until `moment`, or wakes a little before. tokio's timer, tick by tick, would let the calls of a fast lane out
    /// in volleys: the last ticks are slept by a thread, whose timer is the kernel's.
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
    /// No slot before this: a `Retry-After` that the whole lane keeps to, or the pause of a take-over.
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
        // While the rate climbs, a slot comes closer.
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

    /// Nothing is saved up, and there is no slot before `resume`, nor before what was to be waited out already.
    fn empty(&mut self, resume: Instant, now: Instant) {
        self.resume = self.resume.max(resume);
        self.tune(now);
        self.bucket.empty(self.resume.max(now + self.bucket.interval));
    }

    fn tune(&mut self, now: Instant) {
        // What is waited out stays as long, whatever the rate.
        self.bucket.tune(self.adaptive.rate(now), now.max(self.resume));
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
mod tests;
