//! A credentials file that may be replaced at any time, as secret stores and rotations do it.

use std::io;
use std::path::{Path, PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::credentials::{self, CredentialError, Credentials};

/// Tells when there is something new in a credentials file, however it came there: renamed over the old one, written
/// into it, or behind a link that now points elsewhere.
#[derive(Debug)]
pub struct KeyFile {
    path: PathBuf,
    /// What the last look saw.
    seen: Option<Seen>,
    /// Whether that was reported already.
    reported: bool,
}

/// The text, or why there was none.
type Seen = Result<SecretString, io::ErrorKind>;

impl KeyFile {
    /// The file at `path`, not looked at yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, seen: None, reported: false }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file. What is in it is reported once, when two looks in a row saw the same: the first may have come
    /// while somebody was writing. Blocks for as long as the file system does.
    pub fn look(&mut self) -> Option<Result<Credentials, CredentialError>> {
        let read = credentials::read(&self.path);
        self.judge(read)
    }

    fn judge(&mut self, read: io::Result<SecretString>) -> Option<Result<Credentials, CredentialError>> {
        if !self.seen.as_ref().is_some_and(|seen| is_same(seen, &read)) {
            self.reported = false;
            self.seen = Some(read.map_err(|error| error.kind()));
            return None;
        }
        if std::mem::replace(&mut self.reported, true) {
            return None;
        }
        Some(match read {
            Ok(text) => credentials::parse(&self.path, &text),
            Err(source) => Err(CredentialError::Unreadable { path: self.path.clone(), source }),
        })
    }
}

fn is_same(seen: &Seen, read: &io::Result<SecretString>) -> bool {
    match (seen, read) {
        (Ok(seen), Ok(read)) => seen.expose_secret() == read.expose_secret(),
        (Err(seen), Err(read)) => *seen == read.kind(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(id: &str) -> io::Result<SecretString> {
        Ok(format!("access_key_id = '{id}'\nsecret_access_key = 'hush'").into())
    }

    fn missing() -> io::Result<SecretString> {
        Err(io::ErrorKind::NotFound.into())
    }

    /// The key id that a look reports, or the error.
    fn reported(file: &mut KeyFile, read: io::Result<SecretString>) -> Option<String> {
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
    fn a_file_that_is_being_written_is_not_believed() {
        let mut file = KeyFile::new("/keys".into());
        for half in ["", "access_key_id = 'a'", "access_key_id = 'a'\nsecret_access_key = 'hu'"] {
            assert_eq!(reported(&mut file, Ok(half.to_owned().into())), None);
        }
        assert_eq!(reported(&mut file, text("a")), None);
        assert_eq!(reported(&mut file, text("a")).as_deref(), Some("a"));
    }

    #[test]
    fn what_is_wrong_with_it_is_reported_once_and_shows_no_secret() {
        let mut file = KeyFile::new("/keys".into());
        assert_eq!(reported(&mut file, missing()), None);
        let error = reported(&mut file, missing()).unwrap();
        assert!(error.contains("/keys") && error.contains("expected"), "{error}");
        assert_eq!(reported(&mut file, missing()), None);
        let torn = || Ok("secret_access_key = 'hush".to_owned().into());
        assert_eq!(reported(&mut file, torn()), None);
        let error = reported(&mut file, torn()).unwrap();
        assert!(error.contains("/keys") && !error.contains("hush"), "{error}");
        assert!(!format!("{file:?}").contains("hush"));
    }
}
