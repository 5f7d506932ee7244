//! What an operator can do when connecting fails.

use std::error::Error;
use std::io;

use lapin::ErrorKind;
use lapin::protocol::{AMQPErrorKind, AMQPHardError};
use lapin::uri::AMQPScheme;
use rustls::{AlertDescription, CertificateError};

use super::errors::{is_access_refused, kind};
use crate::config::Broker;

/// What to check, if more is known than that it failed.
pub(super) fn remedy(error: &lapin::Error, broker: &Broker) -> Option<String> {
    if is_access_refused(error) {
        let from = match &broker.password_file {
            Some(path) => format!("from {}, which is read again at each try", path.display()),
            None => "of broker.password or broker.url".to_owned(),
        };
        return Some(format!("check the user, its password ({from}), and whether it may log in from this host"));
    }
    if is_vhost_refused(error) {
        return Some("check that the vhost exists, and the user's permissions in it".to_owned());
    }
    // A TLS port answers with an alert, which is no AMQP, or closes before that is read.
    if matches!(error.kind(), ErrorKind::ParsingError(_)) || broker.uri.scheme == AMQPScheme::AMQP && is_hung_up(error)
    {
        return Some("expected AMQP there: check the port, usually 5672 for amqp:// and 5671 for amqps://".to_owned());
    }
    tls(tls_error(error)?, broker)
}

/// Whether the broker does not admit the user to the vhost, or the vhost does not exist.
pub(super) fn is_vhost_refused(error: &lapin::Error) -> bool {
    kind(error) == Some(&AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED))
}

fn is_hung_up(error: &lapin::Error) -> bool {
    let ErrorKind::IOError(error) = error.kind() else { return false };
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::UnexpectedEof
    )
}

fn tls_error(error: &lapin::Error) -> Option<&rustls::Error> {
    let ErrorKind::IOError(error) = error.kind() else { return None };
    let mut inner: Option<&(dyn Error + 'static)> = Some(&**error);
    while let Some(error) = inner {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        inner = match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|error| error as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

fn tls(error: &rustls::Error, broker: &Broker) -> Option<String> {
    use AlertDescription as Alert;
    let files = &broker.tls;
    match error {
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("RabbitMQ's certificate is for another name: put one of its names into broker.url".to_owned()),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. } | CertificateError::NotValidYet,
        ) => Some("renew RabbitMQ's certificate, or set this machine's clock".to_owned()),
        rustls::Error::InvalidCertificate(_) => Some(match &files.ca {
            Some(path) => {
                format!("expected the authority of RabbitMQ's certificate in broker.ca_file, {}", path.display())
            }
            None => "set broker.ca_file to the authority of RabbitMQ's certificate".to_owned(),
        }),
        rustls::Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure)
            if files.client.is_none() =>
        {
            Some("RabbitMQ wants a certificate of the client: set broker.cert_file and broker.key_file".to_owned())
        }
        rustls::Error::AlertReceived(_) => {
            let (path, _) = files.client.as_ref()?;
            Some(format!(
                "RabbitMQ does not accept the certificate in broker.cert_file, {}: check that it is valid and that RabbitMQ \
                 trusts its authority (ssl_options.cacertfile)",
                path.display()
            ))
        }
        rustls::Error::InvalidMessage(_) => {
            Some("expected TLS there: check the port, usually 5671 for amqps:// and 5672 for amqp://".to_owned())
        }
        _ => None,
    }
}
