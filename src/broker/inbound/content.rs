//! The header of a message: its properties and the size of its body (AMQP 0-9-1 specification, 4.2.6.1).

use super::death;
use super::table::{self, Bytes, Unfit, VALUE};
use crate::job::BODY_LIMIT;

/// The header that says why a message cannot be read. It is set only here; if a producer sets it, its message is
/// rejected.
pub const UNREADABLE: &str = "x-reveille-unreadable";

/// The header of an unreadable message that RabbitMQ 3.10 must not dead-letter: it contains, or may contain, an
/// `x-death` that RabbitMQ did not write.
pub const IMMOVABLE: &str = "x-reveille-immovable";

/// Largest body that is passed on, in bytes: an event repeats its job's body, with some kilobytes more.
pub(super) const LARGEST_BODY: u64 = BODY_LIMIT as u64 + 16 * 1024;

/// The properties in their order on the wire; each has a bit, the first one the highest.
const PROPERTIES: [(&str, Kind); 14] = [
    ("content_type", Kind::Text),
    ("content_encoding", Kind::Text),
    ("headers", Kind::Table),
    ("delivery_mode", Kind::Octet),
    ("priority", Kind::Octet),
    ("correlation_id", Kind::Text),
    ("reply_to", Kind::Text),
    ("expiration", Kind::Text),
    ("message_id", Kind::Text),
    ("timestamp", Kind::Time),
    ("type", Kind::Text),
    ("user_id", Kind::Text),
    ("app_id", Kind::Text),
    ("cluster_id", Kind::Text),
];
const HEADERS: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Table,
    Octet,
    Time,
}

/// The result of checking a message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// It can be read, and takes about so much memory, in bytes.
    Fit(usize),
    /// It cannot be read. Its header is replaced, and no body follows.
    Unfit {
        /// The payload of the replacement.
        instead: Vec<u8>,
        /// The bytes of the body to drop.
        body: u64,
    },
}

/// Bytes of a header's payload before its properties: class, weight, and the size of the body.
pub(super) const BEGINNING: usize = 12;

/// Checks the payload of a header frame. `frame` is the size of that frame in bytes, `largest` that of the largest that
/// lapin accepts. Of a far larger one, `payload` may be only the beginning.
pub(super) fn check(payload: &[u8], frame: usize, largest: usize) -> Content {
    let (class, body, rest) = beginning(Bytes(payload)).unwrap_or((BASIC, 0, Bytes(&[])));
    let (kept, read) = properties(rest);
    let problem = match read {
        _ if frame > largest => {
            format!("its properties and headers take a frame of {frame} bytes; at most {largest} can be read")
        }
        Err(problem) => problem,
        Ok(_) if body > LARGEST_BODY => format!("the body has {body} bytes; at most {BODY_LIMIT} are read"),
        Ok(values) => {
            let body = usize::try_from(body).unwrap_or(usize::MAX);
            return Content::Fit(body.saturating_add(payload.len() + values * VALUE));
        }
    };
    Content::Unfit { instead: instead(class, &kept, &problem, payload.len() < frame - AROUND), body }
}

/// Bytes of a frame that are not payload.
const AROUND: usize = 8;

/// The class of all methods that carry a message.
const BASIC: u16 = 60;

/// The class, the size of the body, and the rest.
fn beginning(mut bytes: Bytes<'_>) -> Result<(u16, u64, Bytes<'_>), Unfit> {
    let (class, _weight, body) = (bytes.short()?, bytes.short()?, bytes.long_long()?);
    Ok((class, body, bytes))
}

/// Encoded properties, with their index.
type Kept<'a> = Vec<(usize, &'a [u8])>;

/// Reads as many properties as possible. Returns the sound ones, encoded and with their index, and how many values the
/// headers have or what is wrong.
fn properties(mut bytes: Bytes<'_>) -> (Kept<'_>, Result<usize, String>) {
    let (mut kept, mut values, mut problem) = (Kept::new(), 0, None);
    let Ok(flags) = bytes.short() else { return (kept, Err("its properties are cut off".to_owned())) };
    if flags & 0b11 != 0 {
        return (kept, Err("it has properties that AMQP 0-9-1 does not know".to_owned()));
    }
    for (place, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if flags & bit(place) == 0 {
            continue;
        }
        let before = bytes.0;
        let checked = match kind {
            Kind::Octet => bytes.take(1).map(|_| Ok(0)),
            Kind::Time => bytes.take(8).map(|_| Ok(0)),
            Kind::Text => bytes.short_text().map(|text| match std::str::from_utf8(text) {
                Ok(_) => Ok(0),
                Err(_) => Err(format!("its property {name} is not UTF-8")),
            }),
            Kind::Table => {
                bytes.block().map(|table| table::check(table).map_err(|unfit| format!("its headers are {unfit}")))
            }
        };
        let Ok(checked) = checked else { return (kept, Err(format!("its property {name} is cut off"))) };
        // Sound headers are kept, whatever the others are.
        if checked.is_ok() || kind == Kind::Table {
            kept.push((place, &before[..before.len() - bytes.0.len()]));
        }
        match checked {
            Ok(count) => values += count,
            Err(what) => problem = problem.or(Some(what)),
        }
    }
    if !bytes.0.is_empty() {
        problem = problem.or(Some("more follows its properties than belongs to them".to_owned()));
    }
    (kept, problem.map_or(Ok(values), Err))
}

fn bit(place: usize) -> u16 {
    1 << (15 - place)
}

/// A header with the properties `kept`, the `problem` as a header, and no body. `is_cut`: not all was read.
fn instead(class: u16, kept: &[(usize, &[u8])], problem: &str, is_cut: bool) -> Vec<u8> {
    let theirs = kept.iter().find(|(place, _)| *place == HEADERS).map_or(&[][..], |(_, table)| &table[LENGTH..]);
    let mut headers = vec![0; LENGTH];
    headers.extend(entry(UNREADABLE, problem));
    if is_cut || !death::is_harmless(theirs) {
        headers.extend(entry(IMMOVABLE, "x-death"));
    }
    let mut sound: Vec<_> = table::sound(theirs).filter(|(name, _)| is_of_use(name)).collect();
    // RabbitMQ's headers come behind producers' headers.
    sound.reverse();
    for (_, entry) in sound {
        if headers.len() + entry.len() <= LARGEST_KEPT {
            headers.extend_from_slice(entry);
        }
    }
    let size = length(&headers[LENGTH..]);
    headers[..LENGTH].copy_from_slice(&size);

    let others = || kept.iter().filter(|(place, _)| *place != HEADERS);
    let flags = others().fold(bit(HEADERS), |flags, (place, _)| flags | bit(*place));
    let of = |places: std::ops::Range<usize>| {
        others().filter(move |(place, _)| places.contains(place)).flat_map(|(_, encoded)| encoded.iter().copied())
    };
    let mut payload = class.to_be_bytes().to_vec();
    payload.extend([0; BEGINNING - 2]);
    payload.extend(flags.to_be_bytes());
    payload.extend(of(0..HEADERS));
    payload.extend(headers);
    payload.extend(of(HEADERS + 1..PROPERTIES.len()));
    payload
}

/// Largest headers of an unreadable message, in bytes.
const LARGEST_KEPT: usize = 2 * 1024;
/// The length before a table, in bytes.
const LENGTH: usize = 4;

/// Whether a header is useful although the message cannot be read: its stream offset, its delivery count, its job's id,
/// and its trace.
fn is_of_use(name: &[u8]) -> bool {
    matches!(name, b"x-stream-offset" | b"x-delivery-count" | b"traceparent")
        || name.starts_with(b"x-reveille-") && name != UNREADABLE.as_bytes() && name != IMMOVABLE.as_bytes()
}

fn entry(name: &str, text: &str) -> Vec<u8> {
    let name_length = u8::try_from(name.len()).expect("ours are short");
    [&[name_length], name.as_bytes(), b"S", &length(text.as_bytes()), text.as_bytes()].concat()
}

fn length(bytes: &[u8]) -> [u8; LENGTH] {
    u32::try_from(bytes.len()).expect("some kilobytes").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::protocol::basic::parse_properties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::*;

    fn text(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    fn payload(body: u64, flags: u16, properties: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0][..], &body.to_be_bytes(), &flags.to_be_bytes(), properties].concat()
    }

    fn check(payload: &[u8]) -> Content {
        super::check(payload, payload.len() + 8, 131_072)
    }

    /// As lapin reads it.
    fn read(instead: &[u8]) -> BasicProperties {
        let (left, properties) = parse_properties(&instead[BEGINNING..]).unwrap();
        assert!(left.is_empty());
        properties
    }

    fn problem(content: Content) -> (BasicProperties, String, u64) {
        let Content::Unfit { instead, body } = content else { panic!("it is fit") };
        assert_eq!(instead[..BEGINNING], [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let properties = read(&instead);
        let headers = properties.headers().clone().unwrap();
        let Some(AMQPValue::LongString(problem)) = headers.inner().get(UNREADABLE) else { panic!("{headers:?}") };
        (properties, problem.to_string(), body)
    }

    #[test]
    fn what_can_be_read_is_weighed() {
        let headers = [&length(b"\x01aV\x01bV")[..], b"\x01aV\x01bV"].concat();
        let message = payload(500, bit(HEADERS) | bit(8), &[headers, text(b"id")].concat());
        assert_eq!(check(&message), Content::Fit(500 + message.len() + 2 * VALUE));
        assert_eq!(check(&payload(0, 0, b"")), Content::Fit(14));
    }

    #[test]
    fn a_property_that_is_not_utf8_is_named_and_the_others_are_kept() {
        for (place, (name, _)) in PROPERTIES.into_iter().enumerate().filter(|(_, (_, kind))| *kind == Kind::Text) {
            let (flags, properties) = match place {
                8 => (bit(8) | bit(11), [text(b"\xff\xfe"), text(b"guest")].concat()),
                place if place < 8 => (bit(place) | bit(8), [text(b"\xff\xfe"), text(b"id")].concat()),
                place => (bit(8) | bit(place), [text(b"id"), text(b"\xff\xfe")].concat()),
            };
            let (kept, problem, body) = problem(check(&payload(7, flags, &properties)));
            assert_eq!((problem, body), (format!("its property {name} is not UTF-8"), 7));
            let id = kept.message_id().as_ref().map(|id| id.as_str());
            assert_eq!(id, (place != 8).then_some("id"));
        }
    }

    #[test]
    fn headers_that_cannot_be_read_are_left_out_and_those_that_can_are_kept() {
        let table = [&b"\x01\xffV"[..], &entry("x-reveille-job-id", "j"), b"\x10x-delivery-countb\x02"].concat();
        let bad = [&length(&table)[..], &table].concat();
        let (kept, why, _) = problem(check(&payload(7, bit(HEADERS) | bit(8), &[bad, text(b"id")].concat())));
        assert_eq!(why, "its headers are not UTF-8 in a name");
        assert_eq!((kept.headers().as_ref().unwrap().inner().len(), kept.message_id().is_some()), (3, true));

        let table = [&entry("a", "b")[..], b"\x0fx-stream-offsetl\0\0\0\0\0\0\0\x09"].concat();
        let good = [&length(&table)[..], &table].concat();
        let (kept, why, body) = problem(check(&payload(LARGEST_BODY + 1, bit(HEADERS), &good)));
        assert_eq!((why.as_str(), body), ("the body has 81921 bytes; at most 65536 are read", LARGEST_BODY + 1));
        let mut expected = FieldTable::default();
        expected.insert("x-stream-offset".into(), AMQPValue::LongLongInt(9));
        expected.insert(UNREADABLE.into(), AMQPValue::LongString(why.into()));
        assert_eq!(kept.headers().as_ref(), Some(&expected));
    }

    #[test]
    fn what_rabbitmq_may_not_put_aside_is_marked() {
        let is_marked = |content| problem(content).0.headers().as_ref().unwrap().inner().contains_key(IMMOVABLE);
        let bad = |table: &[u8]| {
            let table = [b"\x01\xffV", table].concat();
            payload(7, bit(HEADERS), &[&length(&table)[..], &table].concat())
        };
        assert!(is_marked(check(&bad(b"\x07x-deathA\0\0\0\x02b\x01"))));
        assert!(!is_marked(check(&bad(b"\x07x-breath\x01"))));
        assert!(is_marked(super::check(&bad(b"")[..BEGINNING], 400_000, 131_072)), "nobody knows");
    }

    #[test]
    fn what_is_cut_off_or_makes_no_sense_is_unfit_and_never_a_panic() {
        let whole = payload(
            3,
            0xfffc,
            &[
                text(b"t"),
                text(b"e"),
                vec![0, 0, 0, 0],
                vec![2],
                vec![3],
                text(b"c"),
                text(b"r"),
                text(b"x"),
                text(b"m"),
                vec![0; 8],
                text(b"k"),
                text(b"u"),
                text(b"a"),
                text(b"l"),
            ]
            .concat(),
        );
        assert!(matches!(check(&whole), Content::Fit(_)));
        for end in 0..whole.len() {
            let Content::Unfit { instead, .. } = check(&whole[..end]) else { panic!("{end}") };
            read(&instead);
        }
        assert!(problem(check(&[&whole[..], b"x"].concat())).1.contains("more follows"));
        assert!(problem(check(&payload(3, 1, b"\0\0"))).1.contains("does not know"));
        let (_, why, body) = problem(super::check(&whole[..BEGINNING], 200_000, 131_072));
        assert_eq!(
            (why.as_str(), body),
            ("its properties and headers take a frame of 200000 bytes; at most 131072 can be read", 3)
        );
    }
}
