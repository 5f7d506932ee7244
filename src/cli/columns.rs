//! Rows of text in columns, for people.

use std::fmt;

/// A heading and rows below it.
#[derive(Debug)]
pub(super) struct Columns<const N: usize> {
    head: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Columns<N> {
    pub(super) fn new(head: [&'static str; N]) -> Self {
        Self { head, rows: Vec::new() }
    }

    /// Adds a row. Text from outside is escaped already ([`Shown`](crate::text::Shown)).
    pub(super) fn add(&mut self, row: [String; N]) {
        self.rows.push(row);
    }
}

/// Numbers stand at the right of their column.
fn is_number(cell: &str) -> bool {
    !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit())
}

impl<const N: usize> fmt::Display for Columns<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut widths = self.head.map(|title| title.chars().count());
        let mut is_numeric = [!self.rows.is_empty(); N];
        for row in &self.rows {
            for ((cell, width), numeric) in row.iter().zip(&mut widths).zip(&mut is_numeric) {
                *width = cell.chars().count().max(*width);
                *numeric &= is_number(cell);
            }
        }
        let head = self.head.map(str::to_owned);
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), numeric) in row.iter().zip(widths).zip(is_numeric) {
                line += &if numeric { format!("{cell:>width$}  ") } else { format!("{cell:width$}  ") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_stand_at_the_left_and_numbers_at_the_right() {
        let mut columns = Columns::new(["LANE", "NEW", "DUE", "WHY"]);
        assert_eq!(columns.to_string(), "LANE  NEW  DUE  WHY\n");
        for row in [["prod-bj", "12", "-", ""], ["实例", "1000", "7", "no keys"]] {
            columns.add(row.map(str::to_owned));
        }
        let lines = ["LANE      NEW  DUE  WHY", "prod-bj    12  -", "实例       1000  7    no keys"];
        assert_eq!(columns.to_string().lines().collect::<Vec<_>>(), lines);
    }
}
