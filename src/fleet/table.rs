//! Tables, CSV or TSV: a header, and a job in each row.

use csv::{ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use crate::bce::answer::shorten;
use crate::job::{self, Job};
use crate::similar;

/// Names of the column with the instances' ids. Of several, the first in this order has them, and the others are
/// labels.
pub(super) const ID_COLUMNS: [&str; 4] = ["instance_id", "instanceId", "InstanceId", "id"];
/// What begins the name of a column that is a label in any case.
const LABEL: &str = "labels.";
/// Similarity to a field above which a column is taken for that field, misspelt.
const ALIKE: f64 = 0.9;
/// Longest row, in bytes: as JSON it fits into a message however much of it is escaped.
const ROW_LIMIT: usize = 8 * 1024;
/// Longest name of a column that is quoted, in characters.
const NAME_LIMIT: usize = 60;
/// The line that is read behind each.
const NEXT_LINE: &str = "\n-";

/// What the cells of a column are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Column {
    /// A field of the job.
    Field(&'static str),
    /// The label of this name.
    Label(String),
}

/// A table that is read line by line.
#[derive(Debug)]
pub(super) struct Table {
    delimiter: u8,
    /// `None` before the header.
    columns: Option<Vec<Column>>,
    /// Nothing is read behind a header that is wrong.
    is_broken: bool,
    row: StringRecord,
}

impl Table {
    pub(super) fn new(delimiter: u8) -> Self {
        Self { delimiter, columns: None, is_broken: false, row: StringRecord::new() }
    }

    /// The job of a line, or what is wrong with it; `None` for the header and for a row without any text.
    pub(super) fn job(&mut self, line: &str) -> Option<Result<Job, String>> {
        if self.is_broken || line.trim().is_empty() {
            return None;
        }
        let row = match cells(line, self.delimiter, &mut self.row) {
            Ok(()) if self.row.iter().all(str::is_empty) => return None,
            row => row,
        };
        match &self.columns {
            Some(columns) => Some(row.and_then(|()| job(columns, &self.row))),
            None => match row.and_then(|()| header(&self.row, char::from(self.delimiter))) {
                Ok(columns) => {
                    self.columns = Some(columns);
                    None
                }
                Err(problem) => {
                    self.is_broken = true;
                    Some(Err(problem))
                }
            },
        }
    }
}

/// Reads the cells of a line.
fn cells(line: &str, delimiter: u8, row: &mut StringRecord) -> Result<(), String> {
    let length = line.len();
    if length > ROW_LIMIT {
        return Err(format!("the row has {length} bytes: at most {ROW_LIMIT}"));
    }
    if line.contains('\r') {
        return Err(
            "the row has a carriage return within it: save the table with line ends of Unix or Windows".to_owned()
        );
    }
    // A quotation mark that is left open takes the next line for a part of its cell.
    let with_next = [line, NEXT_LINE].concat();
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .has_headers(false)
        .flexible(true)
        .buffer_capacity(with_next.len())
        .from_reader(with_next.as_bytes());
    reader.read_record(row).map_err(|error| error.to_string())?;
    if row.iter().any(|cell| cell.contains('\n')) {
        return Err("a cell has more than one line: is a quotation mark left open?".to_owned());
    }
    row.trim();
    Ok(())
}

/// Reads the header.
fn header(names: &StringRecord, delimiter: char) -> Result<Vec<Column>, String> {
    let has = |name: &str| names.iter().any(|column| column == name);
    let Some(id) = ID_COLUMNS.into_iter().find(|name| has(name)) else {
        let known = ID_COLUMNS.join(" or ");
        let names: Vec<&str> = names.iter().collect();
        let names = shorten(format!("{names:?}"), 2 * NAME_LIMIT);
        return Err(format!("the header has no column {known}; between {delimiter:?} there are {names}"));
    };
    // Where a field has its column, a similar one cannot be meant for it.
    let absent: Vec<&str> = optional_fields().filter(|field| !has(field)).collect();
    let mut columns = Vec::with_capacity(names.len());
    for (number, name) in (1..).zip(names) {
        let column = column(name, id, &absent).map_err(|problem| format!("column {number} {problem}"))?;
        if columns.contains(&column) {
            return Err(format!("column {number}, {:?}, is there twice", shorten(name.to_owned(), NAME_LIMIT)));
        }
        columns.push(column);
    }
    Ok(columns)
}

/// The fields beside the id that are columns. Each label is a column of its own.
fn optional_fields() -> impl Iterator<Item = &'static str> {
    job::FIELDS.into_iter().filter(|field| !["instance_id", "labels"].contains(field))
}

fn column(name: &str, id: &str, absent: &[&str]) -> Result<Column, String> {
    if name == id {
        return Ok(Column::Field("instance_id"));
    }
    if let Some(field) = optional_fields().find(|field| *field == name) {
        return Ok(Column::Field(field));
    }
    if let Some(label) = name.strip_prefix(LABEL).filter(|label| !label.is_empty()) {
        return Ok(Column::Label(label.to_owned()));
    }
    if name.is_empty() {
        return Err("has no name".to_owned());
    }
    match similar::most_similar(&name.to_ascii_lowercase(), absent, ALIKE) {
        Some(meant) => {
            let name = shorten(name.to_owned(), NAME_LIMIT);
            Err(format!("is {name:?}; did you mean {meant}? A label is called {:?}", format!("{LABEL}{name}")))
        }
        None => Ok(Column::Label(name.to_owned())),
    }
}

/// What a cell says of a field. A number in it is one; what is none is refused as it is.
fn value(field: &str, cell: &str) -> Value {
    match cell.parse::<u64>() {
        Ok(number) if field == "wave" => number.into(),
        _ => cell.into(),
    }
}

/// Reads a row. An empty cell counts as absent.
fn job(columns: &[Column], row: &StringRecord) -> Result<Job, String> {
    if row.len() != columns.len() {
        let (cells, columns) = (row.len(), columns.len());
        return Err(format!(
            "the header has {columns} columns and the row {cells}: put cells with a delimiter in quotes"
        ));
    }
    let (mut fields, mut labels) = (Map::new(), Map::new());
    for (column, cell) in columns.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
        match column {
            Column::Field(name) => fields.insert((*name).to_owned(), value(name, cell)),
            Column::Label(name) => labels.insert(name.clone(), cell.into()),
        };
    }
    fields.insert("labels".to_owned(), labels.into());
    serde_path_to_error::deserialize(Value::Object(fields)).map_err(|error| {
        let problem = error.inner();
        if error.path().iter().next().is_some() { format!("{}: {problem}", error.path()) } else { problem.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, delimiter: u8) -> Vec<(usize, Result<Job, String>)> {
        let mut table = Table::new(delimiter);
        let lines = (1..).zip(text.lines());
        lines.filter_map(|(line, text)| Some((line, table.job(text)?))).collect()
    }

    /// The one problem of a table, with its line.
    fn problem(text: &str) -> (usize, String) {
        let mut problems: Vec<_> = read(text, b',').into_iter().filter(|(_, job)| job.is_err()).collect();
        assert_eq!(problems.len(), 1, "{text}");
        let (line, job) = problems.remove(0);
        (line, job.unwrap_err())
    }

    fn whole(json: &str) -> Job {
        Job::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn known_columns_are_fields_and_all_others_labels() {
        let header = "team,instance_id,wave,deadline,conflict,confirm,priority,batch_id,not_before,labels.priority";
        let row = "ops,i-0000,3,9999-12-31T23:59:59Z,fail,running,urgent,b,2026-11-25T07:30:00+08:00,high";
        let expected = whole(
            r#"{"instance_id":"i-0000","wave":3,"deadline":"9999-12-31T23:59:59Z","conflict":"fail","confirm":"running",
                "priority":"urgent","batch_id":"b","not_before":"2026-11-24T23:30:00Z",
                "labels":{"team":"ops","priority":"high"}}"#,
        );
        assert_eq!(read(&format!("{header}\n{row}"), b','), [(2, Ok(expected.clone()))]);
        let tabs = |text: &str| text.replace(',', "\t");
        assert_eq!(read(&format!("{}\r\n{}\r\n", tabs(header), tabs(row)), b'\t'), [(2, Ok(expected))]);
    }

    #[test]
    fn an_empty_cell_is_absent() {
        let bare = whole(r#"{"instance_id":"i-0000"}"#);
        assert_eq!(read("instance_id,deadline,team\ni-0000,, \n", b','), [(2, Ok(bare))]);
        assert!(problem("instance_id,team\n,ops").1.contains("missing field `instance_id`"));
    }

    #[test]
    fn the_ids_are_in_the_column_that_is_named_so() {
        for name in ID_COLUMNS {
            assert_eq!(read(&format!("{name}\ni-0000"), b',').len(), 1);
        }
        let both = read("id,instance_id\n7,i-0000", b',');
        assert_eq!(both, [(2, Ok(whole(r#"{"instance_id":"i-0000","labels":{"id":"7"}}"#)))]);
        let (line, told) = problem("\ninstance;team\ni-0000;ops");
        assert_eq!(line, 2);
        let expected =
            "no column instance_id or instanceId or InstanceId or id; between ',' there are [\"instance;team\"]";
        assert!(told.contains(expected), "{told}");
    }

    #[test]
    fn quoted_cells_and_lines_are_those_of_spreadsheets() {
        let text = "\"instance_id\",name\r\n\r\ni-0000,\"a, \"\"b\"\"\"\r\n , \r\n i-0001 ,c\r\ni-1,d\r\n";
        let jobs = read(text, b',');
        assert_eq!(jobs.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 5, 6]);
        assert_eq!(jobs[0].1.as_ref().unwrap().labels["name"], "a, \"b\"");
        assert_eq!(jobs[1].1.as_ref().unwrap().instance_id.as_str(), "i-0001");
        let told = jobs[2].1.as_ref().unwrap_err();
        assert!(told.starts_with("instance_id: \"i-1\" is no instance id"), "{told}");
    }

    #[test]
    fn a_column_that_may_be_a_field_misspelt_is_no_label() {
        for (name, meant) in [
            ("not_befor", "not_before"),
            ("notBefore", "not_before"),
            ("Not Before", "not_before"),
            ("Deadline", "deadline"),
            ("dead_line", "deadline"),
            ("batch", "batch_id"),
            ("Wave", "wave"),
            ("waves", "wave"),
        ] {
            let (line, told) = problem(&format!("instance_id,{name}\ni-0000,x"));
            assert_eq!(line, 1);
            let expected = format!("column 2 is {name:?}; did you mean {meant}? A label is called \"labels.{name}\"");
            assert_eq!(told, expected);
        }
        for name in ["instance_name", "instance_type", "team", "owner", "zone", "labels"] {
            let jobs = read(&format!("instance_id,{name}\ni-0000,x"), b',');
            assert_eq!(jobs[0].1.as_ref().unwrap().labels[name], "x");
        }
        assert!(problem("instance_id,\ni-0000,x").1.contains("column 2 has no name"));
        assert!(problem("instance_id,a,labels.a\n").1.contains("column 3, \"labels.a\", is there twice"));
        assert!(problem("instance_id,deadline,deadline\n").1.contains("is there twice"));
    }

    #[test]
    fn a_row_that_is_not_whole_is_refused_and_the_others_read() {
        for (rows, line, expected) in [
            ("i-0000\ni-0001,a", 2, "the header has 2 columns and the row 1"),
            ("i-0001,a\ni-0000,a,b", 3, "the header has 2 columns and the row 3"),
            ("i-0001,a\ni-0000,\"b\ni-0002,c\n", 3, "is a quotation mark left open?"),
            ("i-0001,a\ni-0000,\"", 3, "is a quotation mark left open?"),
            ("i-0001,a\ni-0000,b\rc", 3, "a carriage return within it"),
        ] {
            let text = format!("instance_id,team\n{rows}");
            let (at, told) = problem(&text);
            assert!(at == line && told.contains(expected), "{at}: {told}");
            assert!(read(&text, b',').iter().any(|(_, job)| job.is_ok()), "{text}");
        }
        assert!(problem(&format!("instance_id,team\ni-0000,{}", "x".repeat(ROW_LIMIT))).1.contains("at most 8192"));
        for (cell, value) in [("0", "integer `0`"), ("4294967296", "integer `4294967296`"), ("-1", "string \"-1\"")] {
            let (_, told) = problem(&format!("instance_id,wave\ni-0000,{cell}"));
            let ends = told.ends_with(&format!("{value}, expected a whole number from 1 to 4294967295"));
            assert!(told.starts_with("wave: invalid ") && ends, "{told}");
        }
        let (_, told) = problem("instance_id,conflict\ni-0000,maybe");
        assert_eq!(told, "conflict: unknown variant `maybe`, expected fail, accept or verify");
        assert!(read("", b',').is_empty() && read("instance_id,team\n", b',').is_empty());
    }
}
