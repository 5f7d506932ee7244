//! Whether calls kept to a lane's rate, as the one who was called saw it.
//!
//! The promise is about calls as they are made, the log has them as they were taken up, a little later each. Where one
//! is held up and the next are not, they crowd, though none was made too early: what was taken up within a second was
//! made within a second and the longest delay. So the second is stretched by that delay, and the delay is not assumed
//! but measured, beside the test: by a client that, like a lane, sleeps until a moment and then calls the simulator. Since
//! it does so every [`EVERY`], what holds up a call may have begun that much before it is noticed.

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

/// For [`silence`]: calls made before a kill may be taken up just after it.
pub const ON_THEIR_WAY: Duration = Duration::from_millis(100);

/// What a lane of `rate` and `burst` may call within a second that is stretched by `lateness`.
pub fn allowed(rate: f64, burst: u32, lateness: Duration) -> f64 {
    f64::from(burst) + rate * (1.0 + lateness.as_secs_f64())
}

/// When the calls were taken up, in microseconds. One that names many instances is one call.
pub fn times(calls: &[Call]) -> Vec<i64> {
    calls.chunk_by(|call, next| call.number == next.number).map(|call| call[0].unix_micros).collect()
}

/// The longest time in which no call was taken up that began within `after` of `moment`: where something happened
/// then, how long the lane stood still because of it.
pub fn silence(times: &[i64], moment: i64, after: Duration) -> Duration {
    let latest = moment + i64::try_from(after.as_micros()).expect("a short time");
    let around = times.windows(2).filter(|pair| pair[0] <= latest && pair[1] >= moment);
    let longest = around.map(|pair| pair[1] - pair[0]).max().expect("calls before and after");
    Duration::from_micros(u64::try_from(longest).expect("the log is in order"))
}

/// The daemon's own, where the broker's URL names none: how long its lease of a lane lasts.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// Between two measurements.
const EVERY: Duration = Duration::from_millis(10);

/// Measures, for as long as it lives, how late calls can be on this machine at this time.
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
        // On a thread of its own: what the test does meanwhile must not pass for lateness.
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

    /// Until when calls may be taken up under a lease that was not renewed from `moment` on, in microseconds.
    pub fn lease_over(&self, moment: i64) -> i64 {
        moment + i64::try_from((HEARTBEAT + self.longest()).as_micros()).expect("a short time")
    }

    /// Asserts that no second saw more calls than `rate` and `burst` allow.
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
            // A probe that panicked has said so; here it may be because the simulator went first.
            let _ = probe.join();
        }
    }
}
