//! Credentials files, and the ways to replace them.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder with a credentials file, deleted after its test.
pub struct KeyFolder(PathBuf);

impl KeyFolder {
    pub fn new() -> Self {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("keys-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("the folder for test files is there");
        Self(path)
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("bce.toml")
    }

    /// Replaces the file with `text`, atomically.
    pub fn rename(&self, text: &str) {
        let new = self.0.join("bce.toml.new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.file()).unwrap();
    }

    /// As Kubernetes mounts a secret: a link to a file behind a link to a folder, and the latter is replaced.
    pub fn link(&self, version: &str, text: &str) {
        let folder = self.0.join(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("bce.toml"), text).unwrap();
        symlink(version, self.0.join("..data_tmp")).unwrap();
        std::fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
        if !self.file().is_symlink() {
            symlink(Path::new("..data").join("bce.toml"), self.file()).unwrap();
        }
    }
}

impl Drop for KeyFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The text of a credentials file.
pub fn keys(id: &str, secret: &str) -> String {
    format!("access_key_id = {id:?}\nsecret_access_key = {secret:?}\n")
}
