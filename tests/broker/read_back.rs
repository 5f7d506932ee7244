//! The end of the outcomes' log is read back while other lanes write to it, and around unreadable messages.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};
use reveille::broker::Reader;
use reveille::config::Broker;

use crate::support::PATIENCE;
use crate::support::broker::{self, Vhost};
use crate::support::python::publish_odd;
use crate::support::queues::Queues;

const LOG: &str = "log";

/// An empty stream, a client that can write to it, and a reader.
async fn log(count: u32) -> (Vhost, Queues, Arc<Reader>) {
    let vhost = broker::vhost();
    let queues = Queues::connect(&vhost.url).await;
    queues.declare_stream(LOG).await;
    let broker = Arc::new(Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() });
    (vhost, queues, Arc::new(Reader::new(broker, LOG.to_owned(), count)))
}

/// What a lane reads up to the message `end`. Over the default exchange the lane has the stream's name.
async fn read_up_to(reader: &Arc<Reader>, lane: &str, end: &[u8]) -> Vec<Vec<u8>> {
    let mut messages = reader.read_back(lane);
    let mut bodies = Vec::new();
    let reading = async {
        while bodies.last().is_none_or(|last: &Vec<u8>| last != end) {
            bodies.push(messages.next().await.expect("it goes on").body);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the end is found");
    bodies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_others_write_to_is_read_back_each_time() {
    // More than the others write until the reader is connected.
    let (vhost, queues, reader) = log(2000).await;
    let others: Vec<Queues> = vec![Queues::connect(&vhost.url).await, Queues::connect(&vhost.url).await];
    let writing: Vec<_> = others
        .into_iter()
        .map(|other| {
            tokio::spawn(async move {
                loop {
                    other.publish("", LOG, BasicProperties::default(), b"another's").await;
                    tokio::time::sleep(Duration::from_millis(4)).await;
                }
            })
        })
        .collect();

    for round in 0..40 {
        let mark = format!("mark {round}");
        queues.publish("", LOG, BasicProperties::default(), mark.as_bytes()).await;
        read_up_to(&reader, LOG, mark.as_bytes()).await;
    }
    writing.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_stands_around_messages_that_cannot_be_read_is_read_back() {
    let (vhost, queues, reader) = log(5).await;
    let odd = || publish_odd(&vhost.url, "", LOG, &[("message_id", "odd"), ("frame:131072", "odd")]);
    odd();
    for number in 0..20 {
        queues.publish("", LOG, BasicProperties::default(), &[number]).await;
        if number == 9 {
            odd();
            odd();
        }
    }
    let from_the_first = Arc::new(Reader::new(
        Arc::new(Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() }),
        LOG.to_owned(),
        200,
    ));
    let read = read_up_to(&from_the_first, LOG, &[19]).await.concat();
    assert_eq!(read, (0..20).collect::<Vec<u8>>(), "and of the others nothing");

    // From the last one on, which is unreadable itself.
    odd();
    queues.publish("", LOG, BasicProperties::default(), b"end").await;
    odd();
    let count = read_up_to(&reader, LOG, b"end").await.len();
    assert!(count < 15, "it knows where the last one is: {count}");
}

#[tokio::test]
async fn lanes_that_ask_together_are_read_for_together() {
    const LANES: usize = 20;
    const SIZE: usize = 60 * 1024;
    const EVENTS: usize = 12;
    let (vhost, queues, reader) = log(4000).await;
    let channel = queues.connection.create_channel().await.unwrap();
    let none = FieldTable::default;
    channel.exchange_declare("x".into(), ExchangeKind::Topic, ExchangeDeclareOptions::default(), none()).await.unwrap();
    channel.queue_bind(LOG.into(), "x".into(), "#".into(), QueueBindOptions::default(), none()).await.unwrap();
    let lanes: Vec<String> = (0..LANES).map(|number| format!("lane-{number}")).collect();
    for round in 0..=EVENTS {
        for lane in &lanes {
            let body = if round == EVENTS { lane.clone().into_bytes() } else { vec![0; SIZE] };
            queues.publish("x", &format!("{lane}.started"), BasicProperties::default(), &body).await;
        }
    }
    // It never reaches its end, so the connection stays open for a while.
    let _endless = reader.read_back("another");
    let read = join_all(lanes.iter().map(|lane| read_up_to(&reader, lane, lane.as_bytes()))).await;
    for (lane, bodies) in lanes.iter().zip(&read) {
        let sizes: Vec<usize> = bodies.iter().map(Vec::len).collect();
        assert_eq!(sizes, [vec![SIZE; EVENTS], vec![lane.len()]].concat(), "each has its own, and no other's");
    }
    let listed = vhost.node.ctl(&["list_connections", "--no-table-headers", "vhost", "send_oct", "client_properties"]);
    let ours = |line: &&str| line.starts_with(&vhost.name) && line.contains("reveille log ");
    let sent: usize = listed.lines().find(ours).unwrap().split('\t').nth(1).unwrap().parse().unwrap();
    let once = EVENTS * LANES * SIZE;
    assert!(sent > once && sent < 2 * once, "{sent} bytes were sent, where {once} were to be read");
}
