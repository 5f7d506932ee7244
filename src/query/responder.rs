//! Answers queries to this replica, as long as nothing else needs the means for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{BoxStream, SelectAll};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};
use uuid::Uuid;

use super::Query;
use super::requester::DIRECT;
use crate::broker::connection::ConnectError;
use crate::broker::names::ASK;
use crate::broker::{
    self, Connection, ConnectionKind, Connections, Look, Names, Subscription, limit_of_channels, look,
};
use crate::config::Broker;
use crate::retry::half_jitter;

/// Queries that wait in the queue at most; of more, the oldest are dropped.
const WAITING: i64 = 16;
/// Bytes of those. A query has a few hundred.
const WAITING_BYTES: i64 = 64 * 1024;
/// How long a query waits in the queue, in milliseconds: its asker has given up by then.
const EXPIRES: i64 = 2_000;
/// Answers under way at a time; meanwhile further queries wait, or expire.
const ANSWERS: usize = 8;
/// Queries on their way to this replica.
const IN_HAND: u16 = 4;
/// Between two queries: at most twenty a second are taken.
const PAUSE: Duration = Duration::from_millis(50);
/// How long RabbitMQ may take for anything that is asked of it. It takes no answers while it is short of memory or disk, and
/// lapin leaves some calls pending for ever that are on their way as the connection ends.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the channel is left to lanes where RabbitMQ allows too few, as that of commands is.
const LIMITED: Duration = Duration::from_secs(10 * 60);
/// How often it is looked whether lanes need the connection.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the queue is bound again: its binding goes with an exchange that is deleted.
const BIND_EVERY: Duration = Duration::from_secs(30);
/// Ceilings of the backoff before it is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// A connection that lasted this long resets the backoff.
const GOOD_WHILE: Duration = Duration::from_secs(60);

/// An answer: the bodies of its messages, as they come. Nothing more is done for it once it is dropped.
pub type Answer = BoxStream<'static, Vec<u8>>;

/// Where an answer goes.
#[derive(Debug)]
struct Asker {
    reply_to: ShortString,
    id: Option<ShortString>,
    /// Notified to end the answer.
    gone: Notify,
}

/// Receives the queries to this replica.
#[derive(Debug)]
pub struct Responder {
    broker: Arc<Broker>,
    names: Names,
}

/// Why no queries are received at present.
#[derive(Debug, thiserror::Error)]
enum Stopped {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Broken(#[from] lapin::Error),
    #[error("RabbitMQ ended the subscription")]
    Ended,
    #[error("RabbitMQ takes nothing within {PATIENCE:?}")]
    TimedOut,
    #[error("a lane lacks a connection")]
    NotEnough,
    #[error("RabbitMQ limits channels")]
    Limited,
}

impl Responder {
    /// Opens nothing yet.
    pub fn new(broker: Arc<Broker>, names: Names) -> Self {
        Self { broker, names }
    }

    /// Receives queries while [`Connections::are_enough`], and sends what `answer` returns to a query with its body. What is wrong is logged once in a row, and tried again; but where RabbitMQ limits channels, the one for queries
    /// is left to lanes, replies and `submit` for [`LIMITED`]. Never ends.
    pub async fn run(&self, connections: &Connections, answer: impl Fn(Query, &[u8]) -> Answer) -> Infallible {
        let (mut failures, mut is_limited) = (0, false);
        loop {
            while !connections.are_enough() && !connections.are_limited_now() {
                sleep(LOOK_EVERY).await;
            }
            let since = Instant::now();
            let Err(stopped) = self.serve(connections, &answer).await;
            match &stopped {
                Stopped::NotEnough => continue,
                Stopped::Broken(error) if limit_of_channels(error).is_none() => {}
                Stopped::Limited | Stopped::Broken(_) => {
                    if !std::mem::replace(&mut is_limited, true) {
                        warn!(
                            "queries, as by `reveille status`, are not answered for now: RabbitMQ allows too few channels"
                        );
                    }
                    sleep(LIMITED).await;
                    continue;
                }
                _ => {}
            }
            is_limited = false;
            failures = if since.elapsed() > GOOD_WHILE { 1 } else { failures + 1 };
            if failures == 1 {
                warn!("queries, as by `reveille status`, are not answered, which is tried again: {stopped}");
            } else {
                debug!("queries are not answered: {stopped}");
            }
            sleep(half_jitter(FIRST_RETRY, LONGEST_RETRY, failures, rand::random())).await;
        }
    }

    async fn serve(
        &self,
        connections: &Connections,
        answer: impl Fn(Query, &[u8]) -> Answer,
    ) -> Result<Infallible, Stopped> {
        if connections.are_limited_now() {
            return Err(Stopped::Limited);
        }
        let connection = broker::connect(&self.broker, ConnectionKind::Queries).await?;
        let stopped = self.receive(&connection, connections, answer).await;
        connection.close().await;
        stopped
    }

    async fn receive(
        &self,
        connection: &Connection,
        connections: &Connections,
        answer: impl Fn(Query, &[u8]) -> Answer,
    ) -> Result<Infallible, Stopped> {
        // RabbitMQ may still have the queue of an earlier connection.
        let queue = self.names.replica(Uuid::now_v7());
        let mut queries = in_time(self.subscribe(connection, &queue)).await?;
        let mut bound = Instant::now();
        let mut ready = Instant::now();
        let mut answers = SelectAll::new();
        loop {
            if connections.are_limited_now() {
                return Err(Stopped::Limited);
            }
            if !connections.are_enough() {
                return Err(Stopped::NotEnough);
            }
            if bound.elapsed() > BIND_EVERY {
                in_time(self.bind(queries.channel(), &queue)).await?;
                bound = Instant::now();
            }
            let next = async {
                sleep_until(ready).await;
                queries.next().await
            };
            tokio::select! {
                query = next, if answers.len() < ANSWERS => {
                    let query = query.ok_or(Stopped::Ended)??;
                    in_time(query.acker.ack(BasicAckOptions::default())).await?;
                    ready = Instant::now() + PAUSE;
                    if let Some((known, asker)) = read(&query) {
                        let asker = Arc::new(asker);
                        let waiting = asker.clone();
                        let gone = Box::pin(async move { waiting.gone.notified().await });
                        let bodies = answer(known, &query.data).take_until(gone).enumerate();
                        answers.push(bodies.map(move |(number, body)| (asker.clone(), number, body)).boxed());
                    }
                }
                Some((asker, number, body)) = answers.next(), if !answers.is_empty() => {
                    // RabbitMQ drops what is sent to an asker that is gone, and tells of one that is asked for
                    // (<https://www.rabbitmq.com/docs/direct-reply-to>).
                    if number > 0 && in_time(look(connection, asker.reply_to.as_str())).await? == Look::Missing {
                        debug!("an answer is ended: its asker is gone");
                        asker.gone.notify_one();
                    } else {
                        in_time(send(queries.channel(), &asker, &body)).await?;
                    }
                }
                () = sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn subscribe(&self, connection: &Connection, queue: &str) -> Result<Subscription, lapin::Error> {
        let channel = connection.channel().await?;
        channel.basic_qos(IN_HAND, BasicQosOptions::default()).await?;
        let ours = QueueDeclareOptions { exclusive: true, auto_delete: true, ..Default::default() };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
        arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(WAITING));
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(WAITING_BYTES));
        arguments.insert("x-message-ttl".into(), AMQPValue::LongLongInt(EXPIRES));
        channel.queue_declare(queue.into(), ours, arguments).await?;
        self.bind(&channel, queue).await?;
        Subscription::open(channel, queue, BasicConsumeOptions::default(), FieldTable::default()).await
    }

    async fn bind(&self, channel: &Channel, queue: &str) -> Result<(), lapin::Error> {
        let (exchange, key) = (self.names.control(), format!("{ASK}.#"));
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, lapin::Error>>) -> Result<T, Stopped> {
    Ok(timeout(PATIENCE, asked).await.map_err(|_| Stopped::TimedOut)??)
}

/// A query that this version knows, and whose asker has a direct reply-to address.
fn read(query: &Delivery) -> Option<(Query, Asker)> {
    let known = Query::read(query.routing_key.as_str())?;
    let is_direct = |to: &ShortString| to.as_str().strip_prefix(DIRECT).is_some_and(|rest| rest.starts_with('.'));
    let reply_to = query.properties.reply_to().clone().filter(is_direct)?;
    Some((known, Asker { reply_to, id: query.properties.correlation_id().clone(), gone: Notify::new() }))
}

async fn send(channel: &Channel, asker: &Asker, body: &[u8]) -> Result<(), lapin::Error> {
    let mut properties = BasicProperties::default().with_content_type("application/json".into());
    if let Some(id) = &asker.id {
        properties = properties.with_correlation_id(id.clone());
    }
    let to = asker.reply_to.clone();
    channel.basic_publish("".into(), to, BasicPublishOptions::default(), body, properties).await.map(drop)
}
