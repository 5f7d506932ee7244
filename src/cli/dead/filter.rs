//! Which dead letters are meant.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::letter::Facts;
use crate::bce::InstanceId;
use crate::cli::Failure;
use crate::cli::times::length;
use crate::config::{Config, LaneName};
use crate::events::Outcome;
use crate::similar;
use crate::text::Shown;

/// Reasons of letters that RabbitMQ put among the dead letters by itself.
const OF_RABBITMQ: [&str; 4] = ["unroutable", "expired", "delivery_limit", "maxlen"];

/// Which letters a command is about: those for which each option holds. Given more than once, one of its values has to hold.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Filter {
    /// Letters of this lane.
    #[arg(long = "lane", value_name = "LANE")]
    lanes: Vec<String>,
    /// Letters that failed for this reason, such as `not_found`.
    #[arg(long = "reason", value_name = "REASON")]
    reasons: Vec<String>,
    /// Letters of this batch.
    #[arg(long = "batch", value_name = "BATCH")]
    batches: Vec<String>,
    /// Letters of this instance.
    #[arg(long = "instance", value_name = "ID")]
    instances: Vec<String>,
    /// Letters whose last answer had this error code of the API, such as `NoSuchObject`.
    #[arg(long = "code", value_name = "CODE")]
    codes: Vec<String>,
    /// Letters that are dead for longer than this, such as 90m or 72h.
    #[arg(long, value_name = "AGE", value_parser = length)]
    older_than: Option<Duration>,
    /// Letters that are dead for no longer than this.
    #[arg(long, value_name = "AGE", value_parser = length)]
    newer_than: Option<Duration>,
}

/// A filter, and ids of jobs.
#[derive(Debug)]
pub(super) struct Chosen<'a> {
    filter: &'a Filter,
    jobs: &'a [String],
    /// Letters that died before.
    before: Option<Timestamp>,
    /// Letters that died then or later.
    since: Option<Timestamp>,
}

impl Filter {
    /// With the ids of `jobs`, one of which is to be the letter's, if there are any.
    ///
    /// # Errors
    /// The option that no letter can meet, its value and the remedy.
    pub(super) fn choose<'a>(&'a self, jobs: &'a [String], now: Timestamp) -> Result<Chosen<'a>, Failure> {
        if let Some(lane) = self.lanes.iter().find(|lane| LaneName::parse(lane).is_none()) {
            return Err(Failure::Usage(format!("--lane {lane:?} is no lane name: expected a-z 0-9 -")));
        }
        if let Some(invalid) = self.instances.iter().find_map(|instance| InstanceId::parse(instance).err()) {
            return Err(Failure::Usage(format!("--instance: {invalid}")));
        }
        if let (Some(older), Some(newer)) = (self.older_than, self.newer_than)
            && older >= newer
        {
            return Err(Failure::Usage(format!(
                "no letter is older than {older:?} and newer than {newer:?}: --older-than has to be less than --newer-than"
            )));
        }
        let ago = |age: Duration| {
            let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
            now.checked_sub(age).unwrap_or(Timestamp::MIN)
        };
        Ok(Chosen { filter: self, jobs, before: self.older_than.map(ago), since: self.newer_than.map(ago) })
    }
}

impl Chosen<'_> {
    /// Whether a letter is meant. What it does not say is none of the values that are asked for.
    pub(super) fn has(&self, letter: &Facts) -> bool {
        let Filter { lanes, reasons, batches, instances, codes, .. } = self.filter;
        let is_one_of = |value: &Option<String>, of: &[String]| {
            of.is_empty() || value.as_ref().is_some_and(|value| of.contains(value))
        };
        is_one_of(&letter.job_id, self.jobs)
            && is_one_of(&letter.lane, lanes)
            && (reasons.is_empty() || reasons.contains(&letter.reason))
            && is_one_of(&letter.batch_id, batches)
            && is_one_of(&letter.instance_id, instances)
            && is_one_of(&letter.error_code, codes)
            && self.before.is_none_or(|before| letter.dead_at.is_some_and(|dead_at| dead_at < before))
            && self.since.is_none_or(|since| letter.dead_at.is_some_and(|dead_at| dead_at >= since))
    }

    /// What may be wrong where no letter matched: names that there are not, each with the one that was meant.
    pub(super) fn doubts(&self, config: &Config) -> String {
        let lanes: Vec<&str> = config.lanes.iter().map(|lane| lane.name.as_str()).collect();
        let outcomes = Outcome::ALL.iter().map(|outcome| outcome.reason()).filter(|reason| !reason.is_empty());
        let reasons: Vec<&str> = outcomes.chain(OF_RABBITMQ).collect();
        let mut doubts = String::new();
        for (what, given, known) in [
            ("the configuration has no lane", &self.filter.lanes, lanes),
            ("reveille itself has no reason", &self.filter.reasons, reasons),
        ] {
            for name in given.iter().filter(|name| !known.contains(&name.as_str())) {
                doubts += &format!("; {what} {}{}", Shown(name), similar::hint(name, &known));
            }
        }
        doubts
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(options: &[&str]) -> Filter {
        Line::try_parse_from([&["dead"], options].concat()).map(|line| line.filter).unwrap_or_else(|e| panic!("{e}"))
    }

    fn now() -> Timestamp {
        "2026-11-25T08:00:00Z".parse().unwrap()
    }

    fn letter() -> Facts {
        let text = |text: &str| Some(text.to_owned());
        Facts {
            job_id: text("j-1"),
            lane: text("prod"),
            reason: "not_found".to_owned(),
            dead_at: "2026-11-25T07:00:00Z".parse().ok(),
            error_code: text("NoSuchObject"),
            instance_id: text("i-0000"),
            batch_id: text("morning"),
            ..Facts::default()
        }
    }

    fn has(options: &[&str], letter: &Facts) -> bool {
        filter(options).choose(&[], now()).unwrap_or_else(|e| panic!("{e}")).has(letter)
    }

    #[test]
    fn each_option_has_to_hold_with_one_of_its_values() {
        for options in [
            &[][..],
            &["--lane", "prod", "--reason", "not_found", "--batch", "morning", "--instance", "i-0000"],
            &["--code", "NoSuchObject", "--lane", "other", "--lane", "prod"],
            &["--older-than", "59m", "--newer-than", "1h"],
        ] {
            assert!(has(options, &letter()), "{options:?}");
        }
        for options in [
            &["--lane", "other"][..],
            &["--lane", "prod", "--reason", "exhausted"],
            &["--batch", "evening"],
            &["--instance", "i-0001"],
            &["--code", "nosuchobject"],
            &["--older-than", "1h"],
            &["--newer-than", "59m"],
        ] {
            assert!(!has(options, &letter()), "{options:?}");
            assert!(!has(options, &Facts::default()), "{options:?}: what is not known is not meant");
        }
        let (all, jobs) = (Filter::default(), ["j-1".to_owned()]);
        let chosen = all.choose(&jobs, now()).unwrap_or_else(|e| panic!("{e}"));
        assert!(chosen.has(&letter()) && !chosen.has(&Facts::default()));
    }

    #[test]
    fn what_no_letter_can_meet_is_refused() {
        for (options, expected) in [
            (["--lane", "Prod"].as_slice(), "--lane \"Prod\" is no lane name"),
            (&["--instance", "web-1"], "--instance: \"web-1\" is no instance id"),
            (&["--older-than", "2h", "--newer-than", "1h"], "--older-than has to be less than --newer-than"),
        ] {
            let told = filter(options).choose(&[], now()).unwrap_err().to_string();
            assert!(told.contains(expected), "{told}");
        }
    }
}
