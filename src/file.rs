//! Reads the small files that an operator names: settings, keys, a password.

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use secrecy::{ExposeSecret, SecretString};

/// The largest configuration, in bytes: room for thousands of lanes.
pub const LARGEST_CONFIGURATION: u64 = 1024 * 1024;
/// The largest file of keys or of a password, in bytes.
pub const LARGEST_SECRET: u64 = 64 * 1024;
/// The largest file of certificates, in bytes: a machine's own has some 200 KiB.
pub const LARGEST_CERTIFICATES: u64 = 1024 * 1024;
/// The warning after the path of a secret that [`SmallFile::is_open`].
pub const OPEN_TO_ALL: &str = "has a mode that lets every user read it: make it readable by the daemon alone, \
                               as with chmod 600 (in Kubernetes, defaultMode: 0440 and an fsGroup)";
/// Read permission for others than the owner and the group.
const READ_BY_OTHERS: u32 = 0o004;

/// The contents of a file. It does not print them.
#[derive(Debug)]
pub struct SmallFile {
    /// The whole text.
    pub text: SecretString,
    /// Whether every user of the machine may read it. Its group may: Kubernetes and systemd provide secrets that way.
    pub is_open: bool,
}

/// Reads the regular file at `path`, following links, if it has at most `limit` bytes. Never waits for a writer, as
/// reading a FIFO would; blocks for as long as the file system does.
///
/// # Errors
/// It cannot be opened or read, is not a regular file, is larger, or is not UTF-8.
pub fn read(path: &Path, limit: u64) -> io::Result<SmallFile> {
    // Before opening, since that alone triggers some devices, and unblocks the writer of a FIFO.
    check(&fs::metadata(path)?, limit)?;
    // And again, since the file may have been replaced. With NONBLOCK, a FIFO opens at once.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    check(&metadata, limit)?;
    let mut text = String::new();
    file.take(limit + 1).read_to_string(&mut text)?;
    let text = SecretString::from(text);
    // It may have grown, and files of /proc show no size.
    check_size(text.expose_secret().len() as u64, limit)?;
    Ok(SmallFile { text, is_open: metadata.permissions().mode() & READ_BY_OTHERS != 0 })
}

fn check(metadata: &Metadata, limit: u64) -> io::Result<()> {
    let (kind, file) = (metadata.file_type(), "not a regular file");
    if kind.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, format!("it is a directory, {file}")));
    }
    let other = [
        (kind.is_fifo(), "a FIFO"),
        (kind.is_socket(), "a socket"),
        (kind.is_char_device() || kind.is_block_device(), "a device"),
    ];
    match other.into_iter().find_map(|(is_it, what)| is_it.then_some(what)) {
        Some(what) => Err(io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, {file}"))),
        None => check_size(metadata.len(), limit),
    }
}

fn check_size(size: u64, limit: u64) -> io::Result<()> {
    if size > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    /// A folder that is deleted after its test.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let path = std::env::temp_dir().join(format!("reveille-file-{}", uuid::Uuid::now_v7()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn problem(path: &Path) -> String {
        read(path, LARGEST_SECRET).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_regular_file_is_told_at_once_and_never_waited_for() {
        let folder = Folder::new();
        let at = |name: &str| folder.0.join(name);
        assert!(Command::new("mkfifo").arg(at("fifo")).status().unwrap().success());
        let _listener = UnixListener::bind(at("socket")).unwrap();
        symlink("fifo", at("link")).unwrap();
        for (path, what) in [
            (at("fifo"), "a FIFO, not a regular file"),
            (at("link"), "a FIFO, not a regular file"),
            (at("socket"), "a socket, not a regular file"),
            (folder.0.clone(), "a directory, not a regular file"),
            ("/dev/zero".into(), "a device, not a regular file"),
            (at("none"), "No such file"),
        ] {
            let problem = problem(&path);
            assert!(problem.contains(what), "{}: {problem}", path.display());
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_also_where_no_size_is_told() {
        let folder = Folder::new();
        let path = folder.0.join("large");
        let file = File::create(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        assert_eq!(problem(&path), "it has more than 65536 bytes");
        file.set_len(LARGEST_SECRET).unwrap();
        assert_eq!(read(&path, LARGEST_SECRET).unwrap().text.expose_secret().len(), 65536);
        // /proc shows its files as empty.
        let status = Path::new("/proc/self/status");
        assert_eq!(fs::metadata(status).unwrap().len(), 0);
        assert_eq!(read(status, 100).unwrap_err().to_string(), "it has more than 100 bytes");
        assert!(read(status, LARGEST_SECRET).unwrap().text.expose_secret().starts_with("Name:"));
    }

    #[test]
    fn a_file_is_open_where_every_user_may_read_it_and_not_where_its_group_may() {
        let folder = Folder::new();
        let (path, link) = (folder.0.join("file"), folder.0.join("link"));
        fs::write(&path, "hush").unwrap();
        symlink("file", &link).unwrap();
        for (mode, is_open) in [(0o400, false), (0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let file = read(&link, LARGEST_SECRET).unwrap();
            assert_eq!(file.is_open, is_open, "{mode:o}");
            assert!(!format!("{file:?}").contains("hush"));
        }
    }
}
