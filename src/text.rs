//! Escapes text from outside where it is shown: a terminal would obey it, and a reader of lines would see more lines.
//! Events, dead letters and messages keep it unchanged, since programs read those.

use std::fmt::{self, Display, Write};

/// Text on one line, with every invisible character escaped: `\n`, `\u{1b}`.
#[derive(Clone, Copy)]
pub struct Shown<T>(pub T);

/// As [`Shown`], but newlines are kept: for lines of our own, in which everything else is [`Shown`].
#[derive(Clone, Copy)]
pub struct Lines<T>(pub T);

impl<T: Display> Display for Shown<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: f, newlines_stand: false }, "{}", self.0)
    }
}

impl<T: Display> Display for Lines<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping { to: f, newlines_stand: true }, "{}", self.0)
    }
}

/// JSON with the same characters as JSON escapes, so that its meaning is unchanged.
pub fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if is_hidden(character) && character != '\n' {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

struct Escaping<'a, 'f> {
    to: &'a mut fmt::Formatter<'f>,
    newlines_stand: bool,
}

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_escaped = |character: char| is_hidden(character) && !(character == '\n' && self.newlines_stand);
        let mut rest = text;
        while let Some((start, character)) = rest.char_indices().find(|(_, character)| is_escaped(*character)) {
            write!(self.to, "{}{}", &rest[..start], character.escape_default())?;
            rest = &rest[start + character.len_utf8()..];
        }
        self.to.write_str(rest)
    }
}

/// Characters that are obeyed or invisible: controls, line ends, changes of writing direction, and format characters
/// without a glyph. Spaces, accents and all scripts are text.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{2800}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hidden() -> impl Iterator<Item = char> {
        let controls = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}');
        let directions =
            "\u{61c}\u{200e}\u{200f}\u{202a}\u{202b}\u{202c}\u{202d}\u{202e}\u{2066}\u{2067}\u{2068}\u{2069}";
        let others = "\u{2028}\u{2029}\u{ad}\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}\u{fffb}\u{e0041}\u{e0100}";
        controls.chain(directions.chars()).chain(others.chars())
    }

    #[test]
    fn what_is_obeyed_or_not_seen_is_escaped_and_ascii() {
        for character in hidden() {
            let text = format!("a{character}b{character}");
            let shown = Shown(&text).to_string();
            assert!(shown.is_ascii() && shown.chars().all(|shown| !shown.is_control()), "{character:?}: {shown}");
            assert_eq!(shown, format!("a{0}b{0}", character.escape_default()));
            assert_eq!(Lines(&text).to_string(), if character == '\n' { text } else { shown });
        }
        assert_eq!(Shown("\u{1b}]52;c;aGk=\u{7}\r\n\tx").to_string(), r"\u{1b}]52;c;aGk=\u{7}\r\n\tx");
    }

    #[test]
    fn all_that_is_text_is_shown_as_it_is() {
        for text in
            ["", "plain \"text\" \\n", "实例\u{3000}已过期。", "café cafe\u{301}", "עברית ไทย हिन्दी 🙂", "a\u{a0}b"]
        {
            assert_eq!(
                (Shown(text).to_string(), Lines(text).to_string(), json(text)),
                (text.into(), text.into(), text.into())
            );
        }
    }

    #[test]
    fn what_is_escaped_once_is_not_escaped_again() {
        let once = Shown("\u{1b}\n").to_string();
        assert_eq!(Shown(&once).to_string(), once);
    }

    #[test]
    fn escaped_json_says_what_it_said() {
        let said: String = hidden().collect();
        let plain = format!("{:#}", serde_json::json!({ "vhost": said, "more": [1, 2] }));
        let escaped = json(&plain);
        assert_eq!(Lines(&escaped).to_string(), escaped);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).unwrap()["vhost"], said);
    }
}
