//! TLS for the calls of all lanes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use rustls_platform_verifier::{ConfigVerifierExt, Verifier};

/// No other version is spoken.
const HTTP: &[u8] = b"http/1.1";

/// The shared configuration, with the system's certificates. A separate one per client would keep another copy of
/// those, a fifth of a megabyte for each lane.
///
/// # Errors
/// The system has no certificates.
pub(super) fn config() -> Result<ClientConfig, Error> {
    static CONFIG: OnceLock<ClientConfig> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut config = ClientConfig::with_platform_verifier()?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(CONFIG.get_or_init(|| config).clone())
}

/// A configuration that verifies as the shared one does, and records the certificate of the server `host` in `seen`:
/// reqwest shows none of a server behind a proxy.
///
/// # Errors
/// The system has no certificates.
pub(super) fn recording(host: &str, seen: Seen) -> Result<ClientConfig, Error> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Recording { verifier: Verifier::new(provider.clone())?, host: host.to_owned(), seen };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}

/// The last certificate (DER) that was accepted.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen(Arc<Mutex<Option<Vec<u8>>>>);

impl Seen {
    pub(super) fn get(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Decides nothing itself.
#[derive(Debug)]
struct Recording {
    verifier: Verifier,
    host: String,
    seen: Seen,
}

impl ServerCertVerifier for Recording {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        // The proxy may have one too.
        if server_name.to_str() == self.host.trim_matches(['[', ']']) {
            *self.seen.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end_entity.to_vec());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}
