//! The floor: the least that could do this work. lapin delivery → reqwest PUT → outcome with a publisher confirm → ack,
//! and nothing else of the daemon: no signature, no limiter, no events, no metrics.
//!
//! Both of its queues are quorum queues, as the floor was defined when it was first measured. The daemon publishes its
//! outcomes, `mandatory`, to a topic exchange with a stream bound to it instead. Measured in this floor, that changes
//! neither jobs/s nor CPU by more than the noise, so the comparison holds.

use std::process;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};

use crate::client;

pub const JOBS: &str = "floor.jobs";
pub const OUTCOMES: &str = "floor.outcomes";
const PREFETCH: u16 = 200;

struct Floor {
    api: reqwest::Client,
    endpoint: String,
    outcomes: Channel,
}

/// Works until the process is ended.
pub fn run(broker: &str, endpoint: &str) -> Result<()> {
    // reqwest is built without a TLS provider of its own choosing, and insists on one even for plain HTTP.
    rustls::crypto::ring::default_provider().install_default().ok().context("a TLS provider is installed already")?;
    tokio::runtime::Runtime::new()?.block_on(work(broker, endpoint))
}

async fn work(broker: &str, endpoint: &str) -> Result<()> {
    let connection = Connection::connect(broker, ConnectionProperties::default()).await?;
    let jobs = connection.create_channel().await?;
    let outcomes = connection.create_channel().await?;
    jobs.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    outcomes.confirm_select(ConfirmSelectOptions::default()).await?;
    let floor = Arc::new(Floor { api: client::http()?, endpoint: endpoint.to_owned(), outcomes });
    let mut deliveries =
        jobs.basic_consume(JOBS.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    while let Some(delivery) = deliveries.next().await {
        let (floor, delivery) = (Arc::clone(&floor), delivery?);
        tokio::spawn(async move {
            if let Err(error) = floor.job(delivery).await {
                eprintln!("floor: {error:#}");
                process::exit(1);
            }
        });
    }
    Ok(())
}

impl Floor {
    async fn job(&self, delivery: Delivery) -> Result<()> {
        let body: serde_json::Value = serde_json::from_slice(&delivery.data)?;
        let instance = body["instance_id"].as_str().context("a job without instance_id")?;
        let answer = self.api.put(format!("{}/v2/instance/{instance}?start", self.endpoint)).send().await?;
        answer.error_for_status()?.bytes().await?;
        let confirm = self
            .outcomes
            .basic_publish(
                "".into(),
                OUTCOMES.into(),
                BasicPublishOptions::default(),
                &delivery.data,
                BasicProperties::default().with_delivery_mode(2),
            )
            .await?
            .await?;
        ensure!(confirm.is_ack(), "the broker refused an outcome");
        delivery.ack(BasicAckOptions::default()).await?;
        Ok(())
    }
}
