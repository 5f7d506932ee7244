//! Texts in methods that clients can influence: routing keys, names of exchanges, quotes in the broker's errors.
//!
//! A routing key may be any bytes, and the outcomes' log accepts every key. Nothing depends on such a text, so invalid
//! UTF-8 in it becomes `?`s of the same length.

use super::table::{Bytes, Unfit};

/// A part of a method's arguments.
enum Part {
    Text,
    /// So many bytes of anything else.
    Other(usize),
}

/// Makes the texts in a method's payload valid UTF-8, if the method carries such texts.
pub(super) fn replace_invalid_utf8(payload: &mut [u8]) {
    use Part::{Other, Text};
    let parts: &[Part] = match payload {
        // connection.close, connection.blocked, channel.close
        [0, 10, 0, 50, ..] | [0, 20, 0, 40, ..] => &[Other(2), Text],
        [0, 10, 0, 60, ..] => &[Text],
        // basic.return
        [0, 60, 0, 50, ..] => &[Other(2), Text, Text, Text],
        // basic.deliver, basic.get-ok
        [0, 60, 0, 60, ..] => &[Text, Other(9), Text, Text],
        [0, 60, 0, 71, ..] => &[Other(9), Text, Text],
        _ => return,
    };
    let mut at = 4;
    for part in parts {
        let mut rest = Bytes(payload.get(at..).unwrap_or_default());
        let length = match part {
            Other(count) => rest.take(*count).map(<[u8]>::len),
            Text => rest.short_text().map(|text| 1 + text.len()),
        };
        // A truncated payload is for lapin to refuse.
        let Ok::<usize, Unfit>(length) = length else { return };
        if matches!(part, Text) {
            make_utf8(&mut payload[at + 1..at + length]);
        }
        at += length;
    }
}

fn make_utf8(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        let (from, length) = (error.valid_up_to(), error.error_len());
        let to = length.map_or(text.len(), |length| from + length);
        text[from..to].fill(b'?');
        text = &mut text[to..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_becomes_utf8_and_all_else_stays() {
        let deliver = |key: &[u8]| {
            [b"\0\x3c\0\x3c\x03tag12345678\0\x01e".to_vec(), vec![u8::try_from(key.len()).unwrap()], key.to_vec()]
                .concat()
        };
        for (key, mended) in [
            (&b"prod.held"[..], &b"prod.held"[..]),
            ("prod.й".as_bytes(), "prod.й".as_bytes()),
            (b"pro\xff\xfed\xd0", b"pro??d?"),
            (b"", b""),
        ] {
            let mut payload = deliver(key);
            replace_invalid_utf8(&mut payload);
            assert_eq!(payload, deliver(mended));
        }
        // Numbers are not touched, whatever their bytes.
        let mut got = b"\0\x3c\0\x47\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01\xff\x01k\0\0\0\0".to_vec();
        replace_invalid_utf8(&mut got);
        assert_eq!(got, b"\0\x3c\0\x47\xff\xff\xff\xff\xff\xff\xff\xff\x01\x01?\x01k\0\0\0\0");
        let mut cut = b"\0\x3c\0\x32\0".to_vec();
        replace_invalid_utf8(&mut cut);
        assert_eq!(cut, b"\0\x3c\0\x32\0");
    }
}
