//! The runner's use of RabbitMQ: fill a queue, count it, empty it.

use std::collections::VecDeque;

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, PublisherConfirm};

/// Bytes of a job: the size with which the floor was first measured.
const BODY: usize = 300;
/// Publishes awaiting their confirm at a time: enough to keep the broker busy, few enough for its flow control.
const UNCONFIRMED: usize = 1_000;

/// The runner's own connection, apart from those of the clients it measures.
pub struct Broker {
    connection: Connection,
    channel: Channel,
}

impl Broker {
    pub async fn connect(url: &str) -> Result<Self> {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.context("no broker")?;
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { connection, channel })
    }

    pub async fn close(self) -> Result<()> {
        self.connection.close(200, "done".into()).await.context("closing the runner's connection")
    }

    pub async fn declare_quorum(&self, queue: &str) -> Result<()> {
        declare_quorum(&self.channel, queue).await
    }

    /// Messages ready for delivery. A quorum queue's leader answers this exactly, from memory.
    pub async fn ready(&self, queue: &str) -> Result<u32> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let state = self.channel.queue_declare(queue.into(), passive, FieldTable::default()).await;
        Ok(state.with_context(|| format!("counting {queue}"))?.message_count())
    }

    pub async fn purge(&self, queue: &str) -> Result<()> {
        self.channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        Ok(())
    }

    /// Publishes `jobs` jobs, as durably as a careful producer would, and waits for every confirm.
    pub async fn fill(&self, exchange: &str, routing_key: &str, jobs: u32) -> Result<()> {
        let mut confirms = VecDeque::with_capacity(UNCONFIRMED);
        for number in 0..jobs {
            if confirms.len() == UNCONFIRMED {
                confirmed(confirms.pop_front()).await?;
            }
            let properties = BasicProperties::default()
                .with_delivery_mode(2)
                .with_content_type("application/json".into())
                .with_message_id(format!("bench-{number:08}").into());
            let confirm = self
                .channel
                .basic_publish(
                    exchange.into(),
                    routing_key.into(),
                    BasicPublishOptions::default(),
                    job(number).as_bytes(),
                    properties,
                )
                .await?;
            confirms.push_back(confirm);
        }
        for confirm in confirms {
            confirmed(Some(confirm)).await?;
        }
        Ok(())
    }
}

pub async fn declare_quorum(channel: &Channel, queue: &str) -> Result<()> {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let declared = channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments).await;
    declared.with_context(|| format!("declaring {queue}"))?;
    Ok(())
}

async fn confirmed(confirm: Option<PublisherConfirm>) -> Result<()> {
    if let Some(confirm) = confirm {
        ensure!(confirm.await?.is_ack(), "the broker refused a job");
    }
    Ok(())
}

/// A job of exactly [`BODY`] bytes for an instance of its own.
fn job(number: u32) -> String {
    let head = format!(r#"{{"instance_id":"i-{number:08}","batch_id":"bench","labels":{{"pad":""#);
    let tail = r#""}}"#;
    let pad = BODY - head.len() - tail.len();
    format!("{head}{:x<pad$}{tail}", "")
}
