//! Checks the repository's pages: the tests they name exist, their links lead somewhere, and the first pages stay
//! short.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The page that names the test for each promise.
const PROMISES: &str = "docs/promises.md";
/// The most lines of these pages, so that they are read.
const LONGEST: [(&str, usize); 2] = [("README.md", 200), ("ARCHITECTURE.md", 120)];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `folder` with this extension, without build output and hidden files.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.starts_with('.') && name != "target" {
                found.extend(files(&path, extension));
            }
        } else if path.extension().is_some_and(|it| it == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A path relative to the repository.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[track_caller]
fn assert_none(what: &str, missing: &[String]) {
    assert!(missing.is_empty(), "{what}:\n  {}", missing.join("\n  "));
}

/// The lines outside of fenced code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fenced = false;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let fence = line.trim_start().starts_with("```");
        if !fence && !fenced {
            lines.push((number, line));
        }
        fenced ^= fence;
    }
    lines
}

/// The code spans of a line.
fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// GitHub's anchor for a heading: lower case, without punctuation and markup, with hyphens for spaces.
fn anchor(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading.trim();
    // Only the text of a link counts.
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    let kept = text.chars().filter(|it| it.is_alphanumeric() || matches!(it, '-' | '_' | ' '));
    kept.map(|it| if it == ' ' { '-' } else { it }).flat_map(char::to_lowercase).collect()
}

/// All anchors of a page. Equal headings are numbered.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let name = anchor(heading);
        let times = seen.entry(name.clone()).or_default();
        anchors.insert(if *times == 0 { name } else { format!("{name}-{times}") });
        *times += 1;
    }
    anchors
}

/// The targets of the links in a line.
fn links(line: &str) -> Vec<String> {
    let text: String = line.split('`').step_by(2).collect::<Vec<_>>().join(" ");
    let target = |rest: &str| rest.split([')', ' ']).next().unwrap_or_default().to_owned();
    text.split("](").skip(1).map(target).collect()
}

/// Why this link of this page leads nowhere.
fn broken(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let target = if path.is_empty() { page.to_owned() } else { page.parent().expect("a folder").join(path) };
    if !target.exists() {
        return Some("no such file".to_owned());
    }
    let anchor = anchor?;
    if target.extension().is_none_or(|it| it != "md") {
        return Some("an anchor in what is no page".to_owned());
    }
    let there = anchors(&read(&target));
    (!there.contains(anchor)).then(|| format!("no such heading; there are {}", Vec::from_iter(there).join(", ")))
}

/// The names of all functions of a file.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    let name = |rest| -> Option<&str> { str::split(rest, ['(', '<']).next() };
    text.lines().filter_map(move |line| line.trim_start().split_once("fn ").and_then(|(_, rest)| name(rest)))
}

/// The text of the last cell in a table's row.
fn last_cell(row: &str) -> &str {
    row.trim_end().trim_end_matches('|').rsplit(" | ").next().unwrap_or_default()
}

/// Whether a code span is the name of a test, with or without its module.
fn as_test(span: &str) -> Option<&str> {
    let is_name = |it: char| it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_' || it == ':';
    (span.contains('_') && span.chars().all(is_name)).then(|| span.rsplit("::").next().unwrap_or(span))
}

#[test]
fn every_test_that_a_promise_names_exists() {
    let sources = ["src", "tests"].map(|folder| files(&root().join(folder), "rs")).concat();
    let sources: Vec<String> = sources.iter().map(|path| read(path)).collect();
    let functions: BTreeSet<&str> = sources.iter().flat_map(|text| functions(text)).collect();
    let page = read(&root().join(PROMISES));
    let (mut missing, mut rows) = (Vec::new(), 0);
    for (number, row) in prose(&page).into_iter().filter(|(_, line)| line.starts_with('|')) {
        if row.starts_with("| promise |") || row.starts_with("|---") {
            continue;
        }
        rows += 1;
        let cell = last_cell(row);
        let tests: Vec<&str> = code(cell).filter_map(as_test).collect();
        let unknown = tests.iter().filter(|test| !functions.contains(**test));
        missing.extend(unknown.map(|test| format!("{PROMISES}:{number}: no test is called {test}")));
        if tests.is_empty() && !cell.contains("tests/") && !cell.contains("`make ") {
            missing.push(format!("{PROMISES}:{number}: names no test: {row}"));
        }
    }
    assert!(rows > 100, "{rows} promises were found in {PROMISES}: is it read as it is written?");
    assert_none("promises without a test", &missing);
}

#[test]
fn every_file_of_tests_that_a_promise_names_exists() {
    let page = read(&root().join(PROMISES));
    let is_path = |it: char| it.is_ascii_alphanumeric() || matches!(it, '/' | '_' | '.' | '-');
    let mut missing = Vec::new();
    for (number, line) in (1..).zip(page.lines()) {
        for word in line.split(|it: char| !is_path(it)).filter(|word| word.starts_with("tests/")) {
            let path = word.trim_end_matches('.');
            if !root().join(path).exists() {
                missing.push(format!("{PROMISES}:{number}: {path}"));
            }
        }
    }
    assert_none("files that are not there", &missing);
}

#[test]
fn every_relative_link_leads_somewhere() {
    let (mut missing, mut followed) = (Vec::new(), 0);
    for page in files(root(), "md") {
        let text = read(&page);
        for (number, line) in prose(&text) {
            for link in links(line) {
                followed += 1;
                let why = broken(&page, &link);
                missing.extend(why.map(|why| format!("{}:{number}: {link}: {why}", shown(&page))));
            }
        }
    }
    assert!(followed > 100, "{followed} links were found: are pages read as they are written?");
    assert_none("links that lead nowhere", &missing);
}

#[test]
fn the_first_pages_stay_short() {
    let lines = LONGEST.map(|(page, most)| (page, most, read(&root().join(page)).lines().count()));
    let too_long = lines.into_iter().filter(|(_, most, lines)| lines > most);
    let too_long: Vec<String> = too_long.map(|(page, most, lines)| format!("{page}: {lines} of {most}")).collect();
    assert_none("lines more than are read", &too_long);
}

#[test]
fn anchors_are_githubs() {
    let page = "# A lane's `rate`, and 3.10\n## [Keys](keys.md) & more\n```sh\n# no heading\n```\n#no_heading\n## Once\n## Once\n";
    let expected = ["a-lanes-rate-and-310", "keys--more", "once", "once-1"];
    assert_eq!(Vec::from_iter(anchors(page)), expected);
}

#[test]
fn links_in_code_are_none() {
    assert_eq!(links("[a](b.md#c), `[d](e)`, [`f`](#g) and [h](<https://i>)"), ["b.md#c", "#g", "<https://i>"]);
}
