//! Secrets from the environment and from files, most of which end in a newline.

use reqwest::Url;

/// The password of RabbitMQ's own user of that name, which everybody knows.
const GUEST: &str = "guest";

/// Whether the text of a configuration file has a password in it.
pub fn holds_secrets(text: &str) -> bool {
    let Ok(root) = text.parse::<toml::Table>() else { return false };
    let setting = |key| root.get("broker").and_then(|broker| broker.get(key)).and_then(toml::Value::as_str);
    let url = setting("url").and_then(|url| Url::parse(url).ok());
    let passwords = [setting("password"), url.as_ref().and_then(Url::password)];
    passwords.into_iter().flatten().any(|password| password != GUEST)
}

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
    fn a_configuration_with_a_password_holds_a_secret() {
        for (text, expected) in [
            ("[broker]\npassword = \"hush\"", true),
            ("[broker]\nurl = \"amqp://u:hush@h\"", true),
            ("[broker]\nurl = \"amqp://guest:guest@h\"", false),
            ("[broker]\nurl = \"amqp://u@h\"\npassword_file = \"hush\"", false),
            ("[[lane]]\npassword = \"hush\"", false),
            ("hush", false),
        ] {
            assert_eq!(holds_secrets(text), expected, "{text}");
        }
    }

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
