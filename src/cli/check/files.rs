//! Files with secrets: others must not read them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::sheet::Line;
use crate::config::{self, Config};
use crate::file::{self, LARGEST_CONFIGURATION, LARGEST_SECRET, SmallFile};

/// Timeout of reading a file, which a file system can keep waiting for ever.
const PATIENCE: Duration = Duration::from_secs(10);

/// The configuration, if it has a password in it, and the files that `[broker]` names.
pub(super) async fn of_daemon(config: &Config, path: Option<PathBuf>) -> Vec<Line> {
    let mut lines = Vec::new();
    if let Some(path) = path
        && let Ok(file) = read(path.clone(), LARGEST_CONFIGURATION).await
        && config::holds_secrets(file.text.expose_secret())
    {
        lines.push(judged("file", &path, "has a password in it", Ok(file)));
    }
    let broker = &config.broker;
    let key = broker.tls.client.as_ref().map(|(_, key)| (key, "has the key of the client's certificate"));
    let password = broker.password_file.as_ref().map(|path| (path, "has the password of the broker's user"));
    for (path, what) in password.into_iter().chain(key) {
        lines.push(judged("file", path, what, read(path.clone(), LARGEST_SECRET).await));
    }
    lines
}

/// A file with a lane's keys.
pub(super) async fn of_lane(path: &Path) -> Line {
    judged("keys.file", path, "has the keys", read(path.to_owned(), LARGEST_SECRET).await)
}

fn judged(check: &'static str, path: &Path, what: &str, read: Result<SmallFile, String>) -> Line {
    let path = path.display();
    match read {
        Ok(file) if file.is_open => Line::failed(check, format_args!("{path} {what}, and every user may read it"))
            .remedy(format_args!(
                "make it readable by the daemon alone: chmod 600 {path} (in Kubernetes, defaultMode: 0440 and an fsGroup)"
            )),
        Ok(_) => Line::passed(check, format_args!("{path} {what}, and only its owner and group may read it")),
        Err(error) => Line::failed(check, format_args!("{path} {what}, and cannot be read: {error}"))
            .remedy("run the check as the daemon's user, and let that read it"),
    }
}

async fn read(path: PathBuf, limit: u64) -> Result<SmallFile, String> {
    match timeout(PATIENCE, spawn_blocking(move || file::read(&path, limit))).await {
        Ok(Ok(read)) => read.map_err(|error| error.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("its file system does not answer within {PATIENCE:?}")),
    }
}
