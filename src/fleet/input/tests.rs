use super::*;

/// Files in a folder of their own.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("reveille-submit-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn input(ids: &[&str], files: &[PathBuf], format: Option<Format>) -> Result<Input, InputFault> {
    input_with(&["--batch", "b"], ids, files, format)
}

fn input_with(options: &[&str], ids: &[&str], files: &[PathBuf], format: Option<Format>) -> Result<Input, InputFault> {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let ramp = options.contains(&"--ramp");
    let defaults = Defaults { ramp, ..Defaults::new("b".to_owned(), "2026-11-25T00:00:00Z".parse().unwrap()) };
    let identity = Identity { lane: LaneName::parse("prod").unwrap(), moving_deadline: None, ramp: defaults.ramp };
    Input::new(ids, files, format, defaults, identity)
}

fn jobs(mut input: Input) -> Result<Vec<Job>, InputFault> {
    let (checked, mut jobs) = (input.check()?, Vec::new());
    let again = input.jobs(&checked, |_, job| {
        jobs.push(*job);
        ControlFlow::Continue(())
    });
    again.unwrap();
    let size = jobs.len();
    assert_eq!(checked.parts.values().map(|part| part.size).sum::<usize>(), size);
    assert_eq!((checked.size(), jobs.iter().all(|job| !batch_of(job).is_empty())), (size, true));
    Ok(jobs)
}

fn read(ids: &[&str], files: &[PathBuf]) -> Result<Vec<Job>, InputFault> {
    jobs(input(ids, files, None)?)
}

fn ids(jobs: &[Job]) -> Vec<&str> {
    jobs.iter().map(|job| job.instance_id.as_str()).collect()
}

#[test]
fn a_ramp_goes_by_the_order_of_each_batch_and_counts_a_repeated_job_once() {
    let own = r#"{"instance_id":"i-0009","batch_id":"own"}"#;
    let ids = ["i-0000", "i-0001", own, "i-0000", "i-0002", "i-0003"];
    let mut input = input_with(&["--batch", "b", "--ramp"], &ids, &[], None).unwrap();
    let checked = input.check().unwrap();
    let sizes = [(1, 1), (2, 2), (3, 1)].map(|(wave, jobs)| (Wave::new(wave).unwrap(), jobs));
    assert_eq!(checked.waves(true), [("b", sizes.into())]);
    assert_eq!(checked.waves(false), [], "all are of the first");
    let waves = jobs(input).unwrap().into_iter().map(|job| (job.instance_id.to_string(), job.wave));
    let expected = [("i-0000", 1), ("i-0001", 2), ("i-0009", 1), ("i-0002", 2), ("i-0003", 3)];
    assert_eq!(waves.collect::<Vec<_>>(), expected.map(|(id, wave)| (id.to_owned(), Wave::new(wave))));
}

#[test]
fn no_job_of_a_batch_with_waves_starts_after_the_batch_is_given_up() {
    const SOON: &str = r#"{"instance_id":"i-0000","not_before":"2026-12-01T00:00:00Z"}"#;
    const LATE: &str = r#"{"instance_id":"i-0001","not_before":"2026-12-01T00:00:01Z"}"#;
    const NEVER: &str = r#"{"instance_id":"i-0002","not_before":"9999-12-31T23:59:59Z"}"#;
    const SECOND: &str = r#"{"instance_id":"i-0003","wave":2}"#;
    const OTHER: &str = r#"{"instance_id":"i-0004","wave":2,"batch_id":"other"}"#;
    let check = |options: &[&str], ids: &[&str]| {
        let checked = input_with(options, ids, &[], None).unwrap().check();
        checked.map(|checked| checked.size()).map_err(|fault| fault.to_string())
    };
    assert_eq!(check(&[], &[SOON, SECOND]), Ok(2));
    assert_eq!(check(&[], &[LATE, NEVER, OTHER]), Ok(3), "the batch with waves is another one");
    assert_eq!(check(&["--ramp"], &[LATE]), Ok(1), "there is one wave");
    for (options, ids, count) in
        [(&[][..], &[LATE, NEVER, SECOND][..], 1), (&[], &[SECOND, NEVER], 1), (&["--ramp"], &["i-0005", LATE], 1)]
    {
        let told = check(options, ids).unwrap_err();
        let expected = format!("nothing submitted, {count} wrong");
        assert!(told.contains(&expected) && told.contains("expected 2026-12-01T00:00:00Z at the latest"), "{told}");
    }
}

#[test]
fn waves_that_are_too_many_or_are_none_are_named_with_their_line() {
    let folder = Folder::new();
    let rows: String = (1..=101).map(|wave| format!("i-0{wave:03},{wave}\n")).collect();
    let file = folder.put("a.csv", &format!("instance_id,wave\n{rows}i-0000,0\ni-0001,x\n"));
    let Err(InputFault::Problems(text)) = read(&[], std::slice::from_ref(&file)) else { panic!() };
    for expected in [
        "3 wrong",
        "line 102: wave 101 is one more than the 100 that a batch can have: use fewer numbers",
        "line 103: wave: invalid value: integer `0`, expected a whole number from 1 to 4294967295",
        "line 104: wave: invalid type: string \"x\", expected a whole number",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn everything_wrong_is_reported_at_once_with_its_place() {
    let folder = Folder::new();
    let (first, second) = (folder.put("a", "i-0000\n\nno id\n"), folder.put("b", "# i-1\n{}\n"));
    let missing = folder.0.join("missing");
    let files = [first.clone(), missing.clone(), second.clone()];
    let Err(InputFault::Problems(text)) = read(&["i-0000", "", "# no", "i-%2f%2f"], &files) else { panic!() };
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    for (line, expected) in lines.into_iter().zip([
        "nothing submitted, 4 wrong:".to_owned(),
        "  argument 4: \"i-%2f%2f\" is no instance id".to_owned(),
        format!("  {}, line 3: \"no id\" is no instance id", first.display()),
        format!("  cannot read {}: No such file", missing.display()),
        format!("  {}, line 2: missing field `instance_id`", second.display()),
    ]) {
        assert!(line.starts_with(&expected), "{line}");
    }
    assert!(read(&["#"], &[]).unwrap_err().to_string().contains("no instance was named"));
    let twice = read(&[], &["-".into(), "-".into()]).unwrap_err().to_string();
    assert!(twice.contains("standard input can be read once"), "{twice}");
}

#[test]
fn files_are_read_in_their_order_after_the_arguments() {
    let folder = Folder::new();
    let files = [folder.put("b", "i-0002\n"), folder.put("a", "i-0001")];
    assert_eq!(ids(&read(&["i-0003"], &files).unwrap()), ["i-0003", "i-0002", "i-0001"]);
}

#[test]
fn the_end_of_its_name_says_how_a_file_is_written() {
    let folder = Folder::new();
    let files = [
        folder.put("a.csv", "\u{feff}instance_id,team\r\ni-0000,a\r\n"),
        folder.put("b.TSV", "team\tid\nb\ti-0001\n"),
        folder.put("csv", "i-0002\n"),
    ];
    assert_eq!(ids(&read(&[], &files).unwrap()), ["i-0000", "i-0001", "i-0002"]);
    let named = folder.put("c", "id\ni-0003\n");
    let as_table = input(&[], std::slice::from_ref(&named), Some(Format::Csv)).unwrap();
    assert_eq!(ids(&jobs(as_table).unwrap()), ["i-0003"]);
    let told = read(&[], &[named]).unwrap_err().to_string();
    assert!(told.contains("line 1: id begins a table"), "{told}");
}

#[test]
fn jobs_that_differ_in_anything_are_two_and_others_one() {
    let job = |more: &str| format!(r#"{{"instance_id":"i-0000"{more}}}"#);
    let (early, late) = (job(r#","deadline":"9999-12-31T23:59:59Z""#), job(r#","labels":{"a":"b"}"#));
    assert_eq!(read(&["i-0000", &early, &late, &early, "i-0000", &job("")], &[]).unwrap().len(), 3);
}

#[test]
fn a_job_that_is_repeated_is_named_with_both_places() {
    let folder = Folder::new();
    let file = folder.put("a.txt", "# a comment\ni-0001\ni-0000\ni-0000\n");
    let mut input = input(&["i-0000"], std::slice::from_ref(&file), None).unwrap();
    let mut checked = input.check().unwrap();
    assert_eq!((checked.size(), checked.parts["b"].size), (2, 2));
    for _ in 0..2 {
        checked.parts.values_mut().for_each(|part| part.add(Uuid::nil(), None).unwrap());
    }
    let file = file.display();
    let expected = format!(
        "\n  i-0000: {file}, line 3, and before at argument 1\n  i-0000: {file}, line 4, and before at argument 1"
    );
    assert_eq!(input.leave_repeated_out(&mut checked).to_string(), expected);
}

#[test]
fn a_file_that_was_changed_in_between_is_noticed() {
    let folder = Folder::new();
    for (after, told) in [
        ("i-0000\n", "1 jobs are there, and 2 were before"),
        ("i-0000\ni-0002\n", "line 2: i-0002 was not there before"),
        ("i-0000\nnone\n", "line 2: \"none\" is no instance id"),
    ] {
        let file = folder.put("a", "i-0000\ni-0001\n");
        let mut input = input(&[], std::slice::from_ref(&file), None).unwrap();
        let checked = input.check().unwrap();
        folder.put("a", after);
        let end = input.jobs(&checked, |_, _| ControlFlow::Continue(()));
        assert!(end.unwrap_err().contains(told), "{told}");
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_line() {
    let folder = Folder::new();
    for first in ["i-0000", "{\"instance_id\":\"i-0000\"}", "# a comment"] {
        let file = folder.put("a", &format!("\u{feff}{first}\r\ni-0001\r\n"));
        assert_eq!(ids(&read(&[], &[file]).unwrap()).last(), Some(&"i-0001"), "{first}");
    }
}

#[test]
fn what_never_ends_or_is_not_in_utf_8_is_a_fault_with_its_line() {
    let folder = Folder::new();
    let gbk = folder.0.join("gbk");
    std::fs::write(&gbk, b"i-0000\n\xb1\xb1\xbe\xa9\ni-0001\n").unwrap();
    let text = read(&[], &["/dev/zero".into(), gbk]).unwrap_err().to_string();
    assert!(text.contains("/dev/zero, line 1: the line has more than 131072 bytes"), "{text}");
    assert!(text.contains("gbk, line 2: it is not in UTF-8: save the file as UTF-8"), "{text}");
}

#[test]
fn a_fault_is_one_line_whatever_it_quotes() {
    let ids = ["i-\u{1b}[2J\n  and 7 more", "{\"instance_id\":\"i-0000\",\"conflict\":\"\\u001b\\n\\u202e\"}"];
    let text = read(&ids, &["/\u{1b}\n".into()]).unwrap_err().to_string();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.contains(r"unknown variant `\u{1b}\n\u{202e}`"), "{text}");
    assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
}
