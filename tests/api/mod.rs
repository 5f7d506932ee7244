//! The API's answers, and proxies and gateways in between.

mod answers;
mod api_faults;
mod client;
mod clock;
mod gateway;
mod keep_alive;
mod keys;
mod proxies;
