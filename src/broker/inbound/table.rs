//! Parses AMQP's encodings (AMQP 0-9-1 specification, 4.2.5, with RabbitMQ's errata), to know that lapin can.

/// Deepest nesting of a table or an array that is passed on. Each level takes a stack frame wherever lapin or we read,
/// copy, write or drop it: a thread's 2 MiB end at some 1,000 levels.
pub(super) const DEEPEST: usize = 128;
/// Most values in a message's headers, nested ones included.
pub const MOST_VALUES: usize = 384;
/// Approximate memory of a header's value once it is read, in bytes.
pub(super) const VALUE: usize = 100;

/// Why bytes cannot be read, worded to follow the name of what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("cut off")]
    CutOff,
    #[error("not UTF-8 in a name")]
    NotUtf8,
    #[error("nested more than {DEEPEST} deep")]
    TooDeep,
    #[error("of more than {MOST_VALUES} values")]
    TooMany,
    #[error("of the unknown type {:?}", char::from(*.0))]
    UnknownType(u8),
}

/// Bytes that are consumed from the front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes<'a>(pub(super) &'a [u8]);

impl<'a> Bytes<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Unfit> {
        let (taken, left) = self.0.split_at_checked(count).ok_or(Unfit::CutOff)?;
        self.0 = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unfit> {
        let (taken, left) = self.0.split_first_chunk().ok_or(Unfit::CutOff)?;
        self.0 = left;
        Ok(*taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Unfit> {
        self.array().map(|[byte]| byte)
    }

    pub(super) fn short(&mut self) -> Result<u16, Unfit> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn long_long(&mut self) -> Result<u64, Unfit> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length of four bytes, and as many bytes.
    pub(super) fn block(&mut self) -> Result<&'a [u8], Unfit> {
        let length = u32::from_be_bytes(self.array()?);
        self.take(usize::try_from(length).map_err(|_| Unfit::CutOff)?)
    }

    /// A value with its type. For a table or an array, returns its content, and whether it is a table.
    fn value(&mut self) -> Result<Option<(Self, bool)>, Unfit> {
        let kind = self.byte()?;
        let size = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'u' | b'U' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'l' | b'L' | b'd' | b'T' => 8,
            b'S' | b'x' => return self.block().map(|_| None),
            b'F' | b'A' => return Ok(Some((Self(self.block()?), kind == b'F'))),
            kind => return Err(Unfit::UnknownType(kind)),
        };
        self.take(size).map(|_| None)
    }

    /// A length of one byte, and as many bytes.
    pub(super) fn short_text(&mut self) -> Result<&'a [u8], Unfit> {
        let length = self.byte()?;
        self.take(length.into())
    }
}

/// Checks the content of a table, and returns how many values it has, nested ones included.
///
/// Open levels are kept in a list, not on the stack, however many there are.
pub(super) fn check(table: &[u8]) -> Result<usize, Unfit> {
    let mut open = vec![(Bytes(table), true)];
    let mut values = 0;
    while let Some((bytes, has_names)) = open.last_mut() {
        if bytes.0.is_empty() {
            open.pop();
            continue;
        }
        if *has_names && std::str::from_utf8(bytes.short_text()?).is_err() {
            return Err(Unfit::NotUtf8);
        }
        values += 1;
        if values > MOST_VALUES {
            return Err(Unfit::TooMany);
        }
        if let Some(inside) = bytes.value()? {
            if open.len() > DEEPEST {
                return Err(Unfit::TooDeep);
            }
            open.push(inside);
        }
    }
    Ok(values)
}

/// The readable entries of a table, by name, each as encoded.
pub(super) fn sound(table: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut bytes = Bytes(table);
    let mut entry = move || {
        let before = bytes.0;
        let name = bytes.short_text()?;
        bytes.value()?;
        Ok::<_, Unfit>((name, &before[..before.len() - bytes.0.len()]))
    };
    // After an entry whose end cannot be found, nothing is known of the rest.
    std::iter::from_fn(move || entry().ok()).filter(|(_, entry)| check(entry).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(inside: &[u8]) -> Vec<u8> {
        let length = u32::try_from(inside.len()).unwrap();
        [&length.to_be_bytes(), inside].concat()
    }

    fn nested(depth: usize, array: bool) -> Vec<u8> {
        let mut value = b"V".to_vec();
        for _ in 0..depth {
            value = if array {
                [b"A".to_vec(), block(&value)].concat()
            } else {
                [b"F".to_vec(), block(&[b"\x01n".to_vec(), value].concat())].concat()
            };
        }
        [b"\x01n".to_vec(), value].concat()
    }

    #[test]
    fn every_type_is_known_and_counted() {
        let values: [&[u8]; 19] = [
            b"V",
            b"t1",
            b"b1",
            b"B1",
            b"s12",
            b"u12",
            b"U12",
            b"I1234",
            b"i1234",
            b"f1234",
            b"D12345",
            b"l12345678",
            b"L12345678",
            b"d12345678",
            b"T12345678",
            b"S\0\0\0\x02\xff\xfe",
            b"x\0\0\0\x01\xff",
            b"F\0\0\0\0",
            b"A\0\0\0\x02VV",
        ];
        let table: Vec<u8> = values.iter().flat_map(|value| [b"\x03key", *value].concat()).collect();
        assert_eq!(check(&table), Ok(21));
        for end in 1..table.len() {
            let cut = check(&table[..end]);
            assert!(cut.is_err() || table[end..].starts_with(b"\x03key"), "{end}: {cut:?}");
        }
        assert_eq!(check(b""), Ok(0));
    }

    #[test]
    fn what_lapin_cannot_read_is_told_however_deep_it_is() {
        for array in [false, true] {
            assert_eq!(check(&nested(DEEPEST, array)), Ok(DEEPEST + 1));
            for depth in [DEEPEST + 1, 1_600, 12_600] {
                assert_eq!(check(&nested(depth, array)), Err(Unfit::TooDeep), "{depth}");
            }
        }
        assert_eq!(check(b"\x01\xffV"), Err(Unfit::NotUtf8));
        assert_eq!(check(b"\x01nZ"), Err(Unfit::UnknownType(b'Z')));
        assert_eq!(check(b"\x01nS\xff\xff\xff\xff"), Err(Unfit::CutOff));
        assert_eq!(check(&[b"\x01nA".to_vec(), block(&[b'V'; MOST_VALUES])].concat()), Err(Unfit::TooMany));
    }
}
