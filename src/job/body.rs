//! Unusual forms that some producers write: a byte-order mark, other encodings, nil maps, and instants that mean never.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::similar;

/// The JSON of a body, without the byte-order mark that some producers write before it.
pub(super) fn json(body: &[u8]) -> &[u8] {
    body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)
}

/// Whether a body that is not JSON is UTF-16 text: it has a byte-order mark, or its first two characters are ASCII.
pub(super) fn is_utf16(body: &[u8]) -> bool {
    match body {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => true,
        [first, 0, second, 0, ..] | [0, first, 0, second, ..] => *first != 0 && *second != 0,
        _ => false,
    }
}

/// Whether this `content_encoding` means an unencoded body.
pub(super) fn is_plain(content_encoding: &str) -> bool {
    ["", "utf-8", "utf8", "identity"].iter().any(|plain| content_encoding.trim().eq_ignore_ascii_case(plain))
}

/// An RFC 3339 instant. One at the end of year 9999, often written for "never", becomes the last possible one.
pub(super) fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let read =
        |text: String| text.parse().or_else(|error| if is_never(&text) { Ok(Timestamp::MAX) } else { Err(error) });
    Option::<String>::deserialize(deserializer)?.map(read).transpose().map_err(D::Error::custom)
}

/// For text that is no [`Timestamp`]: those end some hours before the year does, so that every offset can show them.
fn is_never(text: &str) -> bool {
    Pieces::parse(text).is_ok_and(|pieces| {
        pieces.date().year() == 9999 && pieces.time().is_some() && pieces.to_numeric_offset().is_some()
    })
}

/// One of these names.
pub(super) fn named<'de, D: Deserializer<'de>, T: Copy>(
    deserializer: D,
    names: &[(&'static str, T)],
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let value = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    let known = || names.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    value.ok_or_else(|| D::Error::custom(format!("unknown variant `{text}`, {}", similar::expected(&text, &known()))))
}

/// A nil map counts as empty, and a label without a value as absent.
pub(super) fn labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(labels.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;

    use super::super::{BODY_LIMIT, Job, Unreadable};
    use super::*;

    fn parse(more: &str) -> Result<Job, Unreadable> {
        Job::parse(format!(r#"{{"instance_id":"i-0000",{more}}}"#).as_bytes())
    }

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn null_is_as_good_as_absent_for_every_field_that_can_be() {
        let bare = Job::parse(br#"{"instance_id":"i-0000"}"#).unwrap();
        for field in ["batch_id", "conflict", "confirm", "not_before", "deadline", "priority", "labels"] {
            assert_eq!(parse(&format!("\"{field}\":null")).unwrap(), bare, "{field}");
        }
        assert!(
            Job::parse(br#"{"instance_id":null}"#)
                .unwrap_err()
                .to_string()
                .starts_with("instance_id: invalid type: null")
        );
    }

    #[test]
    fn a_label_that_is_null_is_left_out_and_not_counted() {
        let labels = parse(r#""labels":{"a":null,"b":"c"}"#).unwrap().labels;
        assert_eq!(labels, [("b".to_owned(), "c".to_owned())].into());
        let nulls: Vec<String> = (0..17).map(|number| format!("\"{number}\":null")).collect();
        assert!(parse(&format!("\"labels\":{{{}}}", nulls.join(","))).unwrap().labels.is_empty());
        let wrong = parse(r#""labels":{"a":null,"b":7}"#).unwrap_err().to_string();
        assert!(wrong.starts_with("labels.b: invalid type: integer `7`"), "{wrong}");
    }

    #[test]
    fn an_instant_at_the_end_of_year_9999_is_never() {
        for field in ["deadline", "not_before"] {
            let read = |text: &str| {
                let job = parse(&format!("\"{field}\":{text:?}"))?;
                Ok::<_, Unreadable>(if field == "deadline" { job.deadline } else { job.not_before })
            };
            for never in [
                "9999-12-31T23:59:59Z",
                "9999-12-31t23:59:59.999999999z",
                "9999-12-31T23:59:59-12:00",
                "9999-12-31T00:00:00+00:00",
                "9999-12-30T22:00:01Z",
            ] {
                assert_eq!(read(never), Ok(Some(Timestamp::MAX)), "{never}");
            }
            for told in [
                "9999-12-30T21:59:59Z",
                "9999-12-31T08:00:00+14:00",
                "0001-01-01T00:00:00Z",
                "0000-01-01T00:00:00+14:00",
            ] {
                assert_eq!(read(told), Ok(Some(told.parse().unwrap())), "{told}");
            }
            for nonsense in [
                "9999-13-31T23:59:59Z",
                "9999-12-32T23:59:59Z",
                "9999-12-31T25:00:00Z",
                "9999-12-31T23:59:59",
                "9999-12-31",
                "9999-12-31T23:59:59Z, or so",
                "10000-01-01T00:00:00Z",
                "+010000-01-01T00:00:00Z",
                "never",
                "",
            ] {
                let wrong = read(nonsense).unwrap_err().to_string();
                assert!(wrong.starts_with(&format!("{field}: ")), "{nonsense}: {wrong}");
            }
            let wrong = parse(&format!("\"{field}\":7")).unwrap_err().to_string();
            assert!(wrong.starts_with(&format!("{field}: invalid type: integer `7`")), "{wrong}");
        }
        let job = parse(r#""deadline":"9999-12-31T23:59:59Z""#).unwrap();
        assert_eq!(Job::parse(&serde_json::to_vec(&job).unwrap()), Ok(job), "it can be passed on");
    }

    #[test]
    fn a_byte_order_mark_is_skipped_once() {
        let job = "{\"instance_id\":\"i-0000\"}";
        assert!(Job::parse(format!("\u{feff}{job}").as_bytes()).is_ok());
        assert!(Job::parse(format!("\u{feff}\u{feff}{job}").as_bytes()).is_err());
        let wrong = Job::parse("\u{feff}{}".as_bytes()).unwrap_err().to_string();
        assert!(wrong.contains("missing field `instance_id`"), "{wrong}");
    }

    #[test]
    fn what_is_in_utf_16_is_told_so() {
        let job = r#"{"instance_id":"i-0000","labels":{"队":"搜索"}}"#;
        for text in [job.to_owned(), format!("\u{feff}{job}"), format!("\n{job}")] {
            for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
                let wrong = Job::parse(&utf16(&text, bytes)).unwrap_err().to_string();
                assert_eq!(wrong, "the body is in UTF-16: expected JSON in UTF-8");
            }
        }
        for other in [&b"\0\0\0\0"[..], b"{\0", b"{\"\0\"", b"\xff", b""] {
            assert!(!Job::parse(other).unwrap_err().to_string().contains("UTF-16"), "{other:?}");
        }
    }

    #[test]
    fn an_encoding_that_is_not_undone_is_named() {
        let unreadable = Job::parse(b"\x1f\x8b\x08").unwrap_err();
        let explained =
            |encoding: &str| unreadable.in_message(&BasicProperties::default().with_content_encoding(encoding.into()));
        for plain in ["", "utf-8", "UTF-8", "utf8", "Identity"] {
            assert_eq!(explained(plain), unreadable.to_string(), "{plain}");
        }
        assert_eq!(unreadable.in_message(&BasicProperties::default()), unreadable.to_string());
        let gzip = explained("gzip");
        assert!(gzip.starts_with(&unreadable.to_string()), "{gzip}");
        assert!(
            gzip.ends_with("content_encoding is gzip: bodies are read as they are, uncompressed JSON in UTF-8"),
            "{gzip}"
        );
        assert!(explained(&"z".repeat(255)).len() < 400);
        let large = Job::parse(&vec![0; BODY_LIMIT + 1]).unwrap_err();
        let gzip = large.in_message(&BasicProperties::default().with_content_encoding("gzip".into()));
        assert!(gzip.contains("at most 65536") && gzip.contains("is gzip"), "{gzip}");
    }
}
