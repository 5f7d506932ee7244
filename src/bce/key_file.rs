//! A credentials file that may be replaced at any time, as secret stores and key rotations do.
//!
//! The file is polled, not watched: a rename, a write and a replaced link look the same that way, and network file
//! systems send no events. A new version counts once two reads, half a second apart, saw the same, since the first may
//! have happened during a write.

use std::io;
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;

use super::credentials::{self, CredentialError, Credentials};
use crate::file::{self, LARGEST_SECRET, SmallFile};

/// Detects new contents of a credentials file, whether renamed over the old file, written into it, or behind a link
/// that points elsewhere now.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    /// What the last read saw.
    seen: Option<Seen>,
    /// Whether that was reported already.
    reported: bool,
}

/// The file's contents, or why it could not be read.
type Seen = Result<SmallFile, io::ErrorKind>;

impl KeyFile {
    /// The file at `path`, not read yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None, reported: false }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every user of the machine may read the file, as of the last read.
    pub fn is_open(&self) -> bool {
        matches!(self.seen, Some(Ok(SmallFile { is_open: true, .. })))
    }

    /// Reads the file. New contents are returned once, when two reads in a row saw the same: the first may have
    /// happened during a write. Blocks for as long as the file system does.
    pub fn look(&mut self) -> Option<Result<Credentials, CredentialError>> {
        let read = file::read(&self.path, LARGEST_SECRET);
        self.judge(read)
    }

    fn judge(&mut self, read: io::Result<SmallFile>) -> Option<Result<Credentials, CredentialError>> {
        if !self.seen.as_ref().is_some_and(|seen| is_same(seen, &read)) {
            self.reported = false;
            self.seen = Some(read.map_err(|error| error.kind()));
            return None;
        }
        if std::mem::replace(&mut self.reported, true) {
            return None;
        }
        Some(match read {
            Ok(file) => credentials::parse(&self.path, &file.text),
            Err(source) => Err(CredentialError::Unreadable { path: self.path.clone(), source }),
        })
    }
}

fn is_same(seen: &Seen, read: &io::Result<SmallFile>) -> bool {
    match (seen, read) {
        (Ok(seen), Ok(read)) => seen.is_open == read.is_open && seen.text.expose_secret() == read.text.expose_secret(),
        (Err(seen), Err(read)) => *seen == read.kind(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> io::Result<SmallFile> {
        Ok(SmallFile { text: text.to_owned().into(), is_open: false })
    }

    fn text(id: &str) -> io::Result<SmallFile> {
        file(&format!("access_key_id = '{id}'\nsecret_access_key = 'hush'"))
    }

    fn missing() -> io::Result<SmallFile> {
        Err(io::ErrorKind::NotFound.into())
    }

    /// The key id that a read returns, or the error.
    fn reported(file: &mut KeyFile, read: io::Result<SmallFile>) -> Option<String> {
        let report = file.judge(read)?;
        Some(report.map_or_else(|error| error.to_string(), |keys| keys.access_key_id))
    }

    #[test]
    fn what_two_looks_saw_is_reported_once() {
        let mut file = KeyFile::new("/keys".into());
        let reports: Vec<_> =
            ["a", "a", "a", "b", "b", "b", "a", "a"].map(|id| reported(&mut file, text(id))).into_iter().collect();
        let report = |id: &str| Some(id.to_owned());
        assert_eq!(reports, [None, report("a"), None, None, report("b"), None, None, report("a")]);
    }

    #[test]
    fn permissions_that_change_are_reported_as_a_text_that_changes() {
        let mut keys = KeyFile::new("/keys".into());
        let with = |is_open| text("a").map(|file| SmallFile { is_open, ..file });
        let mut look = |is_open| (reported(&mut keys, with(is_open)).is_some(), keys.is_open());
        let looks = [false, false, true, true, true, false, false].map(&mut look);
        let expected = [false, true, false, true, false, false, true];
        assert_eq!(looks.map(|(is_reported, _)| is_reported), expected);
        assert_eq!(looks.map(|(_, is_open)| is_open), [false, false, true, true, true, false, false]);
    }

    #[test]
    fn a_file_that_is_being_written_is_not_believed() {
        let mut keys = KeyFile::new("/keys".into());
        for half in ["", "access_key_id = 'a'", "access_key_id = 'a'\nsecret_access_key = 'hu'"] {
            assert_eq!(reported(&mut keys, file(half)), None);
        }
        assert_eq!(reported(&mut keys, text("a")), None);
        assert_eq!(reported(&mut keys, text("a")).as_deref(), Some("a"));
    }

    #[test]
    fn what_is_wrong_with_it_is_reported_once_and_shows_no_secret() {
        let mut keys = KeyFile::new("/keys".into());
        assert_eq!(reported(&mut keys, missing()), None);
        let error = reported(&mut keys, missing()).unwrap();
        assert!(error.contains("/keys") && error.contains("expected"), "{error}");
        assert_eq!(reported(&mut keys, missing()), None);
        let torn = || file("secret_access_key = 'hush");
        assert_eq!(reported(&mut keys, torn()), None);
        let error = reported(&mut keys, torn()).unwrap();
        assert!(error.contains("/keys") && !error.contains("hush"), "{error}");
        assert!(!format!("{keys:?}").contains("hush"));
    }
}
