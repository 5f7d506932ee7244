//! How a broker presents itself before a client logs in: its certificate, and the properties in its first method
//! (`connection.start`), which lapin does not pass on.

use std::sync::OnceLock;

use lapin::protocol::{AMQPClass, connection, parse_class};
use lapin::types::{AMQPValue, FieldTable};
use rustls::pki_types::CertificateDer;

/// What a broker has shown of itself so far.
#[derive(Debug, Default)]
pub struct Greeting {
    certificate: OnceLock<Vec<u8>>,
    server: OnceLock<Server>,
}

/// The broker's own words. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Server {
    /// `RabbitMQ`
    pub product: String,
    /// Such as `3.13.7`
    pub version: String,
    /// The name of its cluster.
    pub cluster: String,
}

impl Greeting {
    /// The broker's certificate (DER), once it was accepted.
    pub fn seen_certificate(&self) -> Option<&[u8]> {
        self.certificate.get().map(Vec::as_slice)
    }

    /// What the broker says of itself, once it has.
    pub fn seen_server(&self) -> Option<&Server> {
        self.server.get()
    }

    pub(super) fn certificate(&self, certificate: Option<&CertificateDer<'_>>) {
        if let Some(certificate) = certificate {
            let _ = self.certificate.set(certificate.to_vec());
        }
    }

    /// Reads the payload of a `connection.start`. lapin refuses one that cannot be read.
    pub(super) fn server(&self, payload: &[u8]) {
        let Ok((_, AMQPClass::Connection(connection::AMQPMethod::Start(start)))) = parse_class(payload) else { return };
        let properties = &start.server_properties;
        let _ = self.server.set(Server {
            product: text(properties, "product"),
            version: text(properties, "version"),
            cluster: text(properties, "cluster_name"),
        });
    }
}

fn text(properties: &FieldTable, name: &str) -> String {
    match properties.inner().get(name) {
        Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        _ => String::new(),
    }
}
