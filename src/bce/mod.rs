//! The signed BCC client. Knows nothing of RabbitMQ.

pub mod sign;
