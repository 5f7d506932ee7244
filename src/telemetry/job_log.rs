//! What the log says of a lane's jobs at `info`: which fail, and once a minute how many ended how.
//!
//! What is written, and when, is decided by [`Failures`] and [`Tally`], which take the time as an argument.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::events::Outcome;

/// Shortest time between two lines of counts, and the window for [`LISTED`].
const MINUTE: Duration = Duration::from_secs(60);
/// Jobs that fail for one reason and have a line of their own, within a [`MINUTE`].
const LISTED: u32 = 10;
/// A lane with which nothing has happened for this long is idle.
const QUIET: Duration = Duration::from_secs(5);

/// Lines about the jobs of one lane, whose span they are written in.
#[derive(Debug, Default)]
pub struct JobLog {
    state: Mutex<State>,
    /// Wakes the writer: a line has become due earlier.
    woken: Notify,
}

#[derive(Debug, Default)]
struct State {
    failures: Failures,
    tally: Tally,
}

impl JobLog {
    /// A job ended. Returns whether it is to have a line of its own: one that failed or was rejected, unless too many do.
    pub(super) fn ended(&self, outcome: Outcome) -> bool {
        let now = Instant::now();
        self.count(now, |counts| *counts.of(outcome) += 1);
        if !outcome.is_dead_letter() {
            return false;
        }
        let listed = self.state().failures.is_listed(outcome, now);
        if listed == Listed::FirstWithout {
            self.woken.notify_one();
        }
        listed == Listed::Yes
    }

    /// A job was put back for later.
    pub(super) fn parked(&self) {
        self.count(Instant::now(), |counts| counts.parked += 1);
    }

    /// A call was made for jobs.
    pub(super) fn called(&self) {
        self.count(Instant::now(), |counts| counts.calls += 1);
    }

    fn count(&self, now: Instant, add: impl FnOnce(&mut Counts)) {
        if self.state().tally.count(now, add) {
            self.woken.notify_one();
        }
    }

    /// Writes each line when it is due, for as long as the lane is held. Dropped, it writes what is left.
    pub async fn write(&self) -> Infallible {
        // Tasks of a term that broke may have counted after its last line.
        drop(Rest(self));
        let _rest = Rest(self);
        loop {
            let due = self.state().due();
            tokio::select! {
                () = self.woken.notified() => {}
                () = until(due) => self.write_due(Instant::now()),
            }
        }
    }

    fn write_due(&self, now: Instant) {
        let (failures, counts) = {
            let mut state = self.state();
            (state.failures.take(now), state.tally.take(now))
        };
        write(failures, counts);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn due(&self) -> Option<Instant> {
        [self.failures.due(), self.tally.due()].into_iter().flatten().min()
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Writes pending lines when dropped, at the end of a term.
struct Rest<'a>(&'a JobLog);

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        let (failures, counts) = {
            let mut state = self.0.state();
            (state.failures.take_all(), state.tally.take_all(Instant::now()))
        };
        write(failures, counts);
    }
}

fn write(failures: Vec<(Outcome, u64)>, counts: Option<(Counts, Duration)>) {
    for (outcome, jobs) in failures {
        let reason = outcome.reason();
        info!(reason, jobs, "{jobs} more jobs {outcome} as {reason} within a minute, without a line each");
    }
    let Some((counts, over)) = counts else { return };
    let some = |count: u64| (count > 0).then_some(count);
    info!(
        started = some(counts.started),
        running = some(counts.running),
        already_done = some(counts.already_done),
        failed = some(counts.failed),
        expired = some(counts.expired),
        rejected = some(counts.rejected),
        cancelled = some(counts.cancelled),
        parked = some(counts.parked),
        calls = some(counts.calls),
        "jobs within {} s",
        over.as_secs_f64().ceil().max(1.0)
    );
}

/// What came of a lane's jobs, in the words of the metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Counts {
    started: u64,
    running: u64,
    already_done: u64,
    failed: u64,
    expired: u64,
    rejected: u64,
    cancelled: u64,
    parked: u64,
    calls: u64,
}

impl Counts {
    fn of(&mut self, outcome: Outcome) -> &mut u64 {
        match outcome {
            Outcome::Started => &mut self.started,
            Outcome::Running => &mut self.running,
            Outcome::AlreadyDone => &mut self.already_done,
            Outcome::Failed(_) => &mut self.failed,
            Outcome::Expired => &mut self.expired,
            Outcome::Rejected => &mut self.rejected,
            Outcome::Cancelled(_) => &mut self.cancelled,
        }
    }
}

/// Counts since the last line of counts. The next line is due a minute after the last one at the earliest; after a
/// longer silence, once the lane has been idle for five seconds, or a minute after the first count.
#[derive(Debug, Default)]
struct Tally {
    counted: Option<Counted>,
    written: Option<Instant>,
}

#[derive(Debug)]
struct Counted {
    counts: Counts,
    first: Instant,
    latest: Instant,
}

impl Tally {
    /// Returns whether this is the first since the last line.
    fn count(&mut self, now: Instant, add: impl FnOnce(&mut Counts)) -> bool {
        let is_first = self.counted.is_none();
        let counted =
            self.counted.get_or_insert_with(|| Counted { counts: Counts::default(), first: now, latest: now });
        counted.latest = now;
        add(&mut counted.counts);
        is_first
    }

    fn due(&self) -> Option<Instant> {
        let Counted { first, latest, .. } = self.counted.as_ref()?;
        match self.written.map(|written| written + MINUTE) {
            Some(next) if *first < next => Some(next),
            _ => Some((*first + MINUTE).min(*latest + QUIET)),
        }
    }

    /// The counts that are due, and the time they are of.
    fn take(&mut self, now: Instant) -> Option<(Counts, Duration)> {
        if self.due()? <= now { self.take_all(now) } else { None }
    }

    fn take_all(&mut self, now: Instant) -> Option<(Counts, Duration)> {
        let Counted { counts, first, latest } = self.counted.take()?;
        self.written = Some(now);
        Some((counts, latest.duration_since(first)))
    }
}

/// The failures of the last minute, by reason. Reasons are few: built in or configured. None belongs to two outcomes:
/// no rule can give that of a rejected job.
#[derive(Debug, Default)]
struct Failures(HashMap<&'static str, Window>);

#[derive(Debug)]
struct Window {
    outcome: Outcome,
    since: Instant,
    listed: u32,
    unlisted: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Listed {
    Yes,
    /// No, and no other before it: a summary is to follow.
    FirstWithout,
    No,
}

impl Failures {
    /// Counts a job that ended so, and says whether it is to have a line of its own.
    fn is_listed(&mut self, outcome: Outcome, now: Instant) -> Listed {
        let anew = || Window { outcome, since: now, listed: 0, unlisted: 0 };
        let window = self.0.entry(outcome.reason()).or_insert_with(anew);
        // A window with a pending summary is kept until the writer has taken it.
        if window.is_over(now) && window.unlisted == 0 {
            *window = anew();
        }
        if window.listed < LISTED {
            window.listed += 1;
            return Listed::Yes;
        }
        window.unlisted += 1;
        if window.unlisted == 1 { Listed::FirstWithout } else { Listed::No }
    }

    /// When the next summary is.
    fn due(&self) -> Option<Instant> {
        self.0.values().filter(|window| window.unlisted > 0).map(|window| window.since + MINUTE).min()
    }

    /// Unlisted jobs by outcome, of windows that are over.
    fn take(&mut self, now: Instant) -> Vec<(Outcome, u64)> {
        self.0.extract_if(|_, window| window.is_over(now)).filter_map(|(_, mut window)| window.take()).collect()
    }

    /// The same for all windows, which stay open.
    fn take_all(&mut self) -> Vec<(Outcome, u64)> {
        self.0.values_mut().filter_map(Window::take).collect()
    }
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= MINUTE
    }

    fn take(&mut self) -> Option<(Outcome, u64)> {
        let unlisted = std::mem::take(&mut self.unlisted);
        (unlisted > 0).then_some((self.outcome, unlisted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Reason;

    const NOT_FOUND: Outcome = Outcome::Failed(Reason::NotFound);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// How many of so many jobs have a line of their own.
    fn listed(failures: &mut Failures, outcome: Outcome, jobs: u32, now: Instant) -> usize {
        (0..jobs).filter(|_| failures.is_listed(outcome, now) == Listed::Yes).count()
    }

    #[test]
    fn ten_jobs_a_minute_and_reason_have_a_line_and_the_others_a_summary() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        assert_eq!(listed(&mut failures, NOT_FOUND, 10, start), 10);
        assert_eq!(failures.due(), None, "there is nothing to sum up");
        assert_eq!(failures.is_listed(NOT_FOUND, start + seconds(5)), Listed::FirstWithout);
        assert_eq!(listed(&mut failures, NOT_FOUND, 4_989, start + seconds(59)), 0);
        assert_eq!(listed(&mut failures, Outcome::Rejected, 11, start + seconds(59)), 10, "a reason of its own");
        assert_eq!(failures.due(), Some(start + MINUTE));
        assert_eq!(failures.take(start + seconds(59)), []);
        assert_eq!(listed(&mut failures, NOT_FOUND, 1, start + MINUTE), 0, "the summary is to come first");
        assert_eq!(failures.take(start + MINUTE), [(NOT_FOUND, 4_991)]);
        assert_eq!(listed(&mut failures, NOT_FOUND, 11, start + seconds(61)), 10);
        assert_eq!(failures.take(start + seconds(119)), [(Outcome::Rejected, 1)]);
    }

    #[test]
    fn reasons_that_few_fail_for_have_no_summary() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        for minute in 0..3 {
            assert_eq!(listed(&mut failures, NOT_FOUND, 10, start + MINUTE * minute), 10);
        }
        assert_eq!((failures.due(), failures.take(start + seconds(600))), (None, vec![]));
        assert!(failures.0.is_empty(), "nothing is kept of it");
    }

    #[test]
    fn the_end_of_a_term_sums_up_early_and_lists_no_more_for_it() {
        let (start, mut failures) = (Instant::now(), Failures::default());
        assert_eq!(listed(&mut failures, NOT_FOUND, 30, start), 10);
        assert_eq!(failures.take_all(), [(NOT_FOUND, 20)]);
        assert_eq!(failures.take_all(), []);
        assert_eq!(listed(&mut failures, NOT_FOUND, 3, start + seconds(30)), 0);
        assert_eq!(failures.take(start + MINUTE), [(NOT_FOUND, 3)]);
    }

    fn call(tally: &mut Tally, now: Instant) -> bool {
        tally.count(now, |counts| counts.calls += 1)
    }

    fn calls(calls: u64) -> Counts {
        Counts { calls, ..Counts::default() }
    }

    #[test]
    fn a_lane_at_work_has_a_line_a_minute_and_the_last_one_once_it_is_idle() {
        let (start, mut tally) = (Instant::now(), Tally::default());
        assert_eq!(tally.due(), None, "it is idle");
        let mut lines = Vec::new();
        for second in 0..=150 {
            let now = start + seconds(second);
            call(&mut tally, now);
            lines.extend(tally.take(now).map(|(counts, over)| (second, counts.calls, over.as_secs())));
        }
        assert_eq!(lines, [(60, 61, 60), (120, 60, 59)]);
        assert_eq!(tally.due(), Some(start + seconds(180)), "one a minute, though it is idle before");
        assert_eq!(tally.take(start + seconds(180)), Some((calls(30), seconds(29))));
        assert_eq!((tally.due(), tally.take(start + seconds(600))), (None, None), "none while it is idle");
    }

    #[test]
    fn a_burst_has_its_line_when_it_is_over() {
        let (start, mut tally) = (Instant::now(), Tally::default());
        assert!(call(&mut tally, start) && !call(&mut tally, start + seconds(3)));
        assert_eq!(tally.due(), Some(start + seconds(8)));
        assert_eq!(tally.take(start + seconds(7)), None);
        assert_eq!(tally.take(start + seconds(8)), Some((calls(2), seconds(3))));
        // A job every ten seconds is no burst each.
        assert!(call(&mut tally, start + seconds(18)));
        assert_eq!(tally.due(), Some(start + seconds(68)));
    }

    #[test]
    fn the_end_of_a_term_has_what_was_counted_last() {
        let (start, mut tally) = (Instant::now(), Tally::default());
        assert_eq!(tally.take_all(start), None);
        call(&mut tally, start);
        assert_eq!(tally.take_all(start), Some((calls(1), Duration::ZERO)));
        assert_eq!(tally.take_all(start), None);
    }

    #[test]
    fn each_outcome_is_counted_under_its_name() {
        for outcome in Outcome::ALL {
            let mut counts = Counts::default();
            *counts.of(outcome) += 1;
            assert!(format!("{counts:?}").contains(&format!("{}: 1", outcome.as_str())), "{outcome}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_taken_when_they_are_due_and_those_left_at_the_end() {
        let log = JobLog::default();
        let after = |time| async move { tokio::time::sleep(time).await };
        let write = async |time| {
            tokio::select! {
                never = log.write() => match never {},
                () = after(time) => {}
            }
        };
        let begun = async {
            after(seconds(100)).await;
            for _ in 0..30 {
                log.ended(NOT_FOUND);
            }
            after(seconds(6)).await;
            assert_eq!(log.state().tally.due(), None, "it was written");
            assert_eq!(log.state().failures.due(), Some(Instant::now() + seconds(54)));
            after(seconds(55)).await;
            assert_eq!(log.state().failures.due(), None);
            for _ in 0..30 {
                log.ended(NOT_FOUND);
            }
        };
        tokio::join!(write(seconds(162)), begun);
        assert_eq!(log.state().due(), None, "what was left was written as the term ended");
    }
}
