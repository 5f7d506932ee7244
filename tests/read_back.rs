//! The end of the outcomes' log is read back while other lanes write to it, and around what nobody can read.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use reveille::broker::Reader;
use reveille::config::Broker;

use crate::support::PATIENCE;
use crate::support::broker::{self, Vhost};
use crate::support::python::publish_odd;
use crate::support::queues::Queues;

const LOG: &str = "log";

/// An empty stream, somebody who can write to it, and a reader.
async fn log() -> (Vhost, Queues, Reader) {
    let vhost = broker::vhost();
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    channel.queue_declare(LOG.into(), QueueDeclareOptions::durable(), stream).await.unwrap();
    let reader = Reader::new(Arc::new(Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() }));
    (vhost, queues, reader)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_others_write_to_is_read_back_each_time() {
    let (vhost, queues, reader) = log().await;
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
        // More than the others write until the reader has its connection.
        let reading = reader.read_back(LOG, 2000, |message| {
            if message.body == mark.as_bytes() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        tokio::time::timeout(PATIENCE, reading).await.expect("the mark is found").unwrap();
    }
    writing.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn what_stands_around_messages_that_cannot_be_read_is_read_back() {
    let (vhost, queues, reader) = log().await;
    let odd = || publish_odd(&vhost.url, "", LOG, &[("message_id", "odd"), ("frame:131072", "odd")]);
    odd();
    for number in 0..20 {
        queues.publish("", LOG, BasicProperties::default(), &[number]).await;
        if number == 9 {
            odd();
            odd();
        }
    }
    let mut read = Vec::new();
    let reading = reader.read_back(LOG, 200, |message| {
        read.extend_from_slice(&message.body);
        if message.body == [19] { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    tokio::time::timeout(PATIENCE, reading).await.expect("the end is found").unwrap();
    assert_eq!(read, (0..20).collect::<Vec<u8>>(), "and of the others nothing");

    // From the last one on, which is odd itself.
    odd();
    queues.publish("", LOG, BasicProperties::default(), b"end").await;
    odd();
    let (mut bodies, mut count) = (Vec::new(), 0);
    let reading = reader.read_back(LOG, 5, |message| {
        bodies.extend_from_slice(&message.body);
        count += 1;
        if message.body == b"end" { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    tokio::time::timeout(PATIENCE, reading).await.expect("the end is found").unwrap();
    assert!(bodies.ends_with(b"end") && count < 15, "it knows where the last one is: {count}");
}
