//! Reads what is to be submitted, and finds all that is wrong with it before anything is.

mod excerpt;
mod lines;
mod table;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::ValueEnum;

use self::excerpt::Excerpt;
use super::defaults::Defaults;
use super::{Failure, tell};
use crate::job::Job;

/// Of a file of jobs, in bytes: room for millions of ids, or for hundreds of thousands of whole jobs.
const LARGEST: u64 = 256 * 1024 * 1024;

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

/// The jobs of `ids` and `files`, in this order, without those that equal an earlier one in every field.
///
/// # Errors
/// Everything that is wrong, with its place.
pub(super) fn jobs(
    ids: &[String],
    files: &[PathBuf],
    format: Option<Format>,
    defaults: &Defaults,
) -> Result<Vec<Job>, Failure> {
    if files.iter().filter(|path| is_standard_input(path)).count() > 1 {
        return Err(Failure::Usage("--file - is given twice: standard input can be read once".to_owned()));
    }
    let mut input = Input { defaults, jobs: Vec::new(), places: Vec::new(), faults: Excerpt::for_errors() };
    for (line, id) in (1..).zip(ids) {
        if let Some(job) = lines::job(id) {
            input.add(Place { file: None, line }, job);
        }
    }
    for path in files {
        input.read(path, format.unwrap_or_else(|| Format::of(path)));
    }
    input.finish()
}

/// Where a job stands.
#[derive(Debug, Clone)]
struct Place {
    /// `None`: on the command line.
    file: Option<Rc<str>>,
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

/// What was read so far.
struct Input<'a> {
    defaults: &'a Defaults,
    jobs: Vec<Job>,
    /// The place of each job. A list of its own: places are dropped before the jobs are published.
    places: Vec<Place>,
    faults: Excerpt,
}

impl Input<'_> {
    fn add(&mut self, place: Place, job: Result<Job, String>) {
        match job.and_then(|job| self.defaults.complete(job)) {
            Ok(job) => {
                self.jobs.push(job);
                self.places.push(place);
            }
            Err(problem) => self.faults.push(format_args!("{place}: {problem}")),
        }
    }

    fn read(&mut self, path: &Path, format: Format) {
        let name = if is_standard_input(path) { "standard input".to_owned() } else { path.display().to_string() };
        let text = match text_of(path) {
            Ok(text) => text,
            Err(error) => return self.faults.push(format_args!("cannot read {name}: {error}")),
        };
        // Editors of another system put it there.
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
        let file: Rc<str> = name.into();
        let add = |line, job| self.add(Place { file: Some(Rc::clone(&file)), line }, job);
        match format {
            Format::Lines => lines::each(text, add),
            Format::Csv => table::each(text, b',', add),
            Format::Tsv => table::each(text, b'\t', add),
        }
    }

    fn finish(mut self) -> Result<Vec<Job>, Failure> {
        let count = self.faults.count();
        if count > 0 {
            return Err(Failure::Problems(format!("nothing submitted, {count} wrong:{}", self.faults)));
        }
        if self.jobs.is_empty() {
            return Err(Failure::Usage("nothing submitted: no instance was named".to_owned()));
        }
        let (is_repeated, repeated) = self.repeated();
        if repeated.count() > 0 {
            tell(format_args!("submitted once, as these are the same in every field:{repeated}"));
        }
        let mut is_repeated = is_repeated.into_iter();
        self.jobs.retain(|_| !is_repeated.next().unwrap_or_default());
        Ok(self.jobs)
    }

    /// Which jobs equal an earlier one, and where.
    fn repeated(&self) -> (Vec<bool>, Excerpt) {
        let mut first = HashMap::with_capacity(self.jobs.len());
        let mut repeated = Excerpt::for_errors();
        let is_repeated = self.jobs.iter().zip(&self.places).map(|(job, place)| match first.entry(job) {
            Entry::Vacant(entry) => {
                entry.insert(place);
                false
            }
            Entry::Occupied(entry) => {
                repeated.push(format_args!("{}: {place}, and before at {}", job.instance_id, entry.get()));
                true
            }
        });
        (is_repeated.collect(), repeated)
    }
}

fn is_standard_input(path: &Path) -> bool {
    path == Path::new("-")
}

/// Not only of regular files: a shell hands over a FIFO for `<(command)`.
fn text_of(path: &Path) -> io::Result<String> {
    if is_standard_input(path) { read_text(io::stdin(), LARGEST) } else { read_text(File::open(path)?, LARGEST) }
}

/// All of `from`, unless that is more than `limit` bytes.
fn read_text(from: impl Read, limit: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let problem = format!("it has more than {limit} bytes: expected fewer, in several files");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not in UTF-8: save it as UTF-8"))
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

    fn read(ids: &[&str], files: &[PathBuf]) -> Result<Vec<Job>, Failure> {
        let ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
        jobs(&ids, files, None, &defaults::of(&[]).unwrap())
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
        let defaults = defaults::of(&[]).unwrap();
        let named = folder.put("c", "id\ni-0003\n");
        assert_eq!(ids(&jobs(&[], std::slice::from_ref(&named), Some(Format::Csv), &defaults).unwrap()), ["i-0003"]);
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
        let defaults = defaults::of(&[]).unwrap();
        let mut input =
            Input { defaults: &defaults, jobs: Vec::new(), places: Vec::new(), faults: Excerpt::for_errors() };
        for (file, line) in [(None, 1), (Some("a.txt".into()), 7)] {
            input.add(Place { file, line }, lines::job("i-0000").unwrap());
        }
        let (is_repeated, repeated) = input.repeated();
        assert_eq!(is_repeated, [false, true]);
        assert_eq!(repeated.to_string(), "\n  i-0000: a.txt, line 7, and before at argument 1");
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
    fn what_never_ends_is_not_read_to_its_end() {
        assert_eq!(read_text(&b"i-0000"[..], 6).unwrap(), "i-0000");
        for endless in [&b"i-00001"[..], &[0; 100]] {
            let error = read_text(endless, 6).unwrap_err().to_string();
            assert_eq!(error, "it has more than 6 bytes: expected fewer, in several files");
        }
        let gbk = read_text(&b"\xb1\xb1\xbe\xa9"[..], 6).unwrap_err().to_string();
        assert_eq!(gbk, "it is not in UTF-8: save it as UTF-8");
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
