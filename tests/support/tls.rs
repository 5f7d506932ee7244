//! Authorities, certificates, and TLS servers.

use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// An authority for server certificates.
pub type Authority = CertifiedIssuer<'static, KeyPair>;

pub fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A certificate of this authority for 127.0.0.1, and its key, in PEM.
pub fn certificate(authority: &Authority) -> [String; 2] {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap().signed_by(&key, authority).unwrap();
    [certificate.pem(), key.serialize_pem()]
}

/// A TLS acceptor with a certificate of this authority.
pub fn vouched_for_by(authority: &Authority) -> TlsAcceptor {
    let [certificate, key] = certificate(authority);
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server =
        rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    TlsAcceptor::from(Arc::new(server))
}

/// Terminates TLS for the server at `address`, with the present certificate. Returns its own address.
pub async fn in_the_place_of(address: &str, certificate: watch::Receiver<TlsAcceptor>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().to_string();
    let address = address.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, address) = (certificate.borrow().clone(), address.clone());
            tokio::spawn(async move {
                if let Ok(mut client) = acceptor.accept(stream).await {
                    let mut server = TcpStream::connect(address).await.unwrap();
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    own
}

/// A file for `SSL_CERT_FILE`, which replaces the machine's authorities for a daemon. It is deleted after its test.
pub struct Trusted(PathBuf);

impl Trusted {
    pub fn are(authority: &Authority) -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("trusted-{}.pem", uuid::Uuid::now_v7()));
        std::fs::write(&file, authority.pem()).unwrap();
        Self(file)
    }

    pub fn file(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Trusted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
