//! What exists in RabbitMQ: names, arguments and bindings, as data that is declared, printed and tested alike.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::try_join_all;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use serde_json::{Value, json};

use super::delay;
use super::names::{COMMAND, LEVELS, Names, urgent_key};
use super::refusal::DeclareError;
use crate::config::LaneName;

/// More than the 20 deliveries after which the daemon itself ends a job with an event: a message that returns more
/// often cannot be read at all, and breaks the connection each time. Until it is dead-lettered the lane loses one
/// connection after the other, so this is no higher than needed.
const DELIVERY_LIMIT: i64 = 30;
/// For queues that must not drop messages. RabbitMQ 4 drops a message after 20 returns if no limit is set.
const NO_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// Retention of the log: 7 days or 1 GiB. Streams drop whole segments, so those must be small in comparison.
const LOG_MAX_AGE: &str = "7D";
const LOG_MAX_BYTES: i64 = 1024 * 1024 * 1024;
const LOG_SEGMENT_BYTES: i64 = 50_000_000;
/// Retention of commands: some 100,000 of them.
const COMMANDS_MAX_AGE: &str = "30D";
const COMMANDS_MAX_BYTES: i64 = 64 * 1024 * 1024;
const COMMANDS_SEGMENT_BYTES: i64 = 4_000_000;

/// The exchange types in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Topic,
    Fanout,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Topic => "topic",
            Self::Fanout => "fanout",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Argument {
    Text(String),
    Number(i64),
    Flag(bool),
}

type Arguments = BTreeMap<&'static str, Argument>;

/// What was refused, its name, and the broker's error.
pub(super) type Refused<'a> = (&'static str, &'a str, lapin::Error);

#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) name: String,
    kind: Kind,
    arguments: Arguments,
}

impl Exchange {
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), Refused<'_>> {
        let kind = match self.kind {
            Kind::Topic => ExchangeKind::Topic,
            Kind::Fanout => ExchangeKind::Fanout,
        };
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let declared = channel.exchange_declare(self.name.as_str().into(), kind, options, table(&self.arguments)).await;
        declared.map_err(|source| ("exchange", self.name.as_str(), source))
    }
}

/// When a queue is declared: each witness after the queues it is a witness for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    First,
    Log,
    /// After everything else.
    Baton,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) name: String,
    arguments: Arguments,
    phase: Phase,
    /// For a queue with jobs or dead letters: a queue declared after it. If that one exists, this one existed.
    pub(super) witness: Option<String>,
}

impl Queue {
    pub(super) async fn declare(&self, channel: &Channel) -> Result<(), Refused<'_>> {
        let options = QueueDeclareOptions::durable();
        let declared = channel.queue_declare(self.name.as_str().into(), options, table(&self.arguments)).await;
        declared.map(drop).map_err(|source| ("queue", self.name.as_str(), source))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Queue,
    Exchange,
}

impl Target {
    fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Exchange => "exchange",
        }
    }
}

#[derive(Debug)]
struct Binding {
    source: String,
    target: Target,
    destination: String,
    key: String,
}

impl Binding {
    async fn declare(&self, channel: &Channel) -> Result<(), Refused<'_>> {
        let (to, from, key) = (self.destination.as_str().into(), self.source.as_str().into(), self.key.as_str().into());
        let none = FieldTable::default();
        let bound = match self.target {
            Target::Queue => channel.queue_bind(to, from, key, QueueBindOptions::default(), none).await,
            Target::Exchange => channel.exchange_bind(to, from, key, ExchangeBindOptions::default(), none).await,
        };
        bound.map_err(|source| ("binding of", self.destination.as_str(), source))
    }
}

/// All exchanges, queues and bindings for a set of lanes and the scheduler.
#[derive(Debug, Default)]
pub struct Topology {
    /// Each after the exchanges that its bindings lead to.
    pub(super) exchanges: Vec<Exchange>,
    pub(super) queues: Vec<Queue>,
    bindings: Vec<Binding>,
    was_declared: AtomicBool,
    /// The log of outcomes.
    pub(super) log: String,
    pub(super) on_loss: OnLoss,
}

impl Topology {
    /// The topology of `lanes`.
    pub fn new<'a>(names: &Names, lanes: impl IntoIterator<Item = &'a LaneName>) -> Self {
        let log = names.outcomes_log();
        let mut topology = Self { log: log.clone(), ..Self::default() };
        topology.exchange(names.unroutable(), Kind::Fanout, None);
        topology.queue(names.dead(), quorum([("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT))]), Some(&log));
        topology.bind(names.unroutable(), Target::Queue, names.dead(), "");

        topology.ladder(names);

        topology.queue(names.replicas(), quorum([]), None);
        topology.exchange(names.jobs(), Kind::Topic, Some(names.unroutable()));
        for lane in lanes {
            topology.lane(names, lane);
        }
        topology.baton(names.scheduler_baton());

        topology.exchange(names.control(), Kind::Topic, None);
        let kept = stream(COMMANDS_MAX_AGE, COMMANDS_MAX_BYTES, COMMANDS_SEGMENT_BYTES);
        topology.queue(names.control_log(), kept, None);
        topology.bind(names.control(), Target::Queue, names.control_log(), &format!("{COMMAND}.#"));

        // The last of what all lanes share, as it is the witness for the rest: no policy expires a stream.
        topology.exchange(names.outcomes(), Kind::Topic, None);
        topology.queue(log.clone(), stream(LOG_MAX_AGE, LOG_MAX_BYTES, LOG_SEGMENT_BYTES), None);
        topology.bind(names.outcomes(), Target::Queue, log, "#");
        topology
    }

    /// Calls `on_loss` with the number of queues found missing, each time.
    #[must_use]
    pub fn telling_losses(mut self, on_loss: impl Fn(usize) + Send + Sync + 'static) -> Self {
        self.on_loss = OnLoss(Box::new(on_loss));
        self
    }

    /// Whether everything was declared before. From then on a refusal is temporary: the broker is being worked on.
    pub fn was_declared(&self) -> bool {
        self.was_declared.load(Ordering::Relaxed)
    }

    fn ladder(&mut self, names: &Names) {
        self.exchange(names.delay_return(), Kind::Topic, Some(names.unroutable()));
        for level in 0..LEVELS {
            let below = if level == 0 { names.delay_return() } else { names.delay(level - 1) };
            let wait = Argument::Number(1_000 << level);
            // No alternate exchange here: if a level's queue is missing, that would send jobs to the dead letters,
            // confirmed. Without one they are kept a level higher, or refused, until the queue is declared again.
            self.exchange(names.delay(level), Kind::Topic, None);
            let arguments = quorum_dead_lettering(&below, None, [("x-message-ttl", wait)]);
            self.queue(names.delay(level), arguments, Some(&names.outcomes_log()));
            self.bind(names.delay(level), Target::Queue, names.delay(level), &delay::pattern(level, '1'));
            self.bind(names.delay(level), Target::Exchange, below, &delay::pattern(level, '0'));
            for key in delay::strays() {
                self.bind(names.delay(level), Target::Exchange, names.unroutable(), &key);
            }
        }
    }

    fn lane(&mut self, names: &Names, lane: &LaneName) {
        let arguments = || {
            let limit = [("x-delivery-limit", Argument::Number(DELIVERY_LIMIT))];
            quorum_dead_lettering("", Some(names.dead()), limit)
        };
        let baton = names.baton_of(lane);
        self.queue(names.jobs_of(lane), arguments(), Some(&baton));
        self.bind(names.jobs(), Target::Queue, names.jobs_of(lane), lane.as_str());
        self.queue(names.urgent_of(lane), arguments(), Some(&baton));
        self.bind(names.jobs(), Target::Queue, names.urgent_of(lane), &urgent_key(lane));
        self.queue(names.due_of(lane), arguments(), Some(&baton));
        self.bind(names.delay_return(), Target::Queue, names.due_of(lane), &format!("#.{lane}"));
        self.baton(baton);
    }

    fn baton(&mut self, name: String) {
        let arguments = quorum([
            ("x-single-active-consumer", Argument::Flag(true)),
            ("x-delivery-limit", Argument::Number(NO_DELIVERY_LIMIT)),
        ]);
        self.queues.push(Queue { name, arguments, phase: Phase::Baton, witness: None });
    }

    fn exchange(&mut self, name: String, kind: Kind, alternate: Option<String>) {
        let arguments = alternate.map(|name| ("alternate-exchange", Argument::Text(name))).into_iter().collect();
        self.exchanges.push(Exchange { name, kind, arguments });
    }

    fn queue(&mut self, name: String, arguments: Arguments, witness: Option<&str>) {
        self.queues.push(Queue { name, arguments, phase: Phase::First, witness: witness.map(str::to_owned) });
    }

    fn bind(&mut self, source: String, target: Target, destination: String, key: &str) {
        self.bindings.push(Binding { source, target, destination, key: key.to_owned() });
    }

    /// Declares everything, over `channels` in parallel. What exists already stays as it is.
    ///
    /// Batons come last: once a lane's exists the lane consumes jobs, and only then does `submit` send any.
    ///
    /// An exchange gets its bindings at once: messages to one with an alternate exchange would be dead-lettered before,
    /// and there are jobs in flight when one is declared again.
    ///
    /// # Errors
    /// [`DeclareError`], naming what exists with other arguments.
    pub async fn declare(&self, channels: &[&Channel]) -> Result<(), DeclareError> {
        let declared = self.try_declare(channels).await;
        let queues = self.queues.len();
        declared.map_err(|(what, name, source)| DeclareError { what, name: name.to_owned(), queues, source })?;
        self.was_declared.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn try_declare(&self, channels: &[&Channel]) -> Result<(), Refused<'_>> {
        let Some(first) = channels.first() else { return Ok(()) };
        let queues = |phase| self.queues.iter().filter(move |queue| queue.phase == phase).map(Part::Queue);
        spread(channels, queues(Phase::First).collect()).await?;
        spread(channels, queues(Phase::Log).collect()).await?;
        for exchange in &self.exchanges {
            exchange.declare(first).await?;
            let of_it = |binding: &&Binding| binding.source == exchange.name;
            spread(channels, self.bindings.iter().filter(of_it).map(Part::Binding).collect()).await?;
        }
        spread(channels, queues(Phase::Baton).collect()).await
    }

    /// As RabbitMQ's `definitions.json`, for import with `rabbitmqctl import_definitions` or the management page.
    pub fn definitions(&self, vhost: &str) -> Value {
        let exchanges: Vec<Value> = self
            .exchanges
            .iter()
            .map(|exchange| {
                let kind = exchange.kind.as_str();
                json!({"name": exchange.name, "vhost": vhost, "type": kind, "durable": true, "auto_delete": false,
                       "internal": false, "arguments": object(&exchange.arguments)})
            })
            .collect();
        let queues: Vec<Value> = self
            .queues
            .iter()
            .map(|queue| {
                json!({"name": queue.name, "vhost": vhost, "durable": true, "auto_delete": false,
                       "arguments": object(&queue.arguments)})
            })
            .collect();
        let bindings: Vec<Value> = self
            .bindings
            .iter()
            .map(|binding| {
                let target = binding.target.as_str();
                json!({"source": binding.source, "vhost": vhost, "destination": binding.destination,
                       "destination_type": target, "routing_key": binding.key, "arguments": {}})
            })
            .collect();
        json!({"exchanges": exchanges, "queues": queues, "bindings": bindings})
    }
}

/// What can be declared in parallel with others of its kind.
enum Part<'a> {
    Queue(&'a Queue),
    Binding(&'a Binding),
}

/// Declares `parts` in parallel, each over one of `channels`.
async fn spread<'a>(channels: &[&Channel], parts: Vec<Part<'a>>) -> Result<(), Refused<'a>> {
    let declaring = channels.iter().enumerate().map(|(first, channel)| {
        let parts = parts.iter().skip(first).step_by(channels.len());
        async move {
            for part in parts {
                match part {
                    Part::Queue(queue) => queue.declare(channel).await?,
                    Part::Binding(binding) => binding.declare(channel).await?,
                }
            }
            Ok(())
        }
    });
    try_join_all(declaring).await.map(drop)
}

/// For people: one line each.
impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.queues.iter().map(|queue| queue.name.len()).max().unwrap_or(0);
        for exchange in &self.exchanges {
            let (kind, arguments) = (exchange.kind.as_str(), list(&exchange.arguments));
            writeln!(f, "{}", format!("exchange  {:width$}  {kind} {arguments}", exchange.name).trim_end())?;
        }
        for queue in &self.queues {
            let arguments = list(&queue.arguments);
            writeln!(f, "{}", format!("queue     {:width$}  {arguments}", queue.name).trim_end())?;
        }
        for binding in &self.bindings {
            let target = binding.target.as_str();
            writeln!(f, "binding   {:width$}  {:?} -> {target} {}", binding.source, binding.key, binding.destination)?;
        }
        Ok(())
    }
}

fn list(arguments: &Arguments) -> String {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|(name, argument)| match argument {
            Argument::Text(text) => format!("{name}={text:?}"),
            Argument::Number(number) => format!("{name}={number}"),
            Argument::Flag(flag) => format!("{name}={flag}"),
        })
        .collect();
    arguments.join(" ")
}

fn quorum<const N: usize>(more: [(&'static str, Argument); N]) -> Arguments {
    let mut arguments = Arguments::from(more);
    arguments.insert("x-queue-type", Argument::Text("quorum".to_owned()));
    arguments
}

/// At-least-once dead-lettering: a message leaves the queue only once its target has confirmed it. RabbitMQ requires
/// `reject-publish` with it.
fn quorum_dead_lettering<const N: usize>(
    exchange: &str,
    key: Option<String>,
    more: [(&'static str, Argument); N],
) -> Arguments {
    let mut arguments = quorum(more);
    arguments.insert("x-dead-letter-exchange", Argument::Text(exchange.to_owned()));
    if let Some(key) = key {
        arguments.insert("x-dead-letter-routing-key", Argument::Text(key));
    }
    arguments.insert("x-dead-letter-strategy", Argument::Text("at-least-once".to_owned()));
    arguments.insert("x-overflow", Argument::Text("reject-publish".to_owned()));
    arguments
}

fn stream(max_age: &str, max_bytes: i64, segment_bytes: i64) -> Arguments {
    Arguments::from([
        ("x-queue-type", Argument::Text("stream".to_owned())),
        ("x-max-age", Argument::Text(max_age.to_owned())),
        ("x-max-length-bytes", Argument::Number(max_bytes)),
        ("x-stream-max-segment-size-bytes", Argument::Number(segment_bytes)),
    ])
}

fn table(arguments: &Arguments) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in arguments {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
            Argument::Flag(flag) => AMQPValue::Boolean(*flag),
        };
        table.insert((*name).into(), value);
    }
    table
}

fn object(arguments: &Arguments) -> Value {
    arguments
        .iter()
        .map(|(name, argument)| {
            let value = match argument {
                Argument::Text(text) => json!(text),
                Argument::Number(number) => json!(number),
                Argument::Flag(flag) => json!(flag),
            };
            ((*name).to_owned(), value)
        })
        .collect()
}

/// The callback for losses; does nothing by default.
pub(super) struct OnLoss(pub(super) Box<dyn Fn(usize) + Send + Sync>);

impl Default for OnLoss {
    fn default() -> Self {
        Self(Box::new(drop))
    }
}

impl fmt::Debug for OnLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnLoss")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_every_part_of_the_ladder_and_of_each_lane() {
        let lanes = [LaneName::parse("a").unwrap(), LaneName::parse("b").unwrap()];
        let definitions = Topology::new(&Names::new("wake"), &lanes).definitions("/");
        let queues = definitions["queues"].as_array().unwrap();
        let queue = |name: &str| queues.iter().find(|queue| queue["name"] == name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(queues.len(), 18 + 5 + 2 * 4);
        assert_eq!(queue("wake.delay.00")["arguments"]["x-message-ttl"], 1_000);
        assert_eq!(queue("wake.delay.17")["arguments"]["x-message-ttl"], 131_072_000);
        assert_eq!(queue("wake.delay.17")["arguments"]["x-dead-letter-exchange"], "wake.delay.16");
        assert_eq!(queue("wake.delay.00")["arguments"]["x-dead-letter-exchange"], "wake.delay.return");
        assert_eq!(queue("wake.baton.b")["arguments"]["x-single-active-consumer"], true);
        assert!(queues.iter().all(|queue| queue["name"].as_str().unwrap().starts_with("wake.")));
        let bindings = definitions["bindings"].as_array().unwrap();
        assert_eq!(bindings.len(), 3 + 18 * (2 + 19) + 2 * 3);
        let strays = |level: &str| {
            let from = |binding: &&Value| binding["source"] == level && binding["destination"] == "wake.unroutable";
            bindings.iter().filter(from).count()
        };
        assert_eq!([strays("wake.delay.00"), strays("wake.delay.17"), strays("wake.delay.return")], [19, 19, 0]);
    }
}
