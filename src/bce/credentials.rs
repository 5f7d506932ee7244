//! Keys: where they come from, and how they stay hidden.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::file::{self, LARGEST_SECRET};

/// A pair of keys and, for temporary ones (STS), their session token. Secrets do not print and are wiped on drop.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Names the key. It is sent in clear and is no secret.
    pub access_key_id: String,
    /// Signs requests.
    pub secret_access_key: SecretString,
    /// Sent as `x-bce-security-token`.
    pub session_token: Option<SecretString>,
    /// When temporary keys expire, by the API's clock. `None` if they do not, or the time is not given.
    pub expires_at: Option<Timestamp>,
}

impl Credentials {
    /// Whether they have expired at `now`.
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|expires_at| expires_at <= now)
    }
}

impl PartialEq for Credentials {
    fn eq(&self, other: &Self) -> bool {
        let (token, other_token) = (self.session_token.as_ref(), other.session_token.as_ref());
        self.access_key_id == other.access_key_id
            && self.secret_access_key.expose_secret() == other.secret_access_key.expose_secret()
            && token.map(ExposeSecret::expose_secret) == other_token.map(ExposeSecret::expose_secret)
            && self.expires_at == other.expires_at
    }
}

/// Where a lane's credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// `BCE_ACCESS_KEY_ID`, `BCE_SECRET_ACCESS_KEY` and, if set, `BCE_SESSION_TOKEN`.
    Environment,
    /// A TOML file with `access_key_id`, `secret_access_key` and, optionally, `session_token` and `expires_at`.
    File(PathBuf),
}

/// Why there are no credentials. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// An environment variable is missing, empty or no text a header can carry.
    #[error("{0} {1}: set it in the environment, or name a credentials_file for the lane")]
    Environment(&'static str, String),
    /// The file could not be read.
    #[error("cannot read {}: {source}; expected a file with the lane's keys that the daemon may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has not the form it should have.
    #[error("{}: {problem}; expected TOML with access_key_id and secret_access_key (and session_token, expires_at for STS)", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any of the file's text.
        problem: String,
    },
}

/// The contents of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    access_key_id: String,
    secret_access_key: SecretString,
    session_token: Option<SecretString>,
    expires_at: Option<toml::Value>,
}

impl CredentialSource {
    /// Reads the credentials.
    ///
    /// # Errors
    /// [`CredentialError`], naming the variable or file and the remedy.
    pub fn load(&self) -> Result<Credentials, CredentialError> {
        match self {
            Self::Environment => from_environment(|name| std::env::var(name).ok()),
            Self::File(path) => file::read(path, LARGEST_SECRET)
                .map_err(|source| CredentialError::Unreadable { path: path.clone(), source })
                .and_then(|file| parse(path, &file.text)),
        }
    }
}

fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Credentials, CredentialError> {
    let required = |name: &'static str| match variable(name) {
        None => Err(CredentialError::Environment(name, "is not set".to_owned())),
        Some(value) => {
            // Tools that read the value from a file keep the newline at its end.
            let value = value.trim_end_matches(['\r', '\n']);
            check(value).map(|()| value.to_owned()).map_err(|problem| CredentialError::Environment(name, problem))
        }
    };
    let session_token = match variable("BCE_SESSION_TOKEN") {
        None => None,
        Some(_) => Some(required("BCE_SESSION_TOKEN")?.into()),
    };
    Ok(Credentials {
        access_key_id: required("BCE_ACCESS_KEY_ID")?,
        secret_access_key: required("BCE_SECRET_ACCESS_KEY")?.into(),
        session_token,
        expires_at: None,
    })
}

/// The keys in the text of the file at `path`.
pub(super) fn parse(path: &Path, text: &SecretString) -> Result<Credentials, CredentialError> {
    let malformed = |problem: String| CredentialError::Malformed { path: path.to_owned(), problem };
    // `message()` and not the whole error, which quotes the line where it stopped: that may be the secret's.
    let table: Table =
        toml::from_str(text.expose_secret()).map_err(|error| malformed(problem_without_values(error.message())))?;
    let named = [
        ("access_key_id", Some(table.access_key_id.as_str())),
        ("secret_access_key", Some(table.secret_access_key.expose_secret())),
        ("session_token", table.session_token.as_ref().map(ExposeSecret::expose_secret)),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            check(value).map_err(|problem| malformed(format!("{name} {problem}")))?;
        }
    }
    let expires_at = table.expires_at.as_ref().map(|value| time(value).ok_or(NO_TIME)).transpose();
    Ok(Credentials {
        access_key_id: table.access_key_id,
        secret_access_key: table.secret_access_key,
        session_token: table.session_token,
        expires_at: expires_at.map_err(|problem| malformed(problem.to_owned()))?,
    })
}

const NO_TIME: &str = "expires_at is no time with its offset from UTC, such as 2026-11-25T09:30:00Z";

/// RFC 3339, as a string or as a TOML date-time.
fn time(value: &toml::Value) -> Option<Timestamp> {
    match value {
        toml::Value::String(text) => text.parse().ok(),
        toml::Value::Datetime(datetime) => datetime.to_string().parse().ok(),
        _ => None,
    }
}

/// Messages such as ``invalid type: string "…", expected …`` quote values; those of missing or unknown fields do not.
fn problem_without_values(message: &str) -> String {
    if message.starts_with("missing field") || message.starts_with("unknown field") {
        message.to_owned()
    } else {
        "not TOML of that form".to_owned()
    }
}

fn check(value: &str) -> Result<(), String> {
    if value.is_empty() {
        Err("is empty".to_owned())
    } else if let Some(control) = value.chars().find(|character| character.is_control()) {
        Err(format!("has the control character U+{:04X} in it", u32::from(control)))
    } else if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("is not plain ASCII without spaces".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Credentials, CredentialError> {
        let path = std::env::temp_dir().join(format!("reveille-credentials-{}.toml", uuid::Uuid::now_v7()));
        std::fs::write(&path, text).unwrap();
        let loaded = CredentialSource::File(path.clone()).load();
        std::fs::remove_file(path).unwrap();
        loaded
    }

    #[test]
    fn a_file_gives_keys_and_no_fault_of_it_shows_a_secret() {
        let keys = load("access_key_id = 'ak'\nsecret_access_key = 'hush'\nsession_token = 'tok'").unwrap();
        assert_eq!(keys.access_key_id, "ak");
        assert!(!format!("{keys:?}").contains("hush"));
        for text in [
            "access_key_id = 'ak'\nsecret_access_key = 'hush hush'",
            "access_key_id = 'ak'\nsecret_access_key = hush",
            "access_key_id = 1\nsecret_access_key = 'hush'",
            "access_key_id = 'ak'\nsecret_acess_key = 'hush'",
            "access_key_id = ['hush']",
            "access_key_id = 'ak'\nsecret_access_key = 'hush'\nexpires_at = 'hush'",
            "hush",
            "",
        ] {
            let error = load(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }

    #[test]
    fn expires_at_is_read_in_both_forms_and_a_wrong_one_is_named() {
        let with = |value: &str| load(&format!("access_key_id = 'ak'\nsecret_access_key = 'sk'\nexpires_at = {value}"));
        let expected: Timestamp = "2026-11-25T07:30:00Z".parse().unwrap();
        for value in [
            "'2026-11-25T07:30:00Z'",
            "2026-11-25T07:30:00Z",
            "2026-11-25 15:30:00+08:00",
            "'2026-11-25T15:30:00.000+08:00'",
        ] {
            let keys = with(value).unwrap();
            assert_eq!(keys.expires_at, Some(expected), "{value}");
            let just_before = Timestamp::from_second(expected.as_second() - 1).unwrap();
            assert!(keys.expired(expected) && !keys.expired(just_before));
        }
        for value in ["'soon'", "''", "2026-11-25", "2026-11-25T07:30:00", "'2026-11-25T07:30:00'", "1795591800", "[]"]
        {
            let error = with(value).unwrap_err().to_string();
            assert!(error.contains("expires_at") && error.contains("2026-11-25T09:30:00Z"), "{value}: {error}");
        }
        assert!(!load("access_key_id = 'ak'\nsecret_access_key = 'sk'").unwrap().expired(Timestamp::MAX));
    }

    #[test]
    fn a_file_that_is_none_of_keys_is_not_read_to_its_end() {
        let error = load(&"#".repeat(100_000)).unwrap_err().to_string();
        assert!(error.contains("more than 65536 bytes"), "{error}");
    }

    #[test]
    fn an_environment_without_keys_is_named() {
        let error = from_environment(|name| (name == "BCE_ACCESS_KEY_ID").then(|| "ak".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("BCE_SECRET_ACCESS_KEY is not set"), "{error}");
        let error = from_environment(|_| Some(String::new())).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
    }

    #[test]
    fn newlines_behind_a_key_of_the_environment_are_no_part_of_it_and_those_within_are_named() {
        let keys = from_environment(|name| Some(format!("{name}\r\n"))).unwrap();
        assert_eq!(keys.access_key_id, "BCE_ACCESS_KEY_ID");
        assert_eq!(keys.secret_access_key.expose_secret(), "BCE_SECRET_ACCESS_KEY");
        let error = from_environment(|_| Some("hush\nhush".to_owned())).unwrap_err().to_string();
        assert!(error.contains("has the control character U+000A in it") && !error.contains("hush"), "{error}");
    }
}
