//! Hostile input harms its own message and no other.

mod inbound;
mod orders;
mod poison;
mod shown;
mod strays;
mod unreadable;
