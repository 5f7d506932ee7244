//! Reads what is to be submitted, and finds all that is wrong with it before anything is.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::{Failure, tell};
use crate::bce::InstanceId;
use crate::job::{self, Job};
use crate::text::Shown;

/// Problems listed, at most.
const FAULTS_SHOWN: usize = 20;
/// Of a file of jobs, in bytes: room for millions of ids, or for hundreds of thousands of whole jobs.
const LARGEST: u64 = 256 * 1024 * 1024;

/// The jobs of `ids` and of the lines of `file`, each instance once.
///
/// # Errors
/// Everything that is wrong, with its place.
pub(super) fn jobs(ids: &[String], file: Option<&Path>, batch: &str) -> Result<Vec<Job>, Failure> {
    let text = match file {
        None => String::new(),
        Some(path) if path == Path::new("-") => read_text(io::stdin(), LARGEST)
            .map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?,
        // Not only regular files: a shell hands over a FIFO for `<(command)`.
        Some(path) => File::open(path)
            .and_then(|file| read_text(file, LARGEST))
            .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?,
    };
    // As editors of another system put it there.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let name = file.map(|path| path.display().to_string()).unwrap_or_default();
    let arguments = ids.iter().map(|id| ("argument".to_owned(), id.as_str()));
    let lines = text.lines().enumerate().map(|(index, line)| (format!("{name}, line {}", index + 1), line));

    let (mut jobs, mut faults, mut seen, mut repeated) = (Vec::new(), Vec::new(), HashSet::new(), 0);
    for (place, line) in arguments.chain(lines) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match read(line, batch) {
            Ok(job) if seen.insert(job.instance_id.clone()) => jobs.push(job),
            Ok(_) => repeated += 1,
            Err(problem) => faults.push(Shown(format_args!("{place}: {problem}")).to_string()),
        }
    }
    if !faults.is_empty() {
        let (count, more) = (faults.len(), faults.len().saturating_sub(FAULTS_SHOWN));
        faults.truncate(FAULTS_SHOWN);
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        return Err(Failure::Problems(format!("nothing submitted, {count} wrong:\n  {}{more}", faults.join("\n  "))));
    }
    if jobs.is_empty() {
        return Err(Failure::Usage("nothing submitted: no instance was named".to_owned()));
    }
    if repeated > 0 {
        tell(format_args!("{repeated} instances were named more than once and are submitted once"));
    }
    Ok(jobs)
}

/// All of `from`, unless that is more than `limit` bytes.
fn read_text(from: impl Read, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    from.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        let problem = format!("it has more than {limit} bytes: expected fewer, in several files");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(text)
}

fn read(line: &str, batch: &str) -> Result<Job, String> {
    let mut job = if line.starts_with('{') {
        Job::parse(line.as_bytes()).map_err(|error| error.to_string())?
    } else {
        let instance_id = InstanceId::parse(line).map_err(|error| error.to_string())?;
        Job::of(instance_id)
    };
    job.batch_id.get_or_insert_with(|| batch.to_owned());
    job::check(&job).map_err(|error| error.to_string())?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_id_or_a_whole_job() {
        assert_eq!(read("i-YufwpQAe", "b").unwrap().batch_id.as_deref(), Some("b"));
        let job = read(r#"{"instance_id":"i-0000","batch_id":"own","labels":{"a":"b"}}"#, "b").unwrap();
        assert_eq!((job.batch_id.as_deref(), job.labels.len()), (Some("own"), 1));
        assert!(read("i-1", "b").unwrap_err().contains("is no instance id"));
        assert!(read("i-0000", &"b".repeat(200)).unwrap_err().contains("at most 128"));
    }

    #[test]
    fn everything_wrong_is_reported_at_once_and_nothing_submitted() {
        let ids = ["i-0000", "i-..", "", "# no", "i-0000", "i-%2f%2f"].map(str::to_owned);
        let Err(Failure::Problems(text)) = jobs(&ids, None, "b") else { panic!() };
        assert!(text.contains("2 wrong") && text.contains("i-..") && text.contains("%2f"), "{text}");
        assert_eq!(jobs(&["i-0000".to_owned(), "i-0000".to_owned()], None, "b").unwrap().len(), 1);
        assert!(jobs(&["#".to_owned()], None, "b").is_err());
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let path = std::env::temp_dir().join(format!("reveille-submit-{}", uuid::Uuid::now_v7()));
        for first in ["i-0000", "{\"instance_id\":\"i-0000\"}", "# a comment"] {
            std::fs::write(&path, format!("\u{feff}{first}\r\ni-0001\r\n")).unwrap();
            let read = jobs(&[], Some(&path), "b").unwrap();
            assert_eq!(read.last().unwrap().instance_id.as_str(), "i-0001", "{first}");
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_never_ends_is_not_read_to_its_end() {
        assert_eq!(read_text(&b"i-0000"[..], 6).unwrap(), "i-0000");
        for endless in [&b"i-00001"[..], &[0; 100]] {
            let error = read_text(endless, 6).unwrap_err().to_string();
            assert_eq!(error, "it has more than 6 bytes: expected fewer, in several files");
        }
    }

    #[test]
    fn a_fault_is_one_line_whatever_it_quotes() {
        let ids = ["i-\u{1b}[2J\n  and 7 more", "{\"instance_id\":\"i-0000\",\"conflict\":\"\\u001b\\n\\u202e\"}"];
        let Err(failure) = jobs(&ids.map(str::to_owned), None, "b") else { panic!() };
        let text = failure.to_string();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains(r"unknown variant `\u{1b}\n\u{202e}`"), "{text}");
        assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
    }
}
