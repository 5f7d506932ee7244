//! What the daemon needs of RabbitMQ, and what becomes of jobs while it does not have it.

mod addresses;
mod broker_lost;
mod cluster;
mod connections;
mod login;
mod mended;
mod network;
mod permissions;
mod policies;
mod publisher;
mod read_back;
mod stream;
mod tls;
