//! A stream is read from an offset, from a time or from before its end, and then followed, until that fails.

use std::time::Duration;

use jiff::Timestamp;
use lapin::BasicProperties;
use lapin::options::QueueDeleteOptions;
use reveille::broker::{self as client, Connection, ConnectionKind, Position, Stream, StreamError, is_not_found};
use reveille::config::Broker;
use tokio::time::{sleep, timeout};

use crate::support::PATIENCE;
use crate::support::broker::{self, Vhost};
use crate::support::python::publish_odd;
use crate::support::queues::Queues;

const LOG: &str = "log";

/// A stream, somebody who can write to it, and a connection to read it over.
struct Log {
    vhost: Vhost,
    queues: Queues,
    connection: Connection,
}

impl Log {
    async fn empty() -> Self {
        let vhost = broker::vhost();
        let queues = Queues::connect(&vhost.url).await;
        queues.declare_stream(LOG).await;
        let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
        let connection = client::connect(&broker, ConnectionKind::Log).await.unwrap();
        Self { vhost, queues, connection }
    }

    /// Each of these in a message of its own, at the offset that it says.
    async fn write(&self, numbers: std::ops::Range<u8>) {
        for number in numbers {
            self.queues.publish("", LOG, BasicProperties::default(), &[number]).await;
        }
    }

    async fn read(&self, from: Position) -> Stream {
        let opening = Stream::open(&self.connection, LOG, from);
        timeout(PATIENCE, opening).await.expect("it is opened in time").expect("it is there")
    }
}

async fn next(stream: &mut Stream) -> Result<(u64, Vec<u8>), StreamError> {
    let entry = timeout(PATIENCE, stream.next()).await.expect("something comes")?;
    assert_eq!(entry.key, LOG);
    Ok((entry.offset, entry.message.body))
}

/// What comes next are these messages, each at the offset that it says.
async fn follows(stream: &mut Stream, numbers: std::ops::Range<u8>) {
    for number in numbers {
        assert_eq!(next(stream).await.unwrap(), (number.into(), vec![number]));
    }
}

#[tokio::test]
async fn a_stream_is_read_from_an_offset_and_followed() {
    let log = Log::empty().await;
    log.write(0..10).await;
    let mut stream = log.read(Position::Offset(7)).await;
    follows(&mut stream, 7..10).await;
    let more = timeout(Duration::from_millis(300), stream.next()).await;
    assert!(more.is_err(), "it waits for more: {more:?}");
    log.write(10..12).await;
    follows(&mut stream, 10..12).await;

    // Behind the last one, where another left off.
    let mut end = log.read(Position::Offset(12)).await;
    log.write(12..13).await;
    publish_odd(&log.vhost.url, "", LOG, &[("message_id", "odd"), ("frame:131072", "odd")]);
    log.write(15..16).await;
    for reading in [&mut stream, &mut end] {
        follows(reading, 12..13).await;
        for odd in [13, 14] {
            assert_eq!(next(reading).await.unwrap(), (odd, Vec::new()), "what cannot be read is counted");
        }
        follows(reading, 15..16).await;
    }
    follows(&mut log.read(Position::Offset(0)).await, 0..13).await;
}

#[tokio::test]
async fn a_stream_is_read_from_a_time_and_followed() {
    let log = Log::empty().await;
    let before = Timestamp::now();
    log.write(0..3).await;
    // RabbitMQ takes whole seconds.
    sleep(Duration::from_millis(2100)).await;
    let between = Timestamp::now();
    log.write(3..6).await;
    let mut stream = log.read(Position::Time(between)).await;
    follows(&mut stream, 3..6).await;
    log.write(6..7).await;
    follows(&mut stream, 6..7).await;
    for from in [before, Timestamp::MIN] {
        follows(&mut log.read(Position::Time(from)).await, 0..7).await;
    }
}

#[tokio::test]
async fn a_stream_is_read_from_before_its_end_and_followed() {
    let log = Log::empty().await;
    let (mut stream, ()) = tokio::join!(log.read(Position::Last(5)), async {
        sleep(Duration::from_millis(200)).await;
        log.write(0..1).await;
    });
    follows(&mut stream, 0..1).await;
    log.write(1..20).await;
    follows(&mut stream, 1..20).await;
    follows(&mut log.read(Position::Last(5)).await, 14..20).await;
    follows(&mut log.read(Position::Last(100)).await, 0..20).await;
}

#[tokio::test]
async fn a_stream_that_is_read_no_further_says_why() {
    let log = Log::empty().await;
    log.write(0..1).await;
    let mut deleted = log.read(Position::Offset(0)).await;
    follows(&mut deleted, 0..1).await;
    let channel = log.queues.connection.create_channel().await.unwrap();
    channel.queue_delete(LOG.into(), QueueDeleteOptions::default()).await.unwrap();
    let ended = next(&mut deleted).await;
    assert!(matches!(ended, Err(StreamError::Ended)), "{ended:?}");

    let absent = Stream::open(&log.connection, LOG, Position::Last(1)).await;
    assert!(matches!(&absent, Err(StreamError::Broken(error)) if is_not_found(error)), "{absent:?}");

    log.queues.declare_stream("another").await;
    let mut cut = Stream::open(&log.connection, "another", Position::Offset(0)).await.unwrap();
    log.vhost.node.ctl(&["close_all_connections", "--vhost", &log.vhost.name, "test"]);
    let lost = timeout(PATIENCE, cut.next()).await.expect("it is noticed");
    assert!(matches!(lost, Err(StreamError::Broken(_))), "{lost:?}");
}
