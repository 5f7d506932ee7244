//! What the daemon needs from RabbitMQ, and what happens to jobs while it is missing.

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
