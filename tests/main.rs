//! All tests that need a broker, the simulator or the daemon, as one program: they mostly wait, and so can do it together.

mod ambiguity;
mod api_faults;
mod baton;
mod bcc_sim;
mod broker_lost;
mod cluster;
mod deadline;
mod fleet;
mod mended;
mod network;
mod outcomes;
mod poison;
mod private_node;
mod publisher;
mod queues;
mod rate;
mod replicas;
mod retries;
mod secrets;
mod soak;
mod start;
mod stop;
mod submit;
mod support;
mod unreadable;
