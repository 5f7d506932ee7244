//! Reads what is to be submitted: once to find all that is wrong with it, before anything is submitted, and once more to submit
//! it. In between, 16 bytes are kept of each job.

mod excerpt;
mod lines;
mod table;
mod text;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use uuid::Uuid;

use self::excerpt::Excerpt;
use self::table::Table;
use self::text::Text;
use super::defaults::Defaults;
use super::identity::{Identity, Part};
use super::{Failure, tell};
use crate::config::LaneName;
use crate::job::{Job, Priority};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// An id, or a whole job in JSON, on each line.
    Lines,
    /// A table with commas.
    Csv,
    /// A table with tabs.
    Tsv,
}

impl Format {
    /// By the end of its name alone: what a file holds does not tell it.
    fn of(path: &Path) -> Self {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("csv") => Self::Csv,
            Some("tsv") => Self::Tsv,
            _ => Self::Lines,
        }
    }
}

/// The jobs of a command line and of files, in this order.
#[derive(Debug)]
pub(super) struct Input {
    ids: Vec<String>,
    files: Vec<(Text, Format)>,
    defaults: Defaults,
    identity: Identity,
}

/// What a first reading has found.
#[derive(Debug)]
pub(super) struct Checked {
    /// The ids of all jobs, sorted, each once.
    pub(super) ids: Vec<u128>,
    /// Those of jobs that stand in the input several times.
    repeated: HashSet<u128>,
    /// The batches that the jobs belong to.
    pub(super) parts: BTreeMap<String, Part>,
    /// Whether there are urgent jobs.
    pub(super) has_urgent: bool,
    /// Whether there are others.
    pub(super) has_others: bool,
}

/// What is found at a place of the input.
#[derive(Debug)]
enum Found {
    Job(Place, Box<Job>),
    /// With the place.
    Problem(String),
}

/// Where a job stands.
#[derive(Debug, Clone)]
struct Place {
    /// `None`: on the command line.
    file: Option<Arc<str>>,
    /// The line of the file or the number of the id, from 1.
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}, line {}", self.line),
            None => write!(f, "argument {}", self.line),
        }
    }
}

impl Checked {
    /// How many jobs there are.
    pub(super) fn size(&self) -> usize {
        self.ids.len()
    }
}

impl Input {
    /// Of `ids` and `files`.
    ///
    /// # Errors
    /// Standard input is named twice.
    pub(super) fn new(
        ids: Vec<String>,
        files: &[PathBuf],
        format: Option<Format>,
        defaults: Defaults,
        identity: Identity,
    ) -> Result<Self, Failure> {
        let file = |path: &PathBuf| (Text::of(path), format.unwrap_or_else(|| Format::of(path)));
        let files: Vec<_> = files.iter().map(file).collect();
        if files.iter().filter(|(text, _)| text.is_standard_input()).count() > 1 {
            return Err(Failure::Usage("--file - is given twice: standard input can be read once".to_owned()));
        }
        Ok(Self { ids, files, defaults, identity })
    }

    /// Where the jobs go.
    pub(super) fn lane(&self) -> &LaneName {
        &self.identity.lane
    }

    /// Reads everything, and names jobs that equal an earlier one in every field.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub(super) fn check(&mut self) -> Result<Checked, Failure> {
        let identity = self.identity.clone();
        let mut faults = Excerpt::for_errors();
        let mut checked = Checked {
            ids: Vec::new(),
            repeated: HashSet::new(),
            parts: BTreeMap::new(),
            has_urgent: false,
            has_others: false,
        };
        self.each(|found| {
            match found {
                Found::Problem(problem) => faults.push(problem),
                Found::Job(_, job) => checked.add(&job, identity.of(&job)),
            }
            ControlFlow::Continue(())
        });
        if faults.count() > 0 {
            return Err(Failure::Problems(format!("nothing submitted, {} wrong:{faults}", faults.count())));
        }
        if checked.ids.is_empty() {
            return Err(Failure::Usage("nothing submitted: no instance was named".to_owned()));
        }
        checked.ids.sort_unstable();
        let equal = checked.ids.windows(2).filter(|pair| pair[0] == pair[1]);
        checked.repeated = equal.map(|pair| pair[0]).collect();
        if !checked.repeated.is_empty() {
            checked.ids.dedup();
            let repeated = self.leave_repeated_out(&mut checked);
            tell(format_args!("submitted once, as these are the same in every field:{repeated}"));
        }
        Ok(checked)
    }

    /// Takes repeated jobs out of the sizes, and names them.
    fn leave_repeated_out(&mut self, checked: &mut Checked) -> Excerpt {
        let identity = self.identity.clone();
        let (mut first, mut repeated) = (HashMap::new(), Excerpt::for_errors());
        self.each(|found| {
            if let Found::Job(place, job) = found {
                let id = identity.of(&job);
                match first.entry(id.as_u128()) {
                    _ if !checked.repeated.contains(&id.as_u128()) => {}
                    Entry::Vacant(entry) => {
                        entry.insert(place);
                    }
                    Entry::Occupied(entry) => {
                        repeated.push(format_args!("{}: {place}, and before at {}", job.instance_id, entry.get()));
                        if let Some(part) = checked.parts.get_mut(batch_of(&job)) {
                            part.remove(id);
                        }
                    }
                }
            }
            ControlFlow::Continue(())
        });
        repeated
    }

    /// Hands over each job once, with its id, unless one breaks.
    ///
    /// # Errors
    /// It is not what was `checked`: a file was changed in between.
    pub(super) fn jobs(
        &mut self,
        checked: &Checked,
        mut take: impl FnMut(Uuid, Box<Job>) -> ControlFlow<()>,
    ) -> Result<(), String> {
        let identity = self.identity.clone();
        let (mut sent, mut end) = (HashSet::new(), Ok(()));
        let (mut count, mut is_over) = (0, false);
        self.each(|found| match found {
            Found::Problem(problem) => {
                end = Err(problem);
                ControlFlow::Break(())
            }
            Found::Job(place, job) => {
                let id = identity.of(&job);
                if checked.ids.binary_search(&id.as_u128()).is_err() {
                    end = Err(format!("{place}: {} was not there before", job.instance_id));
                    return ControlFlow::Break(());
                }
                if checked.repeated.contains(&id.as_u128()) && !sent.insert(id) {
                    return ControlFlow::Continue(());
                }
                count += 1;
                let next = take(id, job);
                is_over = next.is_break();
                next
            }
        });
        end?;
        let size = checked.size();
        if count == size || is_over { Ok(()) } else { Err(format!("{count} jobs are there, and {size} were before")) }
    }

    fn each(&mut self, mut take: impl FnMut(Found) -> ControlFlow<()>) {
        let defaults = &self.defaults;
        let found = |place: Place, job: Result<Job, String>| match job.and_then(|job| defaults.complete(job)) {
            Ok(job) => Found::Job(place, Box::new(job)),
            Err(problem) => Found::Problem(format!("{place}: {problem}")),
        };
        for (line, id) in (1..).zip(&self.ids) {
            if let Some(job) = lines::job(id)
                && take(found(Place { file: None, line }, job)).is_break()
            {
                return;
            }
        }
        for (text, format) in &mut self.files {
            let file: Arc<str> = text.name().into();
            let mut table = match format {
                Format::Lines => None,
                Format::Csv => Some(Table::new(b',')),
                Format::Tsv => Some(Table::new(b'\t')),
            };
            let mut is_over = false;
            let read = text.each_line(|line, text| {
                let job = match (text, &mut table) {
                    (Err(problem), _) => Some(Err(problem)),
                    (Ok(text), None) => lines::job(text),
                    (Ok(text), Some(table)) => table.job(text),
                };
                let Some(job) = job else { return ControlFlow::Continue(()) };
                let next = take(found(Place { file: Some(Arc::clone(&file)), line }, job));
                is_over = next.is_break();
                next
            });
            if let Err(error) = read {
                is_over = take(Found::Problem(format!("cannot read {file}: {error}"))).is_break();
            }
            if is_over {
                return;
            }
        }
    }
}

impl Checked {
    fn add(&mut self, job: &Job, id: Uuid) {
        self.ids.push(id.as_u128());
        let urgent = job.priority == Some(Priority::Urgent);
        self.has_urgent |= urgent;
        self.has_others |= !urgent;
        let batch = batch_of(job);
        match self.parts.get_mut(batch) {
            Some(part) => part.add(id),
            None => self.parts.entry(batch.to_owned()).or_default().add(id),
        }
    }
}

/// The batch of a job, which the defaults have filled in.
pub(super) fn batch_of(job: &Job) -> &str {
    job.batch_id.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::defaults;
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

    fn input(ids: &[&str], files: &[PathBuf], format: Option<Format>) -> Result<Input, Failure> {
        let ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let identity = Identity { lane: LaneName::parse("prod").unwrap(), moving_deadline: None };
        Input::new(ids, files, format, defaults::of(&["--batch", "b"]).unwrap(), identity)
    }

    fn jobs(mut input: Input) -> Result<Vec<Job>, Failure> {
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

    fn read(ids: &[&str], files: &[PathBuf]) -> Result<Vec<Job>, Failure> {
        jobs(input(ids, files, None)?)
    }

    fn ids(jobs: &[Job]) -> Vec<&str> {
        jobs.iter().map(|job| job.instance_id.as_str()).collect()
    }

    #[test]
    fn everything_wrong_is_reported_at_once_with_its_place() {
        let folder = Folder::new();
        let (first, second) = (folder.put("a", "i-0000\n\nno id\n"), folder.put("b", "# i-1\n{}\n"));
        let missing = folder.0.join("missing");
        let files = [first.clone(), missing.clone(), second.clone()];
        let Err(Failure::Problems(text)) = read(&["i-0000", "", "# no", "i-%2f%2f"], &files) else { panic!() };
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
            checked.parts.values_mut().for_each(|part| part.add(Uuid::nil()));
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
}
