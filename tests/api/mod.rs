//! What the API answers, and what comes between it and the client.

mod answers;
mod api_faults;
mod client;
mod clock;
mod gateway;
mod keep_alive;
mod keys;
mod proxies;
