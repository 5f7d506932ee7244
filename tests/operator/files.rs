//! Files that an operator names: anything but a regular file is reported at once, and never waited for.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use crate::support::child::Child;
use crate::support::daemon::Config;
use crate::support::eventually;
use crate::support::key_folder::{KeyFolder, keys};
use crate::support::sim::{KEY, SECRET};
use crate::support::stage::{Stage, Wishes};

fn make_fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Files that are not regular, and the error for each.
fn odd_files(folder: &KeyFolder) -> [(String, &'static str); 4] {
    let path = |name: &str| folder.file().with_file_name(name).to_str().unwrap().to_owned();
    make_fifo(path("fifo").as_ref());
    std::fs::create_dir(path("directory")).unwrap();
    std::fs::File::create(path("huge")).unwrap().set_len(1 << 40).unwrap();
    [
        (path("fifo"), "it is a FIFO, not a regular file"),
        (path("directory"), "it is a directory, not a regular file"),
        (path("huge"), "it has more than "),
        ("/dev/zero".to_owned(), "it is a device, not a regular file"),
    ]
}

/// With any such file, the command ends by itself.
async fn refused(mut command: Command, path: &str, problem: &str) {
    command.env("REVEILLE_HTTP__LISTEN", "127.0.0.1:0");
    let mut child = Child::start(command);
    assert_eq!(child.ended().await.code(), Some(2), "{path}: {}", child.output());
    let output = child.output();
    assert!(output.contains(path) && output.contains(problem) && output.contains("expected a"), "{path}: {output}");
}

#[tokio::test]
async fn a_configuration_that_is_no_regular_file_is_told_and_not_waited_for() {
    let folder = KeyFolder::new();
    for (path, problem) in odd_files(&folder) {
        for arguments in [&["run", "--config", &path][..], &["topology", "--config", &path]] {
            refused(Config::write("").command(arguments), &path, problem).await;
        }
    }
}

#[tokio::test]
async fn keys_and_a_password_that_are_no_regular_file_are_told_and_not_waited_for() {
    let folder = KeyFolder::new();
    for (path, problem) in odd_files(&folder) {
        let keys = Config::write(&format!("[[lane]]\nname = \"prod\"\ncredentials_file = {path:?}"));
        refused(keys.command(&["run"]), &path, problem).await;
        let password = Config::write(&format!("[broker]\npassword_file = {path:?}"));
        refused(password.command(&["run"]), &path, problem).await;
    }
}

#[tokio::test]
async fn keys_that_are_replaced_by_what_is_no_regular_file_stay_in_force_until_there_are_new_ones() {
    let folder = KeyFolder::new();
    folder.rename(&keys(KEY, SECRET));
    let lane = format!("credentials_file = {:?}", folder.file());
    let mut stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    for (seen, (path, problem)) in odd_files(&folder).into_iter().enumerate() {
        let file = folder.file();
        std::fs::remove_file(&file).unwrap();
        symlink(&path, &file).unwrap();
        let told = format!("cannot read {}: {problem}", file.display());
        eventually("it is told", async || stage.daemon.child.output().contains(&told).then_some(())).await;
        folder.rename(&keys(KEY, SECRET));
        eventually("it is mended", async || {
            (stage.daemon.child.output().matches("can be read again").count() == seen + 1).then_some(())
        })
        .await;
    }
    let account = json!({"access_key_id": "new-key-id", "secret_access_key": "a-newer-secret"});
    stage.sim.control("PUT", "credentials", account).await;
    folder.rename(&keys("new-key-id", "a-newer-secret"));
    stage.wake("i-sim00001").await;
    assert_eq!(stage.outcome().await["outcome"], "started");
}

/// Writes keys that expire in so many hours into the file, and waits until they are in force.
async fn replace(stage: &Stage, path: &Path, hours: i64) {
    let expires_at = Timestamp::now() + SignedDuration::from_hours(hours);
    std::fs::write(path, format!("{}expires_at = {expires_at}\n", keys(KEY, SECRET))).unwrap();
    eventually("the new version is read", async || {
        let read = stage.daemon.metric(r#"reveille_lane_credentials_expire_timestamp_seconds{lane="prod"}"#).await;
        (read == expires_at.as_second() as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_that_every_user_may_read_are_warned_about_once_for_each_version() {
    const WARNING: &str = "bce.toml has a mode that lets every user read it";
    let folder = KeyFolder::new();
    let path = folder.file();
    folder.rename(&keys(KEY, SECRET));
    set_mode(&path, 0o640);
    let lane = format!("credentials_file = {path:?}");
    let stage = Stage::with(Wishes { lane: &lane, ..Wishes::default() }).await;
    let warned = |count: usize| {
        let stage = &stage;
        async move {
            eventually("it is warned about", async || {
                (stage.daemon.child.output().matches(WARNING).count() == count).then_some(())
            })
            .await;
        }
    };
    set_mode(&path, 0o644);
    warned(1).await;
    replace(&stage, &path, 1).await;
    warned(2).await;
    set_mode(&path, 0o600);
    replace(&stage, &path, 2).await;
    warned(2).await;
    let log = stage.daemon.child.output();
    let line = log.lines().find(|line| line.contains(WARNING)).unwrap();
    assert!(line.contains("WARN") && line.contains("chmod 600") && !log.contains(SECRET), "{line}");
}
