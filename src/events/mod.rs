//! What reveille publishes, in CloudEvents 1.0: one type, written and read.
//!
//! [`Event`] is the envelope, [`Data`] what events say by their type, and [`Outcome`] how a job ended. Anybody may have
//! written what is read: unknown types are kept, and what is no event reads as `None`. Authenticity is not checked
//! here, but by [`lane::history`](crate::lane), with seals.

mod announced;
mod data;
mod event;
mod outcome;

pub use self::announced::{Announced, Announcement};
pub use self::data::{Batch, Data, JobEvent, LaneHeld};
pub use self::event::{CONTENT_TYPE, Event, is_traceparent};
pub use self::outcome::{Outcome, Phase, Reason};
