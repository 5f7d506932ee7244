use super::open::{ANNOUNCEMENT, CANCELLED, MOST_KINDS, SIZE};
use super::*;
use crate::events::{
    Action, BatchCompleted, CancelReason, Command, MaxFailures, Outcome, Phase, Reason, Wave, batch_key,
};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A log, whose messages come a second after each other.
struct Log {
    batches: Batches,
    next: u64,
}

impl Log {
    fn new() -> Self {
        Self::with(Limits { remembered: 10_000, open: 10 })
    }

    fn with(limits: Limits) -> Self {
        Self { batches: Batches::with(limits), next: 0 }
    }

    fn now(&self) -> Timestamp {
        at(i64::try_from(self.next).unwrap())
    }

    fn hear(&mut self, event: Event) -> Vec<Heard> {
        let key = match &event.data {
            Data::BatchSubmitted(batch) => format!("{}.submitted", batch.lane),
            Data::BatchCompleted(completed) => format!("{}.completed", completed.lane),
            Data::Job(job) => format!("{}.{}", job.lane, job.outcome),
            _ => String::new(),
        };
        self.hear_under(&key, event)
    }

    fn hear_under(&mut self, key: &str, event: Event) -> Vec<Heard> {
        let (offset, now) = (self.next, self.now());
        self.next += 1;
        self.batches.hear(offset, key, event, now)
    }

    /// An announcement of the lane `prod`, under this id.
    fn announce(&mut self, id: &str, batch: &str, size: usize) -> Vec<Heard> {
        let event = announcement(id, "prod", batch, size, self.now());
        self.hear(event)
    }

    /// The same, where so many jobs may fail.
    fn announce_with(&mut self, id: &str, batch: &str, size: usize, max_failures: usize) -> Vec<Heard> {
        let mut event = announcement(id, "prod", batch, size, self.now());
        if let Data::BatchSubmitted(announced) = &mut event.data {
            announced.max_failures = Some(MaxFailures::Jobs(max_failures));
        }
        self.hear(event)
    }

    /// The batches whose rest is to be cancelled now, with the ids of the commands.
    fn cancels(&mut self) -> Vec<(String, String)> {
        std::iter::from_fn(|| self.batches.pop_command()).map(|(name, command)| (name.batch, command.id)).collect()
    }

    fn end(&mut self, job: &str, batch: &str, outcome: Outcome) -> Vec<Heard> {
        let event = event(job, "prod", Some(batch), outcome, true, self.now());
        self.hear(event)
    }
}

fn announcement(id: &str, lane: &str, batch: &str, size: usize, now: Timestamp) -> Event {
    let announced = Batch::new(batch.to_owned(), size, lane.to_owned());
    Event { id: id.to_owned(), ..Event::new(lane, Data::BatchSubmitted(announced), now) }
}

fn event(job: &str, lane: &str, batch: Option<&str>, outcome: Outcome, is_final: bool, now: Timestamp) -> Event {
    let (lane, batch_id) = (lane.to_owned(), batch.map(str::to_owned));
    let job = JobEvent { lane, batch_id, is_final, ..JobEvent::example(job, outcome, now) };
    Event::of_job(job, Phase::Start, None, None)
}

/// The only completion in `heard`, and its id.
fn completed(heard: Vec<Heard>) -> (String, BatchCompleted) {
    let [Heard::Completed(event)] = <[Heard; 1]>::try_from(heard).unwrap() else { panic!("no completion") };
    let Data::BatchCompleted(completed) = event.data else { panic!("{event:?}") };
    (event.id, *completed)
}

const NOTHING: Vec<Heard> = Vec::new();
const NOT_FOUND: Outcome = Outcome::Failed(Reason::NotFound);

#[test]
fn a_batch_is_done_when_as_many_jobs_have_ended_as_were_announced() {
    let mut log = Log::new();
    assert_eq!(log.end("0", "morning", NOT_FOUND), NOTHING, "not announced yet");
    assert_eq!(log.announce("a", "morning", 4), NOTHING);
    let accepted = event("1", "prod", Some("morning"), Outcome::Started, false, log.now());
    assert_eq!(log.hear(accepted), NOTHING, "it goes on");
    assert_eq!(log.end("1", "morning", Outcome::Running), NOTHING);
    assert_eq!(log.end("1", "morning", Outcome::Running), NOTHING, "a copy");
    assert_eq!(log.end("2", "morning", NOT_FOUND), NOTHING);
    assert_eq!(log.end("3", "evening", NOT_FOUND), NOTHING, "another batch");
    let others = [Some("morning"), None].map(|batch| event("4", "test", batch, NOT_FOUND, true, log.now()));
    assert!(others.into_iter().all(|other| log.hear(other) == NOTHING), "of another lane, or of no batch");
    assert_eq!(log.end("5", "morning", Outcome::Expired), NOTHING);
    assert_eq!((log.batches.open(), log.batches.oldest()), (1, Some(1)));
    let (_, done) = completed(log.end("6", "morning", NOT_FOUND));
    let expected = BatchCompleted {
        batch_id: "morning".to_owned(),
        lane: "prod".to_owned(),
        size: 4,
        ended: 4,
        up: 1,
        outcomes: [("expired", 1), ("failed", 2), ("running", 1)].map(|(name, jobs)| (name.to_owned(), jobs)).into(),
        reasons: [("not_found".to_owned(), 2)].into(),
        submitted_at: at(1),
        first_event_at: Some(at(2)),
        ready_by: None,
        up_in_time: None,
        last_event_at: Some(at(10)),
    };
    assert_eq!(done, expected);
    assert_eq!((log.batches.open(), log.batches.oldest(), log.batches.remembered), (0, None, 0));
    assert_eq!(log.end("7", "morning", NOT_FOUND), NOTHING, "one more than were announced");
}

#[test]
fn a_batch_that_is_to_be_ready_says_how_many_machines_were_in_time() {
    let mut log = Log::new();
    let mut announcement = announcement("a", "prod", "morning", 5, log.now());
    let Data::BatchSubmitted(announced) = &mut announcement.data else { unreachable!() };
    announced.ready_by = Some(at(4));
    log.hear(announcement);
    log.end("1", "morning", Outcome::Running);
    log.end("1", "morning", Outcome::Running);
    log.end("2", "morning", NOT_FOUND);
    log.end("3", "morning", Outcome::AlreadyDone);
    log.end("4", "morning", Outcome::Running);
    let (_, done) = completed(log.end("5", "morning", Outcome::Running));
    assert_eq!((done.up, done.up_in_time, done.ready_by), (4, Some(2), Some(at(4))));
}

#[test]
fn parts_that_are_announced_in_time_add_up_and_a_size_is_corrected() {
    let mut log = Log::new();
    log.announce("a", "morning", 2);
    log.end("1", "morning", NOT_FOUND);
    assert_eq!(log.announce("b", "morning", 3), NOTHING);
    assert_eq!(log.end("2", "morning", NOT_FOUND), NOTHING);
    // Of the second part one was sent.
    let (_, done) = {
        assert_eq!(log.announce("b", "morning", 1), NOTHING);
        completed(log.end("3", "morning", NOT_FOUND))
    };
    assert_eq!((done.size, done.ended), (3, 3));

    log.announce("c", "evening", 10);
    log.end("1", "evening", NOT_FOUND);
    log.end("2", "evening", NOT_FOUND);
    let (_, done) = completed(log.announce("c", "evening", 1));
    assert_eq!((done.size, done.ended), (1, 2), "the correction completes it");
    let (_, done) = completed(log.announce("d", "night", 0));
    assert_eq!((done.size, done.first_event_at, done.last_event_at), (0, None, None));
}

#[test]
fn a_name_that_is_announced_again_is_a_batch_of_its_own() {
    let mut log = Log::new();
    let first = announcement("a", "prod", "morning", 1, log.now());
    log.hear(first.clone());
    let (id, _) = completed(log.end("1", "morning", NOT_FOUND));
    assert_eq!(log.hear(first), NOTHING, "a copy of the announcement");
    assert_eq!(log.announce("a", "morning", 0), NOTHING, "a correction that comes late");
    assert_eq!(log.batches.open(), 0);

    let mut ids = vec![id];
    // By another command, and by the same one run again, whose jobs end under the same ids.
    for announcement in ["b", "a", "a"] {
        assert_eq!(log.announce(announcement, "morning", 1), NOTHING);
        let (id, done) = completed(log.end("1", "morning", Outcome::Started));
        assert_eq!((done.size, done.ended, done.up), (1, 1, 1));
        ids.push(id);
    }
    let all = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), all, "each has an id of its own");
}

#[test]
fn whoever_reads_the_log_from_the_oldest_open_batch_on_comes_to_the_same_events() {
    let mut log = Log::new();
    let mut events = Vec::new();
    let mut open: Vec<(String, usize)> = Vec::new();
    // Batches of one to seven jobs, some of a name that others have, and at most five of them open.
    for number in 0..300_usize {
        let now = at(i64::try_from(events.len()).unwrap());
        let ends = open.len() == 5 || (number % 3 != 0 && !open.is_empty());
        if ends {
            let index = number % open.len();
            let (batch, left) = &mut open[index];
            events.push(event(&number.to_string(), "prod", Some(batch), NOT_FOUND, true, now));
            *left -= 1;
            open.retain(|(_, left)| *left > 0);
        } else {
            let (batch, size) = (format!("batch-{}", number % 11), 1 + number % 7);
            events.push(announcement(&number.to_string(), "prod", &batch, size, now));
            match open.iter_mut().find(|(name, _)| *name == batch) {
                Some((_, left)) => *left += size,
                None => open.push((batch, size)),
            }
        }
    }
    let whole: Vec<Vec<Heard>> = events.iter().map(|event| log.hear(event.clone())).collect();
    let completions = whole.iter().flatten().count();
    assert!(completions > 30, "{completions}");
    for take_over in 0..events.len() {
        let mut before = Log::new();
        events[..take_over].iter().for_each(|event| drop(before.hear(event.clone())));
        let from = before.batches.oldest().map_or(take_over, |offset| usize::try_from(offset).unwrap());
        let mut after = Log { next: from as u64, ..Log::new() };
        for index in from..events.len() {
            let heard = after.hear(events[index].clone());
            if index >= take_over {
                assert_eq!(heard, whole[index], "{index} from {take_over}");
            }
        }
    }
}

#[test]
fn a_completion_in_the_log_is_recognized_by_its_id() {
    let mut log = Log::new();
    log.announce("a", "morning", 1);
    let heard = log.end("1", "morning", NOT_FOUND);
    let Heard::Completed(event) = &heard[0] else { panic!("{heard:?}") };
    let read = Event::read(&event.to_bytes()).unwrap();
    assert_eq!(log.hear(read), [Heard::Published(event.id.clone())]);
}

#[test]
fn the_rest_of_a_batch_is_cancelled_once_when_more_jobs_have_failed_than_may() {
    let mut log = Log::new();
    log.announce_with("a", "morning", 10, 2);
    for (job, outcome) in [("1", NOT_FOUND), ("1", NOT_FOUND), ("2", Outcome::Started), ("3", Outcome::Expired)] {
        log.end(job, "morning", outcome);
    }
    let mut cancelled = event("4", "prod", Some("morning"), Outcome::Expired, true, log.now());
    if let Data::Job(job) = &mut cancelled.data {
        job.outcome = CANCELLED.to_owned();
    }
    log.hear(cancelled);
    assert_eq!(log.cancels(), [], "two have failed");
    log.end("5", "morning", Outcome::Rejected);
    let (name, command) = log.batches.pop_command().unwrap();
    assert_eq!(name, Name { lane: "prod".to_owned(), batch: "morning".to_owned() });
    let key = batch_key("prod", "morning", "a", at(0));
    assert_eq!(
        (command.id, command.time, command.data.kind().as_ref()),
        (format!("{key}/cancel"), at(6), "io.reveille.batch.cancel.v1")
    );
    let data = serde_json::to_value(&command.data).unwrap();
    let reason = "3 jobs have failed, and max_failures is 2";
    assert_eq!(
        data,
        serde_json::json!({"batch_id": "morning", "lane": "prod", "by": "reveille scheduler", "reason": reason})
    );
    log.end("6", "morning", NOT_FOUND);
    log.announce_with("b", "morning", 1, 0);
    assert_eq!(log.cancels(), [], "once");
}

#[test]
fn nothing_is_cancelled_where_nothing_is_left_or_no_number_was_announced() {
    let mut log = Log::new();
    log.announce_with("a", "all", 2, 1);
    log.end("1", "all", NOT_FOUND);
    completed(log.end("2", "all", NOT_FOUND));
    log.announce("b", "unbounded", 50);
    for job in 0..40 {
        log.end(&job.to_string(), "unbounded", NOT_FOUND);
    }
    // The announcement of a further part says how many may fail, and those were more.
    assert_eq!(log.cancels(), []);
    log.announce_with("c", "unbounded", 1, 39);
    assert_eq!(log.cancels().len(), 1);

    // One that was due as the batch came to its end is not given any more.
    log.announce_with("d", "ended", 2, 0);
    log.end("1", "ended", NOT_FOUND);
    completed(log.end("2", "ended", NOT_FOUND));
    assert_eq!(log.cancels(), []);
}

#[test]
fn an_event_counts_under_its_own_routing_key_alone() {
    let mut log = Log::new();
    let announced = announcement("a", "prod", "morning", 1, log.now());
    for key in ["test.submitted", "prod.started", "prod", "prodsubmitted", "reveille.outcomes.log", ""] {
        assert_eq!((log.hear_under(key, announced.clone()), log.batches.open()), (NOTHING, 0), "{key}");
    }
    log.hear(announced);
    let ended = event("1", "prod", Some("morning"), Outcome::Started, true, log.now());
    for key in ["prod.submitted", "prod.failed", "test.started"] {
        assert_eq!(log.hear_under(key, ended.clone()), NOTHING, "{key}");
    }
    let [Heard::Completed(done)] = &log.hear(ended)[..] else { panic!("not completed") };
    assert_eq!(log.hear_under("prod.started", (**done).clone()), NOTHING);
}

#[test]
fn the_oldest_batches_are_forgotten_where_there_are_too_many_or_too_many_jobs() {
    let name = |batch: &str| Name { lane: "prod".to_owned(), batch: batch.to_owned() };
    let mut log = Log::with(Limits { remembered: 2 * (ANNOUNCEMENT + SIZE) + 8, open: 2 });
    for batch in ["a", "b"] {
        assert_eq!(log.announce(batch, batch, 100), NOTHING);
    }
    assert_eq!(log.announce("c", "c", 100), [Heard::Forgotten(name("a"))]);
    // Two announcements and eight jobs.
    for job in 0..8 {
        assert_eq!(log.end(&job.to_string(), "c", Outcome::Started), NOTHING);
    }
    assert_eq!(log.end("8", "c", Outcome::Started), [Heard::Forgotten(name("b"))]);
    assert_eq!(log.announce("d", "c", 1), [Heard::Forgotten(name("c"))]);
    assert_eq!((log.batches.open(), log.batches.remembered), (0, 0));
    let announcements = (0..2).map(|number| number.to_string());
    assert_eq!(announcements.flat_map(|id| log.announce(&id, "d", usize::MAX)).count(), 0);
}

#[test]
fn a_batch_of_which_nothing_was_heard_for_as_long_as_the_log_is_kept_is_forgotten() {
    let mut log = Log::new();
    log.announce("a", "silent", 2);
    log.announce("b", "heard", 2);
    log.next = 1_000;
    log.end("1", "heard", NOT_FOUND);
    let mut future = announcement("c", "prod", "forged", 2, Timestamp::MAX);
    future.time = Timestamp::MAX;
    log.hear(future);
    let week = |after: i64| at(7 * 86_400 + after);
    assert_eq!(log.batches.forget_silent(week(0)), []);
    assert_eq!(log.batches.forget_silent(week(1)).len(), 1);
    assert_eq!(log.batches.open(), 2);
    assert_eq!(log.batches.forget_silent(week(1_002)).len(), 2, "a time to come is none");
    assert_eq!((log.batches.open(), log.batches.remembered, log.batches.oldest()), (0, 0, None));
}

#[test]
fn what_was_forged_is_bounded() {
    let mut log = Log::new();
    let long = "n".repeat(200);
    for (lane, batch) in [("prod", long.as_str()), ("Prod", "morning"), ("", "morning"), (&long, "morning")] {
        let forged = announcement("a", lane, batch, 1, log.now());
        assert_eq!((log.hear(forged), log.batches.open()), (NOTHING, 0), "{lane} {batch}");
    }
    let mut log = Log::with(Limits { remembered: 1_000, open: 10 });
    log.announce(&"i".repeat(1_000_000), "morning", 200);
    let mut heard = NOTHING;
    for number in 0..200 {
        let mut forged = event(&number.to_string(), "prod", Some("morning"), NOT_FOUND, true, Timestamp::MIN);
        if let Data::Job(job) = &mut forged.data {
            (job.outcome, job.reason) = match number % 3 {
                0 => ("failed".to_owned(), Some(format!("reason_{number}"))),
                1 => (format!("outcome_{number}"), None),
                _ => ("failed".to_owned(), Some(long.clone())),
            };
        }
        heard.extend(log.hear(forged));
    }
    let (id, done) = completed(heard);
    assert!(id.len() < 100 && done.outcomes.len() + done.reasons.len() <= MOST_KINDS + 2, "{done:?}");
    assert_eq!(done.outcomes.values().sum::<usize>(), 200);
    assert!(done.outcomes["other"] > 66 && done.reasons["other"] > 66, "{done:?}");
}

/// An announcement of the lane `prod` with these sizes of waves, from 1 on.
fn in_waves(id: &str, sizes: &[usize], now: Timestamp) -> Event {
    let mut event = announcement(id, "prod", "morning", sizes.iter().sum(), now);
    if let Data::BatchSubmitted(announced) = &mut event.data {
        announced.waves = (1..).map(wave).zip(sizes.iter().copied()).collect();
    }
    event
}

fn wave(number: u32) -> Wave {
    Wave::new(number).unwrap()
}

impl Log {
    fn end_in_wave(&mut self, job: &str, number: u32, outcome: Outcome) -> Vec<Heard> {
        let mut event = event(job, "prod", Some("morning"), outcome, true, self.now());
        if let Data::Job(job) = &mut event.data {
            job.wave = Some(wave(number));
        }
        self.hear(event)
    }

    fn end_replay(&mut self, job: &str, old: &str, outcome: Outcome) -> Vec<Heard> {
        let mut event = event(job, "prod", Some("morning"), outcome, true, self.now());
        if let Data::Job(job) = &mut event.data {
            job.replay_of = Some(old.to_owned());
        }
        self.hear(event)
    }

    /// The waves that are to be started now: each with the second of its announcement, and how many jobs wait for later ones.
    fn starts(&mut self) -> Vec<(Wave, i64, usize)> {
        let commands = std::iter::from_fn(|| self.batches.pop_command());
        let starts = commands.map(|(_, event)| match event.data {
            Data::Command(Command { action: Action::StartWave { wave, announced_at, waiting, .. }, .. }) => {
                (wave, announced_at.as_second() - at(0).as_second(), waiting)
            }
            other => panic!("{other:?}"),
        });
        starts.collect()
    }
}

#[test]
fn a_wave_is_started_once_when_all_before_it_have_ended() {
    let mut log = Log::new();
    let announced = in_waves("a", &[1, 2, 1], log.now());
    log.hear(announced.clone());
    assert_eq!(log.starts(), [(wave(1), 0, 3)]);
    log.hear(announced);
    assert_eq!(log.starts(), [], "a copy");
    log.end_in_wave("1", 1, NOT_FOUND);
    assert_eq!(log.starts(), [(wave(2), 0, 1)], "it goes on whatever the outcome");
    log.end_in_wave("2", 2, Outcome::Started);
    log.end_in_wave("2", 2, Outcome::Started);
    assert_eq!(log.starts(), [], "a copy is no further end");
    log.end_in_wave("3", 2, Outcome::Started);
    assert_eq!(log.starts(), [(wave(3), 0, 0)]);
    let (_, done) = completed(log.end_in_wave("4", 3, Outcome::Started));
    assert_eq!((done.ended, log.starts()), (4, vec![]));
}

#[test]
fn each_wave_after_the_first_settles() {
    let mut log = Log::new();
    let mut announced = in_waves("a", &[1, 1, 1], log.now());
    if let Data::BatchSubmitted(batch) = &mut announced.data {
        batch.settle_seconds = Some(60);
    }
    log.hear(announced);
    let mut starts = Vec::new();
    for number in 1..=3 {
        let (_, event) = log.batches.pop_command().unwrap();
        let Data::Command(Command { action: Action::StartWave { not_before, .. }, .. }) = event.data else { panic!() };
        starts.push(not_before);
        log.end_in_wave(&number.to_string(), number, Outcome::Started);
    }
    assert_eq!(starts, [None, Some(at(61)), Some(at(62))]);
}

#[test]
fn a_batch_without_waves_has_no_command() {
    let mut log = Log::new();
    log.announce("a", "morning", 2);
    let first_alone = in_waves("b", &[2], log.now());
    log.hear(first_alone);
    log.end("1", "morning", Outcome::Started);
    assert_eq!(log.starts(), []);
}

#[test]
fn what_ends_out_of_its_wave_ends_no_other_and_completes_nothing_early() {
    let mut log = Log::new();
    let announced = in_waves("a", &[1, 1, 1], log.now());
    log.hear(announced);
    // Jobs that were not announced, or are of yesterday.
    for stray in ["x", "y", "z"] {
        assert_eq!(log.end_in_wave(stray, 1, Outcome::Started), NOTHING);
    }
    assert_eq!(log.end_in_wave("w", u32::MAX, Outcome::Started), NOTHING);
    assert_eq!(log.starts(), [(wave(2), 0, 1)], "the latest, where an earlier one was not given");
    assert_eq!(log.end_in_wave("2", 2, Outcome::Started), NOTHING);
    assert_eq!(log.starts(), [(wave(3), 0, 0)]);
    let (_, done) = completed(log.end_in_wave("3", 3, Outcome::Started));
    assert_eq!((done.size, done.ended), (3, 6));
}

#[test]
fn each_announcement_of_a_batch_begins_with_its_first_wave() {
    let mut log = Log::new();
    let first = in_waves("a", &[1, 1], log.now());
    log.hear(first);
    log.end_in_wave("1", 1, Outcome::Started);
    assert_eq!(log.starts(), [(wave(2), 0, 0)]);
    let second = in_waves("b", &[1, 1], log.now());
    log.hear(second);
    assert_eq!(log.starts(), [(wave(1), 2, 2)]);
    log.end_in_wave("2", 1, Outcome::Started);
    assert_eq!(log.starts(), [(wave(2), 2, 0)]);
    for job in ["3", "4"] {
        log.end_in_wave(job, 2, Outcome::Started);
    }
    assert_eq!((log.batches.open(), log.starts()), (0, vec![]));

    // The same again, of which the jobs end as they did: copies of the last wave may wait for it.
    let again = in_waves("a", &[1, 1], log.now());
    log.hear(again);
    log.end_in_wave("1", 1, Outcome::Started);
    completed(log.end_in_wave("3", 2, Outcome::Started));
    assert_eq!(log.starts(), [(wave(2), 6, 0)]);
}

#[test]
fn a_size_that_is_corrected_starts_the_next_wave_and_has_no_jobs_of_its_own() {
    let mut log = Log::new();
    let announced = in_waves("a", &[2, 2], log.now());
    log.hear(announced);
    log.end_in_wave("1", 1, Outcome::Started);
    log.starts();
    let corrected = in_waves("a", &[1, 1], log.now());
    log.hear(corrected);
    assert_eq!(log.starts(), [(wave(2), 0, 0)]);
    assert_eq!(completed(log.end_in_wave("2", 2, Outcome::Started)).1.size, 2);
}

#[test]
fn a_ramp_stops_at_the_first_failure_and_its_next_wave_is_not_started() {
    let mut log = Log::new();
    let mut announced = in_waves("a", &[1, 2, 4], log.now());
    if let Data::BatchSubmitted(batch) = &mut announced.data {
        batch.max_failures = Some(MaxFailures::Jobs(0));
    }
    log.hear(announced);
    log.end_in_wave("1", 1, Outcome::Started);
    log.starts();
    log.end_in_wave("2", 2, Outcome::Started);
    // The last one of its wave.
    log.end_in_wave("3", 2, NOT_FOUND);
    let (_, cancel) = log.batches.pop_command().unwrap();
    let Data::Command(Command { action: Action::CancelBatch { .. }, reason, .. }) = cancel.data else { panic!() };
    assert_eq!(reason.unwrap(), "1 job has failed, and max_failures is 0");
    for job in ["4", "5", "6"] {
        log.end_in_wave(job, 3, Outcome::Cancelled(CancelReason::ByCommand));
    }
    assert_eq!(log.starts(), []);
    completed(log.end_in_wave("7", 3, Outcome::Cancelled(CancelReason::ByCommand)));
    assert_eq!(log.starts(), []);
}

#[test]
fn a_replay_is_no_further_job_and_takes_the_place_of_the_one_that_failed() {
    let mut log = Log::new();
    log.announce_with("a", "morning", 4, 1);
    log.end("1", "morning", Outcome::Started);
    log.end("2", "morning", NOT_FOUND);
    assert_eq!(log.end_replay("r", "2", NOT_FOUND), NOTHING);
    assert_eq!(log.cancels(), [], "one machine failed, twice");
    for _ in 0..2 {
        assert_eq!(log.end_replay("s", "r", Outcome::Started), NOTHING);
    }
    assert_eq!(log.end_replay("t", "unknown", NOT_FOUND), NOTHING, "of another batch of this name");
    log.end("3", "morning", NOT_FOUND);
    assert_eq!(log.cancels(), []);
    let (_, done) = completed(log.end("4", "morning", Outcome::Started));
    assert_eq!((done.ended, done.up, &done.outcomes["started"]), (4, 3, &3));
    assert_eq!((done.outcomes["failed"], done.reasons["not_found"]), (1, 1));
    assert_eq!(log.batches.remembered, 0);
}

#[test]
fn a_part_is_of_all_jobs_that_are_announced() {
    let mut log = Log::new();
    let percent = |id: &str, size, now| {
        let mut event = announcement(id, "prod", "morning", size, now);
        if let Data::BatchSubmitted(batch) = &mut event.data {
            batch.max_failures = Some(MaxFailures::Percent(10));
        }
        event
    };
    for (id, size) in [("a", 90), ("b", 10), ("b", 5)] {
        let announced = percent(id, size, log.now());
        log.hear(announced);
    }
    for job in 0..9 {
        log.end(&job.to_string(), "morning", NOT_FOUND);
    }
    assert_eq!(log.cancels(), [], "9 of 95");
    log.end("9", "morning", NOT_FOUND);
    let (_, cancel) = log.batches.pop_command().unwrap();
    let Data::Command(Command { reason, .. }) = cancel.data else { panic!() };
    assert_eq!(reason.unwrap(), "10 jobs have failed, and max_failures is 10% of 95 jobs");
}

/// The commands that are to be given now: what each says, by its id.
fn commands(log: &mut Log) -> Vec<(String, Command)> {
    let commands = std::iter::from_fn(|| log.batches.pop_command());
    let read = commands.map(|(_, event)| match event.data {
        Data::Command(command) => (event.id, command),
        other => panic!("{other:?}"),
    });
    read.collect()
}

#[test]
fn what_is_announced_after_a_cancellation_has_waves_and_failures_of_its_own() {
    let mut log = Log::new();
    let ramp = |id: &str, sizes: &[usize], now| {
        let mut event = in_waves(id, sizes, now);
        if let Data::BatchSubmitted(batch) = &mut event.data {
            batch.max_failures = Some(MaxFailures::Jobs(0));
        }
        event
    };
    let first = ramp("a", &[1, 2], log.now());
    log.hear(first.clone());
    log.starts();
    log.end_in_wave("1", 1, NOT_FOUND);
    let cancel = commands(&mut log);
    assert_eq!((cancel.len(), cancel[0].1.action.name()), (1, "batch.cancel"));
    // Its jobs look only once in a while, so they are still there.
    log.hear(first);
    assert_eq!(commands(&mut log), [], "a copy is no further announcement");
    let second = ramp("b", &[1, 2, 1], log.now());
    log.hear(second);
    assert_eq!(log.starts(), [(wave(1), 3, 5)]);
    log.end_in_wave("4", 1, Outcome::Started);
    assert_eq!(log.starts(), [(wave(2), 3, 1)], "and none of the first one's");
    for job in ["2", "3"] {
        log.end_in_wave(job, 2, Outcome::Cancelled(CancelReason::ByCommand));
    }
    log.end_in_wave("5", 2, Outcome::Started);
    log.end_in_wave("6", 2, NOT_FOUND);
    let again = commands(&mut log);
    assert_eq!((again.len(), again[0].1.action.name()), (1, "batch.cancel"));
    assert_eq!(again[0].1.reason.as_deref(), Some("1 job has failed, and max_failures is 0"));
    assert_ne!(again[0].0, cancel[0].0, "it is another command");
    completed(log.end_in_wave("7", 3, Outcome::Cancelled(CancelReason::ByCommand)));
    assert_eq!(commands(&mut log), []);
}

#[test]
fn a_batch_without_waves_is_done_whatever_waves_its_jobs_name() {
    let mut log = Log::new();
    log.announce("a", "morning", 2);
    log.end_in_wave("1", 1, Outcome::Started);
    let (_, done) = completed(log.end_in_wave("2", 2, Outcome::Expired));
    assert_eq!((done.size, done.ended), (2, 2));
}

#[test]
fn waves_count_by_the_memory_that_they_take() {
    const WAVES: usize = 100;
    let limits = Limits { remembered: 50_000, open: 10_000 };
    let mut log = Log::with(limits);
    for number in 0..40 {
        for part in 0..4 {
            let mut event = in_waves(&format!("{number}/{part}"), &[1; WAVES], log.now());
            if let Data::BatchSubmitted(batch) = &mut event.data {
                batch.batch_id = format!("b-{number}");
                batch.waves = (1..).map(|place| wave(100 * part + place)).zip([1; WAVES]).collect();
            }
            log.hear(event);
        }
    }
    let held: usize = log.batches.open.values().map(|open| open.announcements.len() * WAVES).sum();
    assert!(log.batches.remembered <= limits.remembered && held > 0);
    assert!(held * 350 <= limits.remembered * 20, "sizes of waves, 350 bytes each, against 20 of an ended job: {held}");
}

#[test]
fn what_waits_for_a_wave_of_a_batch_that_is_given_up_is_cancelled() {
    let mut log = Log::with(Limits { remembered: 10_000, open: 1 });
    let waves = in_waves("a", &[1, 1], log.now());
    log.hear(waves);
    log.starts();
    log.next = 100;
    log.announce("b", "crowd", 1);
    let given = commands(&mut log);
    let expected = Action::CancelBatch { batch_id: "morning".to_owned(), lane: Some("prod".to_owned()) };
    assert_eq!((given.len(), &given[0].1.action), (1, &expected));
    let reason = "the batch is given up, as too many batches are open, and its later waves have not started";
    assert_eq!(given[0].1.reason.as_deref(), Some(reason));

    // Of another one of the name, the last wave was started; a plain one has none.
    let mut log = Log::new();
    log.announce("b", "plain", 1);
    let waves = in_waves("a", &[1, 1], log.now());
    log.hear(waves);
    log.end_in_wave("1", 1, Outcome::Started);
    log.starts();
    let mut other = in_waves("c", &[1, 1], log.now());
    if let Data::BatchSubmitted(batch) = &mut other.data {
        batch.batch_id = "silent".to_owned();
    }
    let heard = log.now();
    log.hear(other);
    log.starts();
    assert_eq!(log.batches.forget_silent(at(8 * 86_400)).len(), 3);
    let (name, command) = log.batches.pop_command().unwrap();
    assert_eq!((name.batch.as_str(), command.time), ("silent", heard), "what is announced later is not meant");
    assert_eq!(log.batches.pop_command(), None);
}
