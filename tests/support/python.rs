//! The Python that other clients than ours run in.

use std::path::PathBuf;

/// The interpreter that has the official SDK and pika.
pub fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("REVEILLE_TEST_PYTHON") {
        return python.into();
    }
    let python = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python"));
    assert!(
        python.exists(),
        "no Python with the official SDK and pika at {}: `make test` sets it up, or name one in REVEILLE_TEST_PYTHON",
        python.display()
    );
    python
}
