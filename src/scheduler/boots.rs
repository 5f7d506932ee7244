//! How long instances take from the start that the API accepted until they are seen running, as the log of outcomes shows. Pure.
//!
//! Of each lane there is a weight for each length of time, in steps of 4 %. A boot that is heard adds to one of them; once a
//! day all are halved, so that a fleet that boots slower than it did, or faster, is known within days, and days without a boot
//! forget nothing.
//!
//! **Memory.** Lanes that are asked for, with 264 weights each at most, and 100,000 starts that have not ended.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::mem::take;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::events::{JobEvent, LaneBoots, Outcome};

/// Steps of the scale each time that the length doubles.
const STEPS: f64 = 16.0;
/// The last step of the scale: 24 hours, and all that takes longer.
const LAST_STEP: u16 = 263;
/// The part of the machines that are to be up.
const PART: f64 = 0.95;
/// In seconds.
const PRECISION: f64 = 0.01;
/// What a boot adds.
const WEIGHT: u32 = 16;
/// The most that all boots of a lane weigh: 50,000 of them. Beyond it all are halved at once.
const MOST_WEIGHT: u32 = 50_000 * WEIGHT;
/// Between two halvings: a morning is never halved midway.
const HALVED_EVERY: SignedDuration = SignedDuration::from_hours(20);
/// Starts of a generation. There are two.
const MOST_STARTS: usize = 50_000;

/// The boots of some lanes.
#[derive(Debug)]
pub(super) struct Boots {
    lanes: BTreeMap<String, LaneBoots>,
    starts: Starts,
}

/// When jobs were started that have not ended, by a hash of lane and id. The older half is forgotten where there are too many.
#[derive(Debug, Default)]
struct Starts {
    hasher: RandomState,
    young: HashMap<u64, Timestamp>,
    old: HashMap<u64, Timestamp>,
}

impl Starts {
    fn begin(&mut self, job: &JobEvent, at: Timestamp) {
        let id = self.hasher.hash_one((&job.lane, &job.job_id));
        // A copy says nothing new.
        if self.old.contains_key(&id) {
            return;
        }
        if self.young.len() >= MOST_STARTS {
            self.old = take(&mut self.young);
        }
        self.young.entry(id).or_insert(at);
    }

    fn end(&mut self, job: &JobEvent) -> Option<Timestamp> {
        let id = self.hasher.hash_one((&job.lane, &job.job_id));
        self.young.remove(&id).or_else(|| self.old.remove(&id))
    }
}

impl Boots {
    pub(super) fn new(lanes: impl Iterator<Item = String>) -> Self {
        let of = |lane: String| (lane.clone(), LaneBoots { lane, ..LaneBoots::default() });
        Self { lanes: lanes.map(of).collect(), starts: Starts::default() }
    }

    /// Takes an event of a job that happened `at` a time.
    pub(super) fn hear(&mut self, job: &JobEvent, at: Timestamp) {
        let Some(boots) = self.lanes.get_mut(&job.lane) else { return };
        if !job.is_final {
            if job.outcome == Outcome::Started.as_str() {
                self.starts.begin(job, at);
            }
            return;
        }
        if let Some(started) = self.starts.end(job)
            && job.outcome == Outcome::Running.as_str()
            && let Ok(boot) = Duration::try_from(at.duration_since(started))
        {
            add(boots, boot, at);
        }
    }

    /// Takes what an earlier holder wrote down.
    pub(super) fn take(&mut self, written: &[LaneBoots]) {
        for boots in written {
            if let Some(known) = self.lanes.get_mut(&boots.lane)
                && is_sound(boots)
            {
                known.clone_from(boots);
            }
        }
    }

    /// What the next holder has to know.
    pub(super) fn written(&self) -> Vec<LaneBoots> {
        self.lanes.values().filter(|boots| !boots.weights.is_empty()).cloned().collect()
    }

    /// How long after the first of starts, which go on evenly for `spread`, 95 of 100 machines of the lane run: 4 % of a boot too
    /// long at most. Without a `spread` it is the 95th percentile of boots. `None`: no boot is known.
    pub(super) fn up_after(&self, lane: &str, spread: Duration) -> Option<Duration> {
        let weights = &self.lanes.get(lane)?.weights;
        let (longest, _) = weights.last()?;
        let spread = spread.as_secs_f64();
        let boots = || weights.iter().map(|(step, weight)| (length(*step).as_secs_f64(), f64::from(*weight)));
        let wanted = boots().map(|(_, weight)| weight).sum::<f64>() * PART;
        // The part of those that boot so long whose start is long enough ago.
        let part = |left: f64| if left < 0.0 { 0.0 } else { (left / spread.max(f64::EPSILON)).min(1.0) };
        let are_up = |after: f64| boots().map(|(boot, weight)| weight * part(after - boot)).sum::<f64>() >= wanted;
        let (mut early, mut late) = (0.0, length(*longest).as_secs_f64() + spread + PRECISION);
        while late - early > PRECISION {
            let middle = f64::midpoint(early, late);
            if are_up(middle) { late = middle } else { early = middle }
        }
        Some(Duration::from_secs_f64(late))
    }
}

fn add(boots: &mut LaneBoots, boot: Duration, at: Timestamp) {
    let since = *boots.since.get_or_insert(at);
    if at.duration_since(since) >= HALVED_EVERY || total(&boots.weights) >= MOST_WEIGHT {
        boots.since = Some(since.max(at));
        boots.weights.retain_mut(|(_, weight)| {
            *weight /= 2;
            *weight > 0
        });
    }
    let step = step(boot);
    match boots.weights.binary_search_by_key(&step, |(step, _)| *step) {
        Ok(place) => boots.weights[place].1 += WEIGHT,
        Err(place) => boots.weights.insert(place, (step, WEIGHT)),
    }
}

/// Whether it can have been written down by a holder: anybody who may publish all outcomes can make one up.
fn is_sound(boots: &LaneBoots) -> bool {
    let weights = &boots.weights;
    weights.is_sorted_by(|(one, _), (next, _)| one < next)
        && weights.iter().all(|(step, weight)| *step <= LAST_STEP && (1..=MOST_WEIGHT).contains(weight))
}

fn total(weights: &[(u16, u32)]) -> u32 {
    weights.iter().fold(0, |total: u32, (_, weight)| total.saturating_add(*weight))
}

fn step(boot: Duration) -> u16 {
    let step = (boot.as_secs_f64().max(1.0).log2() * STEPS).ceil();
    // A whole number, and small.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 0 and 263")]
    let step = step.clamp(0.0, f64::from(LAST_STEP)) as u16;
    step
}

/// The longest boot of a step.
fn length(step: u16) -> Duration {
    Duration::from_secs_f64((f64::from(step.min(LAST_STEP)) / STEPS).exp2())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    pub(in crate::scheduler) fn job(id: &str, outcome: Outcome, is_final: bool) -> JobEvent {
        JobEvent { is_final, ..JobEvent::example(id, outcome, at(0)) }
    }

    fn boots() -> Boots {
        Boots::new(["prod".to_owned()].into_iter())
    }

    /// A machine is started then, and runs so many seconds later.
    fn boot(boots: &mut Boots, id: &str, start: i64, seconds: i64) {
        boots.hear(&job(id, Outcome::Started, false), at(start));
        boots.hear(&job(id, Outcome::Running, true), at(start + seconds));
    }

    /// The 95th percentile.
    fn up(boots: &Boots) -> Option<Duration> {
        boots.up_after("prod", Duration::ZERO)
    }

    /// About so many seconds.
    fn is_about(length: Option<Duration>, seconds: f64) -> bool {
        length.is_some_and(|length| (seconds * 0.999..seconds * 1.05).contains(&length.as_secs_f64()))
    }

    #[test]
    fn the_percentile_is_of_the_time_from_the_start_until_it_runs() {
        let mut boots = boots();
        assert_eq!(up(&boots), None);
        // 95 of 60 to 154 s, and five that take ten minutes.
        for number in 0..95 {
            boot(&mut boots, &format!("j-{number}"), number, 60 + number);
        }
        for number in 95..100 {
            boot(&mut boots, &format!("j-{number}"), number, 600);
        }
        assert!(is_about(up(&boots), 154.0), "{:?}", up(&boots));
        boot(&mut boots, "j-100", 0, 600);
        assert!(is_about(up(&boots), 600.0), "{:?}", up(&boots));
        assert_eq!(boots.up_after("other", Duration::ZERO), None);
    }

    #[test]
    fn of_machines_that_start_one_after_the_other_the_last_need_not_be_up() {
        let mut boots = boots();
        for number in 0..100 {
            boot(&mut boots, &format!("j-{number}"), 0, 64);
        }
        let up = |seconds| boots.up_after("prod", Duration::from_secs(seconds));
        assert!(is_about(up(0), 64.0));
        assert!(is_about(up(100), 64.0 + 95.0), "{:?}", up(100));
        // Half of them boot for twice as long: those that do have to be started within nine tenths of the time.
        for number in 0..100 {
            boot(&mut boots, &format!("slow-{number}"), 0, 128);
        }
        let up = |seconds| boots.up_after("prod", Duration::from_secs(seconds));
        assert!(is_about(up(640), 128.0 + 576.0), "{:?}", up(640));
    }

    #[test]
    fn what_does_not_boot_is_not_counted() {
        let mut boots = boots();
        boots.hear(&job("accepted", Outcome::Started, true), at(0));
        boots.hear(&job("others", Outcome::Running, true), at(9));
        boots.hear(&job("failed", Outcome::Started, false), at(0));
        boots.hear(&job("failed", Outcome::Expired, true), at(9));
        boots.hear(&job("failed", Outcome::Running, true), at(99));
        // By the clock of another replica it ran before it was started.
        boot(&mut boots, "clock", 10, -5);
        assert_eq!(up(&boots), None);
        // Copies of both events.
        boot(&mut boots, "j", 0, 30);
        boots.hear(&job("j", Outcome::Running, true), at(500));
        assert!(is_about(up(&boots), 30.0));
    }

    #[test]
    fn slower_boots_are_known_within_days_and_days_without_boots_forget_nothing() {
        let mut boots = boots();
        let day = 24 * 3600;
        for number in 0..100 {
            boot(&mut boots, &format!("fast-{number}"), 0, 60);
        }
        boot(&mut boots, "slow", 30 * day, 240);
        assert!(is_about(up(&boots), 60.0), "one of a hundred");
        for number in 0..100 {
            boot(&mut boots, &format!("slow-{number}"), 31 * day, 240);
        }
        assert!(is_about(up(&boots), 240.0), "as many, of today");
    }

    #[test]
    fn the_next_holder_knows_them_and_nothing_that_was_made_up() {
        let mut first = boots();
        boot(&mut first, "j", 0, 60);
        let mut next = boots();
        next.take(&first.written());
        assert_eq!(up(&next), up(&first));
        for weights in [vec![(264, 1)], vec![(1, 0)], vec![(1, u32::MAX)], vec![(2, 1), (1, 1)], vec![(1, 1), (1, 1)]] {
            next.take(&[LaneBoots { lane: "prod".to_owned(), weights, since: None }]);
        }
        next.take(&[LaneBoots { lane: "made-up".to_owned(), ..LaneBoots::default() }]);
        assert_eq!(next.written(), first.written());
    }

    #[test]
    fn memory_is_bounded_whatever_is_started() {
        let mut boots = boots();
        for number in 0..3 * MOST_STARTS {
            boots.hear(&job(&number.to_string(), Outcome::Started, false), at(0));
        }
        assert!(boots.starts.young.len() + boots.starts.old.len() <= 2 * MOST_STARTS);
        for seconds in 0..5_000 {
            boot(&mut boots, "j", 0, seconds * seconds);
        }
        assert!(boots.lanes["prod"].weights.len() <= usize::from(LAST_STEP) + 1);
        // The longest there is.
        assert!(up(&boots).unwrap() <= Duration::from_secs(90_000));
        let weight = total(&boots.lanes["prod"].weights);
        for _ in 0..50_000 {
            boot(&mut boots, "j", 0, 60);
        }
        assert!((weight..=MOST_WEIGHT + WEIGHT).contains(&total(&boots.lanes["prod"].weights)));
    }
}
