//! The lane's quota: calls per second, calls in flight, and which replica may make them.
//!
//! [`Gate`] is the only way in, and gives [`Permit`]s: no call of the API is made without one.

mod adaptive;
mod gate;
mod limiter;
mod share;
mod slots;
mod spare;

pub use self::gate::{Gate, Paused, Permit};
pub use self::limiter::Limiter;
pub(super) use self::share::Share;
pub use self::slots::Slot;
