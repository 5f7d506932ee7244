//! Keeps a lane's keys those of its credentials file, and tells when there are none that are good.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use super::Lane;
use crate::bce::{CredentialError, CredentialSource, Credentials, KeyFile};
use crate::file::OPEN_TO_ALL;

/// Between two looks at the file. What is new is taken when two of them saw it.
const EVERY: Duration = Duration::from_millis(500);

impl Lane {
    /// Follows the credentials file for as long as the process lives. Keys from the environment stay what they are.
    pub async fn follow_keys(self: Arc<Self>) {
        self.note_expiry();
        let CredentialSource::File(path) = &self.credentials else { return };
        let mut file = KeyFile::new(path.clone());
        let (mut broken, mut expired) = (false, false);
        loop {
            sleep(EVERY).await;
            // A file system that hangs holds up nobody else.
            let looking = spawn_blocking(move || {
                let report = file.look();
                (file, report)
            });
            let Ok((looked, report)) = looking.await else { return };
            file = looked;
            if let Some(report) = report {
                self.take_up(report, &file, &mut broken);
            }
            self.watch_expiry(&file, &mut expired);
        }
    }

    /// Puts in force what the file has now. One that cannot be read changes nothing.
    fn take_up(&self, report: Result<Credentials, CredentialError>, file: &KeyFile, broken: &mut bool) {
        let (lane, path) = (&self.name, file.path().display());
        match report {
            Err(error) => {
                if !std::mem::replace(broken, true) {
                    warn!(%lane, "the keys stay what they were: {error}");
                }
            }
            Ok(credentials) => {
                if std::mem::take(broken) {
                    info!(%lane, "{path} can be read again");
                }
                if file.is_open() {
                    warn!(%lane, "{path} {OPEN_TO_ALL}");
                }
                let access_key_id = credentials.access_key_id.clone();
                let secret_access_key = credentials.secret_access_key.clone();
                if self.client.replace_credentials(credentials) {
                    self.seals.replace(secret_access_key.expose_secret());
                    self.note_expiry();
                    info!(%lane, access_key_id, "new keys from {path}");
                }
            }
        }
    }

    fn watch_expiry(&self, file: &KeyFile, expired: &mut bool) {
        let is_expired = self.client.keys_expired();
        if is_expired && !*expired {
            let keys = self.client.credentials();
            let (lane, path) = (&self.name, file.path().display());
            warn!(
                %lane, access_key_id = keys.access_key_id,
                "the keys have expired, and no calls are made until {path} has new ones"
            );
        }
        *expired = is_expired;
    }

    fn note_expiry(&self) {
        let expires_at = self.client.credentials().expires_at;
        self.metrics.credentials_expire.set(expires_at.map_or(0, |expires_at| expires_at.as_second()));
    }
}
