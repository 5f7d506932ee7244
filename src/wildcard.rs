//! Patterns with `*`, which stands for any text.

/// Whether `pattern` matches the whole `text`. `equals` compares a byte of the pattern with one of the text. If a `*` matched
/// too little, it takes one more byte and the rest is tried again, so it takes at most the pattern's length times the text's in
/// steps.
pub fn matches(pattern: &str, text: &str, equals: impl Fn(&u8, &u8) -> bool) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut in_pattern, mut in_text) = (0, 0);
    // The position behind the last `*`, and where the text goes on for it.
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(in_text) {
        match pattern.get(in_pattern) {
            Some(b'*') => {
                in_pattern += 1;
                star = Some((in_pattern, in_text));
            }
            Some(letter) if equals(letter, byte) => {
                in_pattern += 1;
                in_text += 1;
            }
            _ => {
                let Some((behind, left)) = star else { return false };
                (in_pattern, in_text) = (behind, left + 1);
                star = Some((behind, left + 1));
            }
        }
    }
    pattern.iter().skip(in_pattern).all(|rest| *rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("web-*", "web-1", true),
            ("web-*", "web-", true),
            ("web-*", "Web-1", false),
            ("web-*", "my-web-1", false),
            ("*b*1", "web-21", true),
            ("web-1", "web-1", true),
            ("web-1", "web-11", false),
            ("*", "", true),
            ("", "", true),
            ("", "a", false),
            ("队*", "队-1", true),
        ] {
            assert_eq!(matches(pattern, text, u8::eq), expected, "{pattern} {text}");
        }
        assert!(matches("WEB*", "web", u8::eq_ignore_ascii_case));
    }
}
