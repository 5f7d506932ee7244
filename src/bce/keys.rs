//! Keeps a client's keys in step with its credentials file, and logs when no valid ones are there.

use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{Client, CredentialError, CredentialSource, Credentials, KeyFile};
use crate::file::OPEN_TO_ALL;

/// Between two reads of the file. New contents count once two reads saw them.
const EVERY: Duration = Duration::from_millis(500);

/// Follows the credentials file of `client` for as long as the process lives. Calls `in_force` with the first keys and
/// whenever there are new ones. Keys from the environment never change. `lane` is named in the log.
pub async fn follow(client: &Client, source: &CredentialSource, lane: &str, in_force: impl Fn(&Credentials)) {
    in_force(&client.credentials());
    let CredentialSource::File(path) = source else { return };
    let mut file = KeyFile::new(path.clone());
    let (mut broken, mut expired) = (false, false);
    loop {
        sleep(EVERY).await;
        // A file system that hangs blocks nothing else.
        let looking = spawn_blocking(move || {
            let report = file.look();
            (file, report)
        });
        let Ok((looked, report)) = looking.await else { return };
        file = looked;
        if let Some(report) = report {
            take_up(client, lane, report, &file, &mut broken, &in_force);
        }
        watch_expiry(client, lane, &file, &mut expired);
    }
}

/// Puts the file's keys into force. An unreadable file changes nothing.
fn take_up(
    client: &Client,
    lane: &str,
    report: Result<Credentials, CredentialError>,
    file: &KeyFile,
    broken: &mut bool,
    in_force: &impl Fn(&Credentials),
) {
    let path = file.path().display();
    let credentials = match report {
        Err(error) => {
            if !std::mem::replace(broken, true) {
                warn!(%lane, "the keys stay what they were: {error}");
            }
            return;
        }
        Ok(credentials) => credentials,
    };
    if std::mem::take(broken) {
        info!(%lane, "{path} can be read again");
    }
    if file.is_open() {
        warn!(%lane, "{path} {OPEN_TO_ALL}");
    }
    let access_key_id = credentials.access_key_id.clone();
    if client.replace_credentials(credentials) {
        in_force(&client.credentials());
        info!(%lane, access_key_id, "new keys from {path}");
    }
}

fn watch_expiry(client: &Client, lane: &str, file: &KeyFile, expired: &mut bool) {
    let is_expired = client.keys_expired();
    if is_expired && !*expired {
        let (keys, path) = (client.credentials(), file.path().display());
        warn!(
            %lane,
            access_key_id = keys.access_key_id,
            "the keys have expired, and no calls are made until {path} has new ones"
        );
    }
    *expired = is_expired;
}
