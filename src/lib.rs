//! reveille wakes fleets of Baidu AI Cloud (BCC) instances: start messages in RabbitMQ, signed and rate-limited calls,
//! outcome events and metrics.
//!
//! Modules:
//! - [`cli`]: the commands, each in its file
//! - [`config`]: the settings, with defaults and checks
//! - [`job`]: the message, the progress in its headers, and the reasons to park it
//! - [`events`]: one event type, written and read; outcomes and their reasons
//! - [`dead_letter`]: the outcome of a message, in its headers
//! - [`bce`]: the signed client, and what an error code means by itself ([`bce::codes`]); knows nothing of RabbitMQ
//! - [`broker`]: connections, topology, confirmed publishing, the delay ladder, reading a stream; knows nothing of BCC
//! - [`ownership`]: which replica runs what, and how replicas share the lanes
//! - [`control`]: commands of people: a lane paused by hand, jobs cancelled, an instance snoozed
//! - [`lane`]: the way of a job from delivery to ack, and the decisions on it ([`lane::verdict`]: what an answer means
//!   for a job, with its policy and past)
//! - [`query`]: what only a running replica knows, asked over RabbitMQ
//! - [`scheduler`]: what one replica does for all lanes: it publishes that a batch is done
//! - [`telemetry`]: metrics, health, logs
//! - [`file`]: reading the small files that an operator names
//! - [`headers`]: reading AMQP headers
//! - [`replica`]: which process this is
//! - [`retry`]: the arithmetic of backoff
//! - [`similar`]: which known name was meant by an unknown one
//! - [`stop`]: graceful stop of running tasks
//! - [`tasks`]: waiting for tasks that return only errors
//! - [`text`]: escaping text from outside where it is shown
//! - [`wildcard`]: patterns with `*`
//!
//! `ARCHITECTURE.md` says where a new error code, metric, reason or command goes.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod bce;
pub mod broker;
pub mod cli;
pub mod config;
pub mod control;
pub mod dead_letter;
pub mod events;
pub mod file;
pub mod fleet;
pub mod headers;
pub mod job;
pub mod lane;
pub mod ownership;
pub mod query;
pub mod replica;
pub mod retry;
pub mod schedule;
pub mod scheduler;
pub mod similar;
pub mod stop;
pub mod tasks;
pub mod telemetry;
pub mod text;
pub mod wildcard;
