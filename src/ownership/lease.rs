//! How long the lane is surely ours: for one heartbeat from when the last received baton was added.
//!
//! A broker that has heard nothing from us for two heartbeats gives the baton to another replica, and so does the rest
//! of a cluster that has lost our node. A holder that was suspended meanwhile, or is cut off, does not notice: it has
//! deliveries in hand, a burst saved up, and a connection that seems fine. So the holder adds batons again and again
//! (`baton.rs`), and if the last received one was added too long ago, calls wait for the next. If another replica holds
//! the lane, that never comes.
//!
//! The timers' clock, `CLOCK_MONOTONIC`, stops while the machine is suspended. So the lease uses two that do not, and
//! is valid only by both:
//! - `CLOCK_BOOTTIME` counts the time of a suspended machine, and cannot be set.
//! - The wall clock. If a hypervisor pauses a machine and its clocks, without a trace inside, this is the one that is
//!   corrected afterwards. If it is set for another reason, calls wait for the next baton.
//!
//! The wall clock alone counts suspended time too, but a lease became longer if that clock was set back. Until the
//! hypervisor corrects it, nothing in the machine shows the pause, and calls are made for the rest of the lease, five
//! seconds at most, beside the next holder. Tests show the choice of clock in a time namespace, and the rest with fake
//! clocks: no test suspends its machine.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

/// For how long the role is surely ours: by default it is not.
#[derive(Debug, Default)]
pub struct Lease(watch::Sender<Option<Term>>);

/// A duration from a moment on.
#[derive(Debug, Clone, Copy)]
struct Term {
    from: Moment,
    length: Duration,
}

/// A moment, by both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since the machine was started.
    boot: Duration,
    wall: SystemTime,
}

impl Moment {
    /// This one.
    pub fn now() -> Self {
        // Elsewhere the monotonic clock counts suspended time.
        #[cfg(target_os = "linux")]
        let clock = ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = ClockId::Monotonic;
        let boot = Duration::try_from(clock_gettime(clock)).expect("no machine was started after now");
        Self { boot, wall: SystemTime::now() }
    }

    /// The time since then, that of a suspended machine included.
    pub fn elapsed(&self) -> Duration {
        Self::now().boot.saturating_sub(self.boot)
    }
}

impl Term {
    fn contains(&self, now: Moment) -> bool {
        let by_boot = now.boot.checked_sub(self.from.boot);
        let by_wall = now.wall.duration_since(self.from.wall).ok();
        [by_boot, by_wall].into_iter().all(|elapsed| elapsed.is_some_and(|elapsed| elapsed < self.length))
    }
}

impl Lease {
    /// A baton that was added at `asked` has come: the lease holds for `length` from then.
    pub fn renew(&self, asked: Moment, length: Duration) {
        self.0.send_replace(Some(Term { from: asked, length }));
    }

    /// Ends the lease.
    pub fn end(&self) {
        self.0.send_replace(None);
    }

    /// Whether the lease is valid now.
    pub fn is_valid(&self) -> bool {
        is_valid(&self.0.borrow())
    }

    /// Waits until the lease is valid.
    pub async fn valid(&self) {
        self.0.subscribe().wait_for(is_valid).await.expect("the sender is ours");
    }
}

fn is_valid(term: &Option<Term>) -> bool {
    term.is_some_and(|term| term.contains(Moment::now()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const LENGTH: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);

    /// Whether the term holds after this time by each clock; the wall clock may have been set back.
    fn holds(boot: Duration, wall: Duration, set_back: Duration) -> bool {
        let from = Moment { boot: SECOND * 1000, wall: SystemTime::UNIX_EPOCH + SECOND * 1_800_000_000 };
        let now = Moment { boot: from.boot + boot, wall: from.wall + wall - set_back };
        Term { from, length: LENGTH }.contains(now)
    }

    #[test]
    fn a_lease_holds_for_its_length() {
        assert!(holds(Duration::ZERO, Duration::ZERO, Duration::ZERO));
        let nearly = LENGTH - Duration::from_nanos(1);
        assert!(holds(nearly, nearly, Duration::ZERO));
        assert!(!holds(LENGTH, LENGTH, Duration::ZERO));
    }

    #[test]
    fn a_suspension_ends_a_lease_whatever_the_wall_clock_is_set_to_meanwhile() {
        assert!(!holds(LENGTH, SECOND, Duration::ZERO));
        assert!(!holds(SECOND * 3600, SECOND * 3600, SECOND * 3599));
    }

    #[test]
    fn a_pause_that_only_the_wall_clock_shows_ends_a_lease() {
        assert!(!holds(SECOND, LENGTH, Duration::ZERO));
        assert!(!holds(SECOND, SECOND, SECOND * 2), "nor is one believed that begins later than now");
    }

    #[test]
    fn a_lease_is_valid_from_its_renewal_to_its_end() {
        let lease = Lease::default();
        assert!(!lease.is_valid());
        lease.renew(Moment::now(), SECOND * 3600);
        assert!(lease.is_valid());
        lease.end();
        assert!(!lease.is_valid());
        let asked = Moment::now();
        lease.renew(Moment { boot: asked.boot - LENGTH, ..asked }, LENGTH);
        assert!(!lease.is_valid());
    }

    /// In a time namespace the two clocks differ by a day, as after a day's suspension.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_clock_is_the_one_that_counts_the_time_of_a_suspended_machine() {
        const DAY: u64 = 24 * 3600;
        const IN_NAMESPACE: &str = "REVEILLE_TEST_SUSPENDED";
        if std::env::var_os(IN_NAMESPACE).is_some() {
            let monotonic = Duration::try_from(clock_gettime(ClockId::Monotonic)).unwrap();
            let suspended = Moment::now().boot.saturating_sub(monotonic);
            assert!(suspended.as_secs() >= DAY, "{suspended:?}");
            return;
        }
        let unshare = |arguments: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--time", "--fork", "--boottime", &DAY.to_string()]);
            command.args(arguments);
            command
        };
        if !unshare(&["true"]).output().is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no time namespace can be had here");
            return;
        }
        let tests = std::env::current_exe().unwrap();
        let name = "the_clock_is_the_one_that_counts_the_time_of_a_suspended_machine";
        let mut command = unshare(&[tests.to_str().unwrap(), "--exact", &format!("ownership::lease::tests::{name}")]);
        let output = command.env(IN_NAMESPACE, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }
}
