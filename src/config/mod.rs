//! The settings, with defaults and checks. All problems are reported together.

mod answer;
mod broker;
mod lane;
mod near_miss;
mod reader;
mod schedule;
mod secret;
mod tls;
mod url;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret;

use self::answer::read_answers;
use self::broker::read_broker;
pub use self::broker::{Access, Broker};
use self::lane::read_lanes;
pub use self::lane::{Lane, LaneName};
pub use self::reader::{Problem, Problems, duration};
use self::reader::{Raw, Reader, Table};
use self::schedule::read_schedules;
pub use self::schedule::{Machines, Schedule};
pub use self::secret::holds_secrets;
pub use self::tls::{FileFault, TlsFiles};
pub use self::url::{SMALLEST_FRAME, USUAL_FRAME};
use crate::bce::Proxies;
use crate::file::{self, LARGEST_CONFIGURATION};

/// The configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// `[broker]`
    pub broker: Arc<Broker>,
    /// `[[lane]]`, at least one, each with a name of its own.
    pub lanes: Vec<Lane>,
    /// `[[schedule]]`, each with a name of its own.
    pub schedules: Vec<Schedule>,
    /// `[retry]`
    pub retry: Retry,
    /// `[dead_letters]`
    pub dead_letters: DeadLetters,
    /// `[http]`
    pub http: Http,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// What looks wrong but is accepted: logged once there is a log.
    pub warnings: Vec<Problem>,
}

/// When failed jobs are retried, and when no longer.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Start calls that may count against a job before it ends as `exhausted`, 1 to 1,000.
    pub max_attempts: u32,
    /// Ceiling of the first backoff.
    pub initial: Duration,
    /// Ceiling of every backoff.
    pub max: Duration,
    /// Time from the first failed attempt on.
    pub give_up_after: Duration,
}

/// How many dead letters are kept.
#[derive(Debug, Clone, Copy)]
pub struct DeadLetters {
    /// The oldest of more are discarded; 1 to 1,000,000,000. `None`: all are kept.
    pub max_length: Option<u32>,
}

/// Metrics and health.
#[derive(Debug)]
pub struct Http {
    /// Loopback by default: there is no authentication.
    pub listen: SocketAddr,
}

/// The graceful shutdown.
#[derive(Debug)]
pub struct Shutdown {
    /// How long jobs in flight may take to finish.
    pub grace: Duration,
}

/// What the configuration is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run lanes: their credentials must exist, and their endpoints' proxies must be usable.
    Run,
    /// To ask the API now and then: their endpoints' proxies must be usable.
    Ask,
    /// To talk to the broker only.
    Talk,
}

/// `--config`, else `REVEILLE_CONFIG`, else `reveille.toml` if it exists, else none.
///
/// # Errors
/// [`Problems`]: all of them, each with its place and what would be right.
pub fn load(path: Option<&Path>, purpose: Purpose) -> Result<Config, Problems> {
    let Some(path) = file_of(path) else { return read(None, environment(), purpose) };
    let name = path.display().to_string();
    match file::read(&path, LARGEST_CONFIGURATION) {
        Ok(file) => read(Some((&name, file.text.expose_secret())), environment(), purpose),
        Err(error) => Err(Problems::one(name, format!("cannot be read: {error}; expected a TOML file"))),
    }
}

/// The file that [`load`] reads, if any.
pub fn file_of(path: Option<&Path>) -> Option<PathBuf> {
    let variable = std::env::var_os("REVEILLE_CONFIG").filter(|path| !path.is_empty());
    let named = path.map(Path::to_owned).or_else(|| variable.map(PathBuf::from));
    let default = Path::new("reveille.toml");
    named.or_else(|| default.exists().then(|| default.to_owned()))
}

/// Invalid UTF-8 becomes U+FFFD here, by which the reader recognises it.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// Reads the text of a file, with its name, overlaid by the environment.
///
/// # Errors
/// [`Problems`].
pub fn read(
    file: Option<(&str, &str)>,
    environment: impl IntoIterator<Item = (String, String)>,
    purpose: Purpose,
) -> Result<Config, Problems> {
    let environment: Vec<(String, String)> = environment.into_iter().collect();
    let proxies = Proxies::read(&environment);
    let tables = ["broker", "retry", "dead_letters", "http", "shutdown"];
    let mut reader = Reader::new(file, environment, &tables, &["lane", "answer", "calendar", "schedule"])?;
    let broker = read_broker(reader.table("broker"));
    let retry = read_retry(reader.table("retry"));
    let dead_letters = read_dead_letters(reader.table("dead_letters"));
    let http = read_http(reader.table("http"));
    let shutdown = read_shutdown(reader.table("shutdown"));
    let listed = reader.members("lane").len().max(1);
    let mut lanes = read_lanes(&mut reader, &proxies, purpose);
    let is_whole = lanes.len() == listed;
    read_answers(&mut reader, &mut lanes, is_whole);
    let schedules = read_schedules(&mut reader, &lanes, is_whole);
    let warnings = reader.finish()?;
    let broker = Arc::new(broker);
    Ok(Config { broker, lanes, schedules, retry, dead_letters, http, shutdown, warnings })
}

fn read_retry(mut table: Table<'_>) -> Retry {
    let retry = Retry {
        max_attempts: table.or("max_attempts", 8, "a whole number from 1 to 1000", |raw| within(raw.count(), 1, 1000)),
        initial: table.or("initial", Duration::from_millis(500), LENGTH_OF_TIME, at_most_a_day),
        max: table.or("max", Duration::from_secs(120), LENGTH_OF_TIME, at_most_a_day),
        give_up_after: table.or(
            "give_up_after",
            Duration::from_secs(1800),
            "a length of time above zero, such as 30m or 36h",
            Raw::duration,
        ),
    };
    if retry.max < retry.initial {
        table.problem("max", format!("{:?} is less than initial, {:?}: expected no less", retry.max, retry.initial));
    }
    table.finish();
    retry
}

fn read_dead_letters(mut table: Table<'_>) -> DeadLetters {
    let expected = "a whole number from 1 to 1000000000; without it all are kept";
    let max_length = table.optional("max_length", expected, |raw| within(raw.count(), 1, 1_000_000_000));
    table.finish();
    DeadLetters { max_length }
}

fn read_http(mut table: Table<'_>) -> Http {
    let default = SocketAddr::from(([127, 0, 0, 1], 9464));
    let listen =
        table.or("listen", default, "an address and port, such as 127.0.0.1:9464", |raw| raw.text()?.parse().ok());
    table.finish();
    Http { listen }
}

fn read_shutdown(mut table: Table<'_>) -> Shutdown {
    let grace = table.or("grace", Duration::from_secs(25), LENGTH_OF_TIME, at_most_a_day);
    table.finish();
    Shutdown { grace }
}

const LENGTH_OF_TIME: &str = "a length of time above zero, up to 24h, such as 500ms, 25s or 2m";

fn at_most_a_day(raw: &Raw) -> Option<Duration> {
    raw.duration().filter(|duration| *duration <= Duration::from_secs(86_400))
}

fn within(count: Option<u32>, least: u32, most: u32) -> Option<u32> {
    count.filter(|count| (least..=most).contains(count))
}

fn is_name(text: &str, also: &[u8]) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= 40
        && text.bytes().next().is_some_and(plain)
        && text.bytes().all(|byte| plain(byte) || also.contains(&byte))
}

impl Raw {
    fn text_owned(&self) -> Option<String> {
        self.text().map(str::to_owned)
    }
}

#[cfg(test)]
mod tests;
