//! Keys: where they come from, and how they are kept from being seen.

use std::path::{Path, PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

/// A pair of keys and, for temporary ones (STS), their session token. Secrets do not print and are wiped on drop.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Names the key; it goes over the wire in clear and is no secret.
    pub access_key_id: String,
    /// Signs.
    pub secret_access_key: SecretString,
    /// Goes into `x-bce-security-token`.
    pub session_token: Option<SecretString>,
}

/// Where a lane's credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// `BCE_ACCESS_KEY_ID`, `BCE_SECRET_ACCESS_KEY` and, if set, `BCE_SESSION_TOKEN`.
    Environment,
    /// A TOML file with `access_key_id`, `secret_access_key` and, optionally, `session_token`.
    File(PathBuf),
}

/// Why there are no credentials. Never shows a secret.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// An environment variable is missing, empty or no text a header can carry.
    #[error("{0} is {1}: set it in the environment, or name a credentials_file for the lane")]
    Environment(&'static str, &'static str),
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file has not the form it should have.
    #[error("{}: {problem}; expected TOML with access_key_id and secret_access_key (and session_token for STS)", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, without any of the file's text.
        problem: String,
    },
}

/// `expires_at` is accepted, since issuers of temporary keys write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    access_key_id: String,
    secret_access_key: SecretString,
    session_token: Option<SecretString>,
    #[serde(rename = "expires_at")]
    _expires_at: Option<toml::Value>,
}

impl CredentialSource {
    /// Reads the credentials.
    ///
    /// # Errors
    /// [`CredentialError`], naming the variable or file and the remedy.
    pub fn load(&self) -> Result<Credentials, CredentialError> {
        match self {
            Self::Environment => from_environment(|name| std::env::var(name).ok()),
            Self::File(path) => from_file(path),
        }
    }
}

fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Credentials, CredentialError> {
    let required = |name: &'static str| match variable(name) {
        None => Err(CredentialError::Environment(name, "not set")),
        Some(value) => check(&value).map(|()| value).map_err(|problem| CredentialError::Environment(name, problem)),
    };
    let session_token = match variable("BCE_SESSION_TOKEN") {
        None => None,
        Some(_) => Some(required("BCE_SESSION_TOKEN")?.into()),
    };
    Ok(Credentials {
        access_key_id: required("BCE_ACCESS_KEY_ID")?,
        secret_access_key: required("BCE_SECRET_ACCESS_KEY")?.into(),
        session_token,
    })
}

fn from_file(path: &Path) -> Result<Credentials, CredentialError> {
    use secrecy::ExposeSecret;

    let malformed = |problem: String| CredentialError::Malformed { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path)
        .map(SecretString::from)
        .map_err(|source| CredentialError::Unreadable { path: path.to_owned(), source })?;
    // `message()` and not the whole error, which quotes the line it stopped at: that could be the secret's.
    let file: File =
        toml::from_str(text.expose_secret()).map_err(|error| malformed(problem_without_values(error.message())))?;
    let named = [
        ("access_key_id", Some(file.access_key_id.as_str())),
        ("secret_access_key", Some(file.secret_access_key.expose_secret())),
        ("session_token", file.session_token.as_ref().map(ExposeSecret::expose_secret)),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            check(value).map_err(|problem| malformed(format!("{name} is {problem}")))?;
        }
    }
    Ok(Credentials {
        access_key_id: file.access_key_id,
        secret_access_key: file.secret_access_key,
        session_token: file.session_token,
    })
}

/// Messages such as ``invalid type: string "…", expected …`` quote values; those of missing or unknown fields do not.
fn problem_without_values(message: &str) -> String {
    if message.starts_with("missing field") || message.starts_with("unknown field") {
        message.to_owned()
    } else {
        "not TOML of that form".to_owned()
    }
}

fn check(value: &str) -> Result<(), &'static str> {
    if value.is_empty() {
        Err("empty")
    } else if value.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(())
    } else {
        Err("not plain ASCII without spaces")
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
            "hush",
            "",
        ] {
            let error = load(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hush"), "{error}");
        }
    }

    #[test]
    fn an_environment_without_keys_is_named() {
        let error = from_environment(|name| (name == "BCE_ACCESS_KEY_ID").then(|| "ak".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("BCE_SECRET_ACCESS_KEY is not set"), "{error}");
        let error = from_environment(|_| Some(String::new())).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
    }
}
