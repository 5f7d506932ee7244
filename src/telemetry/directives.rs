//! The directives of `RUST_LOG`. An unknown target matches nothing, so a misspelt one would silence the log.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use crate::similar;

/// The crates that log through `tracing`.
const CRATES: [&str; 4] = [OURS, "lapin", "amq_protocol_tcp", "hyper_util"];
/// Targets that a similar name may have meant.
const LIKELY: [&str; 2] = [OURS, "lapin"];
pub(super) const OURS: &str = "reveille";
/// Our modules.
const MODULES: [&str; 24] = [
    "bce",
    "broker",
    "cli",
    "config",
    "control",
    "dead_letter",
    "events",
    "file",
    "fleet",
    "headers",
    "job",
    "lane",
    "ownership",
    "query",
    "replica",
    "retry",
    "schedule",
    "scheduler",
    "similar",
    "stop",
    "tasks",
    "telemetry",
    "text",
    "wildcard",
];
/// Jaro-Winkler similarity, from 0 to 1: a letter too many, too few or in the wrong place.
const ALIKE: f64 = 0.85;
const EXPECTED: &str = "expected a level (off, error, warn, info, debug, trace), or targets with levels, as in \
                        reveille=debug or info,lapin=warn";

/// The filter in `text`; `None` if it is blank. Targets of other programs are accepted beside known ones: many set one
/// `RUST_LOG` for all they run.
///
/// # Errors
/// What is wrong, and what would be right.
pub(super) fn read(text: &str) -> Result<Option<Targets>, String> {
    let directives: Vec<&str> = text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    if directives.is_empty() {
        return Ok(None);
    }
    let mut known = false;
    for directive in &directives {
        known |= is_known(directive)?;
    }
    if !known {
        return Err(format!("it names nothing that logs here: {EXPECTED}"));
    }
    let targets = directives.join(",").parse();
    targets.map(Some).map_err(|error| format!("{error}; {EXPECTED}"))
}

/// Whether a directive is a level alone, or names a known target.
fn is_known(directive: &str) -> Result<bool, String> {
    if directive.parse::<LevelFilter>().is_ok() {
        return Ok(true);
    }
    if directive.contains(['[', '{']) {
        return Err(format!(
            "{directive} has brackets: lines are chosen by target and level alone. Each line of a job has the job's fields, so \
             search the log for them, as in job=\"...\"; {EXPECTED}"
        ));
    }
    let (target, level) = directive.split_once('=').unwrap_or((directive, "trace"));
    if !target.is_empty() && level.trim().is_empty() {
        return Err(format!("{directive} has no level: {EXPECTED}"));
    }
    let (name, module) = target.split_once("::").unwrap_or((target, ""));
    let module = module.split("::").next().unwrap_or_default();
    if CRATES.contains(&name) {
        return if name != OURS || module.is_empty() || MODULES.contains(&module) {
            Ok(true)
        } else {
            Err(format!("{directive} names nothing that logs; of {OURS} there are {}", MODULES.join(", ")))
        };
    }
    if let Some(meant) = similar::most_similar(name, &LIKELY, ALIKE) {
        return Err(format!("{directive} names nothing that logs; did you mean {meant}? {EXPECTED}"));
    }
    if directive.contains('=') {
        Ok(false)
    } else {
        Err(format!("{directive} is no level, and names nothing that logs: {EXPECTED}"))
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn what_names_no_level_and_no_target_is_refused_with_an_example() {
        for (text, named) in [
            ("verbose", "verbose is no level"),
            ("info,verbose", "verbose is no level"),
            ("reveille:debug", "did you mean reveille?"),
            ("revielle=debug", "did you mean reveille?"),
            ("rev=debug", "did you mean reveille?"),
            ("reveille-daemon=debug", "did you mean reveille?"),
            ("lapine=off,info", "did you mean lapin?"),
            ("reveille::lnae=debug", "reveille::lnae=debug names nothing that logs; of reveille there are bce, broker"),
            ("reveille=loud", "expected a level (off"),
            ("reveille=", "reveille= has no level"),
            ("info,sqlx= ", "sqlx= has no level"),
            ("sqlx=warn", "nothing that logs here"),
            ("=", "nothing that logs here"),
            ("reveille[{", "has brackets"),
            ("reveille[x]=debug", "has brackets"),
        ] {
            let problem = read(text).unwrap_err();
            assert!(problem.contains(named), "{text}: {problem}");
            assert!(
                text.contains("lnae") || problem.contains("reveille=debug or info,lapin=warn"),
                "{text}: {problem}"
            );
        }
    }

    #[test]
    fn levels_and_targets_that_there_are_are_taken() {
        for text in [
            "debug",
            "DEBUG",
            "4",
            " reveille=debug , ",
            "reveille::lane::job=debug,off",
            "reveille",
            "sqlx=warn,debug",
        ] {
            let targets = read(text).unwrap().unwrap();
            assert!(targets.would_enable("reveille::lane::job", &Level::DEBUG), "{text}");
        }
        let targets = read("info,lapin=off,hyper=warn,rustls=warn").unwrap().unwrap();
        assert!(targets.would_enable("reveille", &Level::INFO) && !targets.would_enable("lapin", &Level::ERROR));
        for blank in ["", " ", ","] {
            assert!(read(blank).unwrap().is_none());
        }
    }

    #[test]
    fn the_crates_and_modules_that_are_known_are_those_there_are() {
        let lock: toml::Table = include_str!("../../Cargo.lock").parse().unwrap();
        let packages = lock["package"].as_array().unwrap();
        for name in CRATES {
            let package = packages.iter().find(|package| package["name"].as_str().unwrap().replace('-', "_") == name);
            let dependencies = package.unwrap()["dependencies"].as_array().unwrap();
            assert!(dependencies.iter().any(|dependency| dependency.as_str() == Some("tracing")), "{name}");
        }
        let modules: Vec<&str> = include_str!("../lib.rs")
            .lines()
            .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
            .collect();
        assert_eq!(modules, MODULES);
    }
}
