//! What reveille publishes, in CloudEvents 1.0: one type, written and read.
//!
//! [`Event`] is the envelope, [`Data`] what events say by their type, and [`Outcome`] how a job ended. Anybody may have
//! written what is read: unknown types are kept, and what is no event reads as `None`. Authenticity is not checked
//! here, but by [`lane::history`](crate::lane), with seals.

mod announced;
mod control;
mod data;
mod event;
mod max_failures;
mod outcome;
mod schedule;
mod waves;

pub use self::announced::{Announced, Announcement};
pub use self::control::{Action, Applied, BY_LIMIT, Command, LanePaused, LaneResumed, REASON_LIMIT};
pub use self::data::{Batch, BatchCompleted, Data, JobEvent, LaneHeld, SchedulerHeld};
pub use self::event::{CONTENT_TYPE, Event, batch_key, is_traceparent};
pub use self::max_failures::MaxFailures;
pub use self::outcome::{CancelReason, Outcome, Phase, Reason};
pub use self::schedule::{
    ByHand, LaneBoots, LastCompleted, LastFired, MissedReason, Plan, ScheduleFired, ScheduleKnown, ScheduleMissed,
    ScheduleState, ScheduleStory,
};
pub use self::waves::{MOST_WAVES, Wave, Waves};
