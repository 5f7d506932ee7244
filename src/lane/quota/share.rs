//! A part of a lane's rate: the most that some calls may use while others wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::limiter::Limiter;

/// How often to check for a free token of the limiter.
const GLANCE: Duration = Duration::from_millis(50);

/// A part of the rate, and when it allows the next call.
#[derive(Debug)]
pub(in crate::lane) struct Share {
    /// 0.01 to 1.
    pub(in crate::lane) part: f64,
    next: Mutex<Option<Instant>>,
}

impl Share {
    /// `part` is 0.01 to 1.
    pub(in crate::lane) fn new(part: f64) -> Self {
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

    /// The share of `calls` in flight, at least one.
    pub(in crate::lane) fn of(&self, calls: u32) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 1,024")]
        let most = (f64::from(calls) * self.part).ceil() as usize;
        most
    }

    /// Waits for a token that no start wants, or one of the share.
    pub(super) async fn turn(&self, limiter: &Limiter) {
        while !limiter.try_acquire() {
            if self.take(limiter.rate(), Instant::now()) {
                limiter.acquire().await;
                return;
            }
            sleep(GLANCE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Starts that always wait for the limiter leave polls their share, and polls leave starts the rest.
    #[tokio::test(start_paused = true)]
    async fn polls_take_their_share_and_no_more_while_starts_wait() {
        for share in [0.1, 0.25] {
            let (limiter, polls) = (Limiter::new(20.0, 5), Share::new(share));
            let (mut starts, mut asked) = (0.0, 0.0);
            let both = async {
                let starting = async {
                    loop {
                        limiter.acquire().await;
                        starts += 1.0;
                    }
                };
                let polling = async {
                    loop {
                        polls.turn(&limiter).await;
                        asked += 1.0;
                    }
                };
                tokio::join!(starting, polling)
            };
            let _: Result<((), ()), _> = timeout(Duration::from_secs(100), both).await;
            let of_all: f64 = asked / (asked + starts);
            assert!((0.8 * share..=1.05 * share).contains(&of_all), "{share}: {of_all}");
            assert!(asked + starts > 1_990.0, "nothing is wasted: {asked} + {starts}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn polls_take_what_no_start_wants() {
        let (limiter, polls) = (Limiter::new(20.0, 5), Share::new(0.1));
        let begun = Instant::now();
        for _ in 0..100 {
            polls.turn(&limiter).await;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}
