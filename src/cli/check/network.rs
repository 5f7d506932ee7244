//! Names, addresses and certificates on the way to a server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::{Timestamp, Unit};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use x509_parser::parse_x509_certificate;

use super::sheet::Line;

/// Timeout of a lookup.
const LOOKUP: Duration = Duration::from_secs(5);
/// Timeout of a connection to one address.
const CONNECT: Duration = Duration::from_secs(5);
/// A certificate that expires within so many days has a warning.
const SOON: f64 = 14.0;

/// The names of the checks of one server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checks {
    pub(super) dns: &'static str,
    pub(super) tcp: &'static str,
    pub(super) tls: &'static str,
}

/// Looks the host up, and connects to each of its addresses. `whose`: what the address belongs to, where that is not the
/// server itself.
pub(super) async fn reach(checks: Checks, host: &str, port: u16, whose: &str) -> [Line; 2] {
    let addresses = match timeout(LOOKUP, lookup_host((host, port))).await {
        Ok(Ok(addresses)) => Ok(addresses.collect::<Vec<SocketAddr>>()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {LOOKUP:?}")),
    };
    let addresses = match addresses {
        Ok(addresses) if !addresses.is_empty() => addresses,
        Ok(_) => return unknown(checks, host, whose, "it has no address"),
        Err(error) => return unknown(checks, host, whose, &error),
    };
    let found: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    let dns = match host.parse::<IpAddr>() {
        Ok(_) => Line::passed(checks.dns, format_args!("{whose}{host} is an address")),
        Err(_) => Line::passed(checks.dns, format_args!("{whose}{host} is {}", found.join(", "))),
    };
    let failures: Vec<Option<String>> = join_all(addresses.iter().map(|address| refusal(*address))).await;
    let told: Vec<&str> = failures.iter().flatten().map(String::as_str).collect();
    let told = told.join(", ");
    let tcp = match failures.iter().filter(|failure| failure.is_none()).count() {
        0 => Line::failed(checks.tcp, format_args!("no connection to {whose}{host}: {told}"))
            .remedy("check the address, the network, and firewalls on the way"),
        all if all == addresses.len() => Line::passed(checks.tcp, format_args!("port {port} of {host} is open")),
        some => Line::warning(
            checks.tcp,
            format_args!("port {port} is open at {some} of {} addresses of {host}: {told}", addresses.len()),
        ),
    };
    [dns, tcp]
}

fn unknown(checks: Checks, host: &str, whose: &str, error: &str) -> [Line; 2] {
    [
        Line::failed(checks.dns, format_args!("{whose}{host} cannot be looked up: {error}"))
            .remedy("check its spelling, and the resolver of this machine"),
        Line::skipped(checks.tcp, "there is no address to connect to"),
    ]
}

/// Why there is no connection to the address, if there is none.
async fn refusal(address: SocketAddr) -> Option<String> {
    match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(format!("{address}: {error}")),
        Err(_) => Some(format!("{address}: no answer within {CONNECT:?}")),
    }
}

/// A certificate (DER) that was accepted: when it expires.
pub(super) fn certificate(check: &'static str, der: &[u8], now: Timestamp) -> Line {
    let expires = parse_x509_certificate(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp());
    let Some(expires) = expires.and_then(|seconds| Timestamp::from_second(seconds).ok()) else {
        return Line::warning(check, "the certificate is accepted, but when it expires cannot be read");
    };
    let days = expires.duration_since(now).as_secs_f64() / 86_400.0;
    let date = expires.round(Unit::Second).unwrap_or(expires);
    let found = format!("the certificate is accepted, and expires in {days:.0} days, at {date}");
    if days < SOON { Line::warning(check, found).remedy("renew it") } else { Line::passed(check, found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::sheet::Mark;

    #[test]
    fn a_certificate_that_expires_within_two_weeks_has_a_warning() {
        let mut params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2026, 11, 25);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        for (now, mark) in [("2026-11-10T00:00:00Z", Mark::Passed), ("2026-11-12T00:00:00Z", Mark::Warning)] {
            assert_eq!(certificate("api.tls", &der, now.parse().unwrap()).mark, mark, "{now}");
        }
        assert_eq!(certificate("api.tls", b"no certificate", Timestamp::now()).mark, Mark::Warning);
    }
}
