//! The rate limit: a token bucket over all `/v2` calls.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Calls per second, and calls at once after idle time. Without a rate there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// Calls a second.
    pub rate: Option<f64>,
    /// Size of the bucket; by default a second's worth, but at least one call.
    #[serde(default)]
    pub burst: Option<u32>,
}

impl Limit {
    /// What is wrong with it, as a sentence.
    pub fn check(self) -> Result<Self, String> {
        if let Some(rate) = self.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return Err(format!("rate {rate}: must be more than 0 calls a second"));
        }
        if self.burst == Some(0) {
            return Err("burst 0: must be at least 1, or no call could ever pass".into());
        }
        Ok(self)
    }
}

/// A bucket that refills with time and gives one token per call. It starts full.
#[derive(Debug)]
pub struct Bucket {
    limit: Limit,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub fn new(limit: Limit, now: Instant) -> Self {
        Self { limit, tokens: size(limit), filled: now }
    }

    pub fn limit(&self) -> Limit {
        self.limit
    }

    /// Whether one more call may pass now.
    pub fn take(&mut self, now: Instant) -> bool {
        let Some(rate) = self.limit.rate else { return true };
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate).min(size(self.limit));
        self.filled = self.filled.max(now);
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }
}

fn size(limit: Limit) -> f64 {
    limit.burst.map_or_else(|| limit.rate.unwrap_or(1.0).ceil().max(1.0), f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn passed(bucket: &mut Bucket, tries: usize, now: Instant) -> usize {
        (0..tries).filter(|_| bucket.take(now)).count()
    }

    #[test]
    fn a_burst_passes_at_once_and_then_only_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Limit { rate: Some(10.0), burst: Some(5) }, start);
        assert_eq!(passed(&mut bucket, 20, start), 5);
        assert_eq!(passed(&mut bucket, 20, start + Duration::from_millis(200)), 2);
        // A long idle time fills the bucket, no more.
        assert_eq!(passed(&mut bucket, 20, start + Duration::from_secs(60)), 5);
    }

    #[test]
    fn without_a_rate_everything_passes() {
        let start = Instant::now();
        assert_eq!(passed(&mut Bucket::new(Limit::default(), start), 1000, start), 1000);
    }

    #[test]
    fn a_clock_that_seems_to_step_back_adds_nothing() {
        let start = Instant::now() + Duration::from_secs(10);
        let mut bucket = Bucket::new(Limit { rate: Some(1.0), burst: Some(1) }, start);
        assert!(bucket.take(start));
        assert!(!bucket.take(start - Duration::from_secs(5)));
        assert!(!bucket.take(start));
    }

    #[test]
    fn limits_that_could_pass_nothing_are_refused() {
        for limit in [
            Limit { rate: Some(0.0), burst: None },
            Limit { rate: Some(-1.0), burst: None },
            Limit { rate: Some(f64::NAN), burst: None },
            Limit { rate: Some(1.0), burst: Some(0) },
        ] {
            assert!(limit.check().is_err(), "{limit:?}");
        }
    }
}
