//! How fast a lane may call at present: at its configured rate, or slower while the API throttles it.
//!
//! A cut halves the rate. It recovers along the curve of TCP's CUBIC (RFC 9438): fast at first, slowly near where
//! throttling began last, since the true limit is likely to be there, and then ever faster, in case the limit is gone.
//! So most of the time is spent a little below the limit, where no call is wasted.
//!
//! One throttled call in twenty is tolerated: many gateways refuse a few at any rate, and a lane that slowed down for
//! each of them would end at its floor and gain nothing.
//!
//! Linear steps would be so small that a lane is slow for minutes, or so large that it exceeds the limit every few
//! seconds; docs/figures.md has what the curve wastes.
//!
//! Above one in twenty, a seventh of a second's worth of throttled calls cuts the rate; at six a second or less, each
//! one does. Every call counts, describes too, with the time it was made: so calls in flight at a cut do not cut the
//! rate again.
//!
//! The lane waits out a `Retry-After` only with a cut, for a minute at most, and a third of the time since the last
//! wait. A used-up quota by the second or the minute wastes every call; a call refused among many that pass delays its
//! own job only. Longer waits would keep prefetched jobs until RabbitMQ takes them back.

use std::time::Duration;

use tokio::time::Instant;

/// The share of throttled calls that does not slow a lane.
const TOLERATED: f64 = 1.0 / 20.0;
/// Throttled calls beyond that share that cut the rate, in seconds' worth of calls.
const EVIDENCE: f64 = 0.15;
/// The floor: as a share of the configured rate, and in calls per second, but never above the configured rate. RabbitMQ
/// takes back what a lane holds for half an hour.
const FLOOR: f64 = 1.0 / 20.0;
const SLOWEST: f64 = 0.01;
/// After a cut nothing cuts again for so long: a limit that counts by the second refuses until its second is over.
const WINDOW: Duration = Duration::from_secs(1);
/// The longest `Retry-After` for the whole lane, and how many times as long it is since the last one at least: enough
/// for a quota by the minute, and in the long run no slower than three quarters of the floor.
const LONGEST_HOLD: Duration = Duration::from_secs(60);
const HOLDS_APART: u32 = 3;
/// Of the curve, for a configured rate of 1, per second cubed. Recovery takes 27 s at most.
const STEEPNESS: f64 = 0.000_16;
/// A slow start begins with this share of the configured rate, or with one call a second.
const GENTLE: f64 = 0.1;
/// How long it takes, in seconds.
const GENTLE_FOR: f64 = 10.0;

/// The present rate of a lane. The time is an argument.
#[derive(Debug)]
pub struct AdaptiveRate {
    /// Calls per second, above zero.
    configured: f64,
    /// `None` at the configured rate.
    climb: Option<Climb>,
    /// Recent throttled calls beyond what is tolerated.
    excess: f64,
    /// When the last cut, with its `Retry-After`, was over. Answers to calls made less than a [`WINDOW`] later are
    /// ignored: calls in flight at the cut tell nothing new.
    resumed: Option<Instant>,
}

/// The way back to the configured rate.
#[derive(Debug)]
struct Climb {
    began: Instant,
    /// Where it began, in calls per second.
    from: f64,
    /// The plateau of the curve: a little below where throttling began.
    plateau: f64,
    /// In calls per second and second cubed.
    steepness: f64,
    /// Whether throttling is what slowed the lane.
    throttled: bool,
}

impl Climb {
    fn rate(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.began).as_secs_f64();
        let flat_at = ((self.plateau - self.from) / self.steepness).cbrt();
        self.plateau + self.steepness * (elapsed - flat_at).powi(3)
    }
}

impl AdaptiveRate {
    /// `configured` is in calls per second, above zero.
    pub fn new(configured: f64) -> Self {
        Self { configured, climb: None, excess: 0.0, resumed: None }
    }

    /// The present rate, in calls per second.
    pub fn rate(&self, now: Instant) -> f64 {
        self.climb.as_ref().map_or(self.configured, |climb| climb.rate(now).clamp(climb.from, self.configured))
    }

    /// Whether the lane is below its configured rate.
    pub fn is_slowed(&self, now: Instant) -> bool {
        self.rate(now) < self.configured
    }

    /// Whether that is because the API throttles.
    pub fn is_throttled(&self, now: Instant) -> bool {
        self.is_slowed(now) && self.climb.as_ref().is_some_and(|climb| climb.throttled)
    }

    /// A call made at `made` was let through, whatever was answered.
    pub fn passed(&mut self, made: Instant) {
        if self.heeds(made) {
            self.excess = (self.excess - TOLERATED).max(0.0);
        }
    }

    /// A call made at `made` was throttled. If that makes too many, the rate is cut; returns when calls may resume: at
    /// `now`, or when `retry_after` is over.
    ///
    /// A job waits for its own `Retry-After` in any case. The lane waits only with a cut: where most calls pass,
    /// waiting costs more calls than it saves, but with a used-up quota each earlier call is wasted.
    pub fn throttled(&mut self, made: Instant, retry_after: Option<Duration>, now: Instant) -> Option<Instant> {
        if !self.heeds(made) {
            return None;
        }
        self.excess += 1.0 - TOLERATED;
        if self.excess < self.rate(now) * EVIDENCE {
            return None;
        }
        let longest = self.resumed.map_or(LONGEST_HOLD, |last| now.saturating_duration_since(last) / HOLDS_APART);
        let resume = now + retry_after.unwrap_or_default().min(longest).min(LONGEST_HOLD);
        self.cut(now, resume);
        Some(resume)
    }

    /// Slow start: begins at `now` with a tenth of the configured rate, or a call a second if that is more, and is back
    /// within ten seconds unless throttled. A slower lane does not become faster.
    pub fn gently(&mut self, now: Instant) {
        let from = (self.configured * GENTLE).max(1.0).min(self.rate(now));
        let steepness = (self.configured - from) / GENTLE_FOR.powi(3);
        self.excess = 0.0;
        self.climb =
            (steepness > 0.0).then_some(Climb { began: now, from, plateau: from, steepness, throttled: false });
    }

    fn heeds(&self, made: Instant) -> bool {
        self.resumed.is_none_or(|resumed| made >= resumed + WINDOW)
    }

    fn cut(&mut self, now: Instant, resume: Instant) {
        let rate = self.rate(now);
        let from = (rate / 2.0).max(self.configured * FLOOR).max(SLOWEST.min(self.configured));
        // A lane above its known limit is near the limit; else the limit is anywhere below.
        let is_known = self.climb.as_ref().is_some_and(|climb| climb.throttled && rate >= climb.plateau);
        let plateau = (rate * if is_known { 0.9 } else { 0.75 }).max(from);
        self.climb =
            Some(Climb { began: resume, from, plateau, steepness: self.configured * STEEPNESS, throttled: true });
        self.excess = 0.0;
        self.resumed = Some(resume);
    }
}

#[cfg(test)]
mod tests;
