//! The signed BCC client: credentials, signature, call, answer. Knows nothing of RabbitMQ.
//!
//! The API's facts are from the API pages of Baidu AI Cloud: <https://cloud.baidu.com/doc/BCC/s/Mjwvyobl0> (start),
//! <https://cloud.baidu.com/doc/BCC/s/Ojwvyo6nc> (errors).

pub mod answer;
pub mod calls;
pub mod client;
pub mod clock;
pub mod codes;
pub mod credentials;
pub mod endpoint;
pub mod instance;
mod keep_alive;
pub mod key_file;
pub mod keys;
pub mod list;
pub mod proxy;
pub mod selection;
pub mod sign;
mod tls;

pub use answer::{Answer, NoAnswer, Reading, RequestId};
pub use calls::{MOST_IDS, Operation};
pub use client::{Client, ClientError, Timeouts};
pub use codes::{AtFault, Codes, Meaning, Word};
pub use credentials::{CredentialError, CredentialSource, Credentials};
pub use endpoint::Endpoint;
pub use instance::{InstanceId, InstanceState};
pub use key_file::KeyFile;
pub use list::{Listed, Page};
pub use proxy::{Proxies, Proxy, ProxyFault};
pub use selection::Selection;
