//! A fault as text: a JSON object, or a short name, used on the command line and in the call log too.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::fault::{Fault, Forged, Kind, When, header};
use crate::reply::Manner;
use crate::span::Span;

/// The object's keys. [`Wire::fault`] says which of them go together.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Wire {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    html: bool,
    #[serde(skip_serializing_if = "is_default")]
    gateway: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<String>,
    #[serde(skip_serializing_if = "is_default")]
    headers: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "is_default")]
    when: When,
    #[serde(skip_serializing_if = "Option::is_none")]
    hang: Option<When>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset: Option<When>,
    #[serde(skip_serializing_if = "is_default")]
    delay: Span,
    #[serde(skip_serializing_if = "is_default")]
    cut: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    trickle: Option<Span>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pad: Option<u64>,
}

/// A fault must not set the length of a body: the connection depends on it.
fn can_be_sent(name: &str, value: &str) -> bool {
    let is_framing =
        ["content-length", "transfer-encoding", "connection"].iter().any(|own| name.eq_ignore_ascii_case(own));
    !is_framing && header(name, value).is_some()
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Wire {
    fn fault(self) -> Result<Fault, String> {
        let delay = self.delay.0;
        let manner = match (self.cut, self.trickle, self.pad) {
            (false, None, None) => Manner::Whole,
            (true, None, None) => Manner::Cut,
            (false, Some(pause), None) => Manner::Trickle(pause.0),
            (false, None, Some(bytes)) => Manner::Padded(bytes),
            _ => return Err("a body can be one of cut, trickle and pad".into()),
        };
        let kind = match (self.status, self.hang, self.reset) {
            (Some(status), None, None) => {
                if !matches!(status, 101 | 200..=599) {
                    return Err(format!("status {status}: an answer has one from 200 to 599, or 101"));
                }
                if self.location.as_ref().is_some_and(|text| text.bytes().any(|byte| byte.is_ascii_control())) {
                    return Err("location: no control characters can be sent in a header".into());
                }
                if self.gateway && (self.html || self.code.is_some() || self.message.is_some()) {
                    return Err("gateway: what it says is its body, so no code, message or html goes with it".into());
                }
                if let Some((name, _)) = self.headers.iter().find(|(name, value)| !can_be_sent(name, value)) {
                    return Err(format!("headers: {name:?} cannot be sent so, or is the simulator's to send"));
                }
                Kind::Forged(Box::new(Forged {
                    status,
                    code: self.code,
                    message: self.message,
                    body: self.body,
                    html: self.html,
                    gateway: self.gateway,
                    retry_after: self.retry_after,
                    location: self.location,
                    headers: self.headers,
                    when: self.when,
                    manner,
                }))
            }
            (None, ..) if self.says_something() => {
                return Err(
                    "code, message, body, html, gateway, retry_after, location, headers and when go with a status"
                        .into(),
                );
            }
            (None, None, None) => Kind::Genuine(manner),
            (None, Some(when), None) if manner == Manner::Whole => Kind::Hang(when),
            (None, None, Some(when)) if manner == Manner::Whole => Kind::Reset(when),
            (None, ..) if manner != Manner::Whole => return Err("no body is sent after a hang or a reset".into()),
            _ => return Err("a fault is one of status, hang and reset".into()),
        };
        Ok(Fault { delay, kind })
    }

    fn says_something(&self) -> bool {
        let texts = [&self.code, &self.message, &self.body, &self.location];
        texts.iter().any(|text| text.is_some())
            || self.html
            || self.gateway
            || !self.headers.is_empty()
            || self.retry_after.is_some()
            || self.when != When::default()
    }
}

impl From<&Fault> for Wire {
    fn from(fault: &Fault) -> Self {
        let mut wire = Self { delay: Span(fault.delay), ..Self::default() };
        let manner = match &fault.kind {
            Kind::Hang(when) => return Self { hang: Some(*when), ..wire },
            Kind::Reset(when) => return Self { reset: Some(*when), ..wire },
            Kind::Genuine(manner) => *manner,
            Kind::Forged(forged) => {
                let Forged { status, code, message, body, html, gateway, retry_after, location, headers, when, manner } =
                    (**forged).clone();
                let status = Some(status);
                wire =
                    Self { status, code, message, body, html, gateway, retry_after, location, headers, when, ..wire };
                manner
            }
        };
        match manner {
            Manner::Whole => wire,
            Manner::Cut => Self { cut: true, ..wire },
            Manner::Trickle(pause) => Self { trickle: Some(Span(pause)), ..wire },
            Manner::Padded(bytes) => Self { pad: Some(bytes), ..wire },
        }
    }
}

impl Serialize for Fault {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Wire::from(self).serialize(serializer)
    }
}

/// By hand, because an untagged enum would answer every mistake with "did not match any variant".
impl<'de> Deserialize<'de> for Fault {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrObject;

        impl<'de> Visitor<'de> for NameOrObject {
            type Value = Fault;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a fault or an object such as {\"status\": 500}")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Fault, E> {
                name.parse().map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Fault, A::Error> {
                Wire::deserialize(MapAccessDeserializer::new(map))?.fault().map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_any(NameOrObject)
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let base = name.strip_suffix("-after").or_else(|| name.strip_suffix("-before")).unwrap_or(name);
        let when = if name.ends_with("-after") { When::After } else { When::Before };
        let wrong = |what: &str| format!("fault {name:?}: {what}");
        let (kind, detail) = base.split_once('-').unwrap_or((base, ""));
        let status = || detail.parse::<u16>().map(Some).map_err(|_| wrong("needs a status, as in status-500"));
        let span = || detail.parse::<Span>().map_err(|why| wrong(&why));
        let wire = match (kind, detail) {
            ("normal", "") => Wire::default(),
            ("hang", "") => Wire { hang: Some(when), ..Wire::default() },
            ("reset", "") => Wire { reset: Some(when), ..Wire::default() },
            ("cut", "") => Wire { cut: true, ..Wire::default() },
            ("throttled", "") => Wire { status: Some(429), retry_after: Some(1), when, ..Wire::default() },
            ("access", "denied") => Wire { status: Some(403), when, ..Wire::default() },
            ("status", _) => Wire { status: status()?, when, ..Wire::default() },
            ("html", _) => Wire { status: status()?, html: true, when, ..Wire::default() },
            ("gateway", _) => Wire { status: status()?, gateway: true, when, ..Wire::default() },
            ("redirect", location) if !location.is_empty() => {
                Wire { status: Some(302), location: Some(location.into()), when, ..Wire::default() }
            }
            ("delay", _) => Wire { delay: span()?, ..Wire::default() },
            ("trickle", _) => Wire { trickle: Some(span()?), ..Wire::default() },
            ("pad", _) => {
                let bytes = detail.parse().map_err(|_| wrong("needs a number of bytes, as in pad-1000000"))?;
                Wire { pad: Some(bytes), ..Wire::default() }
            }
            _ => return Err(wrong(NAMES)),
        };
        wire.fault().map_err(|why| wrong(&why))
    }
}

const NAMES: &str = "unknown; there are normal, status-CODE, html-CODE, gateway-CODE, throttled, access-denied, redirect-URL, \
                     hang-before, hang-after, reset-before, reset-after, cut, delay-TIME, trickle-TIME, pad-BYTES";

/// The name in the call log; none if nothing goes wrong.
pub fn name(fault: &Fault) -> Option<String> {
    let when = |when: When| if when == When::After { "after" } else { "before" };
    let manner = match &fault.kind {
        Kind::Hang(at) => return Some(format!("hang-{}", when(*at))),
        Kind::Reset(at) => return Some(format!("reset-{}", when(*at))),
        Kind::Forged(forged) => {
            let kind = match (forged.html, forged.gateway) {
                (true, _) => "html",
                (false, true) => "gateway",
                (false, false) => "status",
            };
            let after = if forged.when == When::After { "-after" } else { "" };
            return Some(format!("{kind}-{}{after}", forged.status));
        }
        Kind::Genuine(manner) => *manner,
    };
    match manner {
        Manner::Cut => Some("cut".into()),
        Manner::Trickle(pause) => Some(format!("trickle-{}", Span(pause))),
        Manner::Padded(bytes) => Some(format!("pad-{bytes}")),
        Manner::Whole if fault.delay > Duration::ZERO => Some(format!("delay-{}", Span(fault.delay))),
        Manner::Whole => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> Result<Fault, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn names_and_objects_are_two_spellings_of_one_thing() {
        for (text, object, logged) in [
            ("normal", json!({}), None),
            ("status-500", json!({"status": 500}), Some("status-500")),
            ("status-503-after", json!({"status": 503, "when": "after"}), Some("status-503-after")),
            ("html-502", json!({"status": 502, "html": true}), Some("html-502")),
            ("gateway-404", json!({"status": 404, "gateway": true}), Some("gateway-404")),
            ("throttled", json!({"status": 429, "retry_after": 1}), Some("status-429")),
            ("access-denied", json!({"status": 403}), Some("status-403")),
            ("redirect-http://other/", json!({"status": 302, "location": "http://other/"}), Some("status-302")),
            ("hang-before", json!({"hang": "before"}), Some("hang-before")),
            ("hang-after", json!({"hang": "after"}), Some("hang-after")),
            ("reset-after", json!({"reset": "after"}), Some("reset-after")),
            ("cut", json!({"cut": true}), Some("cut")),
            ("delay-2s", json!({"delay": "2s"}), Some("delay-2s")),
            ("trickle-1s", json!({"trickle": "1s"}), Some("trickle-1s")),
            ("pad-1000", json!({"pad": 1000}), Some("pad-1000")),
        ] {
            let fault: Fault = text.parse().unwrap();
            assert_eq!(read(object.clone()).unwrap(), fault, "{text}");
            assert_eq!(read(json!(text)).unwrap(), fault, "{text}");
            assert_eq!(serde_json::to_value(&fault).unwrap(), object, "{text}");
            assert_eq!(name(&fault).as_deref(), logged, "{text}");
        }
    }

    #[test]
    fn faults_that_make_no_sense_are_refused_with_the_reason() {
        for (object, part) in [
            (json!({"status": 500, "hang": "after"}), "one of status, hang and reset"),
            (json!({"status": 99}), "99"),
            (json!({"hang": "after", "retry_after": 1}), "go with a status"),
            (json!({"hang": "after", "gateway": true}), "go with a status"),
            (json!({"status": 404, "gateway": true, "code": "NoSuchObject"}), "its body"),
            (json!({"status": 404, "headers": {"a b": "c"}}), "a b"),
            (json!({"status": 404, "headers": {"Content-Length": "3"}}), "Content-Length"),
            (json!({"hang": "after", "cut": true}), "no body"),
            (json!({"cut": true, "pad": 1}), "one of cut, trickle and pad"),
            (json!({"stauts": 500}), "stauts"),
            (json!({"delay": 2}), "string"),
            (json!("explode"), "explode"),
            (json!("status-many"), "status-many"),
            (json!(500), "name of a fault"),
        ] {
            let error = read(object.clone()).unwrap_err();
            assert!(error.contains(part), "{object}: {error}");
        }
    }
}
