//! Python for clients other than ours.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// The interpreter with the official SDK and pika.
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

/// Timeout for messages with deeply nested headers. RabbitMQ 4.0 needs two seconds or more for one that is nested
/// 10,000 deep, before any client gets it: the tests' messages cost it half a minute of an idle processor.
pub const DEEP: Duration = Duration::from_secs(5 * 60);

/// Publishes messages that RabbitMQ passes on and lapin cannot read: of a kind in `odd_message.py`, with a body.
pub fn publish_odd(url: &str, exchange: &str, key: &str, messages: &[(&str, &str)]) {
    assert!(try_publish_odd(url, exchange, key, messages));
}

/// The same if RabbitMQ may refuse them. Returns whether it accepted them.
pub fn try_publish_odd(url: &str, exchange: &str, key: &str, messages: &[(&str, &str)]) -> bool {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/odd_message.py");
    let messages = messages.iter().flat_map(|(kind, body)| [*kind, *body]);
    let published = Command::new(python()).args([script, url, exchange, key]).args(messages).status();
    published.expect("Python runs").success()
}

/// The same command on a terminal of its own, whose output is the command's.
pub fn on_a_terminal(command: &Command) -> Command {
    let mut terminal = Command::new(python());
    let spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
    terminal.args(["-c", spawn]).arg(command.get_program()).args(command.get_args()).env_clear();
    terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
    terminal
}
