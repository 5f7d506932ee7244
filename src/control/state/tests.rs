use super::*;

fn at(text: &str) -> Timestamp {
    format!("2026-11-25T{text}Z").parse().unwrap()
}

fn command(action: Action) -> Command {
    Command { action, by: "ops@desk".to_owned(), reason: Some("patching".to_owned()) }
}

fn instance(id: &str) -> InstanceId {
    InstanceId::parse(id).unwrap()
}

fn job(batch: Option<&str>) -> Job {
    Job { batch_id: batch.map(str::to_owned), ..Job::of(instance("i-0000")) }
}

fn paused(state: &State, now: &str) -> bool {
    state.pause_of("prod", at(now)).is_some()
}

#[test]
fn a_pause_ends_by_a_command_or_at_its_time_and_is_one_lanes() {
    let mut state = State::default();
    let pause = |until| command(Action::PauseLane { lane: "prod".to_owned(), until });
    state.apply("c", pause(Some(at("08:00:00"))), at("07:00:00"), at("07:00:01"));
    assert!(paused(&state, "07:59:59") && !paused(&state, "08:00:00"));
    assert!(state.pause_of("other", at("07:30:00")).is_none());
    assert_eq!(state.next_end(at("07:30:00")), Some(at("08:00:00")));
    assert_eq!(state.next_end(at("08:00:00")), None);
    state.apply("c", pause(None), at("07:10:00"), at("07:10:00"));
    assert!(paused(&state, "08:00:00"), "the later one counts");
    assert_eq!(
        state.pause_of("prod", at("09:00:00")).unwrap().describe("resume prod"),
        "by ops@desk: patching; until 2026-12-25T07:10:00Z, or `reveille resume prod`"
    );
    state.apply("c", command(Action::ResumeLane { lane: "prod".to_owned() }), at("07:20:00"), at("07:20:00"));
    assert!(!paused(&state, "07:20:00"));
}

#[test]
fn a_replica_that_starts_anew_agrees_with_one_that_runs_on() {
    let given = at("07:00:00");
    let later = given.saturating_add(LASTS).unwrap();
    let pause = command(Action::PauseLane { lane: "prod".to_owned(), until: Some(Timestamp::MAX) });
    let cancel = command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None });
    let snooze = command(Action::Snooze { instance_id: instance("i-0000"), until: Timestamp::MAX });
    let (mut first, mut second) = (State::default(), State::default());
    for each in [pause, cancel, snooze] {
        first.apply("c", each.clone(), given, given);
        second.apply("c", each, given, later);
    }
    assert_eq!(second, State::default());
    assert_eq!(first.pause_of("prod", later), None);
    assert_eq!(first.cancellation("prod", &job(Some("b")), Some(given), later + SignedDuration::from_secs(1)), None);
    assert_eq!(first.snooze(&instance("i-0000"), later), None);
}

#[test]
fn a_command_from_a_clock_that_is_ahead_counts_as_given_now() {
    let mut state = State::default();
    let (now, ahead) = (at("07:00:00"), at("23:00:00"));
    state.apply("c", command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), ahead, now);
    assert!(state.cancellation("prod", &job(Some("b")), Some(now), now).is_some());
    assert!(state.cancellation("prod", &job(Some("b")), Some(at("08:00:00")), at("08:00:00")).is_none());
}

#[test]
fn only_jobs_that_were_submitted_before_are_cancelled() {
    let mut state = State::default();
    let (given, now) = (at("07:00:00"), at("12:00:00"));
    state.apply("c", command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), given, given);
    let is_cancelled =
        |state: &State, batch, submitted| state.cancellation("prod", &job(batch), submitted, now).is_some();
    assert!(is_cancelled(&state, Some("b"), Some(at("06:00:00"))));
    assert!(is_cancelled(&state, Some("b"), Some(at("07:01:00"))), "clocks differ");
    assert!(!is_cancelled(&state, Some("b"), Some(at("07:01:01"))));
    assert!(is_cancelled(&state, Some("b"), None), "it may have waited since then");
    assert!(!is_cancelled(&state, Some("c"), None) && !is_cancelled(&state, None, None));
    let tomorrow = given + UNDATED + SignedDuration::from_secs(1);
    assert!(state.cancellation("prod", &job(Some("b")), None, tomorrow).is_none());
    assert!(state.cancellation("prod", &job(Some("b")), Some(given), tomorrow).is_some());
    let cancelled = state.cancellation("prod", &job(Some("b")), None, now).unwrap();
    assert_eq!(cancelled.text, "cancelled by ops@desk: patching");
    let one = Action::CancelBatch { batch_id: "c".to_owned(), lane: Some("prod".to_owned()) };
    state.apply("c", command(one), given, given);
    let is_in = |lane| state.cancellation(lane, &job(Some("c")), Some(given), now).is_some();
    assert!(is_in("prod") && !is_in("other"));
    state.apply("c", command(Action::CancelBatch { batch_id: "b".to_owned(), lane: None }), at("06:00:00"), given);
    assert!(is_cancelled(&state, Some("b"), Some(given)), "a copy of an early command does not replace a later one");
    state.apply("c", command(Action::CancelInstance { instance_id: instance("i-0000") }), given, given);
    assert!(state.cancellation("prod", &job(None), Some(given), now).is_some());
}

fn start_wave(batch: &str, wave: u32, announced_at: Timestamp) -> Command {
    let (batch_id, lane, wave) = (batch.to_owned(), "prod".to_owned(), Wave::new(wave).unwrap());
    command(Action::StartWave { batch_id, lane, wave, announced_at, not_before: None, waiting: 7 })
}

#[test]
fn a_job_waits_until_its_wave_was_started_for_those_that_were_announced_with_it() {
    let (announced, now) = (at("07:00:00.75"), at("08:00:00"));
    let mut state = State::default();
    let of = |wave| Job { wave: Wave::new(wave), ..job(Some("b")) };
    // As the timestamp of a message has it.
    let stamped = Some(at("07:00:00"));
    let ahead = |state: &State, wave, stamped| state.wave_ahead("prod", &of(wave), stamped, now);
    assert_eq!(ahead(&state, 2, stamped), Some(WaveAhead::Running { waiting: 0 }), "nothing is known");
    assert_eq!((ahead(&state, 1, None), ahead(&state, 0, None)), (None, None), "the first waits for nothing");
    state.apply("c", start_wave("b", 3, announced), at("07:10:00"), now);
    state.apply("c", start_wave("b", 2, announced), at("07:05:00"), now);
    assert_eq!((ahead(&state, 2, stamped), ahead(&state, 3, stamped)), (None, None), "a copy takes nothing back");
    assert_eq!(ahead(&state, 4, stamped), Some(WaveAhead::Running { waiting: 7 }));
    let mut settling = start_wave("b", 4, announced);
    if let Action::StartWave { not_before, .. } = &mut settling.action {
        *not_before = Some(at("08:00:01"));
    }
    state.apply("c", settling, at("07:20:00"), now);
    assert_eq!((ahead(&state, 3, stamped), ahead(&state, 4, stamped)), (None, Some(WaveAhead::Until(at("08:00:01")))));
    assert!(state.wave_ahead("prod", &of(4), stamped, at("08:00:01")).is_none());
    for (other, stamp) in [("later", Some(at("07:00:01"))), ("earlier", Some(at("06:59:59"))), ("undated", None)] {
        assert!(ahead(&state, 2, stamp).is_some(), "{other}");
    }
    assert!(state.wave_ahead("test", &of(2), stamped, now).is_some(), "another lane");
    let other = Job { batch_id: Some("c".to_owned()), ..of(2) };
    assert!(state.wave_ahead("prod", &other, stamped, now).is_some(), "another batch");
    let later = at("07:20:00").saturating_add(LASTS).unwrap() + SignedDuration::from_secs(1);
    assert!(state.wave_ahead("prod", &of(2), stamped, later).is_some(), "as a replica that starts then has it");
}

#[test]
fn a_snooze_ends_at_its_time_and_can_be_ended_before() {
    let mut state = State::default();
    let id = instance("i-0000");
    let snooze = |until| command(Action::Snooze { instance_id: id.clone(), until });
    state.apply("c", snooze(at("09:00:00")), at("07:00:00"), at("07:00:00"));
    let told = state.snooze(&id, at("08:00:00")).unwrap();
    assert_eq!(told.reason, CancelReason::Snoozed);
    assert_eq!(told.text, "snoozed until 2026-11-25T09:00:00Z by ops@desk: patching");
    assert!(state.snooze(&id, at("09:00:00")).is_none() && state.snooze(&instance("i-0001"), at("08:00:00")).is_none());
    state.apply("c", snooze(at("07:30:00")), at("07:30:00"), at("07:30:00"));
    assert!(state.snooze(&id, at("07:30:00")).is_none());
}

fn pause_schedule(until: Option<Timestamp>) -> Command {
    command(Action::PauseSchedule { schedule: "morning".to_owned(), until })
}

#[test]
fn a_schedule_is_paused_from_the_command_until_it_is_resumed_or_its_end() {
    let mut state = State::default();
    let given = at("07:00:00");
    state.apply("c", pause_schedule(Some(at("08:00:00"))), given, given);
    let is_paused = |state: &State, time| state.schedule_pause("morning", at(time)).is_some();
    assert!(!is_paused(&state, "06:59:59") && is_paused(&state, "07:00:00"));
    assert!(is_paused(&state, "07:59:59") && !is_paused(&state, "08:00:00"));
    assert!(state.schedule_pause("noon", at("07:30:00")).is_none());
    assert!(state.pause_of("morning", at("07:30:00")).is_none(), "a lane of the same name works");
    assert_eq!(state.next_end(given), None, "it is for lanes");
    let resume = command(Action::ResumeSchedule { schedule: "morning".to_owned() });
    state.apply("c", resume, at("07:30:00"), at("07:30:00"));
    assert!(is_paused(&state, "07:29:59") && !is_paused(&state, "07:30:00"));
    state.apply("c", pause_schedule(None), at("09:00:00"), at("09:00:00"));
    let end = at("09:00:00").saturating_add(LASTS).unwrap();
    assert_eq!(state.schedule_pause("morning", at("10:00:00")).unwrap().until, end);
    let mut later = State::default();
    later.apply("c", pause_schedule(None), at("09:00:00"), end);
    assert_eq!(later, State::default(), "a replica that starts then agrees");
}

#[test]
fn a_command_to_run_a_schedule_is_known_once_and_for_an_hour() {
    let mut state = State::default();
    let given = at("07:00:00");
    let run = || command(Action::RunSchedule { schedule: "morning".to_owned(), due: at("06:30:00") });
    for id in ["a", "b", "a"] {
        state.apply(id, run(), given, given);
    }
    state.apply(&"x".repeat(ID_LIMIT + 1), run(), given, given);
    let ids = |state: &State, now| state.runs(at(now)).map(|run| run.id.clone()).collect::<Vec<_>>();
    assert_eq!((ids(&state, "08:00:00"), ids(&state, "08:00:01")), (vec!["a".to_owned(), "b".to_owned()], vec![]));
    let mut later = State::default();
    later.apply("a", run(), given, at("08:00:01"));
    assert_eq!(later, State::default(), "a replica that starts then agrees");
    for number in 0..2 * MOST_RUNS {
        state.apply(&number.to_string(), run(), given, given);
    }
    assert_eq!((state.runs.len(), state.runs[0].id.as_str()), (MOST_RUNS, "1000"));
}

#[test]
fn however_many_commands_come_memory_is_bounded() {
    let mut state = State::default();
    let now = at("07:00:00");
    for number in 0..=LIMIT {
        let time = now + SignedDuration::from_millis(number.try_into().unwrap());
        state.apply("c", command(Action::CancelBatch { batch_id: format!("b-{number}"), lane: None }), time, time);
    }
    let has = |number: usize| state.batches.contains_key(&(format!("b-{number}"), None));
    assert!(!has(0) && !has(LIMIT / 2 - 1) && has(LIMIT / 2) && has(LIMIT));
    assert_eq!(state.batches.len(), LIMIT / 2 + 1);
    for number in 0..=LIMIT {
        let time = now + SignedDuration::from_millis(number.try_into().unwrap());
        state.apply("c", start_wave(&format!("b-{number}"), u32::MAX, Timestamp::MIN), time, time);
    }
    assert_eq!(state.waves.len(), LIMIT / 2 + 1);
    for number in 0..=MOST_PAUSED {
        let pause = Action::PauseSchedule { schedule: number.to_string(), until: None };
        state.apply("c", command(pause), now, now);
    }
    assert_eq!(state.schedules.len(), MOST_PAUSED / 2 + 1);
}

#[test]
fn a_command_that_replaces_another_makes_no_other_end() {
    let mut state = State::default();
    let now = at("07:00:00");
    for number in 0..LIMIT {
        let id = instance(&format!("i-{number:06}"));
        state.apply("c", command(Action::CancelInstance { instance_id: id.clone() }), now, now);
        state.apply("c", command(Action::Snooze { instance_id: id, until: at("09:00:00") }), now, now);
        state.apply("c", start_wave(&format!("b-{number}"), 1, now), now, now);
    }
    let id = instance("i-000007");
    state.apply("c", command(Action::CancelInstance { instance_id: id.clone() }), now, now);
    state.apply("c", command(Action::Snooze { instance_id: id, until: at("10:00:00") }), now, now);
    state.apply("c", start_wave("b-7", 2, now), now, now);
    assert_eq!([state.instances.len(), state.snoozes.len(), state.waves.len()], [LIMIT; 3]);
}
