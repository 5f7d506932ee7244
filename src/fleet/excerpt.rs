//! The first entries of a list that can be long.

use std::fmt::{self, Display};
use std::io::IsTerminal;

use crate::text::Shown;

/// Entries that fit on a screen.
const ON_A_SCREEN: usize = 20;
/// Entries in a file of messages: enough for every list that is worth reading.
const IN_A_FILE: usize = 10_000;

/// A list of which the first entries are kept, each as one line.
#[derive(Debug)]
pub(super) struct Excerpt {
    limit: usize,
    entries: Vec<String>,
    count: usize,
}

impl Excerpt {
    /// That of a list for standard error: shorter where that is a terminal.
    pub(super) fn for_errors() -> usize {
        if std::io::stderr().is_terminal() { ON_A_SCREEN } else { IN_A_FILE }
    }

    /// An empty one, of which so many entries are kept.
    pub(super) fn of(limit: usize) -> Self {
        Self { limit, entries: Vec::new(), count: 0 }
    }

    /// Adds an entry, escaped.
    pub(super) fn push(&mut self, entry: impl Display) {
        self.count += 1;
        if self.count <= self.limit {
            self.entries.push(Shown(entry).to_string());
        }
    }

    /// How many there are, with those that were not kept.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// Each entry on a line of its own, after the line that introduces them.
impl Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for entry in &self.entries {
            write!(f, "\n  {entry}")?;
        }
        match self.count - self.entries.len() {
            0 => Ok(()),
            more if self.limit == ON_A_SCREEN => {
                write!(f, "\n  and {more} more; to see them, send standard error to a file, as in 2>problems.txt")
            }
            more => write!(f, "\n  and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_says_how_much_longer_it_is_and_how_to_see_all() {
        let listed = |limit: usize, count: usize| {
            let mut excerpt = Excerpt::of(limit);
            (0..count).for_each(|number| excerpt.push(number));
            (excerpt.count(), excerpt.to_string())
        };
        assert_eq!(listed(2, 2), (2, "\n  0\n  1".to_owned()));
        let (count, text) = listed(ON_A_SCREEN, 27);
        assert!(count == 27 && text.lines().count() == 22, "{text}");
        assert!(
            text.ends_with("and 7 more; to see them, send standard error to a file, as in 2>problems.txt"),
            "{text}"
        );
        let (_, text) = listed(IN_A_FILE, IN_A_FILE + 1);
        assert!(text.ends_with("\n  9999\n  and 1 more"));
    }

    #[test]
    fn an_entry_is_one_line() {
        let mut excerpt = Excerpt::of(1);
        excerpt.push("\u{1b}\n");
        assert_eq!(excerpt.to_string(), "\n  \\u{1b}\\n");
    }
}
