//! What became of a job, and what else reveille publishes: the events that others read.

mod event;
mod outcome;

pub use self::event::{Batch, CONTENT_TYPE, Data, Event, is_traceparent, lane_held};
pub use self::outcome::{Outcome, Phase, Reason};
