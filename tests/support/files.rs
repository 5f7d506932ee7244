//! Files that settings name.

use std::path::PathBuf;

/// A folder that is deleted after its test. RabbitMQ can read it, whatever the node's root.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("reveille-test-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("the folder for temporary files is there");
        Self(path)
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Replaces a file with `text`, atomically. Returns its path.
    pub fn put(&self, name: &str, text: &str) -> String {
        let (new, path) = (self.path(&format!("{name}.new")), self.path(name));
        std::fs::write(&new, text).expect("the folder is there");
        std::fs::rename(new, &path).expect("the folder is there");
        path
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).expect("the file is there");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
