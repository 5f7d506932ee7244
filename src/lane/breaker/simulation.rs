//! Simulates a lane whose API fails some of its calls: what the breaker costs. `cargo bench --bench breaker` shows the
//! same of the real daemon.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;
use crate::retry::full_jitter;

/// How long a call takes, in microseconds.
const CALL: u64 = 50_000;
/// How long it takes to put back what is in hand and to subscribe again, around a pause.
const TURN: u64 = 300_000;
const SECOND: u64 = 1_000_000;
/// After a pause longer than this a lane starts slowly.
const HICCUP: u64 = 5 * SECOND;
const ATTEMPTS: u32 = 8;

/// What the API does.
#[derive(Clone, Copy)]
struct Api {
    /// The share of the calls that fail by chance, in percent.
    by_chance: u64,
    /// The share of the instances that always fail, in percent.
    bad: u64,
    /// When nothing works at all, in seconds.
    out: (u64, u64),
}

const WELL: Api = Api { by_chance: 0, bad: 0, out: (0, 0) };

/// Totals of one simulation.
#[derive(Default)]
struct Run {
    started: u64,
    /// Jobs of good instances that lost an attempt.
    charged: u64,
    pauses: u64,
    /// Calls for jobs from the beginning of the outage to the pause.
    spent: u64,
    /// From the end of the outage to the first start, in microseconds.
    back: Option<u64>,
}

/// Reproducible randomness (SplitMix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn hits(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    #[expect(clippy::cast_precision_loss, reason = "it is to be any number")]
    fn part(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    number: usize,
    attempts: u32,
    is_bad: bool,
}

impl Job {
    fn instance(self) -> InstanceId {
        InstanceId::parse(&format!("i-{:07}", self.number)).unwrap()
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A call for a job has ended, well or not.
    Called(Job, bool),
    Probed(bool),
    /// A probe is to be made.
    Probe,
    /// A job is due again.
    Due(Job),
    /// A token of the limiter is due, or evidence is overdue.
    Look,
}

/// A lane that never lacks jobs.
struct Lane {
    circuit: Circuit,
    api: Api,
    chance: Chance,
    rate: u64,
    concurrency: usize,
    evidence: u64,
    now: u64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    count: u64,
    due: VecDeque<Job>,
    jobs: usize,
    in_flight: usize,
    /// Jobs that failed and wait to learn whose fault it is, and since when.
    waiting: Vec<(Job, u64, Evidence)>,
    is_probing: bool,
    next_slot: u64,
    /// When the pause began, and when the last one was over.
    paused_at: Option<u64>,
    slow_from: Option<u64>,
    run: Run,
}

impl Lane {
    fn new(rate: u64, concurrency: usize, api: Api, seed: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "some thousands")]
        let breaker = Breaker::new(rate as f64, concurrency);
        Self {
            circuit: Circuit::new(concurrency),
            api,
            chance: Chance(seed),
            rate,
            concurrency,
            evidence: u64::try_from(breaker.evidence.as_micros()).unwrap(),
            now: 0,
            events: BinaryHeap::new(),
            count: 0,
            due: VecDeque::new(),
            jobs: 0,
            in_flight: 0,
            waiting: Vec::new(),
            is_probing: false,
            next_slot: 0,
            paused_at: None,
            slow_from: None,
            run: Run::default(),
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_microsecond(i64::try_from(self.now).unwrap()).unwrap()
    }

    fn is_out(&self) -> bool {
        (self.api.out.0 * SECOND..self.api.out.1 * SECOND).contains(&self.now)
    }

    fn answers(&mut self) -> bool {
        !self.is_out() && !self.chance.hits(self.api.by_chance)
    }

    fn signal(is_good: bool) -> Signal {
        let cause = || Cause { kind: CauseKind::Outage, text: String::new() };
        if is_good { Signal::Good } else { Signal::NoAnswer(cause()) }
    }

    fn run(mut self, seconds: u64) -> Run {
        self.at(0, Event::Look);
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            if time > seconds * SECOND {
                break;
            }
            self.now = time;
            self.happens(event);
            self.judge();
            self.call();
        }
        self.run
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Called(job, is_good) => {
                self.in_flight -= 1;
                let evidence = self.circuit.evidence(&Self::signal(is_good));
                let change = self.circuit.record(&job.instance(), &Self::signal(is_good), self.time());
                self.changed(change);
                if is_good {
                    self.run.started += 1;
                    if self.now >= self.api.out.1 * SECOND {
                        self.run.back.get_or_insert(self.now - self.api.out.1 * SECOND);
                    }
                } else {
                    self.waiting.push((job, self.now, evidence));
                    self.at(self.now + self.evidence, Event::Look);
                }
            }
            Event::Probe => {
                if self.in_flight > 0 && self.circuit.probes() == 0 {
                    // What is in flight is waited for first.
                    return self.at(self.now + CALL, Event::Probe);
                }
                let is_good = self.answers();
                self.is_probing = true;
                self.at(self.now + CALL, Event::Probed(is_good));
            }
            Event::Probed(is_good) => {
                self.is_probing = false;
                let was_open = self.circuit.paused().is_some();
                let signal = Self::signal(is_good);
                let change = if was_open {
                    self.circuit.record_probe(&signal, self.time())
                } else {
                    self.circuit.record_look(&signal, self.time())
                };
                self.changed(change);
                if was_open && self.circuit.paused().is_some() {
                    self.probe_later();
                }
            }
            Event::Due(job) => self.due.push_back(job),
            Event::Look => {}
        }
        // A trial that failed.
        if self.circuit.paused().is_some() && self.paused_at.is_some() && !self.is_probing && !self.has_probe() {
            self.probe_later();
        }
    }

    fn has_probe(&self) -> bool {
        self.events.iter().any(|Reverse((_, _, event))| matches!(event, Event::Probe))
    }

    fn probe_later(&mut self) {
        let (first, last) = (Duration::from_millis(250), Duration::from_secs(5));
        let delay = full_jitter(first, last, self.circuit.probes(), self.chance.part()).max(first);
        self.at(self.now + u64::try_from(delay.as_micros()).unwrap(), Event::Probe);
    }

    fn changed(&mut self, change: Option<Change>) {
        match change {
            Some(Change::Paused(_)) => {
                self.paused_at = Some(self.now);
                self.run.pauses += 1;
                self.at(self.now + TURN, Event::Probe);
            }
            Some(Change::Works(_)) => {
                let paused_at = self.paused_at.take().unwrap();
                if self.now - paused_at > HICCUP {
                    self.slow_from = Some(self.now);
                }
            }
            None => {}
        }
    }

    /// Attributes the failed calls.
    fn judge(&mut self) {
        for (job, since, evidence) in std::mem::take(&mut self.waiting) {
            match self.circuit.attribution(&evidence) {
                Some(Attribution::Job) => self.charge(job),
                Some(Attribution::Lane) => self.at(self.now + SECOND, Event::Due(job)),
                Some(Attribution::NotFailed) => unreachable!("only those that failed wait"),
                None => {
                    self.waiting.push((job, since, evidence));
                    if self.now >= since + self.evidence && !evidence.is_on_trial() {
                        self.look();
                    }
                }
            }
        }
    }

    fn charge(&mut self, job: Job) {
        self.run.charged += u64::from(!job.is_bad);
        self.circuit.remember_failing(&job.instance());
        let attempts = job.attempts + 1;
        if attempts < ATTEMPTS {
            let (initial, max) = (Duration::from_millis(500), Duration::from_secs(120));
            let delay = full_jitter(initial, max, attempts, self.chance.part());
            let due = self.now + u64::try_from(delay.as_micros()).unwrap();
            self.at(due, Event::Due(Job { attempts, ..job }));
        }
    }

    fn look(&mut self) {
        if !self.is_probing && self.circuit.paused().is_none() {
            self.is_probing = true;
            let is_good = self.answers();
            self.at(self.now + CALL, Event::Probed(is_good));
        }
    }

    /// Makes calls as long as they are allowed.
    fn call(&mut self) {
        while self.circuit.paused().is_none() && self.next_slot <= self.now {
            let allowed = self.concurrency - self.circuit.withheld();
            if allowed == 0 {
                return self.look();
            }
            if self.in_flight >= allowed {
                return;
            }
            let job = self.due.pop_front().unwrap_or_else(|| {
                self.jobs += 1;
                Job { number: self.jobs, attempts: 0, is_bad: self.chance.hits(self.api.bad) }
            });
            self.run.spent += u64::from(self.is_out() && self.run.pauses == 0);
            let is_good = self.answers() && !job.is_bad;
            self.in_flight += 1;
            self.at(self.now + CALL, Event::Called(job, is_good));
            self.next_slot = self.now.max(self.next_slot) + self.interval();
            self.at(self.next_slot, Event::Look);
        }
    }

    /// Between two calls: ten seconds of slow start after a long pause.
    fn interval(&self) -> u64 {
        let whole = SECOND / self.rate;
        match self.slow_from {
            Some(from) if self.now < from + 10 * SECOND => whole * 10 * SECOND / (self.now - from).max(SECOND),
            _ => whole,
        }
    }
}

/// Starts made, in percent of those of a lane that is never paused, and the totals.
fn share(rate: u64, concurrency: usize, api: Api, seconds: u64) -> (u64, Run) {
    let run = Lane::new(rate, concurrency, api, rate).run(seconds);
    let best = rate * seconds * (100 - api.by_chance) / 100;
    (run.started * 100 / best.max(1), run)
}

#[test]
fn up_to_six_calls_in_ten_that_fail_by_chance_cost_a_fifth_of_what_the_api_lets_through_at_most() {
    println!("{:>8} {:>12} {:>10} {:>8} {:>8}", "rate", "concurrency", "failing %", "share %", "pauses");
    for (rate, concurrency) in [(5, 32), (20, 32), (100, 32), (1000, 64), (5, 4), (20, 4)] {
        for by_chance in [10, 20, 40, 60, 80, 95] {
            let (share, run) = share(rate, concurrency, Api { by_chance, ..WELL }, 300);
            println!("{rate:>8} {concurrency:>12} {by_chance:>10} {share:>8} {:>8}", run.pauses);
            assert!(share >= 80 || by_chance > 60, "{share} % at {rate} calls a second with {by_chance} % failing");
        }
    }
}

#[test]
fn instances_that_always_fail_pause_no_lane() {
    println!("{:>8} {:>8} {:>8} {:>8}", "rate", "bad %", "started", "pauses");
    for rate in [5, 20, 100, 1000] {
        for bad in [1, 4, 7, 12, 20] {
            let (_, run) = share(rate, 64, Api { bad, ..WELL }, 300);
            println!("{rate:>8} {bad:>8} {:>8} {:>8}", run.started, run.pauses);
            assert!(run.pauses == 0 && run.charged == 0, "{bad} % at {rate} calls a second");
        }
    }
}

#[test]
fn an_outage_costs_no_more_calls_than_the_concurrency_and_five_and_no_job_an_attempt() {
    println!("{:>8} {:>12} {:>8} {:>8} {:>8}", "rate", "concurrency", "spent", "charged", "back s");
    for (rate, concurrency) in [(5, 32), (20, 32), (100, 32), (1000, 64), (5, 4), (20, 4), (100, 1)] {
        for bad in [0, 20] {
            let (_, run) = share(rate, concurrency, Api { out: (20, 40), bad, ..WELL }, 60);
            let back = run.back.expect("it came back");
            println!("{rate:>8} {concurrency:>12} {:>8} {:>8} {:>8}", run.spent, run.charged, back / SECOND);
            assert!(run.pauses == 1 && run.spent > 0, "{} pauses at {rate} a second", run.pauses);
            assert!(run.spent <= concurrency as u64 + 5, "{} calls at {rate} a second", run.spent);
            assert_eq!(run.charged, 0, "at {rate} calls a second");
            assert!(back <= 10 * SECOND);
        }
    }
}
