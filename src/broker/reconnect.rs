//! The backoff between tries to connect.

use std::time::{Duration, Instant};

use crate::retry::full_jitter;

/// Ceilings of the backoff between tries to connect.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(10);
/// First ceiling of the backoff before a lost connection is replaced.
const FIRST_REPLACED: Duration = Duration::from_millis(200);
/// A connection that lasted this long resets the backoff.
const GOOD_WHILE: Duration = Duration::from_secs(60);

/// What is known of past tries and connections.
#[derive(Debug, Default)]
pub(super) struct Retries {
    /// Failures since a connection was last opened.
    pub(super) failures: u32,
    /// A connection was lost since then.
    pub(super) is_lost: bool,
    /// Connections in a row that did not last.
    losses: u32,
    opened: Option<Instant>,
}

impl Retries {
    /// How long to wait before the next try.
    pub(super) fn pause(&mut self) -> Duration {
        if self.failures > 0 {
            return full_jitter(FIRST_RETRY, LONGEST_RETRY, self.failures, rand::random());
        }
        if !std::mem::take(&mut self.is_lost) {
            return Duration::ZERO;
        }
        let has_lasted = self.opened.is_none_or(|opened| opened.elapsed() > GOOD_WHILE);
        self.losses = if has_lasted { 1 } else { self.losses + 1 };
        full_jitter(FIRST_REPLACED, LONGEST_RETRY, self.losses, rand::random())
    }

    /// A connection was opened.
    pub(super) fn opened(&mut self) {
        self.failures = 0;
        self.opened = Some(Instant::now());
    }
}
