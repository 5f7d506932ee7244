//! `[broker]`: the connection to RabbitMQ.
//!
//! Passwords and certificates are read for each connection ([`Broker::access`]), not watched: an open connection cannot
//! use new ones. `ca_file` replaces the machine's authorities: naming one means to trust no other.

use std::fmt;
use std::path::{Path, PathBuf};

use lapin::tcp::RustlsConnector;
use lapin::uri::{AMQPScheme, AMQPUri};
use secrecy::ExposeSecret;

use super::reader::{Raw, Table};
use super::secret::one_line;
use super::tls::{FileFault, TlsFiles};
use super::{is_name, url};
use crate::file::{self, LARGEST_SECRET, OPEN_TO_ALL};

/// The connection to RabbitMQ, and the prefix of names there.
#[derive(Clone)]
pub struct Broker {
    /// With the password as of the start: print [`Broker::address`] instead, and connect with [`Broker::access`].
    pub uri: AMQPUri,
    /// The file with the password, if one is named; it takes precedence.
    pub password_file: Option<PathBuf>,
    /// For `amqps://`.
    pub tls: TlsFiles,
    /// The prefix of exchanges' and queues' names.
    pub prefix: String,
}

/// What a connection is opened with.
pub struct Access {
    /// With the present password.
    pub uri: AMQPUri,
    /// For `amqps://`.
    pub tls: Option<RustlsConnector>,
}

impl Broker {
    /// Host, port and vhost: nothing else of the URL may be shown.
    pub fn address(&self) -> String {
        let authority = &self.uri.authority;
        format!("{}:{}, vhost {}", authority.host, authority.port, self.uri.vhost)
    }

    /// Reads password and certificates, which may be rotated. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`FileFault`].
    pub fn access(&self) -> Result<Access, FileFault> {
        let mut uri = self.uri.clone();
        if let Some(path) = &self.password_file {
            uri.authority.userinfo.password = read_password(path)?.text;
        }
        let tls = match uri.scheme {
            AMQPScheme::AMQP => None,
            AMQPScheme::AMQPS => Some(self.tls.connector()?),
        };
        Ok(Access { uri, tls })
    }
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("address", &self.address()).field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Default for Broker {
    fn default() -> Self {
        let uri = url::parse("amqp://guest:guest@127.0.0.1:5672/%2f").expect("a constant, which a test reads");
        Self { uri, password_file: None, tls: TlsFiles::default(), prefix: "reveille".to_owned() }
    }
}

pub(super) fn read_broker(mut table: Table<'_>) -> Broker {
    let mut broker = Broker::default();
    let has_url = table.has("url");
    let url = table.secret("url", url::parse);
    let is_url_known = url.is_some() || !has_url;
    if let Some(uri) = url {
        broker.uri = uri;
    }
    if table.has("password") && table.has("password_file") {
        table.fault("password", "beside password_file: expected one of them".to_owned());
    }
    let password = |text: &str| one_line(text).map_err(|problem| format!("{problem}; expected a password of one line"));
    if let Some(password) = table.secret("password", password) {
        broker.uri.authority.userinfo.password = password;
    }
    broker.password_file = table.optional("password_file", "a path", Raw::path);
    if let Some(path) = &broker.password_file {
        match read_password(path) {
            Ok(password) => {
                if password.is_open {
                    table.warn("password_file", format!("{} {OPEN_TO_ALL}", path.display()));
                }
                broker.uri.authority.userinfo.password = password.text;
            }
            Err(fault) => table.fault(fault.key, fault.problem),
        }
    }
    broker.tls = read_tls(&mut table, is_url_known.then_some(&broker.uri.scheme));
    broker.prefix = table.or("prefix", broker.prefix, "1 to 40 of a-z 0-9 - _, a letter or digit first", |raw| {
        raw.text().filter(|text| is_name(text, b"-_")).map(str::to_owned)
    });
    table.finish();
    broker
}

/// `scheme` is `None` if the URL is unknown.
fn read_tls(table: &mut Table<'_>, scheme: Option<&AMQPScheme>) -> TlsFiles {
    const KEYS: [&str; 3] = ["ca_file", "cert_file", "key_file"];
    let named = KEYS.map(|key| table.has(key));
    let [ca, cert, key] = KEYS.map(|key| table.optional(key, "a path", Raw::path));
    let is_wrong = named != [&ca, &cert, &key].map(Option::is_some);
    if scheme == Some(&AMQPScheme::AMQP) {
        for (key, _) in KEYS.iter().zip(named).filter(|(_, named)| *named) {
            table.fault(key, "beside an amqp:// URL, which is without TLS: expected amqps:// there".to_owned());
        }
        return TlsFiles::default();
    }
    for (one, (there, other)) in ["cert_file", "key_file"].iter().zip([(named[1], named[2]), (named[2], named[1])]) {
        if there && !other {
            table.fault(one, "alone: expected cert_file and key_file together".to_owned());
        }
    }
    let tls = TlsFiles { ca, client: cert.zip(key) };
    if scheme.is_some()
        && !is_wrong
        && tls.is_any()
        && let Err(fault) = tls.connector()
    {
        table.fault(fault.key, fault.problem);
    }
    if let Some((_, key)) = &tls.client
        && file::read(key, LARGEST_SECRET).is_ok_and(|file| file.is_open)
    {
        table.warn("key_file", format!("{} {OPEN_TO_ALL}", key.display()));
    }
    tls
}

struct Password {
    text: String,
    /// Every user of the machine may read its file.
    is_open: bool,
}

fn read_password(path: &Path) -> Result<Password, FileFault> {
    let fault = |problem: String| FileFault {
        key: "password_file",
        problem: format!("cannot read {}: {problem}; expected a file with the password", path.display()),
    };
    let file = file::read(path, LARGEST_SECRET).map_err(|error| fault(error.to_string()))?;
    let text = one_line(file.text.expose_secret()).map_err(fault)?;
    Ok(Password { text, is_open: file.is_open })
}

impl Raw {
    fn path(&self) -> Option<PathBuf> {
        self.text().map(PathBuf::from)
    }
}
