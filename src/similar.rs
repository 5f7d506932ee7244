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
    }
}
