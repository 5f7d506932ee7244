//! The signed BCC client: credentials, signature, call, answer. Knows nothing of RabbitMQ.
//!
//! API facts and their sources are collected in the API pages of Baidu AI Cloud:
//! <https://cloud.baidu.com/doc/BCC/s/Mjwvyobl0> (start), <https://cloud.baidu.com/doc/BCC/s/Ojwvyo6nc> (errors).

pub mod answer;
pub mod client;
pub mod credentials;
pub mod instance;
pub mod sign;

pub use answer::{Answer, NoAnswer};
pub use client::{Client, Endpoint, Operation, Timeouts};
pub use credentials::{CredentialSource, Credentials};
pub use instance::{InstanceId, InstanceState};
