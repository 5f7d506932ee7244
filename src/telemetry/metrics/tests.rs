use super::*;
use crate::events::Reason;

fn has(metrics: &Metrics, line: &str) -> bool {
    metrics.render().unwrap().lines().any(|found| found == line)
}

/// The samples, without comment lines.
fn samples(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

#[test]
fn what_happened_can_be_read_off() {
    let metrics = Metrics::new();
    let lane = metrics.lane("prod", &[]);
    let guard = lane.in_flight();
    lane.job_ended(Outcome::Failed(Reason::NotFound), SignedDuration::from_millis(300));
    lane.called(Operation::Start, Ok(404), Duration::from_millis(20));
    lane.called(Operation::Start, Err("timeout"), Duration::from_secs(15));
    lane.waited(Duration::ZERO);
    lane.parked(ParkCause::Transient);
    lane.runs(SignedDuration::from_secs(40));
    lane.rate.set(12.5);
    lane.paused(Some("keys"), &["keys", "outage"]);
    for line in [
        r#"reveille_jobs_total{lane="prod",outcome="failed",reason="not_found"} 1"#,
        r#"reveille_api_requests_total{lane="prod",operation="start",status="404"} 1"#,
        r#"reveille_api_requests_total{lane="prod",operation="start",status="timeout"} 1"#,
        r#"reveille_jobs_parked_total{cause="transient",lane="prod"} 1"#,
        r#"reveille_jobs_in_flight{lane="prod"} 1"#,
        r#"reveille_confirm_duration_seconds_bucket{lane="prod",le="60"} 1"#,
        r#"reveille_job_duration_seconds_bucket{lane="prod",le="0.5"} 1"#,
        r#"reveille_lane_rate{lane="prod"} 12.5"#,
        r#"reveille_lane_paused{lane="prod",reason="keys"} 1"#,
        r#"reveille_lane_paused{lane="prod",reason="outage"} 0"#,
        "reveille_broker_connected 0",
    ] {
        assert!(has(&metrics, line), "{line} in\n{}", metrics.render().unwrap());
    }
    drop(guard);
    assert!(has(&metrics, r#"reveille_jobs_in_flight{lane="prod"} 0"#));
}

#[test]
fn every_end_and_delay_that_can_be_is_there_at_zero_and_no_other() {
    let metrics = Metrics::new();
    metrics.lane("prod", &[Word::parse("no_stock").unwrap()]);
    for line in [
        r#"reveille_jobs_total{lane="prod",outcome="failed",reason="not_found"} 0"#,
        r#"reveille_jobs_total{lane="prod",outcome="failed",reason="no_stock"} 0"#,
        r#"reveille_jobs_total{lane="prod",outcome="rejected",reason="unreadable"} 0"#,
        r#"reveille_jobs_total{lane="prod",outcome="started",reason=""} 0"#,
        r#"reveille_jobs_parked_total{cause="gave_way",lane="prod"} 0"#,
        r#"reveille_jobs_in_flight{lane="prod"} 0"#,
        r#"reveille_lane_held{lane="prod"} 0"#,
    ] {
        assert!(has(&metrics, line), "{line} in\n{}", metrics.render().unwrap());
    }
    let text = metrics.render().unwrap();
    assert!(!text.contains(r#"outcome="started",reason="not_found""#), "{text}");
    assert!(samples(&text).all(|line| line.ends_with(" 0")), "{text}");
}

#[test]
fn a_lane_has_fewer_than_fifty_series_before_its_first_job() {
    let metrics = Metrics::new();
    for lane in 0..500 {
        metrics.lane(&format!("account-{lane:04}-bj"), &[]).paused(None, &["keys", "account", "clock", "outage"]);
    }
    let text = metrics.render().unwrap();
    let series = samples(&text).count();
    assert!(series < 500 * 50, "{series} series of 500 lanes");
}

#[test]
fn each_family_is_described_once() {
    let metrics = Metrics::new();
    for name in ["prod", "test"] {
        let lane = metrics.lane(name, &[]);
        lane.called(Operation::Start, Ok(200), Duration::ZERO);
        lane.waited(Duration::ZERO);
    }
    let text = metrics.render().unwrap();
    let mut types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
    types.sort_unstable();
    let (all, samples) = (types.len(), samples(&text).count());
    types.dedup();
    assert_eq!(types.len(), all, "{text}");
    assert!(samples > all, "{text}");
}

#[test]
fn whatever_status_answers_makes_no_series_of_its_own() {
    let metrics = Metrics::new();
    let lane = metrics.lane("prod", &[]);
    for status in 100..=999 {
        lane.called(Operation::Start, Ok(status), Duration::ZERO);
    }
    let text = metrics.render().unwrap();
    // Twelve statuses have names.
    assert_eq!(samples(&text).filter(|line| line.starts_with("reveille_api_requests_total")).count(), 12 + 1, "{text}");
    assert!(
        has(&metrics, r#"reveille_api_requests_total{lane="prod",operation="start",status="other"} 888"#),
        "{text}"
    );
}
