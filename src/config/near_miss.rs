//! Environment variables that look like settings but are not read.

/// The beginning of settings' variables, before the first `_`.
const OURS: &str = "REVEILLE";
/// The one variable without `__`.
const CONFIG: &str = "REVEILLE_CONFIG";
/// Jaro-Winkler similarity, from 0 to 1: one letter too many, too few or in the wrong place.
const ALIKE: f64 = 0.9;

/// Whether `variable` is read as a setting, valid or not. It needs `__`: container platforms set variables such as
/// `REVEILLE_PORT_9464_TCP` on their own.
pub(super) fn is_setting(variable: &str) -> bool {
    variable.split_once('_').is_some_and(|(head, path)| head == OURS && path.contains("__"))
}

/// What is wrong with a variable that is not read but looks like a setting. `settings` are the known tables and keys; a
/// list's table has its index: `lane[0]`.
pub(super) fn problem(variable: &str, settings: &[(String, &'static str)]) -> Option<String> {
    let name = variable.to_ascii_uppercase();
    let (head, path) = name.split_once('_')?;
    if variable == CONFIG || is_setting(variable) || strsim::jaro_winkler(head, OURS) < ALIKE {
        return None;
    }
    let path = path.trim_start_matches('_').replace("__", "_");
    if is_a_platforms(&path) {
        return None;
    }
    match right_name(&path, settings) {
        Some(right) => Some(format!("is not read; did you mean {right}?")),
        None if head == OURS => {
            Some("is no setting and is not read: expected REVEILLE_TABLE__KEY or REVEILLE_LANE__0__KEY".to_owned())
        }
        None => None,
    }
}

/// The variable most similar to `path`, which is upper case and has no `__`.
fn right_name(path: &str, settings: &[(String, &'static str)]) -> Option<String> {
    let index = path.split('_').find(|part| part.parse::<u16>().is_ok()).unwrap_or("0");
    let candidates = settings.iter().map(|(table, key)| {
        let table = table.split_once('[').map_or(table.clone(), |(list, _)| format!("{list}__{index}"));
        let likeness = if path.eq_ignore_ascii_case(key) { 1.0 } else { likeness(path, &format!("{table}__{key}")) };
        (likeness, format!("{OURS}_{table}__{key}").to_ascii_uppercase())
    });
    candidates
        .chain([(likeness(path, "CONFIG"), CONFIG.to_owned())])
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, name)| name)
}

fn likeness(path: &str, setting: &str) -> f64 {
    strsim::jaro_winkler(path, &setting.replace("__", "_").to_ascii_uppercase())
}

/// Whether a container platform may have set it: Kubernetes sets such variables for every service, and ours may be
/// `reveille` or `reveille-metrics`.
fn is_a_platforms(path: &str) -> bool {
    let has = |part: &str| path == part || path.ends_with(&format!("_{part}"));
    has("SERVICE_HOST") || has("SERVICE_PORT") || has("PORT") || path.contains("SERVICE_PORT_") || {
        let after = path.split("PORT_").nth(1);
        after.is_some_and(|after| after.starts_with(|first: char| first.is_ascii_digit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variable: &str) -> Option<String> {
        let settings = [
            ("broker", "url"),
            ("broker", "password"),
            ("broker", "password_file"),
            ("http", "listen"),
            ("retry", "max_attempts"),
            ("lane[0]", "name"),
            ("lane[0]", "rate"),
            ("lane[0]", "credentials_file"),
        ];
        problem(variable, &settings.map(|(table, key)| (table.to_owned(), key)))
    }

    #[test]
    fn a_near_miss_is_told_with_the_right_name() {
        for (variable, right) in [
            ("REVEILLE_BROKER_URL", "REVEILLE_BROKER__URL"),
            ("REVEILLE_BROKER_ULR", "REVEILLE_BROKER__URL"),
            ("reveille_broker__url", "REVEILLE_BROKER__URL"),
            ("REVEILE_BROKER__URL", "REVEILLE_BROKER__URL"),
            ("REVEILLE_BROKER_PASSWORD", "REVEILLE_BROKER__PASSWORD"),
            ("REVEILLE_BROKER_PASSWORD_FILE", "REVEILLE_BROKER__PASSWORD_FILE"),
            ("REVEILLE_PASSWORD", "REVEILLE_BROKER__PASSWORD"),
            ("REVEILLE_RETRY_MAX_ATTEMPTS", "REVEILLE_RETRY__MAX_ATTEMPTS"),
            ("REVEILLE_LANE_0_RATE", "REVEILLE_LANE__0__RATE"),
            ("REVEILLE_LANE_12_NAME", "REVEILLE_LANE__12__NAME"),
            ("REVEILLE_LANE_RATE", "REVEILLE_LANE__0__RATE"),
            ("REVEILLE_LANES_1_CREDENTIALS_FILE", "REVEILLE_LANE__1__CREDENTIALS_FILE"),
            ("REVEILLE_CONFIG_FILE", "REVEILLE_CONFIG"),
            ("reveille_config", "REVEILLE_CONFIG"),
        ] {
            assert_eq!(told(variable), Some(format!("is not read; did you mean {right}?")), "{variable}");
        }
        assert!(told("REVEILLE_COLOUR").is_some_and(|told| told.contains("REVEILLE_TABLE__KEY")));
    }

    #[test]
    fn what_platforms_set_and_what_is_anothers_is_passed_over() {
        for variable in [
            "REVEILLE_CONFIG",
            "REVEILLE_SERVICE_HOST",
            "REVEILLE_SERVICE_PORT",
            "REVEILLE_SERVICE_PORT_METRICS",
            "REVEILLE_PORT",
            "REVEILLE_PORT_9464_TCP",
            "REVEILLE_PORT_9464_TCP_ADDR",
            "REVEILLE_HTTP_SERVICE_HOST",
            "REVEILLE_BROKER_PORT_5672_TCP_PROTO",
            "REVEILLE",
            "REVIEW_BROKER_URL",
            "BROKER_URL",
            "REVEILE_COLOUR",
            "PATH",
            "",
        ] {
            assert_eq!(told(variable), None, "{variable}");
        }
    }
}
