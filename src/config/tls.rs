//! Certificates for `amqps://`: which authorities the daemon trusts, and its own certificate.

use std::path::{Path, PathBuf};

use lapin::tcp::{RustlsConnector, RustlsConnectorConfig};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use secrecy::ExposeSecret;

use crate::file::{self, LARGEST_CERTIFICATES, LARGEST_SECRET};

/// TLS files of `[broker]`. They are read for each connection, since certificates are rotated.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// PEM: the trusted authorities, instead of the machine's.
    pub ca: Option<PathBuf>,
    /// PEM: the client's certificate with its chain, and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// A file of a `[broker]` setting that cannot be used. Quotes nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("broker.{key}: {problem}")]
pub struct FileFault {
    pub(super) key: &'static str,
    pub(super) problem: String,
}

impl FileFault {
    pub(super) fn new(key: &'static str, path: &Path, problem: impl std::fmt::Display, expected: &str) -> Self {
        Self { key, problem: format!("cannot use {}: {problem}; expected {expected}", path.display()) }
    }
}

const CA: &str = "a PEM file with the certificate of each authority to trust";
const CERTIFICATE: &str = "a PEM file with the client's certificate, and those between it and its authority";
const KEY: &str = "a PEM file with the private key of cert_file, not encrypted";

impl TlsFiles {
    /// Whether any file is set.
    pub fn is_any(&self) -> bool {
        self.ca.is_some() || self.client.is_some()
    }

    /// Reads the files. Blocks for as long as the file system does.
    ///
    /// # Errors
    /// [`FileFault`]. Without `ca` also if this machine trusts no authority.
    pub fn connector(&self) -> Result<RustlsConnector, FileFault> {
        let config = match &self.ca {
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(authorities(path)?),
            None => RustlsConnectorConfig::new_with_native_certs().map_err(|error| FileFault {
                key: "ca_file",
                problem: format!("not set, and this machine trusts no authority ({error}); expected {CA}"),
            })?,
        };
        let Some((path, key_path)) = &self.client else {
            return config.connector_with_no_client_auth().map_err(|error| FileFault {
                key: "ca_file",
                problem: format!("no authority can be trusted: {error}; expected {CA}"),
            });
        };
        let chain = certificates("cert_file", path, CERTIFICATE)?;
        let fault = |problem: String| FileFault::new("key_file", key_path, problem, KEY);
        let key = file::read(key_path, LARGEST_SECRET).map_err(|error| fault(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.text.expose_secret().as_bytes())
            .map_err(|_| fault("it holds no private key".to_owned()))?;
        config
            .connector_with_single_cert(chain, key)
            .map_err(|error| fault(format!("it does not go with {}: {error}", path.display())))
    }
}

fn authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let found = certificates("ca_file", path, CA)?;
    // The connector would skip what it cannot read, and the connection would fail.
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(&found) {
        let fault = |error| FileFault::new("ca_file", path, format!("certificate {number} is none: {error}"), CA);
        roots.add(certificate.clone()).map_err(fault)?;
    }
    Ok(found)
}

fn certificates(key: &'static str, path: &Path, expected: &str) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let fault = |problem: String| FileFault::new(key, path, problem, expected);
    let file = file::read(path, LARGEST_CERTIFICATES).map_err(|error| fault(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file.text.expose_secret().as_bytes()).collect();
    // The error's own text may quote the file.
    let found = found.map_err(|_| fault("it is not PEM".to_owned()))?;
    if found.is_empty() { Err(fault("it holds no certificate".to_owned())) } else { Ok(found) }
}
