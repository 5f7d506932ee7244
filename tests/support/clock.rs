//! A clock of the daemon's own, by Debian's libfaketime: only the time of day differs, not the time that goes by.

use std::path::Path;

use jiff::{SignedDuration, Timestamp, Unit};

use super::files::Folder;

const LIBRARIES: [&str; 3] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];
const OFFSET: &str = "offset";

/// A clock that can be set while daemons run by it.
pub struct Clock {
    folder: Folder,
    offset: SignedDuration,
}

impl Clock {
    /// One that agrees with all others.
    pub fn new() -> Self {
        let mut clock = Self { folder: Folder::new(), offset: SignedDuration::ZERO };
        clock.set_offset(SignedDuration::ZERO);
        clock
    }

    /// What a daemon needs in its environment to go by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let library = LIBRARIES.into_iter().find(|path| Path::new(path).exists());
        let library = library.expect("libfaketime is installed: tests/support/setup clock");
        let pairs = [
            ("LD_PRELOAD", library.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.folder.path(OFFSET)),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// The time that it shows.
    pub fn now(&self) -> Timestamp {
        Timestamp::now() + self.offset
    }

    /// Sets it, to about this time.
    pub fn set(&mut self, time: Timestamp) {
        self.set_offset(time.duration_since(Timestamp::now()));
    }

    fn set_offset(&mut self, offset: SignedDuration) {
        self.offset = offset.round(Unit::Second).expect("some hours");
        self.folder.put(OFFSET, &format!("{:+}\n", self.offset.as_secs()));
    }
}
