//! `make soak`: load and random faults of all kinds for as long as `SOAK` says (in seconds, ten minutes by default), and
//! then the accounting. Two replicas run: one is never restarted, so that its memory and file descriptors can be watched;
//! the other is killed and stopped again and again. The faults come from `SOAK_SEED`, which is printed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::account::Account;
use crate::support::broker::Node;
use crate::support::child::Child;
use crate::support::daemon::Daemon;
use crate::support::sim::Sim;
use crate::support::stage::{Wishes, config};

/// Jobs submitted between two faults: for machines that run already, for unknown ones, and for stopped ones.
const RUNNING: usize = 6;
const UNKNOWN: usize = 2;
const STOPPED: usize = 52;
const WAVE: usize = RUNNING + UNKNOWN + STOPPED;
/// RabbitMQ 3.10 loses the messages of a queue in a kill if the queue was declared less than about a second before.
const SETTLED: Duration = Duration::from_secs(3);
/// Time for the remaining jobs after the last fault.
const PATIENCE: Duration = Duration::from_secs(240);
/// The tolerance for flat: the second half's median may exceed that of the quarter before it by this much.
const MEMORY_SLACK: u64 = 8;
const DESCRIPTOR_SLACK: u64 = 6;

const LANE: &str = "rate = 80\nburst = 8\nconcurrency = 64\ntimeout = \"1s\"";
const RETRY: &str = "max_attempts = 1000\ninitial = \"200ms\"\nmax = \"2s\"\ngive_up_after = \"3h\"";
const POLICIES: [&str; 3] = ["fail", "accept", "verify"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    ReplicaKilled,
    ReplicaStopped,
    ReplicaFrozen,
    BrokerKilled,
    ConnectionsClosed,
    None,
}

const FAULTS: [Fault; 6] = [
    Fault::ReplicaKilled,
    Fault::ReplicaStopped,
    Fault::ReplicaFrozen,
    Fault::BrokerKilled,
    Fault::ConnectionsClosed,
    Fault::None,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes: make soak"]
async fn nothing_is_lost_and_nothing_grows_however_long_the_bad_day() {
    let lasts = Duration::from_secs(setting("SOAK").unwrap_or(600));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is past 1970");
    let seed = setting("SOAK_SEED").unwrap_or(now.as_secs());
    println!("soak of {lasts:?}; again with the same faults: make soak SOAK={} SOAK_SEED={seed}", lasts.as_secs());

    let mut chance = Chance(seed);
    let mut scene = Scene::set().await;
    let mut watch = Watch::default();
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    let start = Instant::now();
    while start.elapsed() < lasts {
        let policy = *chance.pick::<&str>(&POLICIES);
        scene.submit(policy).await;
        let rules = api_faults(&mut chance);
        scene.sim.faults(json!(rules)).await;
        *faults.entry("mixes of API faults".to_owned()).or_default() += usize::from(!rules.is_empty());
        let fault = *chance.pick(&FAULTS);
        *faults.entry(format!("{fault:?}")).or_default() += 1;
        scene.befall(fault, &mut chance).await;
        sleep(Duration::from_millis(500 + chance.below(2_500))).await;
        // A replica that has only stood by has yet to fill its caches and pools.
        if scene.lasting.child.output().contains("lane held") {
            watch.look(&scene.lasting.child);
        }
    }
    scene.sim.faults(json!([])).await;
    let events = scene.account.ended().await;
    println!("{events} of {} jobs have ended when the last fault is over", scene.submitted);
    scene.report(start.elapsed(), seed, &faults, &watch).await;
}

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: a whole number is expected")))
}

/// Splitmix64: the same numbers for the same seed, with any version of any crate.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).expect("it is below a length")]
    }
}

/// About a third of all kinds at a time, each for up to 15 % of the calls.
fn api_faults(chance: &mut Chance) -> Vec<Value> {
    let kinds = [
        json!({"status": 500}),
        json!({"status": 503, "when": "after"}),
        json!({"status": 200, "html": true}),
        json!({"status": 404, "html": true}),
        json!({"status": 409, "html": true}),
        json!({"status": 502, "html": true}),
        json!({"status": 429, "retry_after": 1}),
        json!({"status": 403, "code": "InvalidAccessKeyId"}),
        json!({"status": 307, "location": "http://127.0.0.1:1/"}),
        json!({"hang": "before"}),
        json!({"hang": "after"}),
        json!({"reset": "before"}),
        json!({"reset": "after"}),
        json!({"delay": "1500ms"}),
        json!({"trickle": "1s"}),
        json!({"cut": true}),
        json!({"pad": 1_000_000}),
    ];
    let mut rules = Vec::new();
    for fault in kinds {
        if chance.below(3) == 0 {
            rules.push(json!({"fault": fault, "share": chance.below(16) as f64 / 100.0}));
        }
    }
    rules
}

struct Scene {
    node: Node,
    sim: Sim,
    /// The replica that is frozen at times, but never restarted.
    lasting: Daemon,
    /// The replica that is killed and stopped.
    mortal: Daemon,
    account: Account,
    submitted: usize,
    /// Machines that were stopped before their job.
    stopped: usize,
}

impl Scene {
    async fn set() -> Self {
        let node = Node::start(&[]);
        let sim = Sim::start(&["--fleet", "Stopped=1"]);
        let text = config(&node.url, &sim.url(), &Wishes { lane: LANE, retry: RETRY, ..Wishes::default() });
        let lasting = Daemon::start(&text);
        lasting.ready().await;
        let mortal = Daemon::start(&text);
        mortal.ready().await;
        let account = Account::open(&node.url).await;
        sleep(SETTLED).await;
        Self { node, sim, lasting, mortal, account, submitted: 0, stopped: 0 }
    }

    async fn submit(&mut self, policy: &str) {
        let named = |kind: &str, count: usize| -> Vec<String> {
            (0..count).map(|number| format!("i-{kind}{:07}", self.submitted + number)).collect()
        };
        let (stopped, running, unknown) = (named("stop", STOPPED), named("runs", RUNNING), named("gone", UNKNOWN));
        let all = |ids: &[String], status: &str| -> Vec<Value> {
            ids.iter().map(|id| json!({"id": id, "status": status})).collect()
        };
        let fleet = [all(&stopped, "Stopped"), all(&running, "Running")].concat();
        self.sim.control("PUT", "instances", json!(fleet)).await;
        self.stopped += STOPPED;
        let jobs = [stopped, running, unknown].concat();
        self.account.submit(jobs, json!({"conflict": policy})).await;
        self.submitted += WAVE;
    }

    async fn befall(&mut self, fault: Fault, chance: &mut Chance) {
        match fault {
            Fault::ReplicaKilled => {
                self.mortal.kill().await;
                self.mortal.start_again();
            }
            Fault::ReplicaStopped => {
                self.mortal.stop().await;
                self.mortal.start_again();
            }
            Fault::ReplicaFrozen => {
                // Shorter and longer than the broker's heartbeat timeout.
                let seconds = *chance.pick(&[1, 3, 25]);
                let frozen = *chance.pick(&[&self.lasting, &self.mortal]);
                frozen.child.signal("STOP");
                sleep(Duration::from_secs(seconds)).await;
                frozen.child.signal("CONT");
            }
            Fault::BrokerKilled => {
                self.node.kill();
                sleep(Duration::from_millis(chance.below(3_000))).await;
                self.node.restart();
            }
            Fault::ConnectionsClosed => {
                self.node.ctl(&["close_all_connections", "soak"]);
            }
            Fault::None => {}
        }
    }

    /// The accounting and the measurements, as a table.
    async fn report(mut self, lasted: Duration, seed: u64, faults: &BTreeMap<String, usize>, watch: &Watch) {
        let closing = Instant::now();
        self.account.ended().await;
        let counts = self.account.close(PATIENCE).await;
        let rest = closing.elapsed();
        let calls = self.sim.log().await;
        let instances = self.sim.control("GET", "instances", Value::Null).await;
        let starts: Vec<u64> =
            instances.as_array().into_iter().flatten().filter_map(|one| one["starts"].as_u64()).collect();
        let mut rows: Vec<(String, String)> = vec![
            ("seed".to_owned(), seed.to_string()),
            ("faults and load".to_owned(), format!("{} s", lasted.as_secs())),
            ("until the last job had ended".to_owned(), format!("{} s", rest.as_secs())),
            ("jobs submitted".to_owned(), self.submitted.to_string()),
        ];
        rows.extend(counts.iter().map(|(end, count)| (format!("  {end}"), count.to_string())));
        rows.push(("machines started".to_owned(), starts.iter().filter(|starts| **starts == 1).count().to_string()));
        rows.push((
            "machines started twice".to_owned(),
            starts.iter().filter(|starts| **starts > 1).count().to_string(),
        ));
        rows.push(("API calls".to_owned(), calls.len().to_string()));
        let met = calls.iter().filter(|call| call.fault.is_some()).count();
        rows.push(("  that met a fault".to_owned(), met.to_string()));
        rows.extend(faults.iter().map(|(fault, count)| (fault.clone(), count.to_string())));
        let (memory, descriptors) = (watch.memory(), watch.descriptors());
        rows.push(("resident memory, MiB: second quarter, second half, most".to_owned(), memory.to_string()));
        rows.push(("file descriptors: second quarter, second half, most".to_owned(), descriptors.to_string()));
        for (name, value) in rows {
            println!("| {name:<56} | {value:>20} |");
        }
        let waves = self.submitted / WAVE;
        assert_eq!(counts.values().sum::<usize>(), self.submitted);
        assert_eq!(counts["failed not_found"], waves * UNKNOWN);
        assert!(counts["started"] >= self.stopped && !counts.contains_key("failed exhausted"), "{counts:?}");
        // Those that ran, and the simulator's first one, were never started.
        assert_eq!(starts.iter().filter(|starts| **starts == 1).count(), self.stopped);
        assert_eq!(starts.iter().filter(|starts| **starts == 0).count(), waves * RUNNING + 1);
        assert!(!watch.seen.is_empty(), "the lasting replica never held the lane: take another seed, or more time");
        assert!(memory.after <= memory.before + MEMORY_SLACK, "memory grows: {memory}");
        assert!(descriptors.after <= descriptors.before + DESCRIPTOR_SLACK, "file descriptors leak: {descriptors}");
    }
}

/// Resident memory (in MiB) and open file descriptors of the lasting replica, over time.
#[derive(Default)]
struct Watch {
    seen: Vec<(u64, u64)>,
}

/// Medians of two periods, unaffected by a momentary peak.
struct Trend {
    before: u64,
    after: u64,
    most: u64,
}

impl std::fmt::Display for Trend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, {}", self.before, self.after, self.most)
    }
}

impl Watch {
    fn look(&mut self, lasting: &Child) {
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", lasting.pid())).expect("it is ours").count() as u64;
        self.seen.push((lasting.memory("VmRSS") / 1024, descriptors));
    }

    fn memory(&self) -> Trend {
        trend(self.seen.iter().map(|(memory, _)| *memory).collect())
    }

    fn descriptors(&self) -> Trend {
        trend(self.seen.iter().map(|(_, descriptors)| *descriptors).collect())
    }
}

/// The first quarter is left out: caches, pools and the allocator's arenas fill then.
fn trend(seen: Vec<u64>) -> Trend {
    let median = |part: &[u64]| {
        let mut part = part.to_vec();
        part.sort_unstable();
        part.get(part.len() / 2).copied().unwrap_or_default()
    };
    let (quarter, half) = (seen.len() / 4, seen.len() / 2);
    Trend {
        before: median(&seen[quarter..half]),
        after: median(&seen[half..]),
        most: seen.into_iter().max().unwrap_or(0),
    }
}
