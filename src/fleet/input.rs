//! Reads what is to be submitted: once to find all that is wrong with it, before anything is submitted, and once more to submit
//! it. In between, 16 bytes are kept of each job.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use uuid::Uuid;

use super::defaults::Defaults;
use super::excerpt::Excerpt;
use super::identity::{Identity, Part};
use super::lines;
use super::table::Table;
use super::text::Text;
use crate::config::LaneName;
use crate::events::Wave;
use crate::job::{Job, Priority};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An id, or a whole job in JSON, on each line.
    Lines,
    /// A table with commas.
    Csv,
    /// A table with tabs.
    Tsv,
}

impl Format {
    /// By the end of its name alone: what a file holds does not tell it.
    fn of(path: &Path) -> Self {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        match extension.to_str() {
            Some("csv") => Self::Csv,
            Some("tsv") => Self::Tsv,
            _ => Self::Lines,
        }
    }
}

/// The jobs of a command line and of files, in this order.
#[derive(Debug)]
pub struct Input {
    ids: Vec<String>,
    files: Vec<(Text, Format)>,
    defaults: Defaults,
    identity: Identity,
    /// Problems that are named.
    named: usize,
}

/// What a first reading has found.
#[derive(Debug)]
pub struct Checked {
    /// The ids of all jobs, sorted, each once.
    pub ids: Vec<u128>,
    /// Those of jobs that stand in the input several times.
    repeated: HashSet<u128>,
    /// Those for people: a heading, and a line for each. `None`: there are none.
    pub told: Option<String>,
    /// The batches that the jobs belong to.
    pub parts: BTreeMap<String, Part>,
    /// Whether there are urgent jobs.
    pub has_urgent: bool,
    /// Whether there are others.
    pub has_others: bool,
}

/// Why nothing is submitted.
#[derive(Debug, thiserror::Error)]
pub enum InputFault {
    /// What was named cannot be read like this.
    #[error("{0}")]
    Usage(String),
    /// A heading, and a line for each problem, each already escaped.
    #[error("{0}")]
    Problems(String),
}

/// What is found at a place of the input.
#[derive(Debug)]
enum Found {
    Job(Place, Box<Job>),
    /// With the place.
    Problem(String),
}

/// Where a job stands.
#[derive(Debug, Clone)]
struct Place {
    /// `None`: on the command line.
    file: Option<Arc<str>>,
    /// The line of the file or the number of the id, from 1.
    line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{file}, line {}", self.line),
            None => write!(f, "argument {}", self.line),
        }
    }
}

impl Checked {
    /// How many jobs there are.
    pub fn size(&self) -> usize {
        self.ids.len()
    }

    /// The batches that start in several waves, with the size of each wave.
    pub fn waves(&self, ramp: bool) -> Vec<(&str, BTreeMap<Wave, usize>)> {
        let sizes = self.parts.iter().map(|(batch, part)| (batch.as_str(), part.sizes(ramp)));
        sizes.filter(|(_, sizes)| sizes.len() > 1).collect()
    }
}

impl Input {
    /// Of `ids` and `files`.
    ///
    /// # Errors
    /// Standard input is named twice.
    pub fn new(
        ids: Vec<String>,
        files: &[PathBuf],
        format: Option<Format>,
        defaults: Defaults,
        identity: Identity,
    ) -> Result<Self, InputFault> {
        let file = |path: &PathBuf| (Text::of(path), format.unwrap_or_else(|| Format::of(path)));
        let files: Vec<_> = files.iter().map(file).collect();
        if files.iter().filter(|(text, _)| text.is_standard_input()).count() > 1 {
            return Err(InputFault::Usage("--file - is given twice: standard input can be read once".to_owned()));
        }
        Ok(Self { ids, files, defaults, identity, named: Excerpt::for_errors() })
    }

    /// The same, of whose problems so many are named, and the others counted.
    #[must_use]
    pub fn naming(self, named: usize) -> Self {
        Self { named, ..self }
    }

    /// Where the jobs go.
    pub fn lane(&self) -> &LaneName {
        &self.identity.lane
    }

    /// Reads everything, and names jobs that equal an earlier one in every field.
    ///
    /// # Errors
    /// Everything that is wrong, with its place.
    pub fn check(&mut self) -> Result<Checked, InputFault> {
        let (identity, defaults) = (self.identity.clone(), self.defaults.clone());
        let (mut faults, mut late) = (Excerpt::of(self.named), BTreeMap::new());
        let mut checked = Checked {
            ids: Vec::new(),
            repeated: HashSet::new(),
            told: None,
            parts: BTreeMap::new(),
            has_urgent: false,
            has_others: false,
        };
        self.each(|found| {
            match found {
                Found::Problem(problem) => faults.push(problem),
                Found::Job(place, job) => {
                    if let Err(problem) = checked.add(&job, identity.of(&job)) {
                        faults.push(format_args!("{place}: {problem}"));
                    }
                    if let Some(problem) = defaults.late_start(&job)
                        && !late.contains_key(batch_of(&job))
                    {
                        late.insert(batch_of(&job).to_owned(), format!("{place}: {problem}"));
                    }
                }
            }
            ControlFlow::Continue(())
        });
        let has_waves = |batch: &str| checked.parts.get(batch).is_some_and(|part| part.has_later_waves(identity.ramp));
        late.into_iter().filter(|(batch, _)| has_waves(batch)).for_each(|(_, problem)| faults.push(problem));
        if faults.count() > 0 {
            return Err(InputFault::Problems(format!("nothing submitted, {} wrong:{faults}", faults.count())));
        }
        if checked.ids.is_empty() {
            let files: Vec<String> = self.files.iter().map(|(text, _)| text.name()).collect();
            let none = if files.is_empty() {
                "no instance was named".to_owned()
            } else {
                format!("no instance in {}", files.join(", "))
            };
            return Err(InputFault::Usage(format!("nothing submitted: {none}; expected ids, --file or --select")));
        }
        checked.ids.sort_unstable();
        let equal = checked.ids.windows(2).filter(|pair| pair[0] == pair[1]);
        checked.repeated = equal.map(|pair| pair[0]).collect();
        if !checked.repeated.is_empty() {
            checked.ids.dedup();
            let repeated = self.leave_repeated_out(&mut checked);
            checked.told = Some(format!("submitted once, as these are the same in every field:{repeated}"));
        }
        Ok(checked)
    }

    /// Takes repeated jobs out of the sizes, and names them.
    fn leave_repeated_out(&mut self, checked: &mut Checked) -> Excerpt {
        let identity = self.identity.clone();
        let (mut first, mut repeated) = (HashMap::new(), Excerpt::of(self.named));
        self.each(|found| {
            if let Found::Job(place, job) = found {
                let id = identity.of(&job);
                match first.entry(id.as_u128()) {
                    _ if !checked.repeated.contains(&id.as_u128()) => {}
                    Entry::Vacant(entry) => {
                        entry.insert(place);
                    }
                    Entry::Occupied(entry) => {
                        repeated.push(format_args!("{}: {place}, and before at {}", job.instance_id, entry.get()));
                        if let Some(part) = checked.parts.get_mut(batch_of(&job)) {
                            part.remove(id, job.wave);
                        }
                    }
                }
            }
            ControlFlow::Continue(())
        });
        repeated
    }

    /// Hands over each job once, with its id, unless one breaks.
    ///
    /// # Errors
    /// It is not what was `checked`: a file was changed in between.
    pub fn jobs(
        &mut self,
        checked: &Checked,
        mut take: impl FnMut(Uuid, Box<Job>) -> ControlFlow<()>,
    ) -> Result<(), String> {
        let identity = self.identity.clone();
        let (mut sent, mut end) = (HashSet::new(), Ok(()));
        let (mut count, mut is_over) = (0, false);
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        self.each(|found| match found {
            Found::Problem(problem) => {
                end = Err(problem);
                ControlFlow::Break(())
            }
            Found::Job(place, mut job) => {
                let id = identity.of(&job);
                if checked.ids.binary_search(&id.as_u128()).is_err() {
                    end = Err(format!("{place}: {} was not there before", job.instance_id));
                    return ControlFlow::Break(());
                }
                if checked.repeated.contains(&id.as_u128()) && !sent.insert(id) {
                    return ControlFlow::Continue(());
                }
                count += 1;
                if identity.ramp {
                    job.wave = Some(Wave::of_ramp(next_place(&mut places, batch_of(&job))));
                }
                let next = take(id, job);
                is_over = next.is_break();
                next
            }
        });
        end?;
        let size = checked.size();
        if count == size || is_over { Ok(()) } else { Err(format!("{count} jobs are there, and {size} were before")) }
    }

    fn each(&mut self, mut take: impl FnMut(Found) -> ControlFlow<()>) {
        let defaults = &self.defaults;
        let found = |place: Place, job: Result<Job, String>| match job.and_then(|job| defaults.complete(job)) {
            Ok(job) => Found::Job(place, Box::new(job)),
            Err(problem) => Found::Problem(format!("{place}: {problem}")),
        };
        for (line, id) in (1..).zip(&self.ids) {
            if let Some(job) = lines::job(id)
                && take(found(Place { file: None, line }, job)).is_break()
            {
                return;
            }
        }
        for (text, format) in &mut self.files {
            let file: Arc<str> = text.name().into();
            let mut table = match format {
                Format::Lines => None,
                Format::Csv => Some(Table::new(b',')),
                Format::Tsv => Some(Table::new(b'\t')),
            };
            let mut is_over = false;
            let read = text.each_line(|line, text| {
                let job = match (text, &mut table) {
                    (Err(problem), _) => Some(Err(problem)),
                    (Ok(text), None) => lines::job(text),
                    (Ok(text), Some(table)) => table.job(text),
                };
                let Some(job) = job else { return ControlFlow::Continue(()) };
                let next = take(found(Place { file: Some(Arc::clone(&file)), line }, job));
                is_over = next.is_break();
                next
            });
            if let Err(error) = read {
                is_over = take(Found::Problem(format!("cannot read {file}: {error}"))).is_break();
            }
            if is_over {
                return;
            }
        }
    }
}

impl Checked {
    fn add(&mut self, job: &Job, id: Uuid) -> Result<(), String> {
        self.ids.push(id.as_u128());
        let urgent = job.priority == Some(Priority::Urgent);
        self.has_urgent |= urgent;
        self.has_others |= !urgent;
        let batch = batch_of(job);
        match self.parts.get_mut(batch) {
            Some(part) => part.add(id, job.wave),
            None => self.parts.entry(batch.to_owned()).or_default().add(id, job.wave),
        }
    }
}

/// The place of the next job in its batch, from 0 on.
fn next_place(places: &mut BTreeMap<String, usize>, batch: &str) -> usize {
    match places.get_mut(batch) {
        Some(place) => {
            *place += 1;
            *place
        }
        None => {
            places.insert(batch.to_owned(), 0);
            0
        }
    }
}

/// The batch of a job, which the defaults have filled in.
pub fn batch_of(job: &Job) -> &str {
    job.batch_id.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
