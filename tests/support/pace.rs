//! Whether calls kept to a lane's rate, as seen by the API.
//!
//! The promise is about calls as they are made; the log has them as received, a little later each. If one is delayed
//! and the next are not, they crowd, though none was made too early: calls received within a second were made within a
//! second plus the longest delay. So the second is stretched by that delay, which is not assumed but measured beside
//! the test: by a client that, like a lane, sleeps until a moment and then calls the simulator. Since it does so every
//! [`EVERY`], a delay may have begun that much before it is noticed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::calls::Call;
use super::http;
use super::sim::Sim;

/// The most of `times` (microseconds, ascending) within any `window`, its end not included.
pub fn fullest(times: &[i64], window: Duration) -> usize {
    let window = i64::try_from(window.as_micros()).expect("a short time");
    let mut first = 0;
    let mut most = 0;
    for (last, time) in times.iter().enumerate() {
        while times[first] <= time - window {
            first += 1;
        }
        most = most.max(last - first + 1);
    }
    most
}

/// For [`silence`]: calls made before a kill may be received just after it.
pub const ON_THEIR_WAY: Duration = Duration::from_millis(100);

/// The most calls of a lane with `rate` and `burst` within a second stretched by `lateness`.
pub fn allowed(rate: f64, burst: u32, lateness: Duration) -> f64 {
    f64::from(burst) + rate * (1.0 + lateness.as_secs_f64())
}

/// When the calls were received, in microseconds. A shared call is one call.
pub fn times(calls: &[Call]) -> Vec<i64> {
    calls.chunk_by(|call, next| call.number == next.number).map(|call| call[0].unix_micros).collect()
}

/// The longest time without a call that began within `after` of `moment`: how long an event at `moment` stopped the
/// lane.
pub fn silence(times: &[i64], moment: i64, after: Duration) -> Duration {
    let latest = moment + i64::try_from(after.as_micros()).expect("a short time");
    let around = times.windows(2).filter(|pair| pair[0] <= latest && pair[1] >= moment);
    let longest = around.map(|pair| pair[1] - pair[0]).max().expect("calls before and after");
    Duration::from_micros(u64::try_from(longest).expect("the log is in order"))
}

/// The daemon's default heartbeat, which is how long its lease of a lane lasts.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Between two measurements.
const EVERY: Duration = Duration::from_millis(10);

/// Measures, as long as it lives, how late calls can be on this machine.
pub struct Lateness {
    longest: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
    probe: Option<JoinHandle<()>>,
}

impl Lateness {
    pub fn measure(sim: &Sim) -> Self {
        let (longest, ended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let url = format!("{}/_sim/health", sim.url());
        let (longest_here, ended_here) = (longest.clone(), ended.clone());
        // On a thread of its own: the test's own work must not count as lateness.
        let probing = async move {
            let client = http();
            client.get(&url).send().await.expect("the simulator answers");
            while !ended_here.load(Ordering::Relaxed) {
                let due = Instant::now() + EVERY;
                tokio::time::sleep_until(due.into()).await;
                client.get(&url).send().await.expect("the simulator answers");
                let late = u64::try_from(due.elapsed().as_micros()).expect("a short time");
                longest_here.fetch_max(late, Ordering::Relaxed);
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let probe = std::thread::spawn(move || runtime.block_on(probing));
        Self { longest, ended, probe: Some(probe) }
    }

    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.longest.load(Ordering::Relaxed)) + EVERY
    }

    /// Until when calls may be received under a lease last renewed at `moment`, in microseconds.
    pub fn lease_over(&self, moment: i64) -> i64 {
        moment + i64::try_from((HEARTBEAT + self.longest()).as_micros()).expect("a short time")
    }

    /// Asserts that no second had more calls than `rate` and `burst` allow.
    pub fn assert_pace(&self, calls: &[Call], rate: f64, burst: u32) {
        let times = times(calls);
        let most = fullest(&times, Duration::from_secs(1));
        let (lateness, allowed) = (self.longest(), allowed(rate, burst, self.longest()));
        println!(
            "fullest second: {most} calls of {} ({rate}/s, burst {burst}, at most {lateness:.1?} late)",
            times.len()
        );
        #[expect(clippy::cast_precision_loss, reason = "some thousands at most")]
        let most = most as f64;
        assert!(most <= allowed, "{most} calls in one second where {allowed:.1} are allowed");
    }
}

impl Drop for Lateness {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(probe) = self.probe.take() {
            // A probe that panicked has printed why; here it may be because the simulator ended first.
            let _ = probe.join();
        }
    }
}
