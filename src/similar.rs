//! Which known name was meant by one that is not known.

/// Similarity above which a remedy names one known name, and not all of them.
const ALIKE: f64 = 0.7;

/// The most similar of the `known` names, of those whose Jaro-Winkler similarity (0 to 1) is above `least`.
pub fn most_similar<'a>(name: &str, known: &[&'a str], least: f64) -> Option<&'a str> {
    known
        .iter()
        .map(|known| (strsim::jaro_winkler(name, known), *known))
        .filter(|(likeness, _)| *likeness > least)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}

/// What follows "no such …": the name that was meant, or all there are.
pub fn hint(name: &str, known: &[&str]) -> String {
    match most_similar(name, known, ALIKE) {
        Some(meant) => format!("; did you mean {meant}?"),
        None => format!("; there are {}", known.join(", ")),
    }
}

/// What follows a value that is none of the `known` ones: all of them, and the one that was meant.
pub fn expected(value: &str, known: &[&str]) -> String {
    let listed = match known {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => known.concat(),
    };
    let meant = most_similar(value, known, ALIKE).map(|meant| format!("; did you mean {meant}?"));
    format!("expected {listed}{}", meant.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_meant_is_told_or_else_all() {
        let known = ["deadline", "not_before"];
        assert_eq!(hint("not_befor", &known), "; did you mean not_before?");
        assert_eq!(hint("dedline", &known), "; did you mean deadline?");
        assert_eq!(hint("xyz", &known), "; there are deadline, not_before");
        assert_eq!(most_similar("not_befor", &known, 0.99), None);
        assert_eq!(expected("dedline", &known), "expected deadline or not_before; did you mean deadline?");
        assert_eq!(expected("xyz", &["a", "b", "c"]), "expected a, b or c");
        assert_eq!((expected("", &["a"]), expected("a", &[])), ("expected a".to_owned(), "expected ".to_owned()));
    }
}
