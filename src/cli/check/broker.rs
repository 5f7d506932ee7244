//! RabbitMQ: the way to it, what it is, what the user may do there, and what of the topology exists.

use std::sync::Arc;

use jiff::Timestamp;
use lapin::uri::AMQPScheme;

use super::network::{self, Checks};
use super::sheet::Line;
use crate::broker::inspection::{TrialError, inspect, try_right};
use crate::broker::{Connection, ConnectionKind, Greeting, Inspection, Names, Right, Topology, connect_seeing};
use crate::config::{Broker, Config};

const CHECKS: Checks = Checks { dns: "broker.dns", tcp: "broker.tcp", tls: "broker.tls" };
const LOGIN: &str = "broker.login";
const SERVER: &str = "broker.server";
const TOPOLOGY: &str = "broker.topology";
/// Names of missing queues and exchanges that are shown.
const SHOWN: usize = 5;

pub(super) async fn check(config: &Config) -> Vec<Line> {
    let broker = &config.broker;
    let authority = &broker.uri.authority;
    let mut lines: Vec<Line> = network::reach(CHECKS, &authority.host, authority.port, "").await.into();
    let greeting = Arc::<Greeting>::default();
    let connected = connect_seeing(broker, ConnectionKind::Check, greeting.clone()).await;
    lines.push(tls(broker, &greeting));
    let connection = match connected {
        Ok(connection) => connection,
        Err(error) => {
            lines.push(Line::failed(LOGIN, error));
            lines.extend(server(&greeting));
            lines.extend(Right::ALL.map(|right| Line::skipped(name(right), "there is no login")));
            lines.push(Line::skipped(TOPOLOGY, "there is no login"));
            return lines;
        }
    };
    let user = &authority.userinfo.username;
    lines.push(Line::passed(LOGIN, format_args!("as {user}, vhost {}", broker.uri.vhost)));
    lines.extend(server(&greeting));
    lines.extend(inside(config, &connection).await);
    connection.close().await;
    lines
}

fn tls(broker: &Broker, greeting: &Greeting) -> Line {
    match greeting.seen_certificate() {
        Some(certificate) => network::certificate(CHECKS.tls, certificate, Timestamp::now()),
        None if broker.uri.scheme == AMQPScheme::AMQP => {
            Line::skipped(CHECKS.tls, "broker.url is amqp://, without TLS")
        }
        None => Line::failed(CHECKS.tls, "no certificate was accepted").remedy("see broker.login"),
    }
}

fn server(greeting: &Greeting) -> Option<Line> {
    let server = greeting.seen_server()?;
    let found = format!("{} {}, cluster {}", server.product, server.version, server.cluster);
    Some(if server.product == "RabbitMQ" {
        Line::passed(SERVER, found)
    } else {
        Line::failed(SERVER, found).remedy("expected RabbitMQ 3.10 or newer there: see docs/rabbitmq.md")
    })
}

/// What is seen only after the login.
async fn inside(config: &Config, connection: &Connection) -> Vec<Line> {
    let names = Names::new(&config.broker.prefix);
    let topology = Topology::new(&names, config.lanes.iter().map(|lane| &lane.name));
    let inspected = inspect(&config.broker, &topology, &names).await;
    let none = Inspection::default();
    let found = inspected.as_ref().unwrap_or(&none);
    let [configure, write, read] = Right::ALL.map(|right| try_right(connection, &names, right));
    // One after the other: a broker that takes no messages blocks the connection.
    let (configure, read, write) = (configure.await, read.await, write.await);
    let may_read = !matches!(read, Err(TrialError::Refused(_)));
    let tried = Right::ALL.into_iter().zip([configure, write, read]);
    let refusal = |right| found.refusal(right, may_read);
    let mut lines: Vec<Line> =
        tried.map(|(right, tried)| permission(&config.broker, right, tried, refusal(right))).collect();
    lines.extend(match &inspected {
        Ok(found) => topology_lines(found),
        Err(error) => vec![Line::failed(TOPOLOGY, error)],
    });
    lines
}

fn name(right: Right) -> &'static str {
    match right {
        Right::Configure => "broker.configure",
        Right::Write => "broker.write",
        Right::Read => "broker.read",
    }
}

/// `refusal`: what RabbitMQ said where the right was tried on what exists.
fn permission(broker: &Broker, right: Right, tried: Result<(), TrialError>, refusal: Option<&str>) -> Line {
    let (check, user) = (name(right), &broker.uri.authority.userinfo.username);
    let refused = match tried {
        Ok(()) => refusal.map(str::to_owned),
        Err(TrialError::Refused(error)) => Some(error.to_string()),
        Err(TrialError::Blocked) => {
            return Line::failed(check, TrialError::Blocked)
                .remedy("free memory or disk of RabbitMQ's nodes: see rabbitmqctl status, under Alarms");
        }
        Err(error) => return Line::failed(check, format_args!("it could not be tried: {error}")),
    };
    match refused {
        Some(why) => Line::failed(check, format_args!("{user} may not {right} all that the daemon needs: {why}"))
            .remedy(remedy(broker)),
        None => Line::passed(check, format_args!("{user} may {right}, as tried under the prefix {}", broker.prefix)),
    }
}

/// The command of docs/operations.md.
fn remedy(broker: &Broker) -> String {
    let (vhost, user, prefix) = (&broker.uri.vhost, &broker.uri.authority.userinfo.username, &broker.prefix);
    format!(
        r"rabbitmqctl set_permissions -p '{vhost}' '{user}' '^{prefix}\.' '^({prefix}\.|amq\.default$)' '^{prefix}\.'"
    )
}

fn topology_lines(found: &Inspection) -> Vec<Line> {
    let Inspection { present, missing, unfit, .. } = found;
    let mut lines: Vec<Line> = unfit.iter().map(|unfit| Line::failed(TOPOLOGY, unfit)).collect();
    let all = present + missing.len();
    if missing.is_empty() {
        if unfit.is_empty() {
            lines.push(Line::passed(TOPOLOGY, format_args!("all {all} exchanges and queues are there")));
        }
        return lines;
    }
    let some: Vec<&str> = missing.iter().take(SHOWN).map(String::as_str).collect();
    let more = if missing.len() > SHOWN { ", …" } else { "" };
    lines.push(
        Line::warning(
            TOPOLOGY,
            format_args!("{} of {all} exchanges and queues are missing: {}{more}", missing.len(), some.join(", ")),
        )
        .remedy("the daemon declares them as it starts"),
    );
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::check::sheet::Mark;

    #[test]
    fn what_is_missing_is_a_warning_and_what_is_unfit_a_failure() {
        let found = |missing: usize, unfit: &[&str]| {
            let missing = (0..missing).map(|number| format!("q{number}")).collect();
            let unfit = unfit.iter().map(|text| (*text).to_owned()).collect();
            let mut found = Inspection::default();
            (found.present, found.missing, found.unfit) = (3, missing, unfit);
            let lines = topology_lines(&found);
            lines.into_iter().map(|line| line.mark).collect::<Vec<_>>()
        };
        assert_eq!(found(0, &[]), [Mark::Passed]);
        assert_eq!(found(44, &[]), [Mark::Warning]);
        assert_eq!(found(1, &["other arguments"]), [Mark::Failed, Mark::Warning]);
        assert_eq!(found(0, &["other arguments"]), [Mark::Failed]);
    }

    #[test]
    fn the_remedy_is_the_command_of_the_page() {
        let page = include_str!("../../../docs/operations.md");
        let command = remedy(&Broker::default()).replace("'/' 'guest'", "VHOST daemon");
        assert!(page.contains(&command), "{command}");
    }
}
