//! reveille wakes fleets of Baidu AI Cloud (BCC) instances: start messages in RabbitMQ, signed and rate-limited calls,
//! outcome events and metrics.
//!
//! What lives where:
//! - [`config`]: what can be configured, with defaults and checks
//! - [`job`]: the message, and the progress that rides in its headers
//! - [`dead_letter`]: what became of a message, in its headers
//! - [`outcome`]: the event that says what became of a job
//! - [`bce`]: the signed client; knows nothing of RabbitMQ
//! - [`broker`]: connection, topology, confirmed publishing, the delay ladder; knows nothing of BCC
//! - [`ownership`]: which replica runs what
//! - [`lane`]: the way of a job from delivery to ack, and what decides on it ([`lane::verdict`])
//! - [`stop`]: how what runs is told to stop
//! - [`file`]: reading the small files that an operator names
//! - [`headers`]: reading AMQP headers
//! - [`retry`]: the arithmetic of backoff
//! - [`tasks`]: waiting for tasks that end in nothing but an error
//! - [`telemetry`]: metrics, health, logs
//! - [`text`]: escaping what others wrote, where it is shown
//! - [`cli`]: a file for each command

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
