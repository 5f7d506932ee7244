//! Several replicas share the lanes, and each lane has one holder.

mod balance;
mod baton;
mod replicas;
