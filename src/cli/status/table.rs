//! The picture, for people.

use std::collections::BTreeMap;
use std::fmt;

use super::picture::{LaneRow, Picture, State};
use crate::cli::columns::Columns;
use crate::replica::Replica;
use crate::text::Shown;

/// Lanes of a replica that are named.
const NAMED: usize = 8;
/// Schedules that are shown.
const SCHEDULES: usize = 20;
/// Stands for what could not be seen.
const UNSEEN: &str = "?";

impl fmt::Display for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reachable = if self.broker.reachable { "reachable" } else { "NOT reachable" };
        writeln!(f, "RabbitMQ at {}: {reachable}\n", Shown(&self.broker.address))?;
        let mut lanes =
            Columns::new(["LANE", "STATE", "HOLDER", "RATE", "NEW", "URGENT", "DUE", "IN FLIGHT", "LAST MINUTE"]);
        for lane in &self.lanes {
            lanes.add(row(lane));
        }
        write!(f, "{lanes}")?;
        if !self.replicas.is_empty() {
            let mut replicas = Columns::new(["REPLICA", "VERSION", "HOLDS"]);
            for row in &self.replicas {
                replicas.add([process(&row.replica), Shown(&row.replica.version).to_string(), names(&row.holds)]);
            }
            write!(f, "\n{replicas}")?;
        }
        if !self.schedules.is_empty() {
            let mut schedules = Columns::new(["SCHEDULE", "LANE", "DUE NEXT"]);
            for row in self.schedules.iter().take(SCHEDULES) {
                let next = row.there.clone().unwrap_or_else(|| "-".to_owned());
                schedules.add([row.schedule.clone(), row.lane.clone(), next]);
            }
            write!(f, "\n{schedules}")?;
            if let Some(more @ 1..) = self.schedules.len().checked_sub(SCHEDULES) {
                writeln!(f, "and {more} more: `reveille schedules list`")?;
            }
        }
        let (parked, dead) = (seen(self.parked), seen(self.dead_letters));
        writeln!(f, "\nparked jobs of all lanes: {parked}; dead letters: {dead}")?;
        // What is wrong with RabbitMQ itself is the command's failure.
        let problems = self.problems.iter().filter(|_| self.broker.reachable);
        let problems = problems.map(|problem| Shown(problem).to_string());
        let lines: Vec<String> = self.lanes.iter().filter_map(remedy).chain(problems).collect();
        if !lines.is_empty() {
            writeln!(f, "\n! {}", lines.join("\n! "))?;
        }
        Ok(())
    }
}

fn row(lane: &LaneRow) -> [String; 9] {
    let is_held = matches!(lane.state, State::Held | State::Paused);
    let of_holder = |text: Option<String>| text.unwrap_or_else(|| if is_held { UNSEEN } else { "-" }.to_owned());
    let rate = lane.rate.zip(lane.rate_configured).map(|(now, most)| format!("{}/s of {}/s", rate(now), rate(most)));
    [
        lane.lane.clone(),
        lane.state.as_str().to_owned(),
        of_holder(lane.holder.as_ref().map(process)),
        of_holder(rate),
        seen(lane.new),
        seen(lane.urgent),
        seen(lane.due),
        of_holder(lane.in_flight.map(|jobs| jobs.to_string())),
        lane.last_minute.as_ref().map_or_else(|| UNSEEN.to_owned(), outcomes),
    ]
}

/// `host-1 pid 7`
fn process(replica: &Replica) -> String {
    Shown(format_args!("{} pid {}", replica.host, replica.pid)).to_string()
}

fn names(lanes: &[String]) -> String {
    let named: Vec<String> = lanes.iter().take(NAMED).map(|lane| Shown(lane).to_string()).collect();
    match lanes.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{} and {more} more", named.join(", ")),
        _ if lanes.is_empty() => "-".to_owned(),
        _ => named.join(", "),
    }
}

fn seen(count: Option<impl ToString>) -> String {
    count.map_or_else(|| UNSEEN.to_owned(), |count| count.to_string())
}

fn outcomes(counts: &BTreeMap<String, u64>) -> String {
    let told: Vec<String> = counts.iter().map(|(outcome, count)| format!("{count} {}", Shown(outcome))).collect();
    if told.is_empty() { "-".to_owned() } else { told.join(", ") }
}

/// Calls per second, with as many places as they are worth.
fn rate(rate: f64) -> String {
    let text = match rate {
        10.0.. => format!("{rate:.0}"),
        _ => format!("{rate:.2}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// What is wrong with a lane, and what to do.
fn remedy(row: &LaneRow) -> Option<String> {
    let lane = &row.lane;
    match row.state {
        State::Held => None,
        State::Paused => {
            let cause = row.cause.as_deref().unwrap_or("for a reason that its holder does not tell");
            Some(format!("{lane} is paused, its jobs wait: {}", Shown(cause)))
        }
        State::WaitedFor => Some(format!("{lane} is about to be taken over by a replica that is in line for it")),
        State::NoAnswer => Some(format!("{lane} is held, or waited for, by a replica that did not answer")),
        State::NotRun => Some(format!("no replica runs {lane}, its jobs wait: start `reveille run` with this lane")),
        State::NotSetUp => Some(format!("{lane} has no queues: they exist once `reveille run` has run with this lane")),
        State::Unknown => None,
    }
}
