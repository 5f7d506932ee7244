//! What proves that the broker has taken charge: a message that no queue took is never counted as confirmed, however
//! many others are confirmed around it.

use std::sync::Arc;

use lapin::BasicProperties;
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use reveille::broker::{Outgoing, PublishError, connect};
use reveille::config::Broker;
use tokio::task::JoinSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_message_is_never_taken_for_a_confirmed_one() {
    let vhost = crate::support::broker::vhost();
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, "test").await.unwrap();
    let channel = connection.channel().await.unwrap();
    let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
    channel.exchange_declare("x".into(), ExchangeKind::Topic, durable, FieldTable::default()).await.unwrap();
    for (queue, kind) in [("q", "quorum"), ("s", "stream"), ("c", "classic")] {
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
        let key = format!("{queue}.*");
        channel
            .queue_bind(
                queue.into(),
                "x".into(),
                key.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    let publisher = connection.publisher(4);
    let mut publishing = JoinSet::new();
    for number in 0..4000 {
        let publisher = publisher.clone();
        // Different speeds of confirms, and one in ten that no queue takes.
        let key = if number % 10 == 3 {
            format!("nobody.{}", number % 7)
        } else {
            format!("{}.k", ["q", "s", "c"][number % 3])
        };
        publishing.spawn(async move {
            let nobody = key.starts_with("nobody");
            let message =
                Outgoing { exchange: "x".to_owned(), key, properties: BasicProperties::default(), body: vec![0; 600] };
            (nobody, publisher.try_publish(Arc::new(message)).await)
        });
    }
    let (mut taken, mut returned) = (0, 0);
    while let Some(ended) = publishing.join_next().await {
        match ended.unwrap() {
            (false, Ok(_)) => taken += 1,
            (true, Err(PublishError::Returned { .. })) => returned += 1,
            (nobody, other) => panic!("to nobody: {nobody}, and yet {other:?}"),
        }
    }
    assert_eq!((taken, returned), (3600, 400));
}

#[tokio::test]
async fn a_message_to_an_exchange_there_is_not_is_refused_and_the_next_one_goes() {
    let vhost = crate::support::broker::vhost();
    let broker = Broker { uri: vhost.url.parse().unwrap(), ..Broker::default() };
    let connection = connect(&broker, "test").await.unwrap();
    let channel = connection.channel().await.unwrap();
    channel.queue_declare("q".into(), QueueDeclareOptions::durable(), FieldTable::default()).await.unwrap();
    let publisher = connection.publisher(4);
    for _ in 0..8 {
        let to = |exchange: &str| {
            let (exchange, key) = (exchange.to_owned(), "q".to_owned());
            publisher.try_publish(Arc::new(Outgoing {
                exchange,
                key,
                properties: BasicProperties::default(),
                body: vec![],
            }))
        };
        assert!(matches!(to("nowhere").await, Err(PublishError::Forbidden { .. })));
        assert!(to("").await.is_ok());
    }
}
