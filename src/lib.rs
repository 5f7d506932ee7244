//! reveille wakes fleets of Baidu AI Cloud (BCC) instances: start messages in RabbitMQ, signed and rate-limited calls,
//! outcome events and metrics.
//!
//! Modules:
//! - [`config`]: the settings, with defaults and checks
//! - [`job`]: the message, and the progress in its headers
//! - [`dead_letter`]: the outcome of a message, in its headers
//! - [`events`]: one event type, written and read; outcomes and their reasons
//! - [`bce`]: the signed client; knows nothing of RabbitMQ
//! - [`broker`]: connection, topology, confirmed publishing, the delay ladder; knows nothing of BCC
//! - [`ownership`]: which replica runs what
//! - [`lane`]: the way of a job from delivery to ack, and the decisions on it ([`lane::verdict`]: what an answer means)
//! - [`stop`]: graceful stop of running tasks
//! - [`file`]: reading the small files that an operator names
//! - [`headers`]: reading AMQP headers
//! - [`retry`]: the arithmetic of backoff
//! - [`tasks`]: waiting for tasks that return only errors
//! - [`telemetry`]: metrics, health, logs
//! - [`text`]: escaping text from outside where it is shown
//! - [`cli`]: the commands, each in its file

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bce;
pub mod broker;
pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod events;
pub mod file;
pub mod headers;
pub mod job;
pub mod lane;
pub mod ownership;
pub mod retry;
pub mod stop;
pub mod tasks;
pub mod telemetry;
pub mod text;
