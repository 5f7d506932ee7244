//! The options of `reveille submit` for jobs that do not say it themselves.

use std::collections::BTreeMap;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use uuid::Uuid;

use crate::cli::{Failure, times};
use crate::fleet::{Defaults, check_times};
use crate::job::{BATCH_ID_LIMIT, Confirm, Conflict, Priority};

/// The options for jobs.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// The batch the jobs belong to; made up where it is not given.
    #[arg(long)]
    batch: Option<String>,
    /// Have the jobs served before all others that wait, unless a job of the file names its own `priority`.
    #[arg(long)]
    urgent: bool,
    /// When jobs that do not say are done: accepted, once the API has accepted the start, or running; else as the lane is
    /// set.
    #[arg(long, value_name = "WHEN", value_parser = named(Confirm::NAMED))]
    confirm: Option<Confirm>,
    /// What a 409 means for jobs that do not say: fail, accept or verify; else as the lane is set.
    #[arg(long, value_name = "POLICY", value_parser = named(Conflict::NAMED))]
    conflict: Option<Conflict>,
    /// Start jobs that do not say no sooner: in a length of time (30m), at the next such time of day (07:30, with --tz),
    /// or at a timestamp with its offset.
    #[arg(long, visible_alias = "at", value_name = "TIME")]
    not_before: Option<String>,
    /// Start jobs that do not say no later. A length of time or a time of day counts from --not-before, or from now where
    /// that is not given.
    #[arg(long, value_name = "TIME")]
    deadline: Option<String>,
    /// The time zone of times of day, as in Asia/Shanghai.
    #[arg(long, value_name = "ZONE")]
    tz: Option<String>,
    /// Start the jobs of a batch in waves of 1, 2, 4, 8 and so on, in the order of the input: each once all jobs of the one before
    /// have ended. The first failure ends it, unless --max-failures says otherwise, and a job is done once its instance runs,
    /// unless --confirm says otherwise.
    #[arg(long)]
    ramp: bool,
    /// A label of jobs that have none of this name. Can be given more than once.
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
}

/// A parser for one of these `names`, which help and completions list, and of which clap names the nearest to another.
fn named<const N: usize, T>(names: [(&'static str, T); N]) -> impl TypedValueParser<Value = T>
where
    T: Copy + Send + Sync + 'static,
{
    let value = move |name: String| names.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    PossibleValuesParser::new(names.map(|(name, _)| name)).try_map(move |name| value(name).ok_or("is no such name"))
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
    named.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or("expected NAME=VALUE, as in team=search")
}

impl Options {
    /// Checks the options at `now`.
    ///
    /// # Errors
    /// The option, its value and what is expected.
    pub(super) fn check(&self, now: Timestamp) -> Result<Defaults, Failure> {
        let batch = self.batch.clone().unwrap_or_else(|| format!("submit-{}", Uuid::now_v7()));
        if batch.is_empty() || batch.len() > BATCH_ID_LIMIT {
            let length = batch.len();
            return Err(Failure::Usage(format!(
                "--batch has {length} bytes: expected 1 to {BATCH_ID_LIMIT}, or no --batch for one that is made up"
            )));
        }
        let mut labels = BTreeMap::new();
        for (name, value) in &self.labels {
            if labels.insert(name.clone(), value.clone()).is_some() {
                return Err(Failure::Usage(format!(
                    "--label {name}={value}: {name} is given twice; expected one value"
                )));
            }
        }
        let (not_before, deadline) = self.times(now).map_err(Failure::Usage)?;
        let is_moving = self.not_before.is_none() && self.deadline.as_deref().is_some_and(times::is_length);
        Ok(Defaults {
            batch,
            not_before,
            moving_deadline: deadline.filter(|_| is_moving),
            deadline,
            priority: self.urgent.then_some(Priority::Urgent),
            // A step is to be up before the next one.
            confirm: self.confirm.or(self.ramp.then_some(Confirm::Running)),
            conflict: self.conflict,
            ramp: self.ramp,
            labels,
            now,
        })
    }

    /// `not_before` and `deadline`.
    fn times(&self, now: Timestamp) -> Result<(Option<Timestamp>, Option<Timestamp>), String> {
        let zone = self.tz.as_deref().map(times::zone).transpose()?;
        let time = |option: &str, text: &Option<String>, start: Timestamp| {
            let instant = text.as_deref().map(|text| {
                times::instant(text, start, zone.as_ref()).map_err(|problem| format!("{option} {text:?} {problem}"))
            });
            instant.transpose()
        };
        let not_before = time("--not-before", &self.not_before, now)?;
        let deadline = time("--deadline", &self.deadline, not_before.unwrap_or(now))?;
        check_times(not_before, deadline, now)?;
        Ok((not_before, deadline))
    }
}

/// The defaults of a command line.
#[cfg(test)]
fn of(options: &[&str]) -> Result<Defaults, Failure> {
    #[derive(clap::Parser)]
    struct CommandLine {
        #[command(flatten)]
        options: Options,
    }
    let arguments = std::iter::once(&"submit").chain(options);
    let CommandLine { options } = clap::Parser::try_parse_from(arguments).expect("options that there are");
    options.check("2026-11-25T00:00:00Z".parse().expect("a timestamp"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::Job;

    fn job(more: &str) -> Job {
        Job::parse(format!(r#"{{"instance_id":"i-0000"{more}}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn a_batch_is_named_or_made_up_and_never_empty() {
        assert_eq!(of(&["--batch", "b"]).unwrap().batch, "b");
        assert!(of(&[]).unwrap().batch.starts_with("submit-"));
        for batch in [String::new(), "b".repeat(129)] {
            let told = of(&["--batch", &batch]).unwrap_err().to_string();
            assert!(told.contains("--batch has") && told.contains("expected 1 to 128"), "{told}");
        }
    }

    #[test]
    fn what_a_job_says_goes_before_what_the_options_say() {
        let options = ["--urgent", "--confirm", "running", "--batch", "b", "--conflict", "fail", "--label", "a=b=c"];
        let defaults = of(&[&options[..], &["--at", "1h", "--deadline", "30m"]].concat()).unwrap();
        let filled = defaults.complete(job("")).unwrap();
        let expected = r#","batch_id":"b","priority":"urgent","confirm":"running","conflict":"fail","labels":{"a":"b=c"},
            "not_before":"2026-11-25T01:00:00Z","deadline":"2026-11-25T01:30:00Z""#;
        assert_eq!(filled, job(expected));
        let own =
            job(r#","priority":"normal","confirm":"accepted","batch_id":"own","conflict":"accept","labels":{"a":""},
            "not_before":"2026-11-25T07:30:00Z","deadline":"2026-11-25T09:00:00Z""#);
        assert_eq!(defaults.complete(own.clone()), Ok(own));
        let late = job(r#","not_before":"2026-11-25T07:30:00Z""#);
        assert!(defaults.complete(late).unwrap_err().contains("is before not_before"), "the deadline is the option's");
        assert_eq!(defaults.complete(job(r#","batch_id":"b""#)), Ok(filled), "the same batch");
    }

    #[test]
    fn a_deadline_moves_if_it_counts_from_now() {
        for (options, moves) in [
            (&["--deadline", "30m"][..], true),
            (&["--deadline", "30m", "--at", "2026-11-25T07:30:00Z"], false),
            (&["--deadline", "2026-11-25T07:30:00Z"], false),
            (&["--deadline", "07:30", "--tz", "Asia/Shanghai"], false),
            (&[], false),
        ] {
            let defaults = of(options).unwrap();
            assert_eq!(defaults.moving_deadline.is_some(), moves, "{options:?}");
        }
    }

    #[test]
    fn a_ramp_is_up_step_by_step_and_gives_each_job_its_wave() {
        let ramp = of(&["--ramp"]).unwrap();
        assert_eq!(ramp.complete(job("")).unwrap().confirm, Some(Confirm::Running));
        let accepted = of(&["--ramp", "--confirm", "accepted"]).unwrap();
        assert_eq!(accepted.complete(job("")).unwrap().confirm, Some(Confirm::Accepted));
        let told = ramp.complete(job(r#","wave":3"#)).unwrap_err();
        assert!(told.contains("wave 3 and --ramp"), "{told}");
    }

    #[test]
    fn an_option_that_cannot_be_meant_is_named_with_its_value_and_the_remedy() {
        for (options, expected) in [
            (&["--at", "07:30"][..], "--not-before \"07:30\" is a time of day without a time zone: add --tz"),
            (&["--at", "07:30", "--tz", "Asia/Shangai"], "--tz \"Asia/Shangai\" is no time zone of this system"),
            (&["--not-before", "soon"], "--not-before \"soon\" is no time: expected a length of time, as in 30m"),
            (&["--deadline", "soon"], "--deadline \"soon\" is no time: expected"),
            (&["--at", "2026-11-24T23:00:00Z"], "not_before 2026-11-24T23:00:00Z is past"),
            (&["--deadline", "0s"], "deadline 2026-11-25T00:00:00Z is past"),
            (&["--deadline", "9000h"], "is more than a year ahead"),
            (&["--at", "2h", "--deadline", "2026-11-25T01:00:00Z"], "is before not_before 2026-11-25T02:00:00Z"),
            (&["--label", "a=b", "--label", "a=c"], "--label a=c: a is given twice"),
        ] {
            let told = of(options).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
        for text in ["team", "=search", ""] {
            assert!(label(text).is_err(), "{text}");
        }
    }
}
