//! What reveille publishes, in CloudEvents 1.0: one type, written and read.
//!
//! [`Event`] is the envelope, [`Data`] what events say by their type, and [`Outcome`] how a job ended. Anybody may have
//! written what is read: a type that is not known here is kept as it is, what is no event at all is none, and whether an event is
//! the daemon's own is not asked here (its seal tells, see [`history`](crate::lane)).

mod data;
mod event;
mod outcome;

pub use self::data::{Batch, Data, JobEvent, LaneHeld};
pub use self::event::{CONTENT_TYPE, Event, is_traceparent};
pub use self::outcome::{Outcome, Phase, Reason};
