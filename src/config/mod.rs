//! What can be configured, with defaults and checks. All faults are reported together.

mod answer;
mod lane;
mod near_miss;
mod reader;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lapin::uri::AMQPUri;
use secrecy::ExposeSecret;

use self::answer::read_answers;
use self::lane::read_lanes;
pub use self::lane::{Lane, LaneName};
pub use self::reader::{Fault, Faults};
use self::reader::{Raw, Reader, Table};
use crate::bce::Proxies;
use crate::file::{self, LARGEST_CONFIGURATION, LARGEST_SECRET, OPEN_TO_ALL};

/// The configuration, checked.
#[derive(Debug)]
pub struct Config {
    /// `[broker]`
    pub broker: Arc<Broker>,
    /// `[[lane]]`, at least one, each with a name of its own.
    pub lanes: Vec<Lane>,
    /// `[retry]`
    pub retry: Retry,
    /// `[http]`
    pub http: Http,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// What looks wrong and is not refused: to be told once there is a place to tell it.
    pub warnings: Vec<Fault>,
}

/// How RabbitMQ is reached, and what the names there begin with.
pub struct Broker {
    /// With the password in it: print [`Broker::address`] instead.
    pub uri: AMQPUri,
    /// What the names of exchanges and queues begin with.
    pub prefix: String,
}

impl Broker {
    /// Host, port and vhost, which is all of the URL that may be shown.
    pub fn address(&self) -> String {
        let authority = &self.uri.authority;
        format!("{}:{}, vhost {}", authority.host, authority.port, self.uri.vhost)
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("address", &self.address()).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

/// When a job that failed comes back, and when it no longer does.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Start calls that may count against a job before it is `exhausted`, 1 to 1,000.
    pub max_attempts: u32,
    /// Ceiling of the first delay.
    pub initial: Duration,
    /// Ceiling of every delay.
    pub max: Duration,
    /// From the first failed attempt on.
    pub give_up_after: Duration,
}

/// Metrics and health.
#[derive(Debug)]
pub struct Http {
    /// Loopback by default: there is no authentication.
    pub listen: SocketAddr,
}

/// The graceful stop.
#[derive(Debug)]
pub struct Shutdown {
    /// How long jobs in flight may take to finish.
    pub grace: Duration,
}

/// What the configuration is read for: only the daemon needs keys, and goes through proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To run lanes: their credentials must be there, and the proxies to their endpoints be of use.
    Run,
    /// To talk to the broker.
    Talk,
}

/// `--config`, else `REVEILLE_CONFIG`, else `reveille.toml` if there is one, else none.
///
/// # Errors
/// [`Faults`]: all of them, each with its place and what would be right.
pub fn load(path: Option<&Path>, purpose: Purpose) -> Result<Config, Faults> {
    let variable = std::env::var_os("REVEILLE_CONFIG").filter(|path| !path.is_empty());
    let named = path.map(Path::to_owned).or_else(|| variable.map(PathBuf::from));
    let default = Path::new("reveille.toml");
    let path = named.or_else(|| default.exists().then(|| default.to_owned()));
    let Some(path) = path else { return read(None, environment(), purpose) };
    let name = path.display().to_string();
    match file::read(&path, LARGEST_CONFIGURATION) {
        Ok(file) => read(Some((&name, file.text.expose_secret())), environment(), purpose),
        Err(error) => Err(Faults::one(name, format!("cannot be read: {error}; expected a TOML file"))),
    }
}

/// What is no UTF-8 carries U+FFFD from here on, by which the reader knows it.
fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (text(name), text(value)))
}

/// Reads the text of a file, with its name, and the environment over it.
///
/// # Errors
/// [`Faults`].
pub fn read(
    file: Option<(&str, &str)>,
    environment: impl IntoIterator<Item = (String, String)>,
    purpose: Purpose,
) -> Result<Config, Faults> {
    let environment: Vec<(String, String)> = environment.into_iter().collect();
    let proxies = Proxies::read(&environment);
    let mut reader = Reader::new(file, environment, &["broker", "retry", "http", "shutdown"], &["lane", "answer"])?;
    let broker = read_broker(reader.table("broker"));
    let retry = read_retry(reader.table("retry"));
    let http = read_http(reader.table("http"));
    let shutdown = read_shutdown(reader.table("shutdown"));
    let listed = reader.members("lane").len().max(1);
    let mut lanes = read_lanes(&mut reader, &proxies, purpose);
    let is_whole = lanes.len() == listed;
    read_answers(&mut reader, &mut lanes, is_whole);
    let warnings = reader.finish()?;
    Ok(Config { broker: Arc::new(broker), lanes, retry, http, shutdown, warnings })
}

impl Default for Broker {
    fn default() -> Self {
        let uri = amqp_uri("amqp://guest:guest@127.0.0.1:5672/%2f").expect("a constant, which a test reads");
        Self { uri, prefix: "reveille".to_owned() }
    }
}

/// A peer that has fallen silent is noticed within twice this.
const HEARTBEAT_SECONDS: u16 = 5;

fn read_broker(mut table: Table<'_>) -> Broker {
    let mut broker = Broker::default();
    if let Some(uri) = table.secret("url", amqp_uri) {
        broker.uri = uri;
    }
    if table.has("password") && table.has("password_file") {
        table.fault("password", "beside password_file: expected one of them".to_owned());
    }
    let password = table.secret("password", |text| Ok(text.to_owned()));
    let from_file = table.optional("password_file", "a path", Raw::text_owned).and_then(|path| {
        match read_password(Path::new(&path)) {
            Ok((password, is_open)) => {
                if is_open {
                    table.warn("password_file", format!("{path} {OPEN_TO_ALL}"));
                }
                Some(password)
            }
            Err(problem) => {
                let expected = "expected a file with the password";
                table.fault("password_file", format!("cannot read {path}: {problem}; {expected}"));
                None
            }
        }
    });
    if let Some(password) = password.or(from_file) {
        broker.uri.authority.userinfo.password = password;
    }
    broker.prefix = table.or("prefix", broker.prefix, "1 to 40 of a-z 0-9 - _, a letter or digit first", |raw| {
        raw.text().filter(|text| is_name(text, b"-_")).map(str::to_owned)
    });
    table.finish();
    broker
}

/// The password in a file, and whether every user of the machine may read it.
fn read_password(path: &Path) -> Result<(String, bool), String> {
    let file = file::read(path, LARGEST_SECRET).map_err(|error| error.to_string())?;
    match file.text.expose_secret().trim_end_matches(['\r', '\n']) {
        "" => Err("it is empty".to_owned()),
        password => Ok((password.to_owned(), file.is_open)),
    }
}

/// Longest name of anything in AMQP 0-9-1, in bytes: lapin panics over a longer one.
const LONGEST_NAME: usize = 255;
/// lapin reserves memory for 32 frames before the broker has said how large one may be.
const LARGEST_FRAME: u32 = 1024 * 1024;
/// The largest frame that the broker is asked for, which is its own default, in bytes. Where it would allow more, lapin would
/// reserve memory for 64 of them.
pub const USUAL_FRAME: u32 = 128 * 1024;
/// What the daemon and RabbitMQ write into a job's headers has to fit into a frame, in bytes.
pub const SMALLEST_FRAME: u32 = 8192;

/// Says what would be right, and nothing of `text`, which may hold a password.
fn amqp_uri(text: &str) -> Result<AMQPUri, String> {
    let expected = || "expected a URL such as amqps://user@broker:5671/prod (%2f is the vhost /)".to_owned();
    let mut uri: AMQPUri = text.parse().map_err(|_| expected())?;
    let url = reqwest::Url::parse(text).map_err(|_| expected())?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or_else(expected)?;
    // lapin's parser takes an IPv6 address for no host at all, and no host for localhost.
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        address.clone_into(&mut uri.authority.host);
    }
    if uri.vhost.is_empty() {
        return Err(
            "ends in / and so names a vhost without a name: expected no / there, or /%2f, for the vhost /".to_owned()
        );
    }
    if uri.vhost.len() > LONGEST_NAME {
        return Err(format!("names a vhost of {} bytes: expected {LONGEST_NAME} at most", uri.vhost.len()));
    }
    let frame_max = *uri.query.frame_max.get_or_insert(USUAL_FRAME);
    if !(SMALLEST_FRAME..=LARGEST_FRAME).contains(&frame_max) {
        return Err(format!("has a frame_max of {frame_max}: expected {SMALLEST_FRAME} to {LARGEST_FRAME}"));
    }
    uri.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(uri)
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
        table.fault("max", format!("{:?} is less than initial, {:?}: expected no less", retry.max, retry.initial));
    }
    table.finish();
    retry
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
