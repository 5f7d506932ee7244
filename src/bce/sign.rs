//! bce-auth-v1: the signature of every request to Baidu AI Cloud.
//!
//! ```text
//! bce-auth-v1/{access key}/{timestamp}/{expiration}/{signed headers}/{signature}
//! ```
//!
//! The rules are those of <https://cloud.baidu.com/doc/Reference/s/njwvz1yfu>; `tests/bce_auth_v1.json` holds
//! signatures made by the official SDKs, all of which this file reproduces. The simulator verifies with the same
//! [`canonical_request`], from the headers it received.

use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use sha2::Sha256;

/// Seconds a signature stays valid from its timestamp: the default of every official SDK.
pub const EXPIRATION: i64 = 1800;

/// The signed parts of a request. The body is not signed: bce-auth-v1 has no payload hash.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `GET`, `PUT`, … in upper case.
    pub method: &'a str,
    /// The path before percent-encoding.
    pub path: &'a str,
    /// Parameters before percent-encoding; one without a value has an empty value.
    pub query: &'a [(&'a str, &'a str)],
    /// Headers as sent, names in any case.
    pub headers: &'a [(&'a str, &'a str)],
}

/// Which headers a signature covers.
#[derive(Debug, Clone, Copy)]
pub enum SignedHeaders<'a> {
    /// `host`, `content-length`, `content-type`, `content-md5` and every `x-bce-*`; the list on the wire stays empty.
    Default,
    /// These, in lower case; the list is sent. It must include `host`.
    Listed(&'a [&'a str]),
}

impl SignedHeaders<'_> {
    fn covers(self, name: &str) -> bool {
        match self {
            Self::Default => {
                matches!(name, "host" | "content-length" | "content-type" | "content-md5") || name.starts_with("x-bce-")
            }
            Self::Listed(names) => names.contains(&name),
        }
    }

    fn on_the_wire(self) -> String {
        match self {
            Self::Default => String::new(),
            Self::Listed(names) => {
                let mut names = names.to_vec();
                names.sort_unstable();
                names.join(";")
            }
        }
    }
}

/// The value of the `Authorization` header.
pub fn authorization(
    access_key_id: &str,
    secret_access_key: &str,
    timestamp: Timestamp,
    expiration: i64,
    request: Request<'_>,
    signed: SignedHeaders<'_>,
) -> String {
    let prefix = prefix(access_key_id, timestamp, expiration);
    let signature = signature(secret_access_key, &prefix, &canonical_request(request, signed));
    format!("{prefix}/{}/{signature}", signed.on_the_wire())
}

/// The first four fields, from which the signing key is derived.
pub fn prefix(access_key_id: &str, timestamp: Timestamp, expiration: i64) -> String {
    format!("bce-auth-v1/{access_key_id}/{}/{expiration}", date(timestamp))
}

/// An instant in the format of bce-auth-v1 and `x-bce-date`: UTC in whole seconds, `2026-01-15T08:30:00Z`.
pub fn date(timestamp: Timestamp) -> String {
    // Whole seconds always exist within the bounds of a Timestamp, so the fallback is never used.
    Timestamp::from_second(timestamp.as_second()).unwrap_or(timestamp).to_string()
}

/// The signature of a canonical request, 64 hex characters: the key of the second HMAC is the *hex text* of the first.
pub fn signature(secret_access_key: &str, prefix: &str, canonical_request: &str) -> String {
    let signing_key = hmac_hex(secret_access_key.as_bytes(), prefix);
    hmac_hex(signing_key.as_bytes(), canonical_request)
}

fn hmac_hex(key: &[u8], message: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(message.as_bytes());
    let mut hex = String::with_capacity(64);
    for byte in mac.finalize().into_bytes() {
        hex.push(char::from(HEX_LOWER[usize::from(byte >> 4)]));
        hex.push(char::from(HEX_LOWER[usize::from(byte & 15)]));
    }
    hex
}

/// A parameter of a query as it is sent, percent-encoded as it is signed; one without a value is its name alone.
pub fn parameter(name: &str, value: &str) -> String {
    let mut parameter = String::new();
    encode_into(&mut parameter, name, Slash::Encode);
    if !value.is_empty() {
        parameter.push('=');
        encode_into(&mut parameter, value, Slash::Encode);
    }
    parameter
}

/// The text that is signed: method, path and query on a line each, and a line for every header.
pub fn canonical_request(request: Request<'_>, signed: SignedHeaders<'_>) -> String {
    let mut canonical = String::with_capacity(192);
    canonical.push_str(request.method);
    canonical.push('\n');
    if !request.path.starts_with('/') {
        canonical.push('/');
    }
    encode_into(&mut canonical, request.path, Slash::Keep);
    canonical.push('\n');
    join_sorted(
        &mut canonical,
        '&',
        request.query.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("authorization")).map(|(name, value)| {
            let mut pair = String::with_capacity(name.len() + value.len() + 1);
            encode_into(&mut pair, name, Slash::Encode);
            pair.push('=');
            encode_into(&mut pair, value, Slash::Encode);
            pair
        }),
    );
    canonical.push('\n');
    join_sorted(
        &mut canonical,
        '\n',
        request.headers.iter().filter_map(|(name, value)| {
            let name = name.trim_ascii().to_ascii_lowercase();
            let value = value.trim_ascii();
            if value.is_empty() || !signed.covers(&name) {
                return None;
            }
            let mut line = String::with_capacity(name.len() + value.len() + 8);
            encode_into(&mut line, &name, Slash::Encode);
            line.push(':');
            encode_into(&mut line, value, Slash::Encode);
            Some(line)
        }),
    );
    canonical
}

/// Whole encoded strings are sorted, not names: `text10=` comes before `text1=`, because `0` is less than `=`.
fn join_sorted(into: &mut String, separator: char, parts: impl Iterator<Item = String>) {
    let mut parts: Vec<String> = parts.collect();
    parts.sort_unstable();
    for (index, part) in parts.iter().enumerate() {
        if index > 0 {
            into.push(separator);
        }
        into.push_str(part);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Slash {
    Keep,
    Encode,
}

/// RFC 3986: only unreserved characters stay; upper-case hex; a space is `%20`.
fn encode_into(into: &mut String, text: &str, slash: Slash) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => into.push(char::from(byte)),
            b'/' if slash == Slash::Keep => into.push('/'),
            _ => {
                into.push('%');
                into.push(char::from(HEX_UPPER[usize::from(byte >> 4)]));
                into.push(char::from(HEX_UPPER[usize::from(byte & 15)]));
            }
        }
    }
}

const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";
const HEX_UPPER: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Every signature of the official SDKs, and with it the exact text that was signed.
    #[test]
    fn every_vector_of_the_official_sdks_is_reproduced() {
        let file: Value = serde_json::from_str(include_str!("../../tests/bce_auth_v1.json")).unwrap();
        let vectors = file["vectors"].as_array().unwrap();
        assert_eq!(vectors.len() as u64, file["count"].as_u64().unwrap());
        for vector in vectors {
            let id = vector["id"].as_str().unwrap();
            let text = |key: &str| vector[key].as_str().unwrap_or_else(|| panic!("{id}: no {key}"));
            let query: Vec<(&str, &str)> = vector["query"]
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap_or("")))
                .collect();
            let headers: Vec<(&str, &str)> = vector["headers"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str().unwrap()))
                .collect();
            let listed: Option<Vec<&str>> = vector["headers_to_sign"]
                .as_array()
                .map(|names| names.iter().map(|name| name.as_str().unwrap()).collect());
            let signed = listed.as_deref().map_or(SignedHeaders::Default, SignedHeaders::Listed);
            let request =
                Request { method: text("method"), path: text("path_decoded"), query: &query, headers: &headers };
            let timestamp = Timestamp::from_second(vector["timestamp_epoch"].as_i64().unwrap()).unwrap();
            let expiration = vector["expiration"].as_i64().unwrap();

            assert_eq!(canonical_request(request, signed), text("canonical_request"), "{id}");
            assert_eq!(
                authorization(text("access_key"), text("secret_key"), timestamp, expiration, request, signed),
                text("authorization"),
                "{id}"
            );
            // The explicit form of the Go SDK: another list on the wire, the same signature.
            if let Some(explicit) = vector["alternative_authorization"].as_str() {
                let names: Vec<&str> = explicit.rsplit('/').nth(1).unwrap().split(';').collect();
                let ours = authorization(
                    text("access_key"),
                    text("secret_key"),
                    timestamp,
                    expiration,
                    request,
                    SignedHeaders::Listed(&names),
                );
                assert_eq!(ours, explicit, "{id}");
            }
        }
    }
}
