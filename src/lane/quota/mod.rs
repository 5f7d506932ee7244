//! The lane's quota: how many calls a second, how many at a time, and whose.
//!
//! [`Gate`] is the one way in, and [`Permit`] the right that it gives: no call of the API is made without one.

mod adaptive;
mod gate;
mod limiter;
mod share;
mod slots;
mod spare;

pub use self::gate::{Gate, Paused, Permit};
pub(super) use self::share::Share;
pub use self::slots::Slot;
