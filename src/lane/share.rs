//! A part of a lane's rate, for calls that may take no more than that while others wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A part of the rate, and when it allows the next call.
#[derive(Debug)]
pub(super) struct Share {
    /// 0.01 to 1.
    pub(super) part: f64,
    next: Mutex<Option<Instant>>,
}

impl Share {
    /// `part` is 0.01 to 1.
    pub(super) fn new(part: f64) -> Self {
        Self { part, next: Mutex::new(None) }
    }

    /// Whether the share of `rate`, in calls per second, allows a call at `now`; if so, it is taken.
    pub(super) fn take(&self, rate: f64, now: Instant) -> bool {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = next.is_none_or(|next| next <= now);
        if is_due {
            *next = Some(now + Duration::from_secs_f64(1.0 / (rate * self.part)));
        }
        is_due
    }

    /// So many of `calls` in flight, at least one.
    pub(super) fn of(&self, calls: u32) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1,024")]
        let most = (f64::from(calls) * self.part).ceil() as usize;
        most
    }
}
