//! The end of the outcomes' log is read back while other lanes write to it.

use std::ops::ControlFlow;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use reveille::broker::{connect, read_back};
use reveille::config::Broker;

use crate::support::queues::Queues;
use crate::support::{PATIENCE, broker};

const LOG: &str = "log";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_others_write_to_is_read_back_each_time() {
    let vhost = broker::vhost();
    let queues = Queues::connect(&vhost.url).await;
    let channel = queues.connection.create_channel().await.unwrap();
    let mut stream = FieldTable::default();
    stream.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    channel.queue_declare(LOG.into(), QueueDeclareOptions::durable(), stream).await.unwrap();
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

    let settings = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&settings, "test").await.unwrap();
    for round in 0..40 {
        let mark = format!("mark {round}");
        queues.publish("", LOG, BasicProperties::default(), mark.as_bytes()).await;
        let reading = read_back(&connection, LOG, 200, |message| {
            if message == mark.as_bytes() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        tokio::time::timeout(PATIENCE, reading).await.expect("the mark is found").unwrap();
    }
    writing.iter().for_each(tokio::task::JoinHandle::abort);
}
