use std::collections::VecDeque;

use super::*;

/// An API with a token bucket, on a clock of its own.
struct Api {
    limit: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Api {
    fn takes(&mut self, now: Instant) -> bool {
        self.tokens = (self.tokens + (now - self.filled).as_secs_f64() * self.limit).min(self.burst);
        self.filled = now;
        let passes = self.tokens >= 1.0;
        if passes {
            self.tokens -= 1.0;
        }
        passes
    }
}

/// A lane with calls to make without end, and what became of them.
struct Trial {
    adaptive: AdaptiveRate,
    api: Api,
    start: Instant,
    next: Instant,
    /// Answers under way: when they arrive, when the call was made, whether it passed.
    answers: VecDeque<(Instant, Instant, bool)>,
    latency: Duration,
    retry_after: Option<Duration>,
    /// Seconds since the start, and whether the call passed.
    calls: Vec<(f64, bool)>,
}

impl Trial {
    fn new(rate: f64, limit: f64, burst: f64) -> Self {
        let start = Instant::now();
        Self {
            adaptive: AdaptiveRate::new(rate),
            api: Api { limit, burst, tokens: burst, filled: start },
            start,
            next: start,
            answers: VecDeque::new(),
            latency: Duration::from_millis(50),
            retry_after: None,
            calls: Vec::new(),
        }
    }

    fn after(&self, seconds: f64) -> Instant {
        self.start + Duration::from_secs_f64(seconds)
    }

    fn run_until(&mut self, seconds: f64) {
        let end = self.after(seconds);
        while self.next < end {
            let now = self.next;
            while let Some(&(arrives, made, passed)) = self.answers.front().filter(|answer| answer.0 <= now) {
                self.answers.pop_front();
                if passed {
                    self.adaptive.passed(made);
                } else if let Some(resume) = self.adaptive.throttled(made, self.retry_after, arrives) {
                    self.next = self.next.max(resume);
                }
            }
            if self.next > now {
                continue;
            }
            let passed = self.api.takes(now);
            self.calls.push(((now - self.start).as_secs_f64(), passed));
            self.answers.push_back((now + self.latency, now, passed));
            self.next = now + Duration::from_secs_f64(1.0 / self.adaptive.rate(now));
        }
    }

    /// Calls from `from` to `to`, in seconds, and the share of them that was throttled.
    fn waste(&self, from: f64, to: f64) -> (f64, f64) {
        let calls = self.calls.iter().filter(|(at, _)| (from..to).contains(at));
        let (mut all, mut throttled) = (0.0, 0.0);
        for (_, passed) in calls {
            all += 1.0;
            throttled += if *passed { 0.0 } else { 1.0 };
        }
        (all, throttled / all)
    }
}

#[test]
fn at_half_its_rate_a_lane_settles_in_five_seconds_wastes_little_and_climbs_back_in_thirty() {
    for rate in [5.0, 20.0, 50.0, 500.0, 2000.0] {
        for burst in [1.0, 5.0, rate / 2.0] {
            for latency in [5, 50, 400] {
                let limit = rate / 2.0;
                let mut trial = Trial::new(rate, limit, burst);
                trial.latency = Duration::from_millis(latency);
                trial.run_until(125.0);
                let (calls, waste) = trial.waste(5.0, 125.0);
                let used = calls * (1.0 - waste) / (120.0 * limit);
                println!("{rate}/s, burst {burst}, {latency} ms: waste {waste:.4}, used {used:.3}");
                assert!(waste < 0.05, "{rate}/s, burst {burst}, {latency} ms: {waste} wasted");
                assert!(used > 0.8, "{rate}/s, burst {burst}, {latency} ms: {used} of the limit used");

                trial.api.limit = 10.0 * rate;
                trial.run_until(155.0);
                let back = trial.adaptive.rate(trial.after(155.0)) / rate;
                assert!(back >= 0.95, "{rate}/s, burst {burst}, {latency} ms: {back} after 30 s");
            }
        }
    }
}

#[test]
fn a_cut_halves_the_rate_once_a_window_and_not_below_a_twentieth() {
    let start = Instant::now();
    let mut adaptive = AdaptiveRate::new(6.0);
    assert_eq!(adaptive.throttled(start, None, start), Some(start));
    assert_eq!((adaptive.rate(start), adaptive.is_throttled(start)), (3.0, true));
    // These were made before the cut, or within the window.
    for made in [start, start + WINDOW / 2] {
        assert_eq!(adaptive.throttled(made, None, start + WINDOW), None);
    }
    let floor = 6.0 * FLOOR;
    for cut in 1..10 {
        let now = start + WINDOW * cut;
        let before = adaptive.rate(now);
        assert!(adaptive.throttled(now, None, now).is_some());
        assert_eq!(adaptive.rate(now), (before / 2.0).max(floor));
    }
    assert_eq!(adaptive.rate(start + WINDOW * 9), floor);
    assert_eq!(adaptive.rate(start + Duration::from_secs(9 + 27)), 6.0);
}

#[test]
fn from_wherever_it_is_cut_a_lane_is_back_within_27_seconds_and_never_above_its_rate() {
    for share in 1_u32..=20 {
        let start = Instant::now();
        let mut adaptive = AdaptiveRate::new(100.0);
        let plateau = 5.0 * f64::from(share);
        for from in [5.0_f64.max(plateau / 2.0), plateau] {
            adaptive.climb = Some(Climb { began: start, from, plateau, steepness: 100.0 * STEEPNESS, throttled: true });
            let mut last = 0.0;
            for tenth in 0..400 {
                let rate = adaptive.rate(start + Duration::from_millis(100) * tenth);
                assert!((last..=100.0).contains(&rate), "{rate} after {last}");
                last = rate;
            }
            let back = start + Duration::from_secs(27);
            assert!(!adaptive.is_slowed(back), "{} from {from} by {plateau}", adaptive.rate(back));
        }
    }
}

#[test]
fn one_throttled_call_in_twenty_does_not_slow_a_lane_and_one_in_five_does() {
    let start = Instant::now();
    for (every, slowed) in [(20, false), (5, true)] {
        let mut adaptive = AdaptiveRate::new(40.0);
        for call in 1..=2_000 {
            if call % every == 0 {
                adaptive.throttled(start, Some(WINDOW), start);
            } else {
                adaptive.passed(start);
            }
        }
        assert_eq!(adaptive.is_throttled(start), slowed, "one in {every}");
    }
}

#[test]
fn a_gentle_start_is_back_within_ten_seconds_unless_the_api_throttles() {
    let start = Instant::now();
    for (configured, first) in [(50.0, 5.0), (4.0, 1.0), (0.5, 0.5)] {
        let mut adaptive = AdaptiveRate::new(configured);
        adaptive.gently(start);
        assert_eq!(adaptive.rate(start), first);
        assert!(adaptive.rate(start + Duration::from_secs(5)) <= configured / 2.0 || configured < 5.0);
        assert!(!adaptive.is_slowed(start + Duration::from_millis(10_001)));
        assert!(!adaptive.is_throttled(start));
    }
    let mut adaptive = AdaptiveRate::new(4.0);
    adaptive.gently(start);
    assert!(adaptive.throttled(start, None, start).is_some());
    assert_eq!(adaptive.rate(start), 0.5);
    // A slower lane does not become faster.
    adaptive.gently(start);
    assert_eq!(adaptive.rate(start), 0.5);
}

#[test]
fn a_lane_is_held_for_a_quarter_of_the_time_at_most_however_often_it_is_asked_to_wait() {
    let start = Instant::now();
    let mut adaptive = AdaptiveRate::new(20.0);
    let (mut now, mut held, mut calls) = (start, Duration::ZERO, 0.0);
    while now < start + Duration::from_secs(1800) {
        calls += 1.0;
        if let Some(resume) = adaptive.throttled(now, Some(Duration::from_secs(3600)), now) {
            held += resume - now;
            now = resume;
        }
        now += Duration::from_secs_f64(1.0 / adaptive.rate(now));
    }
    assert!(held > LONGEST_HOLD && held < LONGEST_HOLD + Duration::from_secs(1800) / 4, "{held:?}");
    assert!(calls > 1800.0 * 20.0 * FLOOR * 0.7, "{calls}");
}

#[test]
fn no_lane_becomes_so_slow_that_rabbitmq_takes_its_deliveries_back() {
    for configured in [0.01, 0.1] {
        let start = Instant::now();
        let mut adaptive = AdaptiveRate::new(configured);
        for cut in 0..10 {
            let now = start + WINDOW * cut;
            adaptive.throttled(now, None, now);
        }
        assert_eq!(adaptive.rate(start + WINDOW * 9), SLOWEST);
    }
}
