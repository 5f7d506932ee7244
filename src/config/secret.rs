//! Secrets from the environment and from files, most of which end in a newline.

/// A secret of one line, without trailing newlines. The error quotes nothing of it.
pub(super) fn one_line(text: &str) -> Result<String, String> {
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err("it is empty".to_owned());
    }
    match secret.chars().find(|character| character.is_control()) {
        Some(control) => Err(format!("it has the control character U+{:04X} within", u32::from(control))),
        None => Ok(secret.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newlines_behind_a_secret_are_no_part_of_it_and_control_characters_within_are_named() {
        for text in ["p w", "p w\n", "p w\r\n", "p w\n\n"] {
            assert_eq!(one_line(text).as_deref(), Ok("p w"));
        }
        for (text, problem) in [
            ("hu\nsh", "it has the control character U+000A within"),
            ("\u{7f}hush", "it has the control character U+007F within"),
            ("hu\0sh\n", "it has the control character U+0000 within"),
            ("\r\n", "it is empty"),
        ] {
            assert_eq!(one_line(text).unwrap_err(), problem);
        }
    }
}
