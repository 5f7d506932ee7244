//! Whether an `x-death` header could have been written by RabbitMQ.
//!
//! Any other ends for good the process of RabbitMQ 3.10 that dead-letters messages for all queues of a node. A valid
//! one is in each message that RabbitMQ dead-lettered before, such as an unreadable one that was put back unchanged.

use super::table::{self, Bytes, Unfit};

/// The header's name as encoded in a table, behind its length.
const NAME: &[u8] = b"\x07x-death";

/// The fields of each entry, with their types; `original-expiration` is optional.
const FIELDS: [(&[u8], u8); 6] = [
    (b"count", b'l'),
    (b"reason", b'S'),
    (b"queue", b'S'),
    (b"time", b'T'),
    (b"exchange", b'S'),
    (b"routing-keys", b'A'),
];

/// Whether these headers, the inside of a table, have no `x-death`, or one that RabbitMQ may have written. If the name
/// is anywhere else, such as inside a text, that is not known.
pub(super) fn is_harmless(headers: &[u8]) -> bool {
    match headers.windows(NAME.len()).filter(|bytes| *bytes == NAME).count() {
        0 => true,
        1 => table::sound(headers)
            .any(|(name, entry)| name == &NAME[1..] && deaths(Bytes(&entry[NAME.len()..])).is_ok_and(|known| known)),
        _ => false,
    }
}

fn deaths(mut value: Bytes<'_>) -> Result<bool, Unfit> {
    if value.byte()? != b'A' {
        return Ok(false);
    }
    let mut deaths = Bytes(value.block()?);
    while !deaths.0.is_empty() {
        if deaths.byte()? != b'F' || !death(Bytes(deaths.block()?))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn death(mut fields: Bytes<'_>) -> Result<bool, Unfit> {
    let mut missing: Vec<(&[u8], u8)> = FIELDS.to_vec();
    while !fields.0.is_empty() {
        let (name, kind) = (fields.short_text()?, fields.byte()?);
        match missing.iter().position(|field| *field == (name, kind)) {
            Some(place) => _ = missing.remove(place),
            None if (name, kind) == (b"original-expiration", b'S') => {}
            None => return Ok(false),
        }
        match kind {
            b'l' | b'T' => _ = fields.take(8)?,
            b'A' => {
                let mut keys = Bytes(fields.block()?);
                while !keys.0.is_empty() {
                    if keys.byte()? != b'S' {
                        return Ok(false);
                    }
                    keys.block()?;
                }
            }
            _ => _ = fields.block()?,
        }
    }
    Ok(missing.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(inside: &[u8]) -> Vec<u8> {
        [&u32::try_from(inside.len()).unwrap().to_be_bytes(), inside].concat()
    }

    fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
        [&[u8::try_from(name.len()).unwrap()], name, value].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [b"S".to_vec(), block(text)].concat()
    }

    fn fields() -> Vec<Vec<u8>> {
        vec![
            field(b"count", b"l\0\0\0\0\0\0\0\x01"),
            field(b"reason", &text(b"rejected")),
            field(b"queue", &text(b"reveille.jobs.prod")),
            field(b"time", b"T\0\0\0\0\x6a\0\0\0"),
            field(b"exchange", &text(b"reveille.jobs")),
            field(b"routing-keys", &[b"A".to_vec(), block(&text(b"prod"))].concat()),
        ]
    }

    fn header(deaths: &[Vec<Vec<u8>>]) -> Vec<u8> {
        let deaths = deaths.iter().flat_map(|fields| [b"F".to_vec(), block(&fields.concat())].concat());
        field(b"x-death", &[b"A".to_vec(), block(&deaths.collect::<Vec<u8>>())].concat())
    }

    #[test]
    fn what_rabbitmq_writes_is_harmless_and_nothing_else() {
        let with = |more: Vec<u8>| [fields(), vec![more]].concat();
        let expired = with(field(b"original-expiration", &text(b"1000")));
        for good in [vec![], vec![fields()], vec![fields(), expired]] {
            assert!(is_harmless(&[field(b"team", &text(b"ops")), header(&good)].concat()));
        }
        let mut wrong: Vec<Vec<Vec<u8>>> =
            (0..fields().len()).map(|left_out| [&fields()[..left_out], &fields()[left_out + 1..]].concat()).collect();
        wrong.push(with(field(b"count", b"l\0\0\0\0\0\0\0\x01")));
        wrong.push(with(field(b"more", b"V")));
        wrong.push([&fields()[1..], &[field(b"count", b"I\0\0\0\x01")]].concat());
        wrong.push([&fields()[..5], &[field(b"routing-keys", b"A\0\0\0\x02b\x01")]].concat());
        for fields in wrong {
            assert!(!is_harmless(&header(&[fields])));
        }
        for value in [&b"A\0\0\0\x02b\x01"[..], b"V", b"S\0\0\0\0", b"A\0\0\0\x01F"] {
            assert!(!is_harmless(&field(b"x-death", value)));
        }
        let twice = [header(&[fields()]), header(&[fields()])].concat();
        assert!(!is_harmless(&twice) && !is_harmless(&field(b"a", &text(NAME))));
        assert!(is_harmless(&field(b"x-breath", b"V")) && is_harmless(b""));
    }
}
