//! A lane: when it calls, how fast, and when it pauses.

mod evidence;
mod lanes;
mod pause;
mod queues;
mod rate;
