//! All tests that need a broker, the simulator or the daemon, as one program: they mostly wait, and so can do it together.

mod api;
mod broker;
mod docs;
mod hostile;
mod job;
mod lane;
mod operator;
mod replica;
mod support;
mod tools;
